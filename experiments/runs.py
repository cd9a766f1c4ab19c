"""What a sweep's runs are called and what stands on them: one parent a study, one child a trial."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial

from experiments.config import SweepConfig
from experiments.config_file import write_config
from experiments.finals import Final, Finals
from experiments.privacy.accounting import Privacy
from experiments.privacy.budget import Budget, Spent
from experiments.reproducing.environment import VERSIONS, find_versions
from experiments.reproducing.recipe import RECIPE, Recipe
from experiments.studies import CONFIG
from experiments.study import Ask, Search
from experiments.summary import describe_in_words, write_summary
from mlops.data import Dataset
from mlops.journal import Journal
from mlops.tracking import Run, RunDataset, Status, new_run_key


@dataclass(frozen=True, slots=True)
class SweepRuns:
    """Makes and ends the runs of one sweep, through the driver's journal."""

    journal: Journal
    config: SweepConfig
    dataset: Dataset
    sweep_id: str
    _environment: dict[str, str] = field(default_factory=lambda: {**_versions(), **_git()})

    @property
    def experiment(self) -> str:
        return self.config.experiment or self.dataset.name

    @property
    def environment(self) -> dict[str, str]:
        """The versions that decide a trial's weights, and the commit, by name."""
        known = dict(self._environment)
        versions: dict[str, str] = json.loads(known.pop(VERSIONS))
        return versions | {name.rpartition(".")[-1]: value for name, value in known.items()}

    def _create_parent(self, search: Search) -> None:
        """Begins a study's run, with the resolved config as params and as sweep.toml."""
        config = self.config.resolved()
        known = {
            name: json.dumps(value) if isinstance(value, (list, dict)) else value
            for name, value in config.to_json().items()
            if value not in (None, [], {})
        }
        parent = Run.create(
            self.journal,
            experiment=self.experiment,
            name=f"{search.description.name} {self.sweep_id}",
            key=search.run_key,
            params={
                **known,
                "architectures": " ".join(self.config.architectures),
                **({} if config.dp_epsilon is None else {"dp_delta": self._delta}),
                "architecture": search.description.name,
            },
            tags=self._tags(search),
            dataset=self._dataset("search"),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CONFIG
            write_config(config, path)
            parent.log_artifact(path)

    def create_trial(self, search: Search, ask: Ask, privacy: Privacy | None = None) -> Run:
        """Begins a trial's run, before a worker knows of the trial."""
        key = new_run_key()
        search.set_run_key(ask, key)
        tags = {
            "mlops.trial": str(ask.number),
            "mlops.attempt": str(ask.attempt),
            "mlops.seed": str(ask.seed),
            "mlops.epochs": str(self.config.epochs),
        }
        if ask.alone:
            tags["mlops.alone"] = "true"
        if self.config.population is not None:
            tags["mlops.population"] = str(self.config.population)
        recipe = self._recipe(search, ask, self.config.epochs, self.config.population)
        return self._create_child(search, f"{ask.number:03d}", key, recipe, tags, privacy)

    def create_final(self, search: Search, final: Final, privacy: Privacy | None = None) -> Run:
        """Begins the run of a training after the search."""
        tags = {
            "mlops.final": final.kind,
            "mlops.seed": str(final.seed),
            "mlops.epochs": str(final.epochs),
        }
        recipe = self._recipe(search, final, final.epochs, refit=final.kind == "refit")
        return self._create_child(search, final.name, new_run_key(), recipe, tags, privacy)

    def _recipe(
        self,
        search: Search,
        asked: Ask | Final,
        epochs: int,
        population: int | None = None,
        *,
        refit: bool = False,
    ) -> Recipe:
        return Recipe(
            architecture=search.description.path,
            objective=search.description.objective,
            params=asked.params,
            seed=asked.seed,
            epochs=epochs,
            dataset_fingerprint=self.dataset.fingerprint,
            threads=self.config.threads,
            backend=os.environ.get("KERAS_BACKEND") or "tensorflow",
            precision=self.config.precision,
            xla=self.config.xla,
            population=population,
            refit=refit,
        )

    def _create_child(
        self,
        search: Search,
        name: str,
        key: str,
        recipe: Recipe,
        tags: dict[str, str],
        privacy: Privacy | None,
    ) -> Run:
        private = {} if privacy is None else privacy.params()
        return Run.create(
            self.journal,
            experiment=self.experiment,
            name=f"{search.description.name}-{name}",
            key=key,
            params={"architecture": search.description.name, **recipe.params, **private},
            tags={
                **self._tags(search),
                "mlflow.parentRunId": search.run_key,
                "mlops.threads": str(recipe.threads),
                "mlops.precision": recipe.precision,
                "mlops.xla": recipe.xla,
                "mlops.backend": recipe.backend,
                RECIPE: recipe.to_tag(),
                **tags,
            },
            dataset=self._dataset("training"),
        )

    def open_parent(self, search: Search) -> None:
        """Begins a study's run, or opens it again where an earlier driver began it."""
        if search.has_parent:
            Run(self.journal, search.run_key).end("RUNNING")
        else:
            self._create_parent(search)
            search.note_parent()

    def close_interrupted(self, run_key: str) -> None:
        """Ends the run of a trial whose process was stopped; the trial gets another."""
        run = Run(self.journal, run_key)
        run.set_tags({"mlops.interrupted": "true"})
        run.end("KILLED")

    def close_dead(self, run_key: str, reason: str) -> None:
        """Ends the run of a trial whose process died."""
        run = Run(self.journal, run_key)
        run.set_tags({"mlops.failure": reason})
        run.end("FAILED")

    def close_undelivered(self, run_key: str, status: Status) -> None:
        """Ends a run whose own end lies on a host that does not deliver it."""
        run = Run(self.journal, run_key)
        run.set_tags({"mlops.undelivered": "true"})
        run.end(status)

    def log_spent(self, search: Search, spent: Spent) -> None:
        """Logs what the sweep has spent of its rows' privacy, on a study's run."""
        found = {"dp_epsilon_total": spent.total, "dp_trainings": float(spent.n_trainings)}
        Run(self.journal, search.run_key).log_metrics(found, step=0)

    def stop_parent(self, search: Search, status: Status) -> None:
        """Ends the run of a study that is not done."""
        Run(self.journal, search.run_key).end(status)

    def end_parent(self, search: Search) -> None:
        """Ends the run of a study that is done, with its summary, plot and table of trials."""
        parent = Run(self.journal, search.run_key)
        tally = search.tally()
        objective = search.description.objective
        # A driver that dies here says all this again when it is back: at the same time, not twice.
        best = search.best()
        at_ms = None if best is None else _ended_ms(best)
        if tally.value is not None:
            parent.log_metrics({f"best_{objective}": tally.value}, step=0, at_ms=at_ms)
        seeds = Finals(search).summary()
        if seeds is not None:
            parent.log_metrics(
                {
                    f"seeds_mean_{objective}": seeds.mean,
                    f"seeds_low_{objective}": seeds.low,
                    f"seeds_high_{objective}": seeds.high,
                },
                step=0,
                at_ms=at_ms,
            )
        parent.set_tags(
            {
                "mlops.n_complete": str(tally.n_complete),
                "mlops.n_pruned": str(tally.n_pruned),
                "mlops.n_failed": str(tally.n_failed),
                "mlflow.note.content": describe_in_words(search),
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            write_summary(search, Path(folder))
            for path in sorted(Path(folder).iterdir()):
                parent.log_artifact(path)
        parent.end("FINISHED" if search.gave_up is None else "FAILED")

    def log_report(self, searches: Iterable[Search], files: Sequence[Path]) -> None:
        """Gives the run of each study the files of the sweep's report."""
        for search in searches:
            for path in files:
                Run(self.journal, search.run_key).log_artifact(path)

    @property
    def _delta(self) -> float:
        return Budget(self.config, self.dataset.counts()["train"]).delta

    def _tags(self, search: Search) -> dict[str, str]:
        return {
            "mlops.sweep": self.sweep_id,
            "mlops.study": search.name,
            "mlops.architecture": search.description.name,
            "mlops.config_fingerprint": search.config_fingerprint,
            "mlops.dataset": self.dataset.name,
            "mlops.dataset_fingerprint": self.dataset.fingerprint,
            "mlflow.user": _user(),
            "mlflow.source.name": "experiments.sweep",
            "mlflow.source.type": "LOCAL",
            **self._environment,
        }

    def _dataset(self, context: str) -> RunDataset:
        return RunDataset(
            name=self.dataset.name,
            fingerprint=self.dataset.fingerprint,
            source=self.dataset.source,
            context=context,
            profile={**self.dataset.counts(), "split_seed": self.dataset.split_seed},
        )


def _ended_ms(trial: FrozenTrial) -> int:
    assert trial.datetime_complete is not None
    return int(trial.datetime_complete.timestamp() * 1000)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())


def _versions() -> dict[str, str]:
    """The versions that decide a trial's weights."""
    packages = ("podium-mlops", "keras", "tensorflow", "jax", "numpy", "optuna")
    return {VERSIONS: json.dumps({"python": platform.python_version(), **find_versions(packages)})}


def is_dirty(status: str) -> bool:
    """Tells by what `git status --porcelain` says whether code differs from the commit.

    A file of data that git does not know, such as the one that is swept, changes no code.
    """
    return any(
        not line.startswith("?? ") or line.strip('"').endswith((".py", ".toml"))
        for line in status.splitlines()
    )


def _git() -> dict[str, str]:
    """The commit of the folder where the command was typed, and whether it was clean."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "mlops.git_dirty": str(
                is_dirty(git("status", "--porcelain", "--untracked-files=all"))
            ).lower(),
        }
    except (OSError, subprocess.SubprocessError):
        return read_built_commit(os.environ.get("PODIUM_COMMIT", ""))


def read_built_commit(described: str) -> dict[str, str]:
    """Returns the commit that an image was built from, as its Dockerfile says it.

    Args:
        described: What `git describe --always --abbrev=40 --dirty --exclude '*'` said.
    """
    found = re.fullmatch(r"([0-9a-f]{40})(-dirty)?", described)
    if found is None:
        return {}
    dirty = str(found[2] is not None).lower()
    return {"mlflow.source.git.commit": found[1], "mlops.git_dirty": dirty}
