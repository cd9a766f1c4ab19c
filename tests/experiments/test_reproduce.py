"""python -m experiments.reproduce: what it takes, what it says, and what it leaves beside a run.

Most tests have a training of their own, which answers at once; the last ones train.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from experiments import run_sweep
from experiments.config import SweepConfig
from experiments.reproduce import in_words, main, reproduce
from experiments.reproducing.environment import ENVIRONMENT
from experiments.reproducing.original import parse_target, refuse_private, refuse_unfit
from experiments.reproducing.recipe import RECIPE, Recipe
from experiments.workers.cluster import Cluster
from mlops.data import Dataset, load_dataset
from mlops.dataset_store import open_dataset_store
from mlops.errors import DataError, MlopsError, UsageError
from mlops.mlflow_store import open_store_client, upload
from mlops.packaging import ModelSpec, build_model_folder
from mlops.settings import Settings
from registry.catalog import Catalog
from registry.certificate import Certificate, find_certified
from registry.releases import hash_files
from tests.conftest import Tracking
from tests.experiments.test_sweep import Notes
from tests.faults.zeros import write_network

HASH = "1" * 64
HERE = {"CPU": "fast", "GPU": "none", "keras": "3.9"}
HISTORY = [{"train_loss": 1.0, "val_accuracy": 0.5, "epoch_s": 1.0}, {"train_loss": 0.5}]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("digits-classifier/3", "release"),
        ("digits-classifier@champion", "release"),
        ("my own data-vae/1", "release"),
        ("digits-classifier-candidates/3", "candidate"),
        ("0123456789abcdef0123456789abcdef", "run"),
    ],
)
def test_a_target_is_a_release_a_candidate_or_a_run(text: str, kind: str) -> None:
    assert parse_target(text).kind == kind


@pytest.mark.parametrize(
    "text", ["", "digits", "digits/", "digits/x", "digits@", "a/b/1", "a-candidates@champion", "/1"]
)
def test_anything_else_is_refused_in_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    assert main([text]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.strip().splitlines()
    assert "expected a release (NAME/VERSION or NAME@champion)" in line
    assert not (tmp_path / "home").exists()


TRIAL = {"mlops.sweep": "s", "mlops.trial": "3"}


@pytest.mark.parametrize(
    ("status", "stage", "tags", "fragment"),
    [
        ("FINISHED", "deleted", TRIAL, "is deleted. Restore it"),
        ("FINISHED", "active", {}, "was not made by a sweep"),
        ("FINISHED", "active", {"mlops.sweep": "s", "mlops.study": "s-cnn"}, "study, s-cnn; name"),
        ("KILLED", "active", TRIAL | {"mlops.pruned": "true"}, "was pruned"),
        ("RUNNING", "active", TRIAL, "still under way"),
        ("FAILED", "active", TRIAL | {"mlops.failure": "OSError: full"}, r"\(OSError: full\)"),
        ("KILLED", "active", TRIAL, "it was interrupted"),
    ],
)
def test_a_run_that_is_no_whole_training_is_refused(
    status: str, stage: str, tags: dict[str, str], fragment: str
) -> None:
    with pytest.raises(UsageError, match=fragment):
        refuse_unfit("r", status, stage, tags)


def test_a_private_training_cannot_be_made_again() -> None:
    with pytest.raises(UsageError, match="its noise is drawn anew each time"):
        refuse_private("r", {"architecture": "dnn", "dp_epsilon": "3.0"})


def test_a_whole_trial_and_a_final_are_taken() -> None:
    refuse_private("r", {"architecture": "dnn"})
    refuse_unfit("r", "FINISHED", "active", TRIAL)
    refuse_unfit("r", "FINISHED", "active", {"mlops.sweep": "s", "mlops.final": "refit"})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """The digits, and a packaged network of zeros for them."""
    folder, dataset = tmp_path_factory.mktemp("digits"), load_dataset("digits")
    write_network(folder / "zeros.keras")
    spec = ModelSpec.of(dataset, "classifier", "dnn")
    build_model_folder(folder / "zeros.keras", spec, folder / "model")
    return dataset, folder / "model"


@dataclasses.dataclass
class World:
    """A home with a trial's run, and a training that comes out as it is told to.

    Attributes:
        comes_out: What the training answers.
        asked: What it was asked.
    """

    settings: Settings
    client: Any
    run_id: str
    network: Path
    comes_out: dict[str, Any]
    here: dict[str, str]
    asked: list[Any] = dataclasses.field(default_factory=list)

    def start(self, work: Any, job: Any, env: Any) -> Generator[Any, None, None]:
        self.asked.append((job, env))
        yield {"environment": self.here}
        for epoch, metrics in enumerate(self.comes_out["history"]):
            yield {"epoch": epoch, "metrics": metrics}
        if job["save_to"]:
            shutil.copy(self.network, job["save_to"])
        yield {"result": self.comes_out}

    def reproduce(self, target: str | None = None, **options: Any) -> Any:
        notes: list[str] = []
        given = {"start": self.start, "note": notes.append, **options}
        return reproduce(target or self.run_id, self.settings, **given), notes


@pytest.fixture
def world(home_with_database: Settings, digits: tuple[Dataset, Path]) -> World:
    settings, (dataset, model) = home_with_database, digits
    open_dataset_store(settings).put(dataset)
    client = open_store_client(settings)
    recipe = Recipe(
        architecture="experiments.architectures.dnn:DNN",
        objective="val_accuracy",
        params={"units": 8},
        seed=7,
        epochs=2,
        dataset_fingerprint=dataset.fingerprint,
        threads=1,
        backend="tensorflow",
    )
    tags = {
        **TRIAL,
        RECIPE: recipe.to_tag(),
        ENVIRONMENT: json.dumps(HERE),
        "mlops.weights_sha256": HASH,
        "mlops.dataset": dataset.name,
    }
    run_id = client.create_run("0", tags=tags, run_name="dnn-003").info.run_id
    for epoch, metrics in enumerate(HISTORY):
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=epoch)
    client.log_metric(run_id, "best_epoch", 1)
    upload(client, run_id, model, "model")
    client.set_terminated(run_id, "FINISHED")
    spec = {"task": "classifier", "architecture": "dnn", "likelihood": None}
    result = {"weights_sha256": HASH, "best_epoch": 1, "history": HISTORY, "spec": spec}
    return World(settings, client, run_id, model / "data" / "model.keras", result, dict(HERE))


def test_the_same_weights_are_identical_and_the_certificate_lies_signed_beside_the_run(
    world: World,
) -> None:
    done, notes = world.reproduce()
    assert (done.certificate.verdict, done.changes) == ("identical", ())
    assert in_words(done).startswith(f"identical: {world.run_id}, trained again in ")
    assert "Its epochs took 1.0 s then" in notes[0]
    ((job, env),) = world.asked
    assert (job["recipe"]["params"], job["recipe"]["seed"]) == ({"units": 8}, 7)
    assert env == {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}

    catalog = Catalog(world.client)
    written = catalog.read_certificate(world.run_id, Path(done.path).name)
    assert Certificate.from_bytes(written) == done.certificate
    folder = world.network.parents[1]
    keys = world.settings.public_keys
    assert find_certified(catalog, world.run_id, hash_files(folder), keys) == "identical"
    assert world.client.get_run(world.run_id).data.tags["mlops.reproduced"] == "identical"


def test_what_came_out_otherwise_is_said_with_what_may_have_caused_it(world: World) -> None:
    world.comes_out |= {
        "weights_sha256": "2" * 64,
        "best_epoch": 0,
        "history": [HISTORY[0], {"train_loss": 0.25}],
    }
    world.here |= {"CPU": "slow"}
    done, notes = world.reproduce(threads=2)
    assert done.certificate.verdict == "differs"
    assert done.certificate.differences == (
        "weights were 1111111111111111, are 2222222222222222",
        "the best epoch was 1, is 0",
        "metrics differ from epoch 1 on: train_loss was 0.5, is 0.25",
    )
    assert done.changes == (("CPU", "fast", "slow"), ("threads", "1", "2"))
    assert notes[1] == "Not as it was then: CPU fast -> slow, threads 1 -> 2."
    said = in_words(done)
    assert "what     then  now\nCPU      fast  slow\nthreads  1     2\n" in said
    assert world.asked[0][0]["recipe"]["threads"] == 2
    assert world.client.get_run(world.run_id).data.tags["mlops.reproduced"] == "differs"


def test_a_package_that_is_not_what_the_run_trained_is_not_reproduced(world: World) -> None:
    world.comes_out["spec"] = {"task": "classifier", "architecture": "cnn", "likelihood": None}
    done, _ = world.reproduce(log=False)
    assert done.certificate.differences == ("the package says architecture dnn, the training cnn",)
    assert "nothing that the run says of its environment is different here" in in_words(done)


def test_where_nothing_is_to_be_logged_nothing_is(world: World) -> None:
    done, _ = world.reproduce(log=False)
    assert done.path is None
    assert "mlops.reproduced" not in world.client.get_run(world.run_id).data.tags
    assert not world.settings.signing_key.exists()


def test_where_the_certificate_cannot_be_laid_the_verdict_is_told_all_the_same(
    world: World,
) -> None:
    def start(*asked: Any) -> Generator[Any, None, None]:
        yield from world.start(*asked)

    def delete(*asked: Any) -> Generator[Any, None, None]:
        world.client.delete_run(world.run_id)
        return start(*asked)

    done, notes = world.reproduce(start=delete)
    assert (done.certificate.verdict, done.path, done.key) == ("identical", None, None)
    assert "the certificate could not be laid beside the run" in notes[-1]
    assert in_words(done).startswith("identical: ")


def test_strict_trains_nothing_where_anything_differs(world: World) -> None:
    world.here |= {"keras": "3.10"}
    with pytest.raises(MlopsError, match=r"nothing was trained.* keras 3\.9 -> 3\.10"):
        world.reproduce(strict=True)
    assert "mlops.reproduced" not in world.client.get_run(world.run_id).data.tags


def test_a_child_that_dies_says_that_the_training_cannot_be_made_again(world: World) -> None:
    def die(*_: Any) -> Generator[Any, None, None]:
        yield {"environment": HERE}
        raise MlopsError("the process was killed by signal 9")

    with pytest.raises(MlopsError, match="could not be made again: the process was killed"):
        world.reproduce(start=die)


def test_a_dataset_that_is_gone_or_changed_is_said_before_anything_is_trained(
    world: World, digits: tuple[Dataset, Path]
) -> None:
    folder = open_dataset_store(world.settings).folder / digits[0].fingerprint
    split = folder / "split.npy"
    content = bytearray(split.read_bytes())
    content[-1] ^= 1
    split.write_bytes(content)
    with pytest.raises(DataError, match=r"was changed since .*split\.npy"):
        world.reproduce()
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="has no dataset"):
        world.reproduce()
    assert world.asked == []


def test_a_run_without_a_hash_and_without_a_model_has_nothing_to_compare_with(
    world: World,
) -> None:
    world.client.delete_tag(world.run_id, "mlops.weights_sha256")
    assert world.reproduce()[0].certificate.weights_recorded == ""
    tags = {
        name: value
        for name, value in world.client.get_run(world.run_id).data.tags.items()
        if name.startswith("mlops.")
    }
    bare = world.client.create_run("0", tags=tags).info.run_id
    world.client.set_terminated(bare, "FINISHED")
    with pytest.raises(UsageError, match="nothing to compare with"):
        world.reproduce(bare)


@pytest.mark.parametrize(
    ("target", "fragment"),
    [
        ("f" * 32, "there is no run f"),
        ("none-candidates/1", "there are no candidates of 'none'"),
        ("none/1", "there is no model 'none'"),
        ("none@champion", "nothing holds champion of none"),
    ],
)
def test_what_is_not_there_is_said(world: World, target: str, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        world.reproduce(target)


TINY = {
    "dnn": {"n_layers": 1, "units": 16},
    "cnn": {},
    "rnn": {},
    "vae": {"units": 64, "n_layers": 1, "latent_dim": 2},
}


@pytest.fixture(scope="module")
def trained(tracking: Tracking, workers: Cluster) -> Callable[..., dict[str, str]]:
    """Sweeps, and returns the run of each architecture's candidate."""

    def sweep(experiment: str, *architectures: str, **more: Any) -> dict[str, str]:
        config = SweepConfig(
            architectures=architectures,
            trials=1,
            epochs=2,
            experiment=experiment,
            space={name: TINY[name] for name in architectures},
            **more,
        )
        result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
        assert result.undelivered == 0
        client = open_store_client(tracking.settings)
        found = {}
        for one in result.studies:
            assert one.candidate is not None
            name, version = one.candidate.name, str(one.candidate.version)
            found[one.architecture] = str(client.get_model_version(name, version).run_id)
        return found

    return sweep


def test_a_trial_of_a_sweep_is_identical_in_a_process_of_its_own(
    tracking: Tracking,
    trained: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tracking.settings.home))
    (run_id,) = trained("reproduce-one", "dnn").values()
    assert main([run_id, "--json", "--strict"]) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["verdict"], told["differences"]) == ("identical", [])
    assert told["weights_recorded"] == told["weights_found"]
    assert set(told["files"]) == {"MLmodel", "data/model.keras"}


@pytest.mark.long
def test_all_four_architectures_are_identical(
    tracking: Tracking, trained: Callable[..., dict[str, str]]
) -> None:
    runs = trained("reproduce-four", "dnn", "cnn", "rnn", "vae")
    assert set(runs) == {"dnn", "cnn", "rnn", "vae"}
    for run_id in runs.values():
        done = reproduce(run_id, tracking.settings, strict=True)
        assert (done.certificate.verdict, done.changes) == ("identical", ()), in_words(done)
    # Two threads sum the gradients of a convolution in another order.
    done = reproduce(runs["cnn"], tracking.settings, threads=2)
    assert done.certificate.verdict == "differs"
    assert done.changes == (("threads", "1", "2"),)
    assert any("differ, by at most" in one for one in done.certificate.differences)


@pytest.mark.long
def test_a_final_on_more_rows_is_identical_and_another_seed_is_told_by_how_much(
    tracking: Tracking, trained: Callable[..., dict[str, str]]
) -> None:
    (run_id,) = trained("reproduce-refit", "dnn", seeds=2, refit=True).values()
    client = open_store_client(tracking.settings)
    tags = client.get_run(run_id).data.tags
    assert tags["mlops.final"] == "refit"
    done = reproduce(run_id, tracking.settings)
    assert done.certificate.verdict == "identical", in_words(done)

    recipe = json.loads(tags[RECIPE])
    client.set_tag(run_id, RECIPE, json.dumps(recipe | {"seed": recipe["seed"] + 1}))
    done = reproduce(run_id, tracking.settings)
    assert done.certificate.verdict == "differs"
    weights, package, metrics = done.certificate.differences
    assert weights.startswith("weights were ")
    assert "differ, by at most" in package
    assert metrics.startswith("metrics differ from epoch 0 on: ")


@pytest.mark.long
def test_a_member_of_a_population_is_identical_alone_in_one_of_that_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {**os.environ, "MLOPS_HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "experiments.sweep", "--architectures", "dnn", "--trials", "2"]
    command += ["--epochs", "2", "--population", "2", "--experiment", "pop", "--workers", "1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Typed where the backend is another one.
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    settings = Settings.from_env({"MLOPS_HOME": str(tmp_path)})
    found = reproduce("pop-classifier-candidates/1", settings)
    assert found.certificate.verdict == "identical", in_words(found)
    assert found.certificate.found["population"] == "2"
