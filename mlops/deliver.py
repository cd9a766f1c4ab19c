"""python -m mlops.deliver FOLDER: deliver a sweep's journals from a host that only trains for it.

The workers of a cluster that keep their files in a home of their own start it, one a host: who
holds the folder works, and another one ends at once. It is a process of its own so that no training
waits for it, and so that what a killed worker left is delivered all the same. It ends by itself
when nothing has come for a while; `python -m mlops.sync` does what it could not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mlops.drain import LOOK_AT_LEAST_EVERY_S, LOOK_EVERY_S, Delivery, Sink, hold_folder
from mlops.errors import MlopsError, UsageError, first_line
from mlops.journal import find_journals
from mlops.program import answer, run_program
from mlops.settings import Settings
from mlops.stores.journal_state import is_delivered_now

IDLE_S = 30.0
"""Seconds without a journal after which a host's delivery ends."""

STUCK_S = 3600.0
"""Seconds without a record delivered after which it ends, although something is left."""

CHECK_S = 90.0
LOG = "delivery.log"


def deliver(
    folder: Path,
    open_sink: Callable[[], Sink],
    *,
    idle_s: float = IDLE_S,
    stuck_s: float = STUCK_S,
) -> int:
    """Delivers a folder's journals until nothing comes any more; at once if another does so.

    Args:
        folder: The sweep's journal folder in this host's home.
        open_sink: Opens what is delivered to; called in this thread.

    Returns:
        The number of records delivered.
    """
    with hold_folder(folder) as held:
        if not held:
            return 0
        delivery = Delivery(folder, open_sink)
        heard = time.monotonic()
        pause_s = LOOK_EVERY_S
        while True:
            progress = delivery.run_pass()
            now = time.monotonic()
            heard = now if progress else heard
            if now - heard > (stuck_s if find_journals(folder) else idle_s):
                return delivery.n_delivered
            failed = delivery.may_pass and not progress
            pause_s = min(pause_s * 2, LOOK_AT_LEAST_EVERY_S) if failed else LOOK_EVERY_S
            time.sleep(pause_s)


def start_delivery(folder: Path, home: Path, server: str) -> None:
    """Has a process deliver a folder from now on, unless one does so.

    Args:
        folder: The sweep's journal folder, in `home`.
        home: This host's; takes the log of the process.
        server: The tracking server; the login is that of this process's environment.
    """
    if is_delivered_now(folder):
        return
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / LOG).open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "mlops.deliver", str(folder)],
            env=_env(home, server),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives a worker that is killed
        )


def find_unreachable(home: Path, server: str) -> str | None:
    """Returns why nothing could be delivered from here, the end of a sentence; None if it could.

    Args:
        home: As in `start_delivery`.
        server: The tracking server.
    """
    command = [sys.executable, "-m", "mlops.deliver", "--check"]
    try:
        done = subprocess.run(
            command, env=_env(home, server), capture_output=True, text=True, timeout=CHECK_S
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {CHECK_S:.0f} s"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return last.removeprefix("python -m mlops.deliver: ").rstrip(".")


def _env(home: Path, server: str) -> dict[str, str]:
    return {**os.environ, "MLOPS_HOME": str(home), "MLFLOW_TRACKING_URI": server}


def _check(settings: Settings) -> None:
    """Asks the tracking server for what anybody may see who may write runs.

    Raises:
        MlopsError: it does not answer, or refuses the login.
    """
    from mlops.mlflow_store import open_client

    try:
        open_client(settings.direct_uri).search_experiments(max_results=1)
    except Exception as err:
        raise MlopsError(f"the tracking server cannot be used: {first_line(err)}") from err


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path | None, tyro.conf.Positional] = None
    """The sweep's journal folder."""
    check: bool = False
    """Only ask whether the tracking server answers and takes the login."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    settings = Settings.from_env()
    if options.check:
        _check(settings)
        return 0
    if options.folder is None:
        raise UsageError("there is no folder to deliver; expected one of MLOPS_HOME/journal.")
    from mlops.mlflow_sink import MlflowSink
    from mlops.mlflow_store import open_store_client

    n_records = deliver(options.folder, lambda: MlflowSink(open_store_client(settings)))
    answer(f"{options.folder.name}: {n_records} records delivered.")
    return 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.deliver",
        description="Deliver a sweep's journals from a host that only trains for it.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
