"""The pictures of a report, as SVG that stands in the page: its colours are the page's own.

Drawn by hand and not by matplotlib: a few kilobytes each, milliseconds, readable on dark paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from experiments.objectives import Objective
from experiments.reports.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    draw_frame,
    draw_text,
    make_axis,
    wrap,
    write_number,
)
from experiments.reports.facts import HistoryPoint, ParetoFacts, StudyFacts

ROW = 26
"""Height of a line of bars or intervals."""
NAME = 120
"""Width of the names beside them."""
LONGEST = 17
"""Signs of a name that fit there."""
MOST_LABELS = 12
MOST_ROWS = 15


def draw_history(points: Sequence[HistoryPoint], objective: str) -> str:
    """Draws each trial's value and the best so far."""
    x = make_axis([0, *(one.number for one in points)], LEFT, WIDTH - RIGHT, room=0.02)
    # What was pruned far below the others would press them into a line.
    complete = [one.value for one in points if one.counts]
    shown = complete or [one.value for one in points]
    y = make_axis(shown, HEIGHT - BOTTOM, TOP + 6)
    return wrap(
        [*draw_frame(x, y, "trial", objective), *_draw_trials(points, x, y)],
        HEIGHT,
        f"{objective} of {len(points)} trials in their order, and the best so far",
    )


def _draw_trials(points: Sequence[HistoryPoint], x: Axis, y: Axis) -> Iterator[str]:
    size = 3.5 if len(points) <= 200 else 2
    for one in points:
        across, up = x.place(one.number), y.place(one.value)
        if one.counts:
            yield f'<circle class="b" cx="{across}" cy="{up}" r="{size}"/>'
        else:
            cross = f"l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}"
            yield f'<path class="p" d="M{across - size} {up - size}{cross}"/>'
    best = list(improvements(points))
    if best:
        steps = "".join(f"H{x.place(one.number)}V{y.place(one.value)}" for one in best[1:])
        first, last = best[0], points[-1]
        start = f"M{x.place(first.number)} {y.place(first.value)}"
        yield f'<path class="l" d="{start}{steps}H{x.place(last.number)}"/>'


def improvements(points: Iterable[HistoryPoint]) -> Iterator[HistoryPoint]:
    """Yields the complete trials that were better than all before them."""
    best = float("-inf")
    for one in points:
        if one.counts and one.value > best:
            best = one.value
            yield one


def draw_shares(shares: Sequence[tuple[str, float]]) -> str:
    """Draws a bar for each of the first params, with its share of all."""
    shown = shares[:MOST_ROWS]
    x = Axis(0.0, max((share for _, share in shown), default=1.0) or 1.0, NAME, WIDTH - 52)
    parts = []
    for index, (name, share) in enumerate(shown):
        top, end = index * ROW + 4, x.place(share)
        parts += [
            _name(name, top + 14),
            f'<path class="b" d="M{NAME} {top + 2}H{max(end, NAME + 1):.1f}v16H{NAME}z"/>',
            draw_text(f"{100 * share:.0f} %", end + 5, top + 14, "start"),
        ]
    return wrap(parts, len(shown) * ROW + 8, "importance of each param")


def draw_leaderboard(studies: Sequence[StudyFacts], objective: str) -> str:
    """Draws the best of each study, and mean and interval over seeds where there are any."""
    return draw_intervals(
        [
            (
                one.architecture,
                one.best.value,
                None if one.seeds is None else (one.seeds.low, one.seeds.mean, one.seeds.high),
            )
            for one in studies
            if one.best is not None
        ],
        objective,
    )


def draw_intervals(
    lines: Sequence[tuple[str, float, tuple[float, float, float] | None]], label: str
) -> str:
    """Draws lines of a name, a best value (a ring), and low, mean and high over seeds (a bar)."""
    values = [value for _, best, seeds in lines for value in (best, *(seeds or ()))]
    x, height = make_axis(values, NAME + 4, WIDTH - 20), len(lines) * ROW + 44
    bottom = height - 36
    parts = []
    for value in x.ticks(5):
        at = x.place(value)
        parts.append(f'<path class="g" d="M{at} 2V{bottom}"/>')
        parts.append(draw_text(write_number(value), at, bottom + 15))
    parts.append(draw_text(label, (NAME + WIDTH) / 2, height - 6))
    for index, (name, best, seeds) in enumerate(lines):
        at = index * ROW + 16
        parts.append(_name(name, at + 4))
        if seeds is not None:
            low, mean, high = map(x.place, seeds)
            ends = f"M{low} {at}H{high}M{low} {at - 5}v10M{high} {at - 5}v10"
            parts.append(f'<path class="i" d="{ends}"/>')
            parts.append(f'<circle class="b" cx="{mean}" cy="{at}" r="4"/>')
        parts.append(f'<circle class="h" cx="{x.place(best)}" cy="{at}" r="4.5"/>')
    return wrap(parts, height, f"{label} of the best trial of each, and over seeds")


def draw_pareto(pareto: ParetoFacts, across: Objective) -> str:
    """Draws the first metric over another one: what no trial beats, and the others."""
    height = pareto.metrics[0]
    every = [*pareto.beaten, *pareto.members]
    places = [
        (number, values[across.name], values[height.name], at >= len(pareto.beaten))
        for at, (number, values) in enumerate(every)
        if across.name in values and height.name in values
    ]
    x = make_axis([one[1] for one in places], LEFT, WIDTH - RIGHT, log=across.is_cost)
    y = make_axis([one[2] for one in places], HEIGHT - BOTTOM, TOP + 6)
    parts = list(draw_frame(x, y, _label(across), _label(height)))
    for number, right, up, is_member in places:
        place = f'cx="{x.place(right)}" cy="{y.place(up)}"'
        kind, size = ("o", 4.5) if is_member else ("d", 3)
        parts.append(f'<circle class="{kind}" {place} r="{size}"/>')
        if is_member and len(pareto.members) <= MOST_LABELS:
            parts.append(draw_text(str(number), x.place(right) + 6, y.place(up) + 13, "start"))
    parts += _draw_bounds(pareto, (x, y), (across.name, height.name))
    said = f"{height.name} over {across.name} of {len(places)} trials"
    return wrap(parts, HEIGHT, said)


def _draw_bounds(
    pareto: ParetoFacts, axes: tuple[Axis, Axis], names: tuple[str, str]
) -> Iterator[str]:
    x, y = axes
    for metric, bound in pareto.bounds:
        if metric == names[0] and x.low <= bound <= x.high:
            yield f'<path class="r" d="M{x.place(bound)} {y.start}V{y.end}"/>'
        if metric == names[1] and y.low <= bound <= y.high:
            yield f'<path class="r" d="M{x.start} {y.place(bound)}H{x.end}"/>'


def _label(metric: Objective) -> str:
    better = "higher" if metric.direction == "maximize" else "lower"
    unit = f", {metric.unit}" if metric.unit and not metric.is_cost else ""
    return f"{metric.name}{unit} ({better} is better)"


def _name(name: str, at: float) -> str:
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return draw_text(short, NAME - 8, at, "end", of="k")
