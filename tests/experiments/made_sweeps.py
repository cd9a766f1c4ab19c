"""Sweeps in a study database as drivers leave them, without any training; and facts made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from experiments.architectures import Description
from experiments.config import SweepConfig
from experiments.config_file import write_config
from experiments.finals import Finals
from experiments.importances import Importances
from experiments.kept_result import keep_result
from experiments.reports.facts import (
    DatasetFacts,
    StudyFacts,
    SweepFacts,
    TrialFacts,
)
from experiments.reports.reading import describe_space
from experiments.storage import open_storage
from experiments.studies import CONFIG, home_of
from experiments.study import Search, open_search
from experiments.tasks import TrialResult
from mlops.data import Dataset, load_dataset
from mlops.dataset_store import open_dataset_store
from mlops.settings import Settings

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "units": IntDistribution(8, 64),
    "dropout": FloatDistribution(0.0, 0.5),
    "filters": CategoricalDistribution([16, 32, 64]),
    "cell": CategoricalDistribution(["gru", "lstm"]),
}
BASELINE = {"learning_rate": 1e-3, "units": 16, "dropout": 0.0, "filters": 32, "cell": "lstm"}


def describe(
    name: str = "dnn",
    space: Mapping[str, BaseDistribution] = SPACE,
    baseline: Mapping[str, Any] | None = None,
) -> Description:
    return Description(
        path=f"module:{name.title()}",
        name=name,
        task="classifier",
        objective="val_accuracy",
        left_out=None,
        space={param: distribution_to_json(one) for param, one in space.items()},
        baseline=dict(BASELINE if baseline is None else baseline),
        likelihood=None,
    )


def make_dataset(settings: Settings, path: Path, n: int = 120, seed: int = 0) -> Dataset:
    """Stores rows of two classes, "few" with a quarter of them, and returns them."""
    rng = np.random.default_rng(seed)
    y = np.array(["many"] * (n - n // 4) + ["few"] * (n // 4))
    np.savez(path, x=rng.normal(size=(n, 3)).astype(np.float32), y=y)
    dataset = load_dataset(str(path))
    open_dataset_store(settings).put(dataset)
    return dataset


def begin(
    settings: Settings,
    sweep: str = "digits-1",
    *,
    config: SweepConfig | None = None,
    description: Description | None = None,
    fingerprint: str = "0" * 64,
    **attrs: Any,
) -> Search:
    """Begins a study, with the config file of its sweep."""
    config, description = config or SweepConfig(trials=6, epochs=4), description or describe()
    folder = settings.home / "sweeps" / sweep
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder / CONFIG)
    known = {
        "sweep": sweep,
        "home": home_of(settings),
        "experiment": "digits",
        "architecture_path": description.path,
        "dataset_fingerprint": fingerprint,
        "config_fingerprint": config.fingerprint(fingerprint, description.path),
        "run_key": f"{sweep}-{description.name}-parent",
        **attrs,
    }
    storage = open_storage(settings.study_url)
    return open_search(storage, f"{sweep}-{description.name}", description, config, known)


def end(search: Search, value: float = 0.5, state: Any = "complete", **result: Any) -> int:
    """Asks for a trial and tells how it ended, as a worker and the driver do."""
    ask = search.ask()
    assert ask is not None
    metrics = {"train_accuracy": value, "val_accuracy": value, **result.pop("metrics", {})}
    told = TrialResult(
        state, None if state == "failed" else value, 3, "00", **{"metrics": metrics, **result}
    )
    keep_result(search.study._storage, ask.trial_id, told)
    search.tell(ask.number, told)
    return ask.number


def train_seeds(search: Search, *values: float) -> None:
    """Notes the finals of `--seeds`, of which the search's config says how many there are."""
    finals = Finals(search)
    for value, final in zip(values, finals.pending(), strict=True):
        finals.note(final, f"key-{final.name}", TrialResult("complete", value, 3, "00"))


def trial(value: float = 0.9, number: int = 0, **changed: Any) -> TrialFacts:
    """A complete trial in the middle of all ranges, but for what is changed."""
    params = {"learning_rate": 1e-3, "units": 36, "dropout": 0.25, "filters": 32, "cell": "gru"}
    fields = {name: changed.pop(name) for name in ("best_epoch", "metrics") if name in changed}
    return TrialFacts(number, value, {**params, **changed}, **fields)


def study(
    architecture: str = "dnn", top: tuple[TrialFacts, ...] = (), **changed: Any
) -> StudyFacts:
    """A study of which no rule has anything to say, but for what is changed."""
    top = top or (trial(0.9, 0), trial(0.89, 1), trial(0.88, 2))
    known = StudyFacts(
        study=f"digits-1-{architecture}",
        architecture=architecture,
        task="classifier",
        objective="val_accuracy",
        objectives=("val_accuracy",),
        requirements=(),
        space=describe_space(describe().space),
        target=60,
        n_complete=60,
        n_pruned=0,
        n_failed=0,
        n_running=0,
        best=top[0],
        top=top,
        seeds=None,
        has_refit=False,
        n_best_at_last=0,
        pruned_after=None,
        trial_s=60.0,
        gpu_s=None,
        history=(),
        n_history=0,
        importances=Importances(why_none="nothing was searched"),
        pareto=None,
        failures=(),
        has_candidate=False,
        candidate=None,
        config_fingerprint="f",
    )
    return dataclasses.replace(known, **changed)


def sweep(*studies: StudyFacts, **changed: Any) -> SweepFacts:
    known = SweepFacts(
        sweep_id="digits-1",
        experiment="digits",
        state="done",
        home="host:/home",
        began="2026-01-01T10:00:00+00:00",
        ended="2026-01-01T10:01:00+00:00",
        busy_s=60.0,
        gpu_price=None,
        dataset=DatasetFacts(
            "digits",
            "0" * 64,
            counts={"train": 600, "val": 200, "test": 200},
            class_names=("a", "b"),
            class_counts=(300, 300),
        ),
        config=SweepConfig(trials=60, epochs=20).resolved().to_json(),
        config_file="/home/sweeps/digits-1/sweep.toml",
        environment={},
        studies=studies,
    )
    return dataclasses.replace(known, **changed)
