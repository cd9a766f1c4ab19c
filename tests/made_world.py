"""A home in which sweeps were made and releases promoted, without training: for clean and erase.

Studies, journals, their delivery, model folders, promotions and signatures are real. The networks
are linear, and what asks them the test rows does so in numpy, without TensorFlow.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from experiments.config import SweepConfig
from experiments.config_file import write_config
from experiments.storage import open_storage
from experiments.studies import CONFIG, home_of
from experiments.study import Search, open_search
from experiments.tasks import TrialResult
from mlops.data import Dataset, load_dataset
from mlops.dataset_store import DatasetStore, open_dataset_store
from mlops.journal import Journal
from mlops.mlflow_store import open_store_client
from mlops.packaging import check_model_folder
from mlops.settings import Settings
from mlops.sync import sync
from mlops.tracked_runs import read_tracked_runs
from mlops.tracking import Run, RunDataset
from registry.alias import open_registry
from registry.catalog import Catalog
from registry.golden import Golden, golden_requests
from registry.probe import Answered, Probed
from registry.promote import promote
from registry.verify import verify_release
from tests.experiments.test_status import describe
from tests.registry.sides import CLEAN, package, read_weights

MARKER = "zanzibar7731"
"""A category of the dataset that is to be erased."""
MODEL = "points"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def make_table(folder: Path, places: tuple[str, str], seed: int, n_rows: int = 300) -> Dataset:
    """A table of sizes and places, whose rows are large or small."""
    random = np.random.default_rng(seed)
    sizes = random.normal(size=n_rows)
    rows = {
        "size": sizes.astype(np.float32),
        "place": random.choice(places, size=n_rows),
        "label": np.where(sizes > 0, "large", "small"),
    }
    path = folder / f"table{seed}.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return load_dataset(str(path), label="label")


def make_model(dataset: Dataset, place: Path) -> Path:
    """Packages a linear network that tells large from small by the first feature."""
    import keras

    place.mkdir(parents=True)
    rows = keras.Input(dataset.input.shape, name="rows")
    dense = keras.layers.Dense(2, use_bias=False, name="dense")
    model = keras.Model(rows, keras.layers.Softmax()(dense(rows)))
    weights = np.zeros((dataset.input.shape[0], 2), np.float32)
    weights[0] = (9.0, -9.0)
    dense.set_weights([weights])
    return package(model, dataset, place)


def probe_table(
    folders: Sequence[Path],
    *,
    store: DatasetStore,
    fingerprint: str,
    vouched_scoring: Sequence[str | None] = (),
) -> Probed:
    """Does what `registry.probe.probe` does, for these networks."""
    x, _ = store.get(fingerprint).part("test")
    answers = []
    for folder in folders:
        requests = golden_requests(check_model_folder(folder).input)
        odds = np.exp(x[:, :1] @ read_weights(folder)[:1])
        found = odds / odds.sum(axis=1, keepdims=True)
        golden = Golden(requests, np.full((len(requests), 2), 0.5))
        answers.append(Answered(found, {"noise": found}, golden))
    return Probed(tuple(answers), "no network")


@dataclass
class Sweep:
    """A sweep of one study that is done, and delivered."""

    name: str
    study: str
    keys: list[str]


@dataclass
class World:
    """A home, and what is made in it."""

    settings: Settings
    models: Path
    made: dict[str, Path] = field(default_factory=dict)

    @property
    def client(self) -> Any:
        return open_store_client(self.settings)

    def store(self, dataset: Dataset) -> None:
        open_dataset_store(self.settings).put(dataset)

    def model(self, dataset: Dataset) -> Path:
        """A packaged network of a dataset, each made but once."""
        if dataset.fingerprint not in self.made:
            place = self.models / dataset.fingerprint[:12]
            self.made[dataset.fingerprint] = make_model(dataset, place)
        return self.made[dataset.fingerprint]

    def begin(self, dataset: Dataset, name: str, trials: int, **attrs: Any) -> Search:
        """Opens the study of a sweep; `attrs` are added to its attributes, None takes one away."""
        description = describe("dnn")
        known = {
            "sweep": name,
            "home": home_of(self.settings),
            "experiment": name,
            "architecture_path": description.path,
            "dataset_fingerprint": dataset.fingerprint,
            "config_fingerprint": "f",
            "run_key": f"{name}-parent",
            **attrs,
        }
        known = {key: value for key, value in known.items() if value is not None}
        storage = open_storage(self.settings.study_url)
        config = SweepConfig(trials=trials)
        folder = self.settings.home / "sweeps" / name
        (folder / "dnn").mkdir(parents=True, exist_ok=True)
        write_config(config, folder / CONFIG)
        return open_search(storage, f"{name}-dnn", description, config, known)

    def sweep(
        self,
        dataset: Dataset,
        name: str,
        values: Sequence[float] = (0.9,),
        *,
        finish: bool = True,
        deliver: bool = True,
        model: str = MODEL,
        **attrs: Any,
    ) -> Sweep:
        """Makes a sweep whose trials got some values; the best becomes a candidate.

        Args:
            dataset: What it searches on.
            name: Its own, and its experiment's.
            values: One a trial.
            finish: Whether it came to its end.
            deliver: Whether MLflow knows of it.
            model: Whose candidate it makes.
            attrs: As for `begin`.
        """
        self.store(dataset)
        search = self.begin(dataset, name, len(values), **attrs)
        used = RunDataset(dataset.name, dataset.fingerprint, dataset.source, "training", {})
        keys = []
        with Journal(self.settings.home / "journal" / name, "driver") as journal:

            def begin_run(key: str, tags: dict[str, str]) -> Run:
                tags = {
                    "mlops.sweep": name,
                    "mlops.study": search.name,
                    "mlops.dataset_fingerprint": dataset.fingerprint,
                    **CLEAN,
                    **tags,
                }
                return Run.create(
                    journal, experiment=name, name=key, key=key, tags=tags, dataset=used
                )

            parent = begin_run(f"{name}-parent", {})
            search.note_parent()
            for value in values:
                ask = search.ask()
                assert ask is not None
                key = f"{name}-{ask.number}"
                search.set_run_key(ask, key)
                tags = {"mlops.trial": str(ask.number), "mlflow.parentRunId": f"{name}-parent"}
                run = begin_run(key, tags)
                run.log_metrics({"val_accuracy": value}, step=0)
                run.end("FINISHED")
                search.tell(ask.number, TrialResult("complete", value, 0, "00"))
                network = self.settings.home / "sweeps" / name / "dnn" / f"{ask.number:05d}.keras"
                shutil.copyfile(self.model(dataset) / "data" / "model.keras", network)
                keys.append(key)
            best = search.best()
            if finish and best is not None:
                key = best.user_attrs["run_key"]
                tags = {
                    "mlops.architecture": "dnn",
                    "mlops.dataset_fingerprint": dataset.fingerprint,
                    "mlops.objective": "val_accuracy",
                    "mlops.value": repr(search.goals.quality_of(best)),
                    "mlops.sweep": name,
                }
                Run(journal, key).register_candidate(model, self.model(dataset), tags)
                search.set_candidate(key)
                search.note_finished()
            parent.end("FINISHED" if finish else "KILLED")
        if deliver:
            done = sync(self.settings)
            assert (done.undelivered, done.problems, done.refused) == (0, (), ()), done
        return Sweep(name, search.name, keys)

    def promote(self, name: str = MODEL, alias: str = "champion", **asked: Any) -> int:
        with open_registry(self.settings, probe=probe_table) as registry:
            done = promote(registry, name, alias=alias, **asked)
        assert done.decision == "promoted", done.reason
        assert done.version is not None
        return done.version

    def verifies(self, version: int, name: str = MODEL) -> bool:
        catalog = Catalog(self.client)
        verify_release(catalog, catalog.get_release(name, version), self.settings, ask=False)
        return True

    def run_ids(self) -> dict[str, str]:
        """The runs that were made through a journal, by key."""
        return {run.key: run.run_id for run in read_tracked_runs(self.settings)}

    def date_back(self, *sweeps: str, when: datetime = LONG_AGO) -> None:
        """Has sweeps, their runs and candidates be of another time, in the databases."""
        at_ms = int(when.timestamp() * 1000)
        execute(
            self.settings.study_url,
            [
                "UPDATE trials SET datetime_start = :when, datetime_complete = :when "
                "WHERE study_id IN (SELECT study_id FROM studies WHERE study_name = :study)"
            ],
            [{"when": when.replace(tzinfo=None), "study": f"{sweep}-dnn"} for sweep in sweeps],
        )
        execute(
            str(self.settings.tracking_db_url),
            [
                "UPDATE runs SET start_time = :at, end_time = :at WHERE run_uuid IN "
                "(SELECT run_uuid FROM tags WHERE key = 'mlops.sweep' AND value = :sweep)",
                "UPDATE model_versions SET creation_time = :at WHERE run_id IN "
                "(SELECT run_uuid FROM tags WHERE key = 'mlops.sweep' AND value = :sweep)",
            ],
            [{"at": at_ms, "sweep": sweep} for sweep in sweeps],
        )


def copy_home(made: Path, home: Path) -> Settings:
    """Copies a home to a place of its own, where it is as if it had been made there."""
    shutil.copytree(made, home)
    settings = Settings.from_env({"MLOPS_HOME": str(home)})
    places = [{"old": str(made), "new": str(home)}]
    execute(
        settings.mlflow_db_uri,
        [
            f"UPDATE {table} SET {column} = replace({column}, :old, :new)"
            for table, column in (
                ("runs", "artifact_uri"),
                ("experiments", "artifact_location"),
                ("logged_models", "artifact_location"),
            )
        ],
        places,
    )
    change = "UPDATE study_user_attributes SET value_json = replace(value_json, :old, :new)"
    execute(settings.study_url, [change], places)
    return settings


def execute(url: str, statements: Sequence[str], values: Sequence[dict[str, Any]]) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            for some in values:
                named = {key: one for key, one in some.items() if f":{key}" in statement}
                connection.execute(sa.text(statement), named)


def find_bytes(folder: Path, marker: bytes) -> list[str]:
    """The files of a folder that hold a marker, by their paths in it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and marker in path.read_bytes()
    )
