"""The search space as data: narrowing it, moving params into it, walking its grid.

A space is a dict from a param's name to its distribution. What users write to change one is in
`experiments/entries.py`. Nothing here raises for it: problems are returned, a sentence each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.architectures import Params
from experiments.built_in import architecture_path
from experiments.config import fixes_of
from experiments.entries import LARGEST, Fix, entry_errors, find_impossible, is_number, table_name
from mlops.errors import choose

Space = dict[str, BaseDistribution]

MAX_ALL: Final = 10
"""So many values of a range are all in the grid."""


def narrow(space: Space, table: Mapping[str, Any], where: str) -> tuple[Space, list[str]]:
    """Puts what a table says in the place of an architecture's own distributions.

    Args:
        space: The architecture's.
        table: An entry for each param to change. A number, a text or a bool fixes the param; a list
            gives choices; a table gives low, high, step and log, or some of them.
        where: What the user calls the table: `[space.cnn]`.

    Returns:
        The space, and what is wrong; a param with something wrong keeps its own distribution.
    """
    narrowed, errors = dict(space), []
    for name, entry in table.items():
        if name in space:
            narrowed[name], wrong = _narrow_one(space[name], entry)
        else:
            wrong = [_no_such(name, space)]
        errors += [f"{where} {name}: {one.rstrip('.')}" for one in wrong]
    return narrowed, errors


def narrow_all(
    spaces: Mapping[str, Space], tables: Mapping[str, Mapping[str, Any]], entries: Sequence[str]
) -> tuple[dict[str, Space], list[str]]:
    """Narrows the space of each architecture of a sweep: first by its table, then by the fixes.

    Args:
        spaces: By `module:Class`; those of architectures that take the data.
        tables: `SweepConfig.space`. One of another architecture is not looked at.
        entries: `SweepConfig.fix`, likewise.

    Returns:
        The spaces, and what is wrong, all of it.
    """
    narrowed = {path: dict(space) for path, space in spaces.items()}
    errors: list[str] = []
    for name, table in tables.items():
        path = architecture_path(name)
        if path in spaces:
            narrowed[path], wrong = narrow(narrowed[path], table, table_name(name))
            errors += wrong
    meant: dict[Fix, dict[str, Any]] = {}
    for path, space in spaces.items():
        for fix in fixes_of(entries, path):
            meant.setdefault(fix, {}).update(space)
            if fix.param in space:
                # Of the architecture's own, not of what the table left of it: a fix goes first.
                narrowed[path][fix.param], wrong = _narrow_one(space[fix.param], fix.value)
                errors += [f"--fix {fix.key}: {one.rstrip('.')}" for one in wrong]
    for fix, names in meant.items():
        if fix.param not in names:
            errors.append(f"--fix {fix.key}: {_no_such(fix.param, names).rstrip('.')}")
    return narrowed, list(dict.fromkeys(errors))


def _no_such(name: str, names: Mapping[str, Any]) -> str:
    return f"there is no such param; {choose(name, names)}"


def _narrow_one(own: BaseDistribution, entry: Any) -> tuple[BaseDistribution, list[str]]:
    """Returns what an entry makes of a distribution, or the same one and what is wrong."""
    wrong = entry_errors(entry)
    try:
        return (own, wrong) if wrong else (_distribution(own, entry), [])
    except ValueError as err:
        return own, [str(err)]


def _distribution(own: BaseDistribution, entry: Any) -> BaseDistribution:
    """Raises ValueError with what does not fit the architecture's own distribution."""
    if isinstance(entry, Mapping):
        return _narrow_range(own, entry)
    values = entry if isinstance(entry, (list, tuple)) else [entry]
    return CategoricalDistribution([_as_own(own, value) for value in values])


def _as_own(own: BaseDistribution, value: Any) -> Any:
    """Returns a value in the type that the architecture expects."""
    if not isinstance(own, CategoricalDistribution):
        return _as_number(value, isinstance(own, IntDistribution))
    numbers = [choice for choice in own.choices if is_number(choice)]
    if numbers and is_number(value):  # numbers of another size are as good as its own
        return _as_number(value, all(isinstance(number, int) for number in numbers))
    if isinstance(value, bool) and any(isinstance(choice, bool) for choice in own.choices):
        return value
    if isinstance(value, str) and value in own.choices:
        return value
    words = [_as_toml(choice) for choice in own.choices if choice is not None]
    raise ValueError(f"{_as_toml(value)} is unknown; {choose(str(value), words)}")


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_number(value: Any, whole: bool) -> int | float:
    if not is_number(value) or (whole and not isinstance(value, int)):
        raise ValueError(f"must be {'a whole number' if whole else 'a number'}, got {value!r}")
    return int(value) if whole else float(value)


def _narrow_range(own: BaseDistribution, entry: Mapping[str, Any]) -> BaseDistribution:
    parts: dict[str, Any]
    if isinstance(own, CategoricalDistribution):
        whole = _is_whole_range(own, entry)
        parts = {"step": None, "log": False}
    else:
        assert isinstance(own, (FloatDistribution, IntDistribution))
        whole = isinstance(own, IntDistribution)
        step = None if own.step == 1 and whole else own.step
        parts = {"low": own.low, "high": own.high, "step": step, "log": own.log}
        # One of the two replaces the other, where the architecture has that one.
        parts |= {"step": None} if entry.get("log") else {}
        parts |= {"log": False} if "step" in entry and "log" not in entry else {}
    parts |= entry
    numbers = {
        key: _as_bound(key, parts[key], whole)
        for key in ("low", "high", "step")
        if parts[key] is not None
    }
    return _build_range(whole=whole, log=parts["log"], **numbers)


def _is_whole_range(own: CategoricalDistribution, entry: Mapping[str, Any]) -> bool:
    """Tells whether a range in the place of choices holds whole numbers."""
    if not all(is_number(choice) for choice in own.choices):
        words = ", ".join(_as_toml(choice) for choice in own.choices)
        raise ValueError(f"is one of {words}; expected a list of choices, got a range")
    if not {"low", "high"} <= set(entry):
        words = ", ".join(str(choice) for choice in own.choices)
        raise ValueError(f"is one of {words}; a range in their place needs both low and high")
    return all(isinstance(choice, int) for choice in own.choices)


def _as_bound(key: str, value: Any, whole: bool) -> int | float:
    try:
        return _as_number(value, whole)
    except ValueError as err:
        raise ValueError(f"{key} {err}") from err


def _build_range(
    low: Any, high: Any, *, whole: bool, log: bool, step: Any = None
) -> BaseDistribution:
    for wrong in find_impossible(low, high, step, log):
        raise ValueError(wrong)
    if not math.isfinite(high - low):
        raise ValueError("low and high are too far apart")
    if step is not None:
        if (high - low) / step > LARGEST:
            raise ValueError(f"step {step!r} is too small for the range from {low!r} to {high!r}")
        high = _last_step(low, high, step)
    if whole:
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _last_step(low: Any, high: Any, step: Any) -> Any:
    """Returns the last value that steps from `low` reach; Optuna would take it with a warning."""
    start, width = Decimal(str(low)), Decimal(str(step))
    last = type(low)(start + (Decimal(str(high)) - start) // width * width)
    if (Decimal(str(last)) - start) % width:  # each reading of such a space would shorten it
        raise ValueError("low and step have more digits than a float holds; round them")
    return last


def fits(space: Space, params: Params) -> bool:
    """Tells whether params have a value inside the space for each of its names, and no others."""
    return set(params) == set(space) and all(
        _holds(distribution, params[name]) for name, distribution in space.items()
    )


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(_is_same(value, choice) for choice in distribution.choices)
    if not is_number(value) or (
        isinstance(distribution, IntDistribution) and not isinstance(value, int)
    ):
        return False
    return not math.isnan(value) and distribution._contains(value)


def _is_same(value: Any, choice: Any) -> bool:
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def nearest(space: Space, params: Params) -> Params:
    """Moves params into a space: each to the nearest value that the space has.

    A value that has no nearest one, as a text that is no choice, becomes the first choice. Names
    that the space does not have are left out, and values that are no numbers where it has a range.

    Example:
        >>> nearest({"dropout": FloatDistribution(0.2, 0.5)}, {"dropout": 0.0, "units": 8})
        {'dropout': 0.2}
    """
    moved: Params = {}
    for name, distribution in space.items():
        if name not in params:
            continue
        if isinstance(distribution, CategoricalDistribution):
            moved[name] = _nearest_choice(distribution, params[name])
        elif is_number(params[name]) and not math.isnan(params[name]):
            moved[name] = _nearest_number(distribution, params[name])
    return moved


def _nearest_choice(distribution: CategoricalDistribution, value: Any) -> Any:
    choices = distribution.choices
    same = [choice for choice in choices if _is_same(value, choice)]
    numbers = [choice for choice in choices if is_number(choice)]
    if same or not numbers or not is_number(value):
        return (same or choices)[0]
    return min(numbers, key=lambda number: abs(number - value))


def _nearest_number(distribution: BaseDistribution, value: float) -> int | float:
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    clipped = min(max(value, distribution.low), distribution.high)
    if distribution.step is None:
        return float(clipped)
    return _step_value(distribution, round((clipped - distribution.low) / distribution.step))


def _step_value(distribution: FloatDistribution | IntDistribution, index: int) -> int | float:
    """Returns the value that is `index` steps above the lowest one."""
    if isinstance(distribution, IntDistribution):
        return distribution.low + index * distribution.step
    exact = Decimal(str(distribution.low)) + index * Decimal(str(distribution.step))
    return min(float(exact), distribution.high)


def grid(space: Space) -> dict[str, list[Any]]:
    """Returns the values of each param that are tried, by name, names in order.

    All choices; all values of a range of up to `MAX_ALL`, else 5 of them; of a continuous range the
    two ends and the middle (the geometric one where `log`).
    """
    return {name: _grid_values(space[name]) for name in sorted(space)}


def grid_size(space: Space) -> int:
    """Returns how many cells the grid has: the product of the numbers of values."""
    return math.prod(len(values) for values in grid(space).values())


def grid_cell(space: Space, seed: int, index: int) -> Params | None:
    """Returns one cell of the grid, in an order that the seed decides; None past the last.

    Each cell has one index from 0 to `grid_size(space) - 1`. The product is never made.
    """
    size = grid_size(space)
    if index >= size:
        return None
    place = _shuffled(index, size, seed)
    cell: Params = {}
    for name, values in grid(space).items():
        place, one = divmod(place, len(values))
        cell[name] = values[one]
    return cell


def _shuffled(index: int, size: int, seed: int) -> int:
    """Maps 0 to size - 1 onto itself, one to one.

    A Feistel network permutes a power of four that is at least `size`; what falls outside is put
    through again until it falls inside (Black & Rogaway 2002, cycle walking): under 4 times on
    average.
    """
    half = max(1, (size.bit_length() + 1) // 2)
    mask = 2**half - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            digest = hashlib.sha512(f"{seed}/{turn}/{right}".encode()).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        index = left << half | right
        if index < size:
            return index


def _grid_values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = distribution.low, distribution.high
    if distribution.step is None:
        return list(dict.fromkeys(_spread(low, high, 3, log=distribution.log)))
    n_values = round((high - low) / distribution.step) + 1
    if n_values <= MAX_ALL:
        return [_step_value(distribution, index) for index in range(n_values)]
    spread = _spread(low, high, 5, log=distribution.log)
    return list(dict.fromkeys(_nearest_number(distribution, value) for value in spread))


def _spread(low: float, high: float, n: int, *, log: bool) -> list[float]:
    """Returns n numbers from low to high, both among them, at equal distances or ratios."""
    shares = [index / (n - 1) for index in range(1, n - 1)]
    if log:
        start, width = math.log(low), math.log(high) - math.log(low)
        middle = [math.exp(start + share * width) for share in shares]
    else:
        middle = [low + share * (high - low) for share in shares]
    return [low, *(min(max(value, low), high) for value in middle), high]
