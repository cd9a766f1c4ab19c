"""Params whose best values lie at an end of what was searched, and wider ranges for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from experiments.entries import is_number
from experiments.reports.facts import ParamRange, StudyFacts

AT_END: Final = 0.05
"""Of the range, from its end, within which the best trial's value must lie."""
NEAR_END: Final = 0.2
"""Likewise, for the others of the best trials."""
LEAST_TOP: Final = 3

Side = Literal["lower", "upper"]


@dataclass(frozen=True, slots=True)
class Edge:
    """A param whose best values lie at an end of its range.

    Attributes:
        entry: The line for `[space.NAME]` that widens it there.
    """

    param: str
    side: Side
    evidence: str
    entry: str


def find_edges(study: StudyFacts) -> Iterator[Edge]:
    """Yields the params of a study whose ranges should be wider, in the order of the space.

    One counts if the best trial's value lies at an end and more than half of the best three or more
    do so nearly, and if there is anything beyond: nothing is below 0 or below one layer, and what
    lies between 0 and 1 stays there.
    """
    best = [one.params for one in study.top[: max(LEAST_TOP, study.n_complete // 10)]]
    if len(best) < LEAST_TOP:
        return
    for param in study.searched:
        values = [one[param.name] for one in best if param.name in one]
        numbers = [value for value in values if is_number(value)]
        if len(numbers) != len(best):
            continue
        places = [_place(param, value) for value in numbers]
        for side in ("lower", "upper"):
            ends = [place if side == "lower" else 1 - place for place in places]
            near = sum(end <= NEAR_END for end in ends)
            if ends[0] > AT_END or 2 * near <= len(ends):
                continue
            entry = _widen(param, side)
            if entry is not None:
                yield Edge(param.name, side, _evidence(param, numbers[0], near, len(ends)), entry)


def _place(param: ParamRange, value: float) -> float:
    """Returns where a value lies in its range, from 0 to 1; of choices by their order."""
    if param.choices:
        numbers = _numbers(param.choices)
        return numbers.index(value) / (len(numbers) - 1) if value in numbers[1:] else 0.0
    assert param.low is not None and param.high is not None
    if param.log:
        return math.log(value / param.low) / math.log(param.high / param.low)
    return (value - param.low) / (param.high - param.low)


def _numbers(choices: Sequence[Any]) -> list[Any]:
    return sorted(one for one in choices if is_number(one))


def _evidence(param: ParamRange, value: float, near: int, n: int) -> str:
    where = f"{param.low:.4g} to {param.high:.4g}" if not param.choices else _show(param.choices)
    return (
        f"{param.name}: the best trial has {value:.4g}, of {where}; {near} of the best {n} trials "
        "lie there or close by."
    )


def _widen(param: ParamRange, side: Side) -> str | None:
    """Returns the entry of a space that goes on beyond an end; None where nothing is there."""
    if param.choices:
        return _add_choice(param, side)
    assert param.low is not None and param.high is not None
    end = _beyond(param, side)
    if end is None:
        return None
    if param.step is not None and not param.log:
        steps = math.floor(abs(end - (param.low if side == "lower" else param.high)) / param.step)
        if steps == 0:
            return None
        end = param.low - steps * param.step if side == "lower" else param.high + steps * param.step
    number = str(round(end)) if param.whole else _as_float(end)
    return f"{param.name} = {{{'low' if side == 'lower' else 'high'} = {number}}}"


def _beyond(param: ParamRange, side: Side) -> float | None:
    low, high = param.low or 0.0, param.high or 0.0
    if param.log:
        factor = min(math.sqrt(high / low), 10.0)
        end = low / factor if side == "lower" else high * factor
    else:
        width = (high - low) / 2
        end = low - width if side == "lower" else high + width
        if side == "lower" and low >= 0:
            end = max(end, low / 2)
        if side == "upper" and low >= 0 and high < 1 and not param.whole:
            end = min(end, (1 + high) / 2)
    if param.whole:
        end = math.floor(end) if side == "lower" else math.ceil(end)
        if low >= 1:
            end = max(end, 1)
    if side == "upper" and not param.whole and high == 1.0 and low >= 0:
        return None  # a share of something
    return None if end == (low if side == "lower" else high) else end


def _add_choice(param: ParamRange, side: Side) -> str | None:
    numbers = _numbers(param.choices)
    if len(numbers) != len(param.choices) or len(numbers) < 2 or numbers[0] <= 0:
        return None
    end = numbers[0] / 2 if side == "lower" else numbers[-1] * 2
    if all(isinstance(one, int) for one in numbers):
        if end != int(end):
            return None
        end = int(end)
    wider = [end, *numbers] if side == "lower" else [*numbers, end]
    return f"{param.name} = {_show(wider)}"


def _show(choices: Sequence[Any]) -> str:
    return f"[{', '.join(str(one) for one in choices)}]"


def _as_float(value: float) -> str:
    """Returns a float as TOML has it: with a point or an exponent."""
    text = f"{value:.3g}"
    return text if any(sign in text for sign in ".en") else f"{text}.0"
