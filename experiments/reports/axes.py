"""Axes of a small SVG picture: where values lie, where ticks stand, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 440
HEIGHT: Final = 270
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 44
"""Margins in the SVG's own units, of which a picture has `WIDTH` times `HEIGHT`."""

LOG_FROM: Final = 20.0
"""Largest for smallest value from which an axis of costs is logarithmic."""


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places in units of the SVG.

    Attributes:
        low, high: The values at both ends, low < high.
        start, end: Their places.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Returns round values inside the axis, at most so many."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step *= next(one for one in (1, 2, 5, 10, 20) if step * one * most >= self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for parts in ((1, 2, 5), (1,)):
        found = [10.0**power * one for power in range(first, last + 1) for one in parts]
        found = [one for one in found if low <= one <= high]
        if len(found) <= most:
            break
    return found[:: -(-len(found) // most) or 1]


def make_axis(
    values: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.06
) -> Axis:
    """Returns an axis that holds all finite values, with some room at both ends."""
    known = [one for one in values if math.isfinite(one)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if log and low > 0 and high > LOG_FROM * low:
        factor = (high / low) ** room
        return Axis(low / factor, high * factor, start, end, log=True)
    width = (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room * width, high + room * width, start, end)


def write_number(value: float) -> str:
    """Returns a number for a tick: 0.95, 20, 50k, 2M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor and abs(value) >= 1e4:
            return f"{value / factor:g}{letter}"
    return f"{value:.5g}"


def draw_text(text: str, x: float, y: float, anchor: str = "middle", of: str = "t") -> str:
    """Returns a text at a place, in the class of style `of`."""
    return f'<text class="{of}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def draw_frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterator[str]:
    """Yields the grid, the numbers and the labels of a picture with two axes."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in y.ticks():
        at = y.place(value)
        yield f'<path class="g" d="M{LEFT} {at}H{right}"/>'
        yield draw_text(write_number(value), LEFT - 6, at + 4, "end")
    for value in x.ticks():
        at = x.place(value)
        yield f'<path class="g" d="M{at} {bottom}v4"/>'
        yield draw_text(write_number(value), at, bottom + 17)
    yield f'<path class="g" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    yield draw_text(x_label, (LEFT + right) / 2, HEIGHT - 8)
    yield draw_text(y_label, LEFT, TOP - 3, "start")


def wrap(parts: Iterable[str], height: float, said: str) -> str:
    """Returns an SVG with a name for those who hear it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(said)}">'
        f"{''.join(parts)}</svg>"
    )
