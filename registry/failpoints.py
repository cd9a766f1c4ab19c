"""Places where a test can have this process killed, to see what that leaves behind.

`MLOPS_FAILPOINT=alias` kills the process there, as kill -9 does. Every step of a promotion
has one after it; nothing happens where the variable is not set.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Literal, get_args

VARIABLE: Final = "MLOPS_FAILPOINT"

Place = Literal[
    "lease",
    "checked",
    "measured",
    "release-run",
    "release-version",
    "statement",
    "signed",
    "upload",
    "published",
    "described",
    "proposed",
    "approved",
    "intent",
    "record",
    "alias",
    "done",
    "noted",
]
PLACES: Final[tuple[Place, ...]] = get_args(Place)
"""In the order in which a promotion comes by; it comes by "upload" once a file."""


def failpoint(place: Place) -> None:
    """Kills this process if it is the place that `MLOPS_FAILPOINT` names."""
    if os.environ.get(VARIABLE) == place:
        os.kill(os.getpid(), signal.SIGKILL)
