"""What a finished study leaves on its parent run: a table of trials, a plot, a few sentences."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from experiments.study import Search


def write_trials(search: Search, path: Path) -> None:
    """Writes the study's trials as CSV: number, state, value, seconds, params."""
    trials = search.study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["number", "state", "value", "duration_s", "best_epoch", "seed", "retry_of", *names]
        )
        for trial in trials:
            attrs = trial.user_attrs
            writer.writerow(
                [
                    trial.number,
                    trial.state.name.lower(),
                    trial.value,
                    None if trial.duration is None else round(trial.duration.total_seconds(), 3),
                    attrs.get("best_epoch"),
                    attrs.get("seed"),
                    attrs.get("retry_of"),
                    *(trial.params.get(name) for name in names),
                ]
            )


def plot_history(search: Search, path: Path) -> None:
    """Draws the objective of each trial and the best so far, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    trials = search.study.get_trials(deepcopy=False)
    complete = [(t.number, t.value) for t in trials if t.state is TrialState.COMPLETE]
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
        else {"number": best.number, "value": best.value, "params": best.params},
    }


def describe_in_words(search: Search) -> str:
    """Returns the study's summary as Markdown; MLflow's UI shows it on the run's page."""
    tally, best = search.tally(), search.best()
    lines = [
        f"Study `{search.name}`: {tally.n_complete} complete, {tally.n_pruned} pruned, "
        f"{tally.n_failed} failed."
    ]
    if best is not None:
        lines.append(
            f"\nBest: trial {best.number}, {search.description.objective} {best.value:.4f}."
        )
        lines += ["", "| param | value |", "|---|---|"]
        lines += [f"| {name} | {_short(value)} |" for name, value in best.params.items()]
    return "\n".join(lines)


def write_summary(search: Search, folder: Path) -> None:
    """Writes trials.csv, optimization_history.png and summary.json into a folder."""
    write_trials(search, folder / "trials.csv")
    plot_history(search, folder / "optimization_history.png")
    (folder / "summary.json").write_text(json.dumps(summarise(search), indent=2))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
