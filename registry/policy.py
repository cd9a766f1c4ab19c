"""The policy: which gates there are, their limits, and what follows when one is not met.

`Policy()` lets a first honest model through. examples/policy.toml explains every key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from mlops.errors import UsageError, choose
from mlops.toml_file import read_toml

OnFailure = Literal["refuse", "warn", "off"]

ALWAYS: Final = ("structure", "finite_outputs", "dataset_known")
"""Gates that no policy changes: a model that does not meet them is none."""

Reader = Callable[[Any], Any]
"""Takes a value as a file or a program gives it, and returns it as the field holds it.

Raises:
    ValueError: With what is expected in its place.
"""


# What a key may be.


def _number(low: float = -1e300, high: float = 1e300) -> Reader:
    bounds = (
        "" if low == -1e300 else f" from {low:g}" + (" up" if high == 1e300 else f" to {high:g}")
    )

    def read(value: Any) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise ValueError(f"expected a number{bounds}")

    return read


def _whole(low: int, high: int) -> Reader:
    def read(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"expected a whole number from {low} to {high}")

    return read


def _text(pattern: str, expected: str) -> Reader:
    def read(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        raise ValueError(f"expected {expected}")

    return read


def _choice(value: Any) -> str:
    if isinstance(value, str) and value in get_args(OnFailure):
        return value
    raise ValueError(choose(str(value), get_args(OnFailure)))


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("expected true or false")


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)) and value:
        words = tuple(value)
        if all(isinstance(word, str) and word and "\0" not in word for word in words):
            return words
    raise ValueError('expected a program and its arguments, as ["python", "smoke.py"]')


_READERS: Final[dict[str, Reader]] = {
    "on_failure": _choice,
    "floor": _number(),
    "confidence": _number(0.5, 0.9999),
    "largest_drop": _number(0.0, 1.0),
    "largest_drop_nats": _number(0.0),
    "ece": _number(0.0, 1.0),
    "drop": _number(0.0, 1.0),
    "size_bytes": _whole(1, 2**60),
    "p95_ms": _number(0.001),
    "memory_bytes": _whole(1, 2**60),
    "decisions": _whole(0, 2**31),
    "min_requests": _whole(1, 2**60),
    "min_agreement": _number(0.0, 1.0),
    "max_p95_ms": _number(0.001),
    "signed": _flag,
    "command": _words,
    "attempts": _whole(1, 100),
    "timeout_s": _number(0.1, 86400.0),
    "name": _text("[a-z][a-z0-9_]{0,63}", "small letters, digits and '_', a letter first"),
    "function": _text(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", "module:function"),
}
"""By key: no key means two things."""

_read_approvals = _whole(1, 2)


@dataclass(frozen=True, slots=True)
class _Table:
    """Reads its own fields, whoever gave them."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None or one.default is not None:
                object.__setattr__(self, one.name, _read(one.name, value, _READERS[one.name]))


def _read(key: str, value: Any, reader: Reader) -> Any:
    try:
        return reader(value)
    except ValueError as err:
        raise UsageError(f"{key} is {_shown(value)}; {err}") from err


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# The tables.


@dataclass(frozen=True, slots=True)
class Rule(_Table):
    """What follows when a gate is not met; "off" leaves the gate out."""

    on_failure: OnFailure = "refuse"


@dataclass(frozen=True, slots=True)
class Quality(Rule):
    """`floor`: the least metric on the test rows, 0 to 1 or nats; the gate is off without it."""

    floor: float | None = None


@dataclass(frozen=True, slots=True)
class NotWorse(Rule):
    """`confidence`: of the paired test that shows a candidate to be worse."""

    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class LargestDrop(Rule):
    """`largest_drop`: of a classifier's metric, 0 to 1. `largest_drop_nats`: of a VAE's ELBO."""

    largest_drop: float = 0.02
    largest_drop_nats: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration(Rule):
    """`ece`: the largest expected calibration error, 0 to 1."""

    on_failure: OnFailure = "warn"
    ece: float = 0.1


@dataclass(frozen=True, slots=True)
class Robustness(Rule):
    """`drop`: the largest loss of a classifier's metric on changed rows, 0 to 1."""

    on_failure: OnFailure = "warn"
    drop: float = 0.1


@dataclass(frozen=True, slots=True)
class Size(Rule):
    """`size_bytes`: of all files of the model folder."""

    on_failure: OnFailure = "warn"
    size_bytes: int = 2**30


@dataclass(frozen=True, slots=True)
class Latency(Rule):
    """`p95_ms`: 95th percentile of a request of one row; the gate is off without it."""

    p95_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Memory(Rule):
    """`memory_bytes`: resident memory of all processes that serve; the gate is off without it."""

    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Decisions(Rule):
    """`decisions`: so many may have been made on the same test rows before."""

    on_failure: OnFailure = "warn"
    decisions: int = 50


@dataclass(frozen=True, slots=True)
class Replays(Rule):
    """What a challenger has shown beside the champion on real requests.

    `min_requests`: so many at least. `min_agreement`: the least share that both answered alike, 0
    to 1. `max_p95_ms`: the challenger's 95th percentile; not asked for without it.
    """

    on_failure: OnFailure = "off"
    min_requests: int = 1000
    min_agreement: float = 0.98
    max_p95_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Reproduction(Rule):
    """`signed`: whether a certificate must say so that a release's key signed, for these bytes."""

    on_failure: OnFailure = "off"
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Hook(_Table):
    """A command that is run after a move, without a shell."""

    command: tuple[str, ...]
    attempts: int = 3
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class OwnGate(_Table):
    """A gate that a user wrote; `registry.own_gates` says what its function takes and returns."""

    name: str
    function: str
    on_failure: OnFailure = "refuse"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a promotion demands; a field for each gate, under the gate's own name.

    Attributes:
        approvals: Accounts that must agree, 1 or 2.
        hook: What is run after a move.
        own: The user's own gates, asked last.
    """

    approvals: int = 1
    better_than_chance: Rule = Rule()
    quality: Quality = Quality()
    champion_verifies: Rule = Rule()
    same_interface: Rule = Rule()
    not_worse_than_champion: NotWorse = NotWorse()
    largest_drop: LargestDrop = LargestDrop()
    test_rows_unseen: Rule = Rule()
    test_rows_unseen_by_champion: Rule = Rule("warn")
    calibration: Calibration = Calibration()
    robustness: Robustness = Robustness()
    size: Size = Size()
    latency: Latency = Latency()
    memory: Memory = Memory()
    replayed: Replays = Replays()
    clean_commit: Rule = Rule("warn")
    reproduced: Reproduction = Reproduction()
    decisions_on_these_rows: Decisions = Decisions()
    isolation: Rule = Rule("warn")
    hook: Hook | None = None
    own: tuple[OwnGate, ...] = ()

    def __post_init__(self) -> None:
        _read("approvals", self.approvals, _read_approvals)
        taken = {*_TABLES, *ALWAYS}
        for one in self.own:
            if one.name in taken:
                raise UsageError(
                    f"[[own]] name is {one.name!r}, the name of another gate; rename it"
                )
            taken.add(one.name)

    @classmethod
    def default(cls) -> Policy:
        """Returns the policy of a promotion that names none."""
        return cls()

    @property
    def needs_serving(self) -> bool:
        """Whether a gate asks what it takes to serve the candidate."""
        return any(
            limit is not None and rule.on_failure != "off"
            for rule, limit in (
                (self.latency, self.latency.p95_ms),
                (self.memory, self.memory.memory_bytes),
            )
        )

    @property
    def sha256(self) -> str:
        """64 hex digits of `to_json` in one spelling: equal policies have the same."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, without those that are not set."""
        value: dict[str, Any] = _plain(asdict(self))
        return value

    def to_toml(self) -> str:
        """Returns what `read_policy` reads as an equal policy."""
        import tomli_w

        return tomli_w.dumps(self.to_json())


_TABLES: Final[dict[str, type[_Table]]] = {
    **{one.name: type(one.default) for one in fields(Policy) if isinstance(one.default, Rule)},
    "hook": Hook,
}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item not in (None, ())}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# Files.


def read_policy(path: Path) -> Policy:
    """Reads a policy; what the file does not say is as in `Policy()`.

    Raises:
        UsageError: The file cannot be read, or is not TOML, or holds an unknown key or a value that
            cannot be; names the first of each table.
    """
    given, wrong = {}, []
    for key, value in read_toml(path, "policy").items():
        try:
            given[key] = _read_key(key, value)
        except UsageError as err:
            wrong.append(str(err))
    if not wrong:
        try:
            return Policy(**given)
        except UsageError as err:
            wrong.append(str(err))
    text = f"{path}: " + "; ".join(one.rstrip(".") for one in wrong)
    raise UsageError(text if text.endswith("?") else f"{text}.")


def _read_key(key: str, value: Any) -> Any:
    if key in ALWAYS:
        raise UsageError(f"[{key}] cannot be changed: that gate always refuses. Leave it out")
    if key == "own":
        if not isinstance(value, list):
            raise UsageError("[own] is one table; expected [[own]], once for each gate")
        return tuple(_read_table(OwnGate, one, "[[own]]") for one in value)
    if key in _TABLES:
        return _read_table(_TABLES[key], value, f"[{key}]")
    if key != "approvals":
        names = (*_TABLES, "own", "approvals")
        raise UsageError(f"unknown key {_shown(key)}; {choose(key, names)}")
    return _read(key, value, _read_approvals)


def _read_table(kind: type[_Table], value: Any, where: str) -> _Table:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} is {_shown(value)}; expected a table")
    for key in value:
        names = [one.name for one in fields(kind)]
        if key not in names:
            raise UsageError(f"{where} unknown key {_shown(key)}; {choose(key, names)}")
    for one in fields(kind):
        if one.default is MISSING and one.name not in value:
            raise UsageError(f"{where} has no {one.name}. Add it")
    try:
        return kind(**value)
    except UsageError as err:
        raise UsageError(f"{where} {err}") from err
