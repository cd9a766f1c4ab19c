"""What a user writes about a search space: `--fix` entries, and the tables of a config file.

    learning_rate = {low = 1e-4, high = 1e-2, log = true}   # the rest is as the architecture says
    filters = [16, 32]                                      # choices
    dropout = 0.0                                           # fixed

Nothing here knows an architecture, and nothing raises: problems are returned, a sentence each.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mlops.errors import choose

LARGEST: Final = 2**53
"""Integers beyond it are not exact in Optuna's storage, which keeps floats."""

_RANGE_KEYS: Final = ("low", "high", "step", "log")


@dataclass(frozen=True, slots=True)
class Fix:
    """One `--fix` entry: a param's value, for one architecture or for all that have the param."""

    architecture: str | None
    param: str
    value: Any

    @property
    def key(self) -> str:
        """What stands before the `=`."""
        return self.param if self.architecture is None else f"{self.architecture}.{self.param}"


def parse_fix(entries: Sequence[str]) -> tuple[list[Fix], list[str]]:
    """Reads entries like `learning_rate=0.001` and `cnn.learning_rate=0.001`.

    Returns:
        What they say, and what is wrong with those that say nothing.

    Example:
        >>> parse_fix(["cnn.filters=32"])[0]
        [Fix(architecture='cnn', param='filters', value=32)]
    """
    fixes, wrong = [], []
    for entry in entries:
        key, _, text = (part.strip() for part in entry.partition("="))
        architecture, _, param = key.rpartition(".")
        if not param or not text or key.startswith("."):
            wrong.append(
                f"{entry!r} is not of the form name=value, as learning_rate=0.001, or "
                "cnn.learning_rate=0.001 for one architecture"
            )
            continue
        value = _parse_value(text)
        if isinstance(value, (list, dict)):
            wrong.append(
                f"{key} must be one value, got {text!r}; give choices and ranges in a file, "
                "under [space.NAME]"
            )
            continue
        fixes.append(Fix(architecture or None, param, value))
    return fixes, wrong


def _parse_value(text: str) -> Any:
    """Returns a TOML value, or a number as Python writes it, or the text itself."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        read = {}
    value = read.get("value") if len(read) == 1 else None
    if isinstance(value, (bool, int, float, str, list, dict)):
        return value
    try:
        return float(text)
    except ValueError:
        return text


def table_name(architecture: str) -> str:
    """Returns the head of an architecture's table in a config file."""
    is_bare = re.fullmatch(r"[A-Za-z0-9_-]+", architecture)
    return f"[space.{architecture}]" if is_bare else f'[space."{architecture}"]'


def static_errors(table: Mapping[str, Any], where: str) -> list[str]:
    """Returns what is wrong with a table whatever the architecture is.

    Args:
        table: An entry for each param.
        where: What the user calls the table: `[space.cnn]`, or `--fix`.
    """
    return [
        f"{where} {name}: {wrong}" for name, entry in table.items() for wrong in entry_errors(entry)
    ]


def entry_errors(entry: Any) -> list[str]:
    """Returns what is wrong with what a table says of one param."""
    return list(_find_wrong(entry))


def _find_wrong(entry: Any) -> Iterator[str]:
    if isinstance(entry, Mapping):
        yield from _find_wrong_range(entry)
    elif isinstance(entry, (list, tuple)):
        if not entry:
            yield "has no choices; expected at least one"
        wrong = [wrong for choice in entry for wrong in _find_wrong_value(choice)]
        yield from dict.fromkeys(wrong)
        if not wrong and len({(isinstance(one, bool), one) for one in entry}) < len(entry):
            yield "names a choice twice"
    else:
        yield from _find_wrong_value(entry)


def _find_wrong_range(entry: Mapping[str, Any]) -> Iterator[str]:
    if not entry:
        yield f"says nothing; expected {', '.join(_RANGE_KEYS)}"
    for key in entry:
        if key not in _RANGE_KEYS:
            yield f"unknown key {key!r}; {choose(key, _RANGE_KEYS)}"
    sound: dict[str, Any] = {}
    for key in ("low", "high", "step"):
        if key in entry:
            wrong = list(_find_wrong_number(entry[key]))
            yield from (f"{key} {one}" for one in wrong)
            if not wrong:
                sound[key] = entry[key]
    log = entry.get("log", False)
    if not isinstance(log, bool):
        yield f"log must be true or false, got {show(log)}"
    yield from find_impossible(sound.get("low"), sound.get("high"), sound.get("step"), log is True)


def find_impossible(low: Any, high: Any, step: Any, log: bool) -> Iterator[str]:
    """Says how the parts of a range do not fit one another; None is what is not known."""
    if low is not None and high is not None and low > high:
        yield f"low must be at most high, got {low!r} and {high!r}"
    if log and low is not None and low <= 0:
        yield f"low must be above 0 where log is true, got {low!r}"
    if step is not None and step <= 0:
        yield f"step must be above 0, got {step!r}"
    if log and step is not None:
        yield "step and log do not go together; leave one out"


def _find_wrong_value(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if not value:
            yield "must not be an empty text"
    elif not isinstance(value, (bool, int, float)):
        yield f"must be numbers, texts, true or false, got {show(value)}"
    elif not isinstance(value, bool):
        yield from _find_wrong_number(value)


def _find_wrong_number(value: Any) -> Iterator[str]:
    if not is_number(value):
        yield f"must be a number, got {show(value)}"
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield "must be a whole number between -2**53 and 2**53"
    elif not math.isfinite(value):
        yield f"must be finite, got {value!r}"


def show(value: Any) -> str:
    """Returns a value for a message, as long as a line bears it; a tuple as the list it was."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
