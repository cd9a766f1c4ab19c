"""Columns of a table: whether one holds numbers or categories, and which cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mlops.errors import DataError
from mlops.inputs import Categories
from mlops.rows import Place
from mlops.scoring import category_name
from mlops.sources.files import listed

MAX_CATEGORIES: Final = 1_000

LEAVE_OUT: Final = "Leave {names} out of the file."
FILL: Final = "Drop or fill these rows."
TO_NUMBERS: Final = "Save {names} as numbers, or not at all."
CORRECT: Final = (
    "Correct these cells, or name {names} with --categorical COLUMN if these are categories."
)

_DATE: Final = r"\s*\d{4}-\d{2}-\d{2}(?:[ T]|\s*$)"
_COUNTING: Final = " (counting from 0, without the header)"  # as Place.at says it


@dataclass(frozen=True, slots=True)
class Wrong:
    """Why a column cannot be used; `advice` says {names} where the columns are to be named."""

    column: str
    what: str
    advice: str


class _WrongError(Exception):
    """Ends the reading of one column: what is wrong, and the advice."""


def read_columns(
    frame: Any, names: tuple[str, ...], categorical: tuple[str, ...], where: str
) -> tuple[np.ndarray, Categories | None]:
    """Returns the cells of the named columns, and the names that stand for categories.

    Args:
        frame: A DataFrame of numbers, bools, text and pandas categories.
        names: The columns to read, in order.
        categorical: Those to take as categories although they may hold numbers.
        where: What messages call the file.

    Returns:
        x, (n, columns) float32: a number, the index of a category, or NaN where missing; and for
        each column its categories sorted by code point, None for numbers. None at all where every
        cell is a number.

    Raises:
        DataError: Columns that cannot be used, all in one line.
    """
    x = np.empty((len(frame), len(names)), "<f4")
    categories: list[tuple[str, ...] | None] = []
    wrong = []
    for i, name in enumerate(names):
        place = Place(where, name, is_column=True)
        try:
            x[:, i], known = _values(frame[name], name in categorical, place)
            categories.append(known)
        except _WrongError as err:
            wrong.append(Wrong(name, *err.args))
    refuse_columns(wrong, where)
    plain = not any(categories) and not np.isnan(x).any()
    return x, None if plain else tuple(categories)


def read_steps(frame: Any, names: tuple[str, ...], where: str) -> np.ndarray:
    """Returns the cells of columns that may hold numbers only, (n, columns) float32.

    Raises:
        DataError: Columns that cannot be used, all in one line.
    """
    wrong = []
    for name in names:
        place = Place(where, name, is_column=True)
        missing = np.asarray(frame[name].isna(), bool)
        text = _is_text(frame[name], missing)
        for bad, what, advice in (
            (text, "text or categories", TO_NUMBERS),
            (missing, "missing values", FILL),
        ):
            if bad.any():
                what = f"has {what} in the steps of a sequence: {_count(bad, place)}"
                wrong.append(Wrong(name, what, advice))
                break
    refuse_columns(wrong, where)
    return read_columns(frame, names, (), where)[0]


def refuse_columns(wrong: Iterable[Wrong], where: str) -> None:
    """Raises one DataError for all columns that cannot be used, with at most the first five."""
    found = list(wrong)
    if not found:
        return
    shown, n_more = found[:5], len(found) - 5
    said = "; ".join(f"column {one.column!r} {one.what}" for one in shown)
    head, counting, tail = said.partition(_COUNTING)
    said = head + counting + tail.replace(_COUNTING, "")  # said once is enough
    more = f"; and {n_more} more" if n_more > 0 else ""
    advice = []
    for text in dict.fromkeys(one.advice for one in shown):
        names = listed([one.column for one in shown if one.advice == text])
        advice.append(text.format(names="it" if len(found) == 1 else names))
    raise DataError(f"{where}: {said}{more}. {' '.join(advice)}")


def is_numeric(series: Any) -> bool:
    return isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf"


def _is_text(series: Any, missing: np.ndarray) -> np.ndarray:
    """Returns which cells are there and say no number, (n,) bool."""
    import pandas as pd

    text = ~missing
    if is_numeric(series):
        text[:] = False
    elif not isinstance(series.dtype, pd.CategoricalDtype):
        text[~missing] = np.isnan(_parsed(series[~missing]))
    return text


def _values(
    series: Any, as_categories: bool, place: Place
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Returns one column, (n,) float32, and its categories if it has such."""
    import pandas as pd

    if not is_numeric(series):
        series = series.where(series != "", None)  # a CSV file has no empty text either
    missing = np.asarray(series.isna(), bool)
    if missing.all():
        raise _WrongError("is missing in every row", LEAVE_OUT)
    numbers = None
    if not as_categories and not isinstance(series.dtype, pd.CategoricalDtype):
        numbers = _numbers(series, missing, place)
    values, names = (numbers, None) if numbers is not None else _categories(series)
    there = values[~missing]
    if there.min() == there.max():
        raise _WrongError("has one value only", LEAVE_OUT)
    return values, names


def _numbers(series: Any, missing: np.ndarray, place: Place) -> np.ndarray | None:
    """Returns a column as numbers, or None where it is text."""
    values = np.full(len(series), np.nan)
    values[~missing] = series[~missing] if is_numeric(series) else _parsed(series[~missing])
    bad = np.isnan(values) & ~missing
    n, n_there = int(bad.sum()), int((~missing).sum())
    if n and 2 * n >= n_there:
        if series[~missing].astype(str).str.match(_DATE).all():
            raise _WrongError("holds dates", TO_NUMBERS)
        return None
    if n:
        raise _WrongError(f"has text where a number should be: {_count(bad, place)}", CORRECT)
    with np.errstate(over="ignore"):
        stored = values.astype("<f4") + np.float32(0)  # -0.0 becomes 0.0
    bad = np.isinf(stored)
    if bad.any():
        what = "has infinite values, or values beyond float32 (3.4e38): "
        raise _WrongError(what + _count(bad, place), FILL)
    stored[missing] = np.float32("nan")  # one and the same NaN, so that equal rows have equal bytes
    return stored


def _parsed(there: Any) -> np.ndarray:
    """Returns cells that are no numbers yet as float64, NaN where a cell says no number."""
    import pandas as pd

    if there.map(lambda value: isinstance(value, bool)).all():
        return np.asarray(there, np.float64)
    # As text first: of an object column pandas takes no integer beyond float64.
    return np.asarray(pd.to_numeric(there.astype(str), errors="coerce"), np.float64)


def _categories(series: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the index of each row's category, NaN where missing, and the categories' names."""
    import pandas as pd

    codes, uniques = pd.factorize(series)
    names = [category_name(value) for value in uniques]
    known = tuple(sorted(set(names)))
    if len(known) > MAX_CATEGORIES:
        raise _WrongError(
            f"has {len(known)} categories, as identifiers or free text have; expected at most "
            f"{MAX_CATEGORIES}",
            LEAVE_OUT,
        )
    index = {name: i for i, name in enumerate(known)}
    # factorize says -1 for missing: the last
    found = np.array([*(index[name] for name in names), np.float32("nan")], "<f4")
    return found[codes], known


def _count(bad: np.ndarray, place: Place) -> str:
    return f"{int(bad.sum())} of {len(bad)}, the first {place.at(bad)}"
