"""python -m mlops.upgrade: the databases brought to the schema of what is installed, or made.

One command for MLflow's runs and accounts, Optuna's studies and the ledger. It begins nothing while
somebody writes to any of them, and names who does. Killed in the middle, the same command goes on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from mlops.errors import MlopsError
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

_SESSION = re.compile(r"a session of (\S+).* in the database (.+), pid \d+")
"""How `mlops.stores.schema_upgrade.find_sessions` says it."""


def upgrade(settings: Settings) -> dict[str, str]:
    """Brings all stores to the format of this version; returns what was done, by store.

    Raises:
        MlopsError: somebody writes to one of them, and nothing was done; or one was written by a
            newer version, or does not answer, and those before it are done.
    """
    from mlops.stores.store import get_stores

    stores = get_stores(settings)
    writers = dict.fromkeys(who for store in stores for who in store.writers())
    if writers:
        raise MlopsError(
            f"nothing was upgraded, since there are writers: {'; '.join(_count(writers))}. End "
            "them, and type the same command again."
        )
    return {store.name: store.upgrade() for store in stores}


def _count(writers: Iterable[str]) -> list[str]:
    """Returns the writers, of one login's sessions in a database only how many: a pool has ten."""
    alike: dict[str, list[str]] = {}
    for who in writers:
        alike.setdefault(_SESSION.sub(r"sessions of \1 in the database \2", who), []).append(who)
    return [
        those[0] if len(those) == 1 else f"{len(those)} {words}" for words, those in alike.items()
    ]


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    settings = Settings.from_env()
    backup = command_line("python", "-m", "mlops.backup", "TARGET")
    say(f"An older version cannot read what this one upgraded. Make a backup first: {backup}")
    done = upgrade(settings)
    if options.json:
        answer_json({"stores": done})
    else:
        answer("\n".join(f"{name}: {what}" for name, what in done.items()))
    return 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.upgrade",
        description="Bring the databases to the schema of this version, or make them. "
        "Make a backup first.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
