"""Promotion against a real MLflow store, real model folders and the real dataset store."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mlops.data import Dataset, load_dataset
from mlops.dataset_store import open_dataset_store
from mlops.errors import MlopsError
from mlops.evaluation import scale_constants
from mlops.mlflow_store import ensure_experiment, ensure_registered_model, open_store_client, upload
from mlops.packaging import ModelSpec, build_model_folder, check_model_folder, save_network
from mlops.settings import Settings
from registry.catalog import Candidate, Catalog
from registry.promote import choose_candidate, main, promote


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Points left and right of zero: a linear model knows them all."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 2)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "sides.npz"
    np.savez(path, x=rows, y=np.where(rows[:, 0] > 0, "right", "left"))
    return load_dataset(str(path))


@pytest.fixture
def settings(tmp_path: Path, dataset: Dataset) -> Settings:
    found = Settings.from_env({"MLOPS_HOME": str(tmp_path / "home")})
    open_dataset_store(found.datasets_url).put(dataset)
    return found


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    yield open_store_client(settings)


Register = Callable[..., int]


@pytest.fixture
def register(settings: Settings, client: Any, dataset: Dataset, tmp_path: Path) -> Register:
    """Makes a candidate as a sweep does; `right` is the weight of the first feature."""
    made = iter(range(100))

    def make(right: float, value: float, break_it: Callable[[Path], None] | None = None) -> int:
        place = tmp_path / f"made{next(made)}"
        place.mkdir()
        mean, scale = scale_constants(dataset.input)
        x = keras.Input((2,), name="rows")
        y = keras.layers.Normalization(mean=mean.tolist(), variance=(scale**2).tolist())(x)
        dense = keras.layers.Dense(2, use_bias=False)
        model = keras.Model(x, keras.layers.Softmax()(dense(y)))
        dense.set_weights([np.array([[-right, right], [0.0, 0.001]], np.float32)])
        save_network(model, place / "n.keras")
        spec = ModelSpec(
            task="classifier",
            architecture="dnn",
            input=dataset.input,
            class_names=dataset.class_names,
            dataset_name=dataset.name,
            dataset_fingerprint=dataset.fingerprint,
            likelihood=None,
        )
        build_model_folder(place / "n.keras", spec, place / "model")
        if break_it is not None:
            break_it(place / "model")
        experiment = ensure_experiment(client, "sides")
        run_id = client.create_run(experiment).info.run_id
        upload(client, run_id, place / "model", "model")
        ensure_registered_model(client, "sides-classifier-candidates")
        tags = {
            "mlops.architecture": "dnn",
            "mlops.dataset_fingerprint": dataset.fingerprint,
            "mlops.objective": "val_accuracy",
            "mlops.value": repr(value),
        }
        version = client.create_model_version(
            "sides-classifier-candidates", f"runs:/{run_id}/model", run_id, tags=tags
        )
        return int(version.version)

    return make


def champion_of(client: Any) -> int | None:
    release = Catalog(client).find_champion("sides-classifier")
    return None if release is None else release.version


def test_the_best_candidate_becomes_a_release_that_holds_the_alias(
    settings: Settings, client: Any, register: Register, tmp_path: Path
) -> None:
    register(right=0.0, value=0.6)
    best = register(right=9.0, value=0.99)
    done = promote("sides-classifier", settings=settings)
    assert (done.decision, done.version, done.candidate_version) == ("promoted", 1, best)
    assert champion_of(client) == 1

    version = client.get_model_version("sides-classifier", "1")
    candidate = client.get_model_version("sides-classifier-candidates", str(best))
    assert version.run_id != candidate.run_id
    assert version.source == f"runs:/{version.run_id}/release"
    run = client.get_run(version.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "sides-classifier-releases"
    assert Path(run.info.artifact_uri).is_relative_to(settings.artifact_root)
    assert run.info.status == "FINISHED"
    folder = Path(client.download_artifacts(version.run_id, "release", str(tmp_path)))
    check_model_folder(folder)
    statement = json.loads((folder / "release.json").read_text())
    assert (statement["name"], statement["version"]) == ("sides-classifier", 1)
    assert statement["run_id"] == version.run_id
    assert set(statement["files"]) == {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "release.json"
    }
    assert candidate.tags["mlops.decision"] == "promoted"
    assert candidate.tags["mlops.release"] == "sides-classifier/1"


def test_the_same_command_again_changes_nothing(
    settings: Settings, client: Any, register: Register
) -> None:
    register(right=9.0, value=0.99)
    register(right=8.0, value=0.98)
    promote("sides-classifier", settings=settings)
    done = promote("sides-classifier", settings=settings)
    assert (done.decision, done.version) == ("unchanged", 1)
    named = promote("sides-classifier", version=1, settings=settings)
    assert (named.decision, named.version, named.candidate_version) == ("unchanged", 1, 1)
    assert champion_of(client) == 1


def test_a_worse_one_is_refused_with_exit_code_3_and_the_champion_stays(
    settings: Settings,
    client: Any,
    register: Register,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(right=9.0, value=0.9)
    promote("sides-classifier", settings=settings)
    # Better in validation than the champion was, and worse on the test rows.
    register(right=-9.0, value=0.999)
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    assert main(["sides-classifier"]) == 3
    out = capsys.readouterr().out
    assert "candidate 2 is rejected, version 1 stays champion" in out
    assert len(out.strip().splitlines()) == 1
    assert champion_of(client) == 1
    assert main(["sides-classifier", "--json", "--version", "2"]) == 3
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(answer) == {"decision", "name", "version", "candidate_version", "gates"}
    assert (answer["decision"], answer["version"]) == ("rejected", 1)
    assert {"name", "passed", "value", "limit"} == set(answer["gates"][0])


def test_a_folder_that_could_run_code_is_rejected_before_it_is_loaded(
    settings: Settings, client: Any, register: Register
) -> None:
    def add_code(folder: Path) -> None:
        (folder / "code" / "evil.py").write_text("raise SystemExit('ran')")

    register(right=9.0, value=0.99, break_it=add_code)
    done = promote("sides-classifier", settings=settings)
    assert done.decision == "rejected"
    assert [gate.name for gate in done.gates] == ["structure"]
    assert champion_of(client) is None


def test_a_model_whose_answers_are_not_finite_is_rejected(
    settings: Settings, client: Any, register: Register
) -> None:
    register(right=float("nan"), value=0.99)
    done = promote("sides-classifier", settings=settings)
    assert done.decision == "rejected"
    assert [(gate.name, gate.passed) for gate in done.gates] == [
        ("structure", True),
        ("finite_outputs", False),
    ]
    assert "row 0" in done.reason
    assert champion_of(client) is None


@pytest.mark.parametrize("killed_at", ["open_release", "publish", "set_champion", "note_decision"])
def test_killed_at_any_step_the_same_command_completes_it(
    settings: Settings, client: Any, register: Register, killed_at: str
) -> None:
    register(right=9.0, value=0.9)

    class Killed(BaseException):
        pass

    class Dies(Catalog):
        """A catalog whose process dies right after one of its steps."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name != killed_at:
                return found

            def step(*args: Any, **kwargs: Any) -> None:
                found(*args, **kwargs)
                raise Killed

            return step

    with pytest.raises(Killed):
        promote("sides-classifier", settings=settings, catalog=Dies(client))
    done = promote("sides-classifier", settings=settings)
    assert done.version == 1
    assert champion_of(client) == 1
    assert len(client.search_model_versions("name = 'sides-classifier'")) == 1
    assert promote("sides-classifier", settings=settings).decision == "unchanged"


def test_a_model_without_candidates_is_answered_with_the_names_that_have_some(
    settings: Settings, client: Any, register: Register
) -> None:
    with pytest.raises(MlopsError, match=r"Run python -m experiments.sweep first"):
        promote("sides-classifier", settings=settings)
    register(right=1.0, value=0.5)
    with pytest.raises(MlopsError, match="did you mean 'sides-classifier'"):
        promote("side-classifier", settings=settings)
    with pytest.raises(MlopsError, match=r"no version 7; expected one of 1\."):
        promote("sides-classifier", version=7, settings=settings)


def test_a_dataset_that_is_gone_from_the_store_is_named(
    settings: Settings, register: Register, dataset: Dataset
) -> None:
    register(right=9.0, value=0.9)
    elsewhere = dataclasses.replace(settings, datasets_url=str(settings.home / "elsewhere"))
    with pytest.raises(MlopsError, match=dataset.fingerprint[:12]):
        promote("sides-classifier", settings=elsewhere)


def candidate(
    version: int, value: float, decision: str | None = None, data: str = "d"
) -> Candidate:
    return Candidate("m", version, "r", "dnn", data, "val_accuracy", value, decision)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([candidate(2, 0.8), candidate(1, 0.9)], 1),
        ([candidate(2, 0.9), candidate(1, 0.9)], 1),
        ([candidate(3, 0.5, data="new"), candidate(2, 0.9), candidate(1, 0.8)], 3),
        ([candidate(2, 0.9, "rejected"), candidate(1, 0.8)], 1),
        ([candidate(2, 0.9, "promoted"), candidate(1, 0.8)], None),
        ([candidate(3, 0.95), candidate(2, 0.9, "promoted")], 3),
        ([candidate(1, 0.9, "rejected")], None),
    ],
)
def test_which_candidate_is_decided_on(candidates: list[Candidate], chosen: int | None) -> None:
    found = choose_candidate(candidates, None)
    assert (None if found is None else found.version) == chosen
