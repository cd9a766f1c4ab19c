"""What a finished study leaves on its parent run: a table of trials, a plot, a few sentences."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from experiments.figures.study import write_study_figures
from experiments.goals import METRICS
from experiments.pareto import write_pareto
from experiments.privacy.budget import find_spent
from experiments.study import Search


def write_trials(search: Search, path: Path) -> None:
    """Writes the study's trials as CSV: number, state, quality, seconds, measurements, params."""
    trials = search.study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    goals = search.goals
    metrics = [one.name for one in goals.objectives] + [one.metric for one in goals.requirements]
    metrics = [] if goals.are_plain else list(dict.fromkeys(metrics))
    head = ["number", "state", "value", "duration_s", "best_epoch", "seed", "retry_of"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *metrics, *names])
        for trial in trials:
            attrs = trial.user_attrs
            is_complete = trial.state is TrialState.COMPLETE
            measured = goals.metrics_of(trial) if is_complete else attrs.get(METRICS, {})
            told = trial.values[0] if trial.values and len(trial.values) == 1 else None
            writer.writerow(
                [
                    trial.number,
                    trial.state.name.lower(),
                    goals.quality_of(trial) if is_complete else told,
                    None if trial.duration is None else round(trial.duration.total_seconds(), 3),
                    attrs.get("best_epoch"),
                    attrs.get("seed"),
                    attrs.get("retry_of"),
                    *(measured.get(name) for name in metrics),
                    *(trial.params.get(name) for name in names),
                ]
            )


def plot_history(search: Search, path: Path) -> None:
    """Draws the objective of each trial and the best so far, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    trials = search.study.get_trials(deepcopy=False)
    quality_of = search.goals.quality_of
    complete = [(t.number, quality_of(t)) for t in trials if t.state is TrialState.COMPLETE]
    pruned = [
        (t.number, max(t.intermediate_values.values()))
        for t in trials
        if t.state is TrialState.PRUNED and t.intermediate_values
    ]
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    if pruned:
        axes.scatter(*zip(*pruned, strict=True), marker="x", color="0.6", label="pruned")
    if complete:
        numbers, values = zip(*complete, strict=True)
        best = [max(values[: index + 1]) for index in range(len(values))]
        axes.scatter(numbers, values, color="tab:blue", label="complete")
        axes.step(numbers, best, where="post", color="tab:orange", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(search.description.objective)
    axes.set_title(search.name)
    axes.grid(alpha=0.3)
    if pruned or complete:
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def summarise(search: Search) -> dict[str, Any]:
    """Returns the study's numbers, as JSON has them."""
    tally, best = search.tally(), search.best()
    return {
        "architecture": search.description.name,
        "n_complete": tally.n_complete,
        "n_pruned": tally.n_pruned,
        "n_failed": tally.n_failed,
        "best": None
        if best is None
        else {"number": best.number, "value": tally.value, "params": best.params},
        **({} if search.goals.are_plain else {"pareto": _members(search)}),
        **({} if (spent := find_spent(search)) is None else {"privacy": asdict(spent)}),
    }


def _members(search: Search) -> list[dict[str, Any]]:
    return [
        {"number": one.number, "metrics": search.goals.metrics_of(one), "params": one.params}
        for one in search.members()
    ]


def describe_in_words(search: Search) -> str:
    """Returns the study's summary as Markdown; MLflow's UI shows it on the run's page."""
    tally, best = search.tally(), search.best()
    lines = [
        f"Study `{search.name}`: {tally.n_complete} complete, {tally.n_pruned} pruned, "
        f"{tally.n_failed} failed."
    ]
    if search.goals.requirements:
        required = ", ".join(f"`{one}`" for one in search.goals.requirements)
        lines.append(f"\nRequired: {required}.")
    if (spent := find_spent(search)) is not None:
        lines.append(f"\nPrivacy of the training rows, of the whole sweep: {spent}.")
    if best is not None:
        lines.append(
            f"\nBest: trial {best.number}, {search.description.objective} {tally.value:.4f}."
        )
        lines += ["", "| param | value |", "|---|---|"]
        lines += [f"| {name} | {_short(value)} |" for name, value in best.params.items()]
    elif tally.n_complete:
        lines.append("\nNo trial kept what is required.")
    if search.goals.is_multi:
        lines += ["", "No other trial is better in one of these and no worse in the others:", ""]
        names = [one.name for one in search.goals.objectives]
        lines += [f"| trial | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for one in search.members():
            values = " | ".join(_short(value) for value in one.values)
            lines.append(f"| {one.number} | {values} |")
    return "\n".join(lines)


def write_summary(search: Search, folder: Path) -> None:
    """Writes trials.csv, optimization_history.png and summary.json into a folder.

    With several objectives, or with requirements, pareto.csv and pareto.png too, and what
    `write_study_figures` writes, unless no plots are wanted.
    """
    goals = search.goals
    if not goals.are_plain:
        complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        points = [goals.point(trial) for trial in complete]
        write_pareto(folder, search.name, points, goals.objectives, goals.requirements)
    write_trials(search, folder / "trials.csv")
    plot_history(search, folder / "optimization_history.png")
    (folder / "summary.json").write_text(json.dumps(summarise(search), indent=2))
    if search.config.plots != "none":
        write_study_figures(search, folder)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
