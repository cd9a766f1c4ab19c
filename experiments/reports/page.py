"""The page of one sweep, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from experiments.entries import table_name
from experiments.reports.advice import Advice
from experiments.reports.document import (
    Block,
    Code,
    Figures,
    Heading,
    Hint,
    Line,
    Listing,
    Page,
    Paragraph,
    Picture,
    Pictures,
    Table,
)
from experiments.reports.facts import StudyFacts, SweepFacts
from experiments.reports.pictures import (
    draw_history,
    draw_leaderboard,
    draw_pareto,
    draw_shares,
    improvements,
)
from experiments.reports.words import (
    show_duration,
    show_param,
    show_range,
    show_seeds,
    show_time,
    show_value,
)

MOST_IMPROVEMENTS = 30
MOST_MEMBERS = 50
STATES = {
    "running": "This sweep is going on: what stands here is how it stood when the page was made.",
    "interrupted": "This sweep is unfinished, and nobody works on it now.",
    "elsewhere": "This sweep is unfinished; whether it goes on elsewhere cannot be told from here.",
}

Type = Callable[..., str]
"""Makes a command complete, as `mlops.program.command_line` does."""


def build_page(
    sweep: SweepFacts, advice: Sequence[Advice], made_at: datetime, type_command: Type
) -> Page:
    """Returns the page of a sweep."""
    blocks: list[Block] = []
    if sweep.state in STATES:
        done = sum(one.n_finished for one in sweep.studies)
        wanted = sum(one.target for one in sweep.studies)
        line = f"{STATES[sweep.state]} {done} of {wanted} trials are finished."
        blocks.append(Paragraph(line, stands_out=True))
    short = [one for one in sweep.studies if one.n_finished < one.target]
    if sweep.state == "done" and short:
        said = ", ".join(f"{one.architecture} {one.n_finished} of {one.target}" for one in short)
        line = f"The sweep ended before all trials were finished: {said}."
        blocks.append(Paragraph(line, stands_out=True))
    blocks += [
        _figures(sweep),
        *_leaderboard(sweep),
        *_next(sweep, advice, type_command),
        *_searched(sweep),
        *(block for study in sweep.ranked for block in _study(study)),
    ]
    made = f"Made at {made_at:%Y-%m-%d %H:%M} UTC by Podium from the study database."
    return Page(f"Sweep {sweep.sweep_id}", tuple(blocks), made)


def _figures(sweep: SweepFacts) -> Figures:
    studies = sweep.ranked
    entries = []
    for objective in dict.fromkeys(one.objective for one in studies):
        first = next(one for one in studies if one.objective == objective)
        if first.best is not None:
            note = f"{first.architecture}, trial {first.best.number}"
            entries.append((f"best {objective}", show_value(first.best.value), note))
    n_complete, n_pruned, n_failed = (
        sum(getattr(one, name) for one in studies)
        for name in ("n_complete", "n_pruned", "n_failed")
    )
    entries.append(
        (
            "trials finished",
            str(n_complete + n_pruned),
            f"{n_complete} complete, {n_pruned} pruned, {n_failed} failed",
        )
    )
    total = show_duration(sum(one.trial_s for one in studies))
    entries.append(("time of the search", show_duration(sweep.busy_s), f"{total} of trials"))
    if sweep.gpu_s is not None:
        cost = sweep.cost(sweep.gpu_s)
        said = (
            "no price given" if cost is None else f"cost {cost:.2f} at {sweep.gpu_price:g} an hour"
        )
        entries.append(("GPU time", show_duration(sweep.gpu_s), said))
    return Figures(tuple(entries))


def _leaderboard(sweep: SweepFacts) -> Iterator[Block]:
    yield Heading("Leaderboard")
    has_gpu = sweep.gpu_s is not None
    head = ["architecture", "objective", "best trial", "over seeds (95 %)", "complete", "pruned"]
    head += ["failed", "trial time", *(["GPU time", "cost"] if has_gpu else []), "candidate"]
    rows = [_leader(sweep, one, has_gpu) for one in sweep.ranked]
    right = {2, 4, 5, 6, 7, *((8, 9) if has_gpu else ())}
    yield Table(tuple(head), tuple(rows), frozenset(right))
    pictures = []
    for objective in dict.fromkeys(one.objective for one in sweep.ranked):
        studies = [one for one in sweep.ranked if one.objective == objective and one.best]
        if len(studies) > 1:
            caption = f"{objective} of each best trial (ring)"
            if any(one.seeds for one in studies):
                caption += " and its mean over other seeds, with Student's 95 % interval (bar)"
            pictures.append(Picture(draw_leaderboard(studies, objective), f"{caption}."))
    if pictures:
        yield Pictures(tuple(pictures))
    yield Paragraph(_about_intervals(sweep))


def _leader(sweep: SweepFacts, one: StudyFacts, has_gpu: bool) -> tuple[Line, ...]:
    cost = sweep.cost(one.gpu_s)
    gpu = (show_duration(one.gpu_s), "-" if cost is None else f"{cost:.2f}") if has_gpu else ()
    candidate = "-"
    if one.has_candidate:
        candidate = "registered" if one.candidate is None else f"version {one.candidate}"
    return (
        one.architecture,
        one.objective,
        show_value(None if one.best is None else one.best.value),
        "-" if one.best is None else show_seeds(one.seeds),
        str(one.n_complete),
        str(one.n_pruned),
        str(one.n_failed),
        show_duration(one.trial_s),
        *gpu,
        candidate,
    )


def _about_intervals(sweep: SweepFacts) -> Line:
    if all(one.seeds is None for one in sweep.studies):
        return (
            "Each value is one training, the best of its search: it has no interval, and is "
            "somewhat too good by luck. ",
            Code("--seeds 5"),
            " trains the best params again and tells the spread.",
        )
    return (
        "The best trial is the best of many, and somewhat too good by luck; the mean over seeds "
        "that the search never used is not. Its interval tells of seeds, on one split, and not of "
        "other rows."
    )


def _next(sweep: SweepFacts, advice: Sequence[Advice], type_command: Type) -> Iterator[Block]:
    yield Heading("What to try next")
    if not advice:
        yield Paragraph("No rule found anything to say about this sweep.")
    for one in advice:
        yield Hint(one.about, one.try_this, one.evidence, _how(sweep, one, type_command))
    if any(one.options or one.space for one in advice):
        yield Paragraph(
            (
                "Another config is another sweep, which may begin with the best of this one. "
                "Options go on its command line; tables go into a copy of the config file, which ",
                Code("--config"),
                " then names. In the folder where this one was begun:",
            )
        )
        yield Listing(_again(sweep, type_command))
    yield Heading("Go on", 2)
    if sweep.commands:
        yield Listing("\n".join(sweep.commands))
    else:
        yield Paragraph("The command that began the sweep goes on with it.")


def _how(sweep: SweepFacts, one: Advice, type_command: Type) -> str:
    lines = []
    if one.more is not None and sweep.config_file is not None:
        lines.append(more_trials(sweep, one.more, type_command))
    if one.options:
        lines.append(" ".join(one.options))
    if one.space and one.about is not None:
        lines += [table_name(one.about), *one.space]
    return "\n".join(lines)


def more_trials(sweep: SweepFacts, trials: int, type_command: Type) -> str:
    """Returns the command that asks the same studies for more trials."""
    from experiments.config_file import read_options

    known = {name: value for name, value in sweep.config.items() if value is not None}
    before = read_options(known, "sweep.toml")
    more = read_options({**known, "trials": trials}, "sweep.toml")
    # What "auto" stood for may be another with more trials; said as "auto" it is the same study.
    was_auto = before.pruner == before.default_pruner != more.default_pruner
    options = ["--config", str(sweep.config_file), "--study", sweep.sweep_id]
    options += ["--trials", str(trials), *(["--pruner", "auto"] if was_auto else [])]
    return type_command("python", "-m", "experiments.sweep", *options)


def _again(sweep: SweepFacts, type_command: Type) -> str:
    again = ("--study", f"{sweep.sweep_id}-next", "--warm-start", sweep.sweep_id)
    file = ("--config", sweep.config_file) if sweep.config_file is not None else ()
    return type_command("python", "-m", "experiments.sweep", *file, *again) + " ..."


def _searched(sweep: SweepFacts) -> Iterator[Block]:
    yield Heading("What was searched")
    rows = [(name, value) for name, value in _describe(sweep) if value not in ("", "-")]
    yield Table(("", ""), tuple((name, value) for name, value in rows))


def _describe(sweep: SweepFacts) -> Iterator[tuple[str, str]]:
    data, config = sweep.dataset, sweep.config
    yield "dataset", data.name + (f", from {data.source}" if data.source else "")
    if data.rows is not None:
        yield "rows", f"{sum(data.counts.values())} {data.rows}: " + _parts(data.counts)
        yield "classes", _classes(data.class_names, data.class_counts)
    else:
        yield "rows", "not stored on this machine"
    yield "fingerprint", data.fingerprint or "-"
    yield "architectures", ", ".join(one.architecture for one in sweep.studies)
    for study in sweep.studies:
        if len(study.objectives) > 1 or study.requirements:
            wanted = ", ".join(study.objectives)
            needs = f"; required: {', '.join(study.requirements)}" if study.requirements else ""
            yield f"objectives of {study.architecture}", wanted + needs
    yield "trials wanted of each", ", ".join({str(one.target): None for one in sweep.studies})
    for name in ("epochs", "sampler", "pruner", "seed", "threads", "precision", "population"):
        yield name, str(config.get(name) or "-") if name != "seed" else str(config.get(name, "-"))
    if config:
        yield "seeds after the search", str(config.get("seeds") or "none")
        yield "fixed", ", ".join(config.get("fix", ()))
    yield "began", show_time(sweep.began)
    yield "last trial ended", show_time(sweep.ended)
    yield "home", sweep.home
    versions = dict(sweep.environment)
    commit, is_dirty = versions.pop("commit", ""), versions.pop("git_dirty", "") == "true"
    yield "versions", ", ".join(f"{name} {value}" for name, value in versions.items())
    yield "commit", commit + ", with changes" * (is_dirty and bool(commit))


def _parts(counts: object) -> str:
    assert isinstance(counts, dict)
    words = {"train": "to train", "val": "to validate", "test": "to test"}
    return ", ".join(f"{counts[name]} {words[name]}" for name in words if name in counts)


def _classes(names: Sequence[str], counts: Sequence[int]) -> str:
    shown = ", ".join(f"{one} ({n})" for one, n in zip(names[:20], counts[:20], strict=True))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{len(names)}, with training rows: {shown}{more}"


def _study(study: StudyFacts) -> Iterator[Block]:
    yield Heading(study.architecture)
    pictures = [*_history(study), *_importances(study), *_pareto_pictures(study)]
    if pictures:
        yield Pictures(tuple(pictures))
    if study.importances.why_none is not None:
        yield Paragraph(f"Which params matter is not told: {study.importances.why_none}.")
    best = {} if study.best is None else study.best.params
    yield Table(
        ("param", "searched", "best trial"),
        tuple(
            (Code(one.name), show_range(one), show_param(best.get(one.name, "-")))
            for one in study.space
        ),
        frozenset({2}),
    )
    if len(study.top) > 1:
        yield Heading("Best complete trials", 3)
        names = [one.name for one in study.searched]
        yield Table(
            ("trial", study.objective, *names),
            tuple(
                (
                    str(one.number),
                    show_value(one.value),
                    *(show_param(one.params.get(name, "-")) for name in names),
                )
                for one in study.top[:5]
            ),
            frozenset(range(2 + len(names))),
        )
    yield from _pareto_table(study)
    if study.failures:
        yield Heading("Why trials failed", 3)
        rows = tuple(
            (str(one.n), one.reason, ", ".join(map(str, one.numbers))) for one in study.failures
        )
        yield Table(("trials", "reason", "first of them"), rows, frozenset({0}))


def _history(study: StudyFacts) -> Iterator[Picture]:
    if not study.history:
        return
    best = list(improvements(study.history))[-MOST_IMPROVEMENTS:]
    crosses = "pruned, or not as required" if study.requirements else "pruned"
    caption = f"Each trial in its order (cross: {crosses}), and the best so far (line)."
    complete = [one.value for one in study.history if one.counts]
    if complete and any(one.value < min(complete) for one in study.history):
        caption += " What lies below all complete trials is drawn at the bottom."
    if study.n_history > len(study.history):
        caption += f" {len(study.history)} of {study.n_history} are drawn."
    yield Picture(
        draw_history(study.history, study.objective),
        caption,
        Table(
            ("best so far: trial", study.objective),
            tuple((str(one.number), show_value(one.value)) for one in best),
            frozenset({0, 1}),
        ),
    )


def _importances(study: StudyFacts) -> Iterator[Picture]:
    told = study.importances
    if not told.shares:
        return
    yield Picture(
        draw_shares(told.shares),
        f"How much each param has to do with being one of the best {told.n_best} of {told.n} "
        f"complete trials by {study.objective} (PED-ANOVA).",
        Table(
            ("param", "share"),
            tuple((Code(name), f"{100 * share:.1f} %") for name, share in told.shares),
            frozenset({1}),
        ),
    )


def _pareto_pictures(study: StudyFacts) -> Iterator[Picture]:
    if study.pareto is None or not (study.pareto.members or study.pareto.beaten):
        return
    caption = "Trials that no other beats in all objectives (numbered), and the others."
    if study.pareto.bounds:
        caption += " What is required is dashed."
    for across in study.pareto.metrics[1:]:
        yield Picture(draw_pareto(study.pareto, across), caption)


def _pareto_table(study: StudyFacts) -> Iterator[Block]:
    if study.pareto is None or len(study.objectives) < 2:
        return
    yield Heading("Trials that no other beats in every objective", 3)
    metrics, names = study.pareto.metrics, [one.name for one in study.searched]
    yield Table(
        ("trial", *(one.name for one in metrics), *names),
        tuple(
            (
                str(number),
                *(show_value(values.get(one.name)) for one in metrics),
                *(show_param(study.pareto.params[number].get(name, "-")) for name in names),
            )
            for number, values in study.pareto.members[:MOST_MEMBERS]
        ),
        frozenset(range(1 + len(metrics) + len(names))),
    )
