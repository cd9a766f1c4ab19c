"""The page of several sweeps side by side, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from experiments.reports.comparing import Comparison, Difference
from experiments.reports.document import (
    Block,
    Code,
    Heading,
    Line,
    Page,
    Paragraph,
    Picture,
    Pictures,
    Table,
)
from experiments.reports.facts import StudyFacts, SweepFacts
from experiments.reports.page import STATES
from experiments.reports.pictures import draw_intervals
from experiments.reports.words import (
    show_duration,
    show_param,
    show_seeds,
    show_time,
    show_value,
)


def build_comparison_page(comparison: Comparison, made_at: datetime) -> Page:
    """Returns the page."""
    sweeps = comparison.sweeps
    blocks: list[Block] = [Paragraph(comparison.about_data, not comparison.is_comparable)]
    for one in sweeps:
        if one.state in STATES:
            blocks.append(Paragraph(f"{one.sweep_id}: {STATES[one.state]}", stands_out=True))
    blocks += [
        *_leaderboards(sweeps),
        *_differences(comparison),
        *_costs(sweeps),
        *_configs(comparison),
        *_params(sweeps),
    ]
    title = " and ".join(one.sweep_id for one in sweeps)
    made = f"Made at {made_at:%Y-%m-%d %H:%M} UTC by Podium from the study database."
    return Page(f"Sweeps {title}", tuple(blocks), made)


def _leaderboards(sweeps: tuple[SweepFacts, ...]) -> Iterator[Block]:
    yield Heading("Leaderboards")
    rows: list[tuple[Line, ...]] = []
    for sweep in sweeps:
        for one in sweep.ranked:
            best = None if one.best is None else one.best.value
            seeds = "-" if best is None else show_seeds(one.seeds)
            rows.append((one.architecture, one.objective, sweep.sweep_id, show_value(best), seeds))
    rows.sort(key=lambda row: (str(row[1]), str(row[0])))
    head = ("architecture", "objective", "sweep", "best trial", "over seeds (95 %)")
    yield Table(head, tuple(rows), frozenset({3}))
    every = [(sweep, one) for sweep in sweeps for one in sweep.ranked if one.best is not None]
    yield Pictures(
        tuple(
            Picture(_draw(sweeps, every, objective), f"{objective}: {_legend(sweeps)}.")
            for objective in dict.fromkeys(one.objective for _, one in every)
        )
    )


def _draw(
    sweeps: tuple[SweepFacts, ...], every: list[tuple[SweepFacts, StudyFacts]], objective: str
) -> str:
    lines = [
        (
            f"{one.architecture} {_letter(sweeps, sweep)}",
            one.best.value,
            None if one.seeds is None else (one.seeds.low, one.seeds.mean, one.seeds.high),
        )
        for sweep, one in every
        if one.objective == objective and one.best is not None
    ]
    return draw_intervals(sorted(lines, key=lambda line: line[0]), objective)


def _letter(sweeps: tuple[SweepFacts, ...], sweep: SweepFacts) -> str:
    return f"({sweeps.index(sweep) + 1})"


def _legend(sweeps: tuple[SweepFacts, ...]) -> str:
    named = ", ".join(f"({at}) {one.sweep_id}" for at, one in enumerate(sweeps, 1))
    return f"best trial (ring) and mean over seeds with its interval (bar), of {named}"


def _differences(comparison: Comparison) -> Iterator[Block]:
    yield Heading("Differences")
    if not comparison.is_comparable:
        yield Paragraph("None is computed: the values are not of the same rows.")
        return
    if not comparison.differences:
        yield Paragraph("None of the sweeps has a study with an objective that another has, too.")
        return
    yield Table(
        ("of", "objective", "first", "second", "second less first", "95 % interval"),
        tuple(map(_difference, comparison.differences)),
        frozenset({2, 3, 4}),
    )
    yield Paragraph(
        "With an interval, means over seeds are compared (Welch's interval, of seeds on one "
        "split). An interval that holds 0 tells neither from the other. Without, each side is one "
        "value, the best of its search, and how much of the difference is luck is not known."
    )


def _difference(one: Difference) -> tuple[Line, ...]:
    interval = "one value each"
    if one.low is not None and one.high is not None:
        verdict = "" if one.low > 0 or one.high < 0 else ": not told apart"
        interval = f"[{one.low:+.4f}, {one.high:+.4f}]{verdict}"
    return (
        f"{one.about} ({one.second} less {one.first})",
        one.objective,
        show_value(one.first_value),
        show_value(one.second_value),
        f"{one.value:+.4f}",
        interval,
    )


def _costs(sweeps: tuple[SweepFacts, ...]) -> Iterator[Block]:
    yield Heading("Time and cost")
    rows = []
    for one in sweeps:
        cost = one.cost(one.gpu_s)
        rows.append(
            (
                one.sweep_id,
                show_time(one.began),
                str(sum(study.n_finished for study in one.studies)),
                str(sum(study.n_failed for study in one.studies)),
                show_duration(one.busy_s),
                show_duration(sum(study.trial_s for study in one.studies)),
                show_duration(one.gpu_s),
                "-" if cost is None else f"{cost:.2f}",
            )
        )
    head = ("sweep", "began", "finished", "failed", "search", "trials", "GPU", "cost")
    yield Table(head, tuple(rows), frozenset(range(2, 8)))


def _configs(comparison: Comparison) -> Iterator[Block]:
    yield Heading("What differs in the configs")
    missing = [one.sweep_id for one in comparison.sweeps if not one.config]
    if missing:
        yield Paragraph(f"The config of {', '.join(missing)} is not on this machine.")
    elif not comparison.config:
        yield Paragraph("Nothing that decides a network.")
    if comparison.config and not missing:
        yield Table(
            ("option", *(one.sweep_id for one in comparison.sweeps)),
            tuple((Code(name), *values) for name, values in comparison.config),
        )
    for name in dict.fromkeys(key for one in comparison.sweeps for key in one.environment):
        values = [one.environment.get(name, "-") for one in comparison.sweeps]
        if len({*values}) > 1:
            yield Paragraph(f"{name}: {'; '.join(values)}.")


def _params(sweeps: tuple[SweepFacts, ...]) -> Iterator[Block]:
    yield Heading("Params of the bests")
    for architecture in dict.fromkeys(one.architecture for sweep in sweeps for one in sweep.ranked):
        found = [
            next((one for one in sweep.studies if one.architecture == architecture), None)
            for sweep in sweeps
        ]
        bests = [None if one is None or one.best is None else one.best for one in found]
        names = dict.fromkeys(name for one in bests if one is not None for name in one.params)
        yield Heading(architecture, 3)
        yield Table(
            ("param", *(one.sweep_id for one in sweeps)),
            tuple(
                (
                    Code(name),
                    *(
                        "-" if one is None else show_param(one.params.get(name, "-"))
                        for one in bests
                    ),
                )
                for name in names
            ),
        )
