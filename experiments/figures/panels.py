"""What several figures are drawn with: empty figures, pictures side by side, maps with a scale.

matplotlib is imported when the first figure is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.figures.canvas import new_canvas
from mlops.inputs import InputSpec

Floats = npt.NDArray[np.floating[Any]]


def new_figure(width: float, height: float, title: str) -> Any:
    """Returns an empty figure of so many inches, with a title."""
    figure = new_canvas(width, height)
    figure.suptitle(title, fontsize="medium")
    return figure


def as_pictures(rows: Floats) -> Floats:
    """Returns images (n, height, width, channels) in [0, 1] as (n, height, width, 3).

    Colour where there are three channels; else the mean of them, as grey.
    """
    clipped = np.clip(rows, 0.0, 1.0)
    return clipped if rows.shape[-1] == 3 else clipped.mean(axis=-1, keepdims=True).repeat(3, -1)


def mosaic(pictures: Floats, n_columns: int, gap: int = 1) -> Floats:
    """Returns pictures (n, height, width, 3) as one, line by line, on white."""
    n, height, width = pictures.shape[:3]
    n_lines = -(-n // n_columns)
    high, wide = height + gap, width + gap
    whole = np.ones((n_lines * high - gap, n_columns * wide - gap, 3), pictures.dtype)
    for i, picture in enumerate(pictures):
        top, left = i // n_columns * high, i % n_columns * wide
        whole[top : top + height, left : left + width] = picture
    return whole


def show_picture(axes: Any, picture: Floats) -> None:
    """Shows a picture in [0, 1], pixel by pixel and without an axis."""
    axes.imshow(picture, vmin=0.0, vmax=1.0, interpolation="nearest")
    bare(axes)


def bare(axes: Any) -> None:
    """Takes the ticks from an axis, and leaves its label."""
    axes.set_xticks([])
    axes.set_yticks([])


def show_strip(
    axes: Any, maps: Sequence[Floats], names: Sequence[str], signed: bool, unit: str
) -> None:
    """Shows maps (height, width) side by side on one scale, which stands beside them.

    One picture, as an axis for each would take a second for thirty of them.

    Args:
        names: One a map; they stand below.
        signed: Whether below 0 is another colour, and 0 white; else 0 is black.
        unit: What the scale counts.
    """
    most = max((float(np.abs(one).max()) for one in maps), default=0.0) or 1.0
    colours = {"cmap": "RdBu_r", "vmin": -most} if signed else {"cmap": "magma", "vmin": 0.0}
    shown = axes.imshow(beside(maps), vmax=most, aspect="auto", interpolation="nearest", **colours)
    axes.set_xticks(middles(maps), names, fontsize="small")
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.02, pad=0.01)
    bar.set_label(unit, fontsize="small")
    bar.ax.tick_params(labelsize="x-small")


def beside(maps: Sequence[Floats]) -> Floats:
    """Returns maps (height, width) as one, with a gap of NaN between them."""
    gap = np.full((maps[0].shape[0], gap_of(maps)), np.nan)
    return np.hstack([part for one in maps for part in (gap, one)][1:])


def gap_of(maps: Sequence[Floats]) -> int:
    """Returns how wide the gap between maps is."""
    return 1 + int(maps[0].shape[1]) // 16


def middles(maps: Sequence[Floats]) -> Floats:
    """Returns where the middle of each map is."""
    width = int(maps[0].shape[1])
    return np.arange(len(maps)) * (width + gap_of(maps)) + (width - 1) / 2


def explain_marks(figure: Any, axes: Any) -> None:
    """Explains the marks of one of the axes below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


def feature_names(data: InputSpec) -> list[str]:
    """Returns a name for each number along a row's last axis: those of a table, or numbers."""
    named = [name for column in data.columns or () for name in column.features]
    names = named or [f"feature {i}" for i in range(data.shape[-1])]
    return [*names[:-1], "is no padding"] if data.ragged else names


def column_names(data: InputSpec) -> list[str]:
    """Returns the names of a table's columns."""
    return [column.name for column in data.columns or ()] or feature_names(data)
