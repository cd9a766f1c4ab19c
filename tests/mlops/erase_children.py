"""An erasure in a child process that dies at the place it is told to; see tests/forked.py."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from mlops.erase import erase
from mlops.errors import MlopsError
from mlops.settings import Settings
from registry.failpoints import VARIABLE
from tests.forked import FORK

END_S = 180.0


class _Deadly:
    """A stderr that kills the process at the line that it waits for."""

    def __init__(self, line: str) -> None:
        self._line = line

    def write(self, text: str) -> int:
        if self._line and text.startswith(self._line):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(text)

    def flush(self) -> None:
        pass


def erase_and_die(home: Path, dataset: str, replace: dict[str, int], place: str) -> int | None:
    """Erases in another process, which is killed at a line that it says, or at a failpoint.

    Args:
        home: Whose data.
        dataset: The fingerprint.
        replace: As for `erase`.
        place: "studies ..." and the like; "failpoint:NAME"; or "after:SECONDS".

    Returns:
        Its exit code.
    """
    process = FORK.Process(target=_work, args=(str(home), dataset, replace, place))
    process.start()
    process.join(float(place.removeprefix("after:")) if place.startswith("after:") else END_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def _work(home: str, dataset: str, replace: dict[str, int], place: str) -> None:
    if place.startswith("failpoint:"):
        os.environ[VARIABLE] = place.removeprefix("failpoint:")
    deadly: Any = _Deadly("" if ":" in place else place)
    sys.stderr = deadly
    try:
        erase(Settings.from_env({"MLOPS_HOME": home}), dataset, replace)
    except MlopsError as err:
        sys.stderr = sys.__stderr__
        print(err, file=sys.stderr)  # noqa: T201
        os._exit(err.exit_code)
