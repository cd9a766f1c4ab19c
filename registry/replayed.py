"""The report of a replay: real requests that the champion answered, and a challenger was asked too.

`python -m registry.serve NAME --shadow` writes it, and `python -m registry.promote NAME --replayed`
reads it. Nobody signs it: it is worth as much as who gives it, and the ledger keeps its digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops.errors import UsageError

if TYPE_CHECKING:
    from registry.releases import Verified

REPORT_FORMAT: Final = 1
_MAX_REPORT: Final = 1 << 20  # bytes; ours take about 600


@dataclass(frozen=True, slots=True)
class Replayed:
    """A release as a report names it."""

    version: int
    statement_sha256: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What a server saw.

    Attributes:
        n_requests: Requests that both were asked.
        n_agreed: Of them, where every row got the same answer.
        n_errors: Of them, where the challenger gave none.
        p95_ms: 95th percentile of the challenger's time, in milliseconds; None where unknown.
        sha256: Of the report's bytes.
    """

    name: str
    champion: Replayed
    challenger: Replayed
    n_requests: int
    n_agreed: int
    n_errors: int
    p95_ms: float | None
    sha256: str

    @property
    def agreement(self) -> float:
        """The share of requests on which the two agreed, 0 to 1; an error is no agreement."""
        return self.n_agreed / self.n_requests if self.n_requests else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns what the ledger keeps of it."""
        return {
            "report_sha256": self.sha256,
            "champion": self.champion.version,
            "challenger": self.challenger.version,
            "requests": self.n_requests,
            "agreed": self.n_agreed,
            "challenger_errors": self.n_errors,
            "p95_ms": self.p95_ms,
        }


def read_replay(path: Path) -> Replay:
    """Reads a report.

    Raises:
        UsageError: the file cannot be read, or is no such report.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_REPORT + 1)
    except OSError as err:
        raise UsageError(f"{path} cannot be read: {err.strerror}.") from err
    try:
        if len(content) > _MAX_REPORT:
            raise ValueError(f"it is larger than {_MAX_REPORT} bytes")
        return _read(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise UsageError(
            f"{path} is no report of a replay; expected the one that python -m registry.serve "
            "NAME --shadow writes."
        ) from err


def _read(content: bytes) -> Replay:
    value = json.loads(content)
    if value["format"] != REPORT_FORMAT:
        raise ValueError("it is of another format")
    n_requests, n_agreed, n_errors = (
        _whole(value[key]) for key in ("requests", "agreed", "challenger_errors")
    )
    if n_agreed + n_errors > n_requests:
        raise ValueError("more answers than requests")
    return Replay(
        name=_text(value["name"]),
        champion=_release(value["champion"]),
        challenger=_release(value["challenger"]),
        n_requests=n_requests,
        n_agreed=n_agreed,
        n_errors=n_errors,
        p95_ms=_milliseconds(value["p95_ms"]),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _release(value: Any) -> Replayed:
    return Replayed(_whole(value["version"]), _text(value["statement_sha256"]))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a count is none")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is none")
    return value


def _milliseconds(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        raise ValueError("a time is none")
    return float(value)


def find_fault(replay: Replay, release: Verified | None, champion: Verified | None) -> str:
    """Returns why a report is not evidence for a decision; "" where it is.

    Args:
        release: The candidate's release; None where there is none that verifies.
        champion: The present champion; None where it does not verify.
    """
    if release is None:
        return "the candidate has no release that verifies, so no server can have replayed it"
    if champion is None:
        return "the present champion does not verify, so what was replayed beside it is not known"
    for said, found, what in (
        (replay.challenger, release, "the candidate"),
        (replay.champion, champion, "the present champion"),
    ):
        version = found.statement.version
        if said.version != version:
            return f"the report is about version {said.version}, and {what} is version {version}"
        if said.statement_sha256 != found.statement_sha256:
            return f"the report is about another version {version} than {what}: it was signed anew"
    return ""
