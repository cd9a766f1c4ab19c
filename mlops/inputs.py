"""InputSpec: what one row is. Made with a dataset, it travels in every packaged model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from mlops.errors import DataError

Kind = Literal["table", "sequence", "image"]
Missing = Literal["refused", "filled", "flagged"]
Categories = tuple[tuple[str, ...] | None, ...]
"""For each column of a table the names of its categories, by index; None for numbers."""

RANKS: Final[dict[str, int]] = {"table": 2, "sequence": 3, "image": 4}
FLIPS: Final = ("horizontal", "vertical")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: what clients send in it, and how it becomes numbers.

    A column of numbers becomes one feature, its value. A column of categories becomes one feature
    a category, 1.0 for the row's own and 0.0 for the others; a category that no training row has
    is 0.0 in all of them.

    Attributes:
        name: As in the table's header.
        categories: Those of the training rows, sorted by code point; None for numbers.
        missing: "refused": no row of the dataset lacks it, and a request must not. "filled": a
            missing number becomes `fill`, a missing category is none of the categories.
            "flagged": so too, and one more feature is 1.0 where it is missing; training rows
            lack it.
        fill: Mean of the training rows that have the number; None where none is needed.
    """

    name: str
    categories: tuple[str, ...] | None = None
    missing: Missing = "refused"
    fill: float | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features it becomes, in order."""
        values = (
            (self.name,)
            if self.categories is None
            else tuple(f"{self.name}={category}" for category in self.categories)
        )
        return (*values, f"{self.name} is missing") if self.missing == "flagged" else values

    @property
    def is_plain(self) -> bool:
        """Whether it is sent, stored and learned as the same number."""
        return self.categories is None and self.missing == "refused"

    @classmethod
    def from_json(cls, value: Any) -> Column:
        """Reads what `InputSpec.to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: It is anything else.
        """
        names = value["categories"]
        categories = None if names is None else tuple(names)
        fill = None if value["fill"] is None else float(value["fill"])
        column = cls(value["name"], categories, value["missing"], fill)
        texts = (column.name, *(categories or ()))
        if (
            set(value) != {"name", "categories", "missing", "fill"}
            or not all(isinstance(text, str) and text for text in texts)
            or (categories is not None and list(categories) != sorted(set(categories)))
            or column.missing not in get_args(Missing)
            or (fill is not None) != (categories is None and column.missing != "refused")
            or (fill is not None and not np.isfinite(fill))
        ):
            raise ValueError("a column's values do not fit one another")
        return column


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What one row is, and what the training rows look like; travels in every packaged model.

    Attributes:
        kind: How rows are to be read.
        shape: Of one row as a network takes it: (features,), (time, features) or
            (height, width, channels).
        dtype: "uint8" or "float32": what rows are stored and sent in.
        columns: The columns of a table, in order, where it names them.
        low: Minimum over the training rows, in the data's own units.
        high: Maximum over the training rows, in the data's own units.
        mean: Over the training rows, one for each index of the last axis. 0 for a feature that says
            whether something is there.
        variance: Population variance, likewise, in squared units. 1 for such a feature.
        ragged: Whether rows are sequences of unequal length. Then `shape` is (time, features + 1):
            a sequence is padded at its end with `mean`, and the last feature is 1.0 for its own
            steps and 0.0 for padding.
        flips: The ways of mirroring an image ("horizontal", "vertical") that leave its class what
            it was, as far as the training rows show.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    columns: tuple[Column, ...] | None
    low: float
    high: float
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    ragged: bool = False
    flips: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values that JSON keeps exactly."""
        value: dict[str, Any] = _plain(asdict(self))
        return value

    @classmethod
    def from_json(cls, value: Any) -> InputSpec:
        """Reads what `to_json` gave.

        Raises:
            DataError: It is anything else; it may come from a stranger's model.
        """
        try:
            columns = value["columns"]
            spec = cls(
                kind=value["kind"],
                shape=tuple(int(size) for size in value["shape"]),
                dtype=value["dtype"],
                columns=None if columns is None else tuple(map(Column.from_json, columns)),
                low=float(value["low"]),
                high=float(value["high"]),
                mean=tuple(map(float, value["mean"])),
                variance=tuple(map(float, value["variance"])),
                ragged=value["ragged"],
                flips=tuple(value["flips"]),
            )
            sound = spec._is_sound() and spec.to_json() == value
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as err:
            raise DataError(f"not an input specification: {type(err).__name__} {err}.") from err
        if not sound:
            raise DataError("not an input specification: its values do not fit one another.")
        return spec

    def _is_sound(self) -> bool:
        numbers = [self.low, self.high, *self.mean, *self.variance]
        return (
            self.kind in RANKS
            and len(self.shape) == RANKS[self.kind] - 1
            and min(self.shape) > 0
            and self.dtype in ("uint8", "float32")
            and (self.columns is None or self._columns_fit(self.columns))
            and (self.dtype == "float32" or not self.is_encoded)
            and len(self.mean) == len(self.variance) == self.shape[-1]
            and bool(np.isfinite(numbers).all())
            and isinstance(self.ragged, bool)
            and not (self.ragged and (self.kind != "sequence" or self.shape[1] < 2))
            and len(set(self.flips)) == len(self.flips)
            and set(self.flips) <= set(FLIPS)
            and not (self.flips and self.kind != "image")
        )

    @property
    def is_encoded(self) -> bool:
        """Whether a network sees something else of a row than what clients send in it."""
        return self.ragged or not all(column.is_plain for column in self.columns or ())

    def _columns_fit(self, columns: tuple[Column, ...]) -> bool:
        names = [column.name for column in columns]
        width = sum(len(column.features) for column in columns)
        return self.shape == (width,) and len(set(names)) == len(names)


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
