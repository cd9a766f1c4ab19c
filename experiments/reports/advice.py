"""What to try next: a few sentences by plain rules, each with the figures that it rests on.

A rule looks at facts and says nothing, or a piece of advice. None of them knows more than the facts
tell: they point at what is worth a second sweep, and the second sweep decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from experiments.architectures import UNBALANCED_FROM
from experiments.reports.edges import find_edges
from experiments.reports.facts import StudyFacts, SweepFacts, TrialFacts

TRIALS_A_PARAM: Final = 10
"""Finished trials for each searched param, from which a study is taken to have looked around."""
TPE_BEGINS: Final = 10
"""Trials that Optuna's TPE draws at random before it models anything."""
UNIMPORTANT: Final = 0.03
ENOUGH_TO_FIX: Final = 30
"""Complete trials from which a small share says that a param hardly matters."""
GAP: Final = 0.05
"""Accuracy on training rows above that on validation rows, from which the network has learned by
heart what does not hold elsewhere."""
MOST_FAILED: Final = 0.1
MOST_PRUNED: Final = 0.7
REGULARISING: Final = ("dropout", "weight_decay", "l2")


@dataclass(frozen=True, slots=True)
class Advice:
    """What to try, and why.

    Attributes:
        about: The architecture that it is about; None where it is about all.
        try_this: A sentence.
        evidence: The figures that it rests on, a sentence.
        options: For the command line of the next sweep.
        space: Lines for a table `[space.NAME]` of its config file, of the architecture.
        more: The number of trials that the same study should have; None where it is another study.
    """

    about: str | None
    try_this: str
    evidence: str
    options: tuple[str, ...] = ()
    space: tuple[str, ...] = ()
    more: int | None = None


def advise(sweep: SweepFacts) -> list[Advice]:
    """Returns what to try next, the most telling first; nothing where no trial is complete."""
    found = [one for study in sweep.ranked for one in _look_at_failures(sweep, study)]
    found += _compare_best(sweep)
    if not any(study.top for study in sweep.studies):
        return found
    found += _look_at_classes(sweep)
    for study in sweep.ranked:
        if study.best is not None:
            found += _look_at_search(sweep, study, study.best)
    return _merge(found)


def _look_at_search(sweep: SweepFacts, study: StudyFacts, best: TrialFacts) -> Iterator[Advice]:
    ceiling = list(_see_ceiling(sweep, study, best))
    yield from ceiling
    if ceiling:
        return  # what would make the networks better could not be seen
    for rule in (_want_epochs, _want_trials, _regularise, _see_pruned):
        yield from rule(sweep, study, best)
    yield from _widen(study)
    yield from _fix_unimportant(study, best)


def _merge(found: list[Advice]) -> list[Advice]:
    """Says once what is to be said of several architectures."""
    merged: dict[object, Advice] = {}
    for one in found:
        key = (one.try_this, one.options, one.more, one.about if one.space else None)
        before = merged.get(key)
        if before is None or before.about is None or one.about is None:
            merged[key if before is None else one] = one
            continue
        first = before.evidence
        if "," not in before.about:
            first = f"{before.about}: {first}"
        merged[key] = dataclasses.replace(
            before,
            about=f"{before.about}, {one.about}",
            evidence=f"{first} {one.about}: {one.evidence}",
        )
    return list(merged.values())


def _look_at_failures(sweep: SweepFacts, study: StudyFacts) -> Iterator[Advice]:
    tried = study.n_finished + study.n_failed
    if study.n_failed < max(1, MOST_FAILED * tried) or not study.failures:
        return
    worst = study.failures[0]
    reason = worst.reason.lower()
    evidence = (
        f"{study.n_failed} of {tried} trials failed; {worst.n} of them with: "
        f"{worst.reason.rstrip('.')}."
    )
    if "not finite" in reason:
        rates = sorted(one["learning_rate"] for one in worst.params if "learning_rate" in one)
        space = (f"learning_rate = {{high = {rates[0] / 2:.2g}}}",) if rates else ()
        if rates:
            evidence += f" The smallest learning rate among them is {rates[0]:.3g}."
        yield Advice(study.architecture, "Search lower learning rates.", evidence, space=space)
    elif "memory" in reason:
        yield Advice(
            study.architecture,
            "Let fewer trials share a GPU, or search smaller batches and networks.",
            evidence,
            options=("--trials-per-gpu", "1"),
        )
    else:
        yield Advice(
            study.architecture, "Find out why trials fail before more are asked for.", evidence
        )


def _compare_best(sweep: SweepFacts) -> Iterator[Advice]:
    """Tells whether the best two architectures can be told apart."""
    for objective in dict.fromkeys(one.objective for one in sweep.ranked):
        both = [one for one in sweep.ranked if one.objective == objective and one.best][:2]
        if len(both) == 2:
            yield from _compare_two(sweep, *both)
        elif both and both[0].best is not None and both[0].seeds is None:
            yield Advice(
                both[0].architecture,
                "Train the best params with other seeds.",
                f"{objective} {both[0].best.value:.4f} is one value, the best of "
                f"{both[0].n_complete}; how much of it is luck, one value cannot tell.",
                options=("--seeds", "5"),
            )


def _compare_two(sweep: SweepFacts, first: StudyFacts, second: StudyFacts) -> Iterator[Advice]:
    assert first.best is not None and second.best is not None
    names = f"{first.architecture} and {second.architecture}"
    if first.seeds is None or second.seeds is None:
        rows = sweep.dataset.counts.get("val")
        apart = first.best.value - second.best.value
        in_rows = ""
        if rows and first.objective == "val_accuracy":
            in_rows = f", {round(apart * rows)} of {rows} validation rows"
        yield Advice(
            None,
            f"Train the best params of {names} with several seeds before you choose.",
            f"Their best trials differ by {apart:.4f}{in_rows}, one value each.",
            options=("--seeds", "5"),
        )
    elif first.seeds.low <= second.seeds.high and second.seeds.low <= first.seeds.high:
        n = max(first.seeds.n, second.seeds.n)
        yield Advice(
            None,
            f"Do not choose between {names} by this sweep; more seeds may tell them apart.",
            f"Over seeds {first.architecture} has {first.seeds.mean:.4f} "
            f"[{first.seeds.low:.4f}, {first.seeds.high:.4f}] and {second.architecture} "
            f"{second.seeds.mean:.4f} [{second.seeds.low:.4f}, {second.seeds.high:.4f}]: the "
            "intervals overlap.",
            options=("--seeds", str(max(5, 2 * n))),
        )


def _look_at_classes(sweep: SweepFacts) -> Iterator[Advice]:
    counts = sweep.dataset.class_counts
    if not counts or sweep.config.get("objective", "accuracy") != "accuracy":
        return
    if any(one.objective != "val_accuracy" for one in sweep.studies if one.task == "classifier"):
        return
    if not any(one.task == "classifier" for one in sweep.studies):
        return
    if max(counts) >= UNBALANCED_FROM * max(min(counts), 1):
        names = sweep.dataset.class_names
        most, least = names[counts.index(max(counts))], names[counts.index(min(counts))]
        yield Advice(
            None,
            "Compare by balanced accuracy, which counts each class alike.",
            f"The class {most!r} has {max(counts)} training rows, {least!r} has {min(counts)}: "
            "plain accuracy hardly sees the small ones.",
            options=("--objective", "balanced_accuracy"),
        )


def _want_epochs(sweep: SweepFacts, study: StudyFacts, best: TrialFacts) -> Iterator[Advice]:
    epochs = sweep.config.get("epochs")
    if not epochs or best.best_epoch is None or best.best_epoch + 1 < epochs:
        return
    yield Advice(
        study.architecture,
        "Train for more epochs: the networks were still getting better.",
        f"The best trial was best at its last epoch, {epochs}; so were {study.n_best_at_last} of "
        f"{study.n_complete} complete trials.",
        options=("--epochs", str(2 * epochs)),
    )


def _want_trials(sweep: SweepFacts, study: StudyFacts, best: TrialFacts) -> Iterator[Advice]:
    sampler = sweep.config.get("sampler")
    wanted = TRIALS_A_PARAM * len(study.searched)
    if sampler == "grid" or study.n_finished >= wanted:
        return
    evidence = f"{study.n_finished} finished trials for {len(study.searched)} searched params."
    if sampler == "tpe" and study.n_finished <= TPE_BEGINS:
        evidence += f" TPE draws the first {TPE_BEGINS} at random, and begins to learn after them."
    yield Advice(
        study.architecture,
        f"Ask for more trials: about {TRIALS_A_PARAM} a searched param, {wanted} in all.",
        evidence,
        more=wanted,
    )


def _regularise(sweep: SweepFacts, study: StudyFacts, best: TrialFacts) -> Iterator[Advice]:
    train, val = best.metrics.get("train_accuracy"), best.metrics.get("val_accuracy")
    if train is None or val is None or train - val < GAP:
        return
    known = [one for one in study.space if one.name in REGULARISING and one.high is not None]
    how = "Regularise more: more rows, augmentation, or a smaller network."
    space: tuple[str, ...] = ()
    for one in known:
        value = best.params.get(one.name)
        if isinstance(value, (int, float)) and one.high is not None and value < one.high:
            how = f"Regularise more: search {one.name} above the best trial's {value:.2g}."
            space = (f"{one.name} = {{low = {value:.2g}}}",)
            break
    yield Advice(
        study.architecture,
        how,
        f"The best trial has accuracy {train:.4f} on training rows and {val:.4f} on validation "
        f"rows, {100 * (train - val):.1f} points less.",
        space=space,
    )


def _see_ceiling(sweep: SweepFacts, study: StudyFacts, best: TrialFacts) -> Iterator[Advice]:
    rows = sweep.dataset.counts.get("val")
    if study.objective != "val_accuracy" or not rows or (1 - best.value) * rows > 1.5:
        return
    wrong = round((1 - best.value) * rows)
    yield Advice(
        study.architecture,
        "Stop searching for accuracy: compare by cost, or on harder or more rows.",
        f"The best trial has {wrong} of {rows} validation rows wrong, so that they cannot tell a "
        "better network from it.",
        options=("--objectives", "val_accuracy", "latency_ms"),
    )


def _see_pruned(sweep: SweepFacts, study: StudyFacts, best: TrialFacts) -> Iterator[Advice]:
    if study.n_finished < TPE_BEGINS or study.n_pruned < MOST_PRUNED * study.n_finished:
        return
    after = (
        ""
        if study.pruned_after is None
        else f", half of them after {study.pruned_after:g} epochs or fewer"
    )
    yield Advice(
        study.architecture,
        "Let more trials run to their end: few complete ones are compared.",
        f"{study.n_pruned} of {study.n_finished} finished trials were pruned by "
        f"{sweep.config.get('pruner', 'the pruner')}{after}.",
        options=("--pruner", "none"),
    )


def _widen(study: StudyFacts) -> Iterator[Advice]:
    shares = dict(study.importances.shares)
    edges = [one for one in find_edges(study) if shares.get(one.param, 1.0) >= UNIMPORTANT]
    if edges:
        ends = " and ".join(f"of {one.param} at its {one.side} end" for one in edges)
        yield Advice(
            study.architecture,
            f"Widen the range {ends}: the best trials lie there.",
            " ".join(one.evidence for one in edges),
            space=tuple(one.entry for one in edges),
        )


def _fix_unimportant(study: StudyFacts, best: TrialFacts) -> Iterator[Advice]:
    told = study.importances
    if told.n < ENOUGH_TO_FIX or len(study.objectives) > 1:
        return  # what hardly matters for the quality may decide the cost
    small = [(name, share) for name, share in told.shares if share < UNIMPORTANT]
    if not small or len(small) == len(told.shares):
        return
    options: list[str] = []
    for name, _ in small:
        options += ["--fix", f"{study.architecture}.{name}={_as_fix(best.params[name])}"]
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in small)
    yield Advice(
        study.architecture,
        f"Fix {', '.join(name for name, _ in small)}, and search the others more closely.",
        f"What they have to do with the best {told.n_best} of {told.n} trials: {shares} of all.",
        options=tuple(options),
    )


def _as_fix(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
