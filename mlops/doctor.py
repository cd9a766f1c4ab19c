"""python -m mlops.doctor: what is wrong here, and the command that mends it. It changes nothing.

It looks at the settings, the disk and the GPU, and asks each store of the home
(`mlops.stores.store`).
Every check is made, whatever another finds; one that fails itself is a finding, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops.errors import MlopsError, UsageError, first_line, without_passwords
from mlops.program import answer, answer_json, command_line, run_program

if TYPE_CHECKING:
    from mlops.settings import Settings
    from mlops.stores.store import Finding, Health


def examine(env: Mapping[str, str], *, debug: bool = False) -> dict[str, Health]:
    """Returns the health of every area, by name; what cannot be looked at is left out.

    Args:
        env: Where the settings stand.
        debug: Whether a check that fails raises, instead of being a finding.
    """
    from mlops.machine import check_disk, check_gpu
    from mlops.settings_check import check_settings
    from mlops.stores.store import Finding, Health, open_stores

    settings, health = check_settings(env)
    found = {"settings": health}
    if settings is not None:
        checks: dict[str, Callable[[], Health]] = {
            "disk": lambda: check_disk(find_places(settings))
        }
        stores = open_stores(settings)
        checks |= {store.name: store.check for store in stores}
        found |= {name: _run_check(name, check, debug) for name, check in checks.items()}
        if not stores:
            wrong = "no store is known; Podium is neither installed nor run from its checkout."
            mend = command_line("python", "-m", "pip", "install", "podium-mlops")
            found["stores"] = Health("", (Finding("stores", wrong, mend),))
    found["gpu"] = _run_check("gpu", check_gpu, debug)
    return found


def find_places(settings: Settings) -> list[Path]:
    """Returns the folders that grow, on whatever disk each lies; none of a server's."""
    from mlops.dataset_store import open_dataset_store

    files = (settings.study_url, settings.direct_uri)
    databases = [Path(url.partition(":///")[2]) for url in files if url.startswith("sqlite")]
    folders = [settings.home, *(path.parent for path in databases)]
    if settings.embedded:
        folders.append(settings.artifact_root)
    with contextlib.suppress(UsageError):  # which is a finding of its own
        folders.append(open_dataset_store(settings).folder)
    return [folder.absolute() for folder in folders]


def _run_check(name: str, check: Callable[[], Health], debug: bool) -> Health:
    from mlops.settings_check import split_error
    from mlops.stores.store import Finding, Health

    try:
        return check()
    except MlopsError as err:
        wrong, mend = split_error(err)
        return Health("", (Finding(name, wrong, mend or "No command is known that mends it."),))
    except Exception as err:
        if debug:
            raise
        wrong = f"it cannot be looked at: {type(err).__name__}: {first_line(err)}."
        mend = f"See where, by: {command_line('python', '-m', 'mlops.doctor', '--debug')}"
        return Health("", (Finding(name, wrong, mend),))


def as_text(found: Mapping[str, Health]) -> str:
    """Returns a line an area and, under it, each finding with what mends it."""
    lines: list[str] = []
    for name, health in found.items():
        n_findings = len(health.findings)
        state = "fine" if n_findings == 0 else _count(n_findings)
        lines.append(f"{name}: {'; '.join(filter(None, (state, health.says)))}")
        for one in health.findings:
            lines += [f"  {without_passwords(one.wrong)}", f"    {one.mend}"]
    total = sum(len(health.findings) for health in found.values())
    return "\n".join([*lines, "", "Everything is fine." if total == 0 else f"{_count(total)}."])


def to_json(found: Mapping[str, Health]) -> dict[str, Any]:
    return {
        "findings": [asdict(one) for one in all_findings(found)],
        "areas": [
            {"name": name, "says": health.says, "n_findings": len(health.findings)}
            for name, health in found.items()
        ],
    }


def all_findings(found: Mapping[str, Health]) -> list[Finding]:
    return [one for health in found.values() for one in health.findings]


def _count(n_findings: int) -> str:
    return f"{n_findings} finding{'s' * (n_findings != 1)}"


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    found = examine(os.environ, debug=options.debug)
    if options.json:
        answer_json(to_json(found))
    else:
        answer(as_text(found))
    return 1 if all_findings(found) else 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.doctor",
        description="Say what is wrong here, and the command that mends it. Exit code 0 is fine.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
