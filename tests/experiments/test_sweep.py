"""Sweeps with real workers, a real server and real storage."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from experiments import run_sweep
from experiments.config import SweepConfig
from experiments.config_file import load_config, read_options
from experiments.results import leaderboard
from experiments.study import Tally
from experiments.workers.cluster import Cluster
from mlops.errors import DataError, UsageError
from mlops.inputs import Column
from mlops.mlflow_store import open_client
from mlops.packaging import check_model_folder
from mlops.settings import Settings
from tests.conftest import Tracking

QUICK = SweepConfig(architectures=("dnn",), trials=2, epochs=2, workers=2, plots="none")
PLOTS = {"confusion_matrix.png", "per_class.csv", "calibration.json", "roc.png", "ranking.json"}


class Notes:
    """A Progress that remembers; `on_update` may act on the sweep while it runs."""

    def __init__(self, on_update: Callable[[str, Tally], None] | None = None) -> None:
        self.lines: list[str] = []
        self.on_update = on_update

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, study: str, tally: Tally) -> None:
        if self.on_update is not None:
            self.on_update(study, tally)

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def client(tracking: Tracking) -> Any:
    return open_client(tracking.url)


def runs_of(client: Any, sweep_id: str) -> tuple[list[Any], list[Any]]:
    """The parent runs and the trial runs of a sweep."""
    ids = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(ids, f"tags.`mlops.sweep` = '{sweep_id}'", max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def plots_of(client: Any, run_id: str) -> set[str]:
    return {Path(item.path).name for item in client.list_artifacts(run_id, "plots")}


def test_all_four_architectures_leave_complete_runs_and_candidates(
    tracking: Tracking, workers: Cluster, client: Any
) -> None:
    config, notes = SweepConfig(trials=2, epochs=2, workers=2, experiment="four"), Notes()
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=notes)

    assert result.undelivered == 0 and not result.interrupted
    parents, children = runs_of(client, result.sweep_id)
    assert len(parents) == 4 and len(children) == 8
    assert {run.info.status for run in parents} == {"FINISHED"}
    ids = {run.info.run_id for run in parents}
    for run in children:
        tags, metrics = run.data.tags, run.data.metrics
        assert tags["mlflow.parentRunId"] in ids
        assert len(tags["mlops.weights_sha256"]) == 64
        assert len(tags["mlops.dataset_fingerprint"]) == 64
        assert "keras" in json.loads(tags["mlops.versions"])
        assert {"mlops.seed", "mlops.threads", "mlops.config_fingerprint"} <= set(tags)
        assert run.data.params["architecture"] == tags["mlops.architecture"]
        assert run.info.status == "FINISHED"
        objective = "elbo" if tags["mlops.architecture"] == "vae" else "accuracy"
        for name in (f"train_{objective}", f"val_{objective}", "train_loss", "val_loss"):
            history = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in history] == [0, 1], name
        assert {"learning_rate", "epoch_s", f"best_val_{objective}", "best_epoch"} <= set(metrics)
        dataset = run.inputs.dataset_inputs[0].dataset
        assert dataset.name == "digits"
        assert tags["mlops.dataset_fingerprint"].startswith(dataset.digest)
    for run in parents:
        names = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert {"sweep.toml", "trials.csv", "summary.json", "optimization_history.png"} <= names
        assert run.data.tags["mlops.n_complete"] == "2"

    by_name = {study.architecture: study for study in result.studies}
    assert set(by_name) == {"dnn", "cnn", "rnn", "vae"}
    for study in result.studies:
        assert study.best is not None and study.candidate is not None
        task = "vae" if study.architecture == "vae" else "classifier"
        assert study.candidate.name == f"four-{task}-candidates"
        version = client.get_model_version(study.candidate.name, str(study.candidate.version))
        assert version.run_id == study.best.run_id
        assert version.source == f"runs:/{study.best.run_id}/model"
        assert float(version.tags["mlops.value"]) == study.best.value
        files = {item.path for item in client.list_artifacts(study.best.run_id, "model")}
        assert "model/MLmodel" in files
        plots = plots_of(client, study.best.run_id)
        assert "learning_curves.png" in plots and not any("mistakes" in name for name in plots)
        assert (plots >= PLOTS) == (task == "classifier")
    chosen = {study.best.run_id for study in result.studies if study.best is not None}
    others = [run.info.run_id for run in children if run.info.run_id not in chosen]
    assert len(others) == 4 and not any(plots_of(client, run_id) for run_id in others)
    assert not [line for line in notes.lines if "figure" in line]
    each = [
        {name for name in run.data.metrics if not name.startswith("system/")}
        for run in children
        if run.data.tags["mlops.architecture"] != "vae"
    ]
    assert all(names == each[0] for names in each)  # so that the UI compares them at once
    assert json.loads(json.dumps(result.to_json()))["studies"][0]["best"]["run_id"]
    journal = tracking.settings.home / "journal" / result.sweep_id
    assert not list(journal.glob("*.journal"))


def test_the_epochs_of_a_running_trial_are_in_the_server_already(
    tracking: Tracking, workers: Cluster, client: Any
) -> None:
    config = dataclasses.replace(QUICK, trials=1, epochs=60, experiment="live")
    done = threading.Event()
    results = []

    def sweep() -> None:
        results.append(
            run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
        )
        done.set()

    thread = threading.Thread(target=sweep)
    thread.start()
    seen: list[str] = []
    try:
        while not done.is_set() and not seen:
            experiment = client.get_experiment_by_name("live")
            if experiment is not None:
                runs = client.search_runs(
                    [experiment.experiment_id], "attributes.run_name = 'dnn-000'"
                )
                # The status is read with the metrics, from one answer of the server.
                seen = [r.info.status for r in runs if r.data.metrics.get("val_accuracy")]
            time.sleep(0.05)
    finally:
        thread.join()
    assert seen == ["RUNNING"]
    assert results[0].undelivered == 0


def test_a_finished_sweep_begins_anew_and_with_its_name_is_only_printed(
    tracking: Tracking, workers: Cluster, client: Any
) -> None:
    config = dataclasses.replace(QUICK, experiment="again", seed=11)
    first = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    second = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    assert second.sweep_id != first.sweep_id

    named = dataclasses.replace(config, study=first.sweep_id)
    # No cluster is given: it must answer without workers.
    third = run_sweep(named, settings=tracking.settings, progress=Notes())
    assert third.studies == first.studies
    assert len(runs_of(client, first.sweep_id)[1]) == 2

    wider = dataclasses.replace(named, architectures=("dnn", "vae"))
    both = run_sweep(wider, settings=tracking.settings, cluster=workers, progress=Notes())
    assert [study.architecture for study in both.studies] == ["dnn", "vae"]
    assert both.studies[0] == first.studies[0]
    other = dataclasses.replace(named, epochs=3)
    with pytest.raises(UsageError, match="begun with another dataset or config"):
        run_sweep(other, settings=tracking.settings, progress=Notes())

    longer = dataclasses.replace(named, trials=3)
    fourth = run_sweep(longer, settings=tracking.settings, cluster=workers, progress=Notes())
    assert fourth.sweep_id == first.sweep_id
    assert fourth.studies[0].n_complete + fourth.studies[0].n_pruned == 3


def test_a_trial_whose_worker_is_killed_is_tried_again_in_a_run_of_its_own(
    tracking: Tracking, workers: Cluster, client: Any
) -> None:
    config = dataclasses.replace(QUICK, trials=2, epochs=25, experiment="killed", seed=5)
    killed: list[int] = []

    def kill_one_in_training() -> None:
        """Kills the process that has written an epoch into its journal."""
        journal = tracking.settings.home / "journal"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            for path in journal.glob("killed-*/*dnn-*.journal"):
                if b'"metrics"' in path.read_bytes():
                    killed.append(int(path.stem.split("-")[-1]))
                    psutil.Process(killed[0]).kill()
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one_in_training)
    killer.start()
    notes = Notes()
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=notes)
    killer.join()

    assert killed
    assert result.studies[0].n_complete + result.studies[0].n_pruned == 2
    assert result.undelivered == 0
    assert any("tried again" in line for line in notes.lines)
    _, children = runs_of(client, result.sweep_id)
    failed = [run for run in children if run.info.status == "FAILED"]
    assert len(failed) == 1 and len(children) == 3
    assert "killed" in failed[0].data.tags["mlops.failure"]
    assert failed[0].data.metrics["val_accuracy"] > 0  # what it had logged is not lost
    attempts = [run for run in children if run.data.tags["mlops.attempt"] == "2"]
    assert len(attempts) == 1
    assert attempts[0].data.params == failed[0].data.params
    assert attempts[0].data.tags["mlops.seed"] == failed[0].data.tags["mlops.seed"]


def test_a_users_csv_becomes_a_model_that_knows_its_columns(
    tracking: Tracking, workers: Cluster, client: Any, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).normal(size=(90, 2)).round(3)
    lines = [f"{w},{h},{'wide' if w > h else 'tall'}" for w, h in rows]
    (tmp_path / "flowers.csv").write_text("\n".join(["width,height,form", *lines]))
    config = dataclasses.replace(
        QUICK,
        dataset=str(tmp_path / "flowers.csv"),
        label="form",
        architectures=("dnn", "cnn"),
        trials=1,
    )
    notes = Notes()
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=notes)
    assert [study.architecture for study in result.studies] == ["dnn"]
    assert result.experiment == "flowers"
    assert "cnn is left out: it takes images, and this dataset holds tables." in notes.lines
    best = result.studies[0].best
    assert best is not None
    folder = client.download_artifacts(best.run_id, "model", str(tmp_path))
    spec = check_model_folder(Path(folder))
    assert spec.input.columns == (Column("width"), Column("height"))
    assert spec.class_names == ("tall", "wide")


def everything_in(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")} if home.exists() else set()


def test_bad_input_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = Settings.from_env({"MLOPS_HOME": str(home)})
    np.savez(tmp_path / "bad.npz", x=np.full((9, 2), np.nan, np.float32), y=np.zeros(9, int))
    with pytest.raises(DataError, match="NaN"):
        run_sweep(SweepConfig(dataset=str(tmp_path / "bad.npz")), settings=settings)
    with pytest.raises(UsageError, match="unknown architecture"):
        run_sweep(SweepConfig(architectures=("resnet",)), settings=settings)
    assert everything_in(home) == set()


def test_an_architecture_that_cannot_be_imported_is_refused_before_a_run_exists(
    tracking: Tracking, workers: Cluster, client: Any
) -> None:
    config = dataclasses.replace(QUICK, architectures=("nowhere:Net",), experiment="refused")
    with pytest.raises(UsageError, match="cannot be imported"):
        run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    assert client.get_experiment_by_name("refused") is None


def test_a_sweep_without_a_server_runs_to_its_end_and_says_what_is_not_delivered(
    tmp_path: Path, workers: Cluster
) -> None:
    settings = Settings.from_env(
        {"MLOPS_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    )
    result = run_sweep(
        dataclasses.replace(QUICK, trials=1), settings=settings, cluster=workers, progress=Notes()
    )
    study = result.studies[0]
    assert result.undelivered > 0
    assert study.best is not None and study.best.run_id is None and study.best.run_key
    assert study.candidate is not None and study.candidate.version is None


OWN = """
import keras
from optuna.distributions import FloatDistribution

from experiments.architectures import Architecture
from experiments.architectures.preprocessing import compile_classifier, scaled_input


class Small(Architecture):
    name = "small"
    kinds = ("image", "table")

    def space(self, data):
        return {"learning_rate": FloatDistribution(1e-3, 1e-2, log=True)}

    def baseline(self, data):
        return {"learning_rate": 5e-3}

    def build(self, params, data, n_classes):
        inputs, x = scaled_input(data)
        x = keras.layers.Dense(16, activation="relu")(keras.layers.Flatten()(x))
        model = keras.Model(inputs, keras.layers.Dense(n_classes)(x))
        return compile_classifier(model, params["learning_rate"])
"""
DRIVE = """
import json, sys
from experiments.sweep import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    loaded = [name for name in ("tensorflow", "keras", "jax", "torch") if name in sys.modules]
    print(json.dumps({"code": code, "loaded": loaded}))
"""


def test_the_driver_imports_no_tensorflow_with_a_users_own_architecture_either(
    tracking: Tracking, tmp_path: Path
) -> None:
    (tmp_path / "own_module.py").write_text(OWN)
    (tmp_path / "drive.py").write_text(DRIVE)
    env = {**os.environ, "MLOPS_HOME": str(tracking.settings.home), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "drive.py", "--architectures", "own_module:Small", "dnn"]
    command += ["--trials", "1", "--epochs", "1", "--workers", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, answer, last = done.stdout.strip().splitlines()
    assert json.loads(last) == {"code": 0, "loaded": []}
    studies = json.loads(answer)["studies"]
    assert [study["architecture"] for study in studies] == ["small", "dnn"]
    assert all(isinstance(study["candidate"]["version"], int) for study in studies)


def test_ctrl_c_ends_cleanly_and_the_same_command_finishes_the_sweep(
    tracking: Tracking, client: Any, tmp_path: Path
) -> None:
    env = {**os.environ, "MLOPS_HOME": str(tracking.settings.home), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "experiments.sweep", "--architectures", "dnn", "--json"]
    command += ["--trials", "4", "--epochs", "25", "--workers", "1", "--experiment", "ctrlc"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    finished: list[Any] = []
    while len(finished) < 1 and time.monotonic() < deadline and process.poll() is None:
        experiment = client.get_experiment_by_name("ctrlc")
        if experiment is not None:
            finished = client.search_runs(
                [experiment.experiment_id],
                "attributes.status = 'FINISHED' and attributes.run_name = 'dnn-000'",
            )
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    interrupted = json.loads(out.strip().splitlines()[-1])
    assert "experiments.sweep --architectures dnn" in err.split("To go on, type:")[1]
    parents, children = runs_of(client, interrupted["sweep_id"])
    assert {run.info.status for run in parents} == {"KILLED"}
    assert "RUNNING" not in {run.info.status for run in children}
    n_before = interrupted["studies"][0]["n_complete"] + interrupted["studies"][0]["n_pruned"]
    assert 1 <= n_before < 4
    before = {run.info.run_id for run in children if run.info.status == "FINISHED"}
    assert not [run for run in children if "mlops.failure" in run.data.tags]

    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed with" in done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["sweep_id"] == interrupted["sweep_id"]
    assert result["studies"][0]["n_complete"] + result["studies"][0]["n_pruned"] == 4
    parents, children = runs_of(client, result["sweep_id"])
    assert {run.info.status for run in parents} == {"FINISHED"}
    counted = [run for run in children if "mlops.interrupted" not in run.data.tags]
    assert len(counted) == 4
    assert before <= {run.info.run_id for run in counted}


def test_the_resolved_config_is_an_artifact_that_can_be_fed_back_as_it_is(
    tracking: Tracking, workers: Cluster, client: Any, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        QUICK,
        experiment="narrowed",
        fix=("batch_size=64",),
        space={"dnn": {"units": {"low": 32, "high": 64}, "dropout": [0.0, 0.1]}},
        sampler="random",
        trials=3,
    )
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    parents, children = runs_of(client, result.sweep_id)
    for run in children:
        params = run.data.params
        assert params["batch_size"] == "64"
        assert 32 <= int(params["units"]) <= 64
        assert params["dropout"] in ("0.0", "0.1")
    path = client.download_artifacts(parents[0].info.run_id, "sweep.toml", str(tmp_path))
    fed = read_options(load_config(Path(path)), "sweep.toml")
    assert fed.resolved() == config.resolved()
    assert fed.fingerprints("f") == config.fingerprints("f")
    # The same again, and so: the same sweep, which is done.
    named = dataclasses.replace(fed, study=result.sweep_id)
    assert run_sweep(named, settings=tracking.settings, progress=Notes()).studies == result.studies


def test_all_that_is_wrong_with_a_space_is_said_at_once_and_no_run_is_made(
    tracking: Tracking, workers: Cluster, client: Any
) -> None:
    config = dataclasses.replace(
        QUICK,
        experiment="wrong",
        fix=("lerning_rate=0.1",),
        space={"dnn": {"unit": 32, "dropout": {"low": 0.6}}},
    )
    with pytest.raises(UsageError) as caught:
        run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    for fragment in ("did you mean 'learning_rate'?", "did you mean 'units'?", "[space.dnn] drop"):
        assert fragment in str(caught.value)
    assert client.get_experiment_by_name("wrong") is None


def test_a_warm_start_tries_the_best_of_an_earlier_sweep_first(
    tracking: Tracking, workers: Cluster, client: Any
) -> None:
    config = dataclasses.replace(QUICK, experiment="cold", seed=21)
    cold = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    warm = dataclasses.replace(config, experiment="warm", seed=22, warm_start=cold.sweep_id)
    result = run_sweep(warm, settings=tracking.settings, cluster=workers, progress=Notes())
    (best,) = [study.best for study in cold.studies]
    _, children = runs_of(client, result.sweep_id)
    first = next(run for run in children if run.data.tags["mlops.trial"] == "0")
    assert best is not None
    assert {name: first.data.params[name] for name in best.params} == {
        name: str(value) for name, value in best.params.items()
    }
    nowhere = dataclasses.replace(config, warm_start=cold.sweep_id + "x")
    with pytest.raises(UsageError, match=f"did you mean '{cold.sweep_id}'"):
        run_sweep(nowhere, settings=tracking.settings, progress=Notes())


def test_the_candidate_is_the_refit_of_the_median_of_fresh_seeds(
    tracking: Tracking, workers: Cluster, client: Any, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        QUICK, experiment="finals", seeds=3, refit=True, objective="macro_f1", plots="best"
    )
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    (study,) = result.studies
    assert study.objective == "val_macro_f1"
    assert study.seeds is not None and study.seeds.n == 3
    assert study.seeds.low <= study.seeds.mean <= study.seeds.high
    parents, children = runs_of(client, result.sweep_id)
    seeds = [run for run in children if run.data.tags.get("mlops.final") == "seed"]
    (refit,) = [run for run in children if run.data.tags.get("mlops.final") == "refit"]
    assert len(children) == 2 + 3 + 1
    assert study.best is not None and study.candidate is not None
    for run in (*seeds, refit):
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.params["units"] == str(study.best.params["units"])
    used = {run.data.tags["mlops.seed"] for run in children if run is not refit}
    assert len(used) == 5  # no seed of the search is used again
    ranked = sorted(seeds, key=lambda run: run.data.metrics["best_val_macro_f1"])
    assert refit.data.tags["mlops.seed"] == ranked[1].data.tags["mlops.seed"]
    n_epochs = int(ranked[1].data.metrics["best_epoch"]) + 1
    assert refit.data.tags["mlops.epochs"] == str(n_epochs)
    assert "val_accuracy" not in refit.data.metrics
    # The refit has learned from the validation rows; they tell of the network that it repeats.
    assert plots_of(client, ranked[1].info.run_id) >= PLOTS | {"learning_curves.png"}
    assert not plots_of(client, refit.info.run_id)
    version = client.get_model_version(study.candidate.name, str(study.candidate.version))
    assert version.run_id == refit.info.run_id
    assert float(version.tags["mlops.value"]) == ranked[1].data.metrics["best_val_macro_f1"]
    assert version.tags["mlops.objective"] == "val_macro_f1"
    assert parents[0].data.metrics["seeds_mean_val_macro_f1"] == pytest.approx(study.seeds.mean)
    folder = client.download_artifacts(refit.info.run_id, "model", str(tmp_path))
    assert check_model_folder(Path(folder)).architecture == "dnn"


def test_a_pareto_set_is_shown_logged_and_becomes_candidates(
    tracking: Tracking, workers: Cluster, client: Any, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        QUICK,
        trials=5,
        epochs=3,
        experiment="pareto",
        objectives=("val_accuracy", "n_weights", "latency_ms"),
        require=("size_bytes<1e9",),
    )
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    (study,) = result.studies
    assert study.n_complete == 5 and study.best is not None
    assert study.pareto[0].number == study.best.number
    qualities = [member.values["val_accuracy"] for member in study.pareto]
    assert qualities == sorted(qualities, reverse=True)
    assert all(member.values["latency_ms"] > 0 for member in study.pareto)
    versions = {member.candidate.version for member in study.pareto if member.candidate}
    assert len(versions) == len(study.pareto) and None not in versions
    (parent,), children = runs_of(client, result.sweep_id)
    for name in ("pareto.csv", "pareto.png"):
        client.download_artifacts(parent.info.run_id, name, str(tmp_path))
    with (tmp_path / "pareto.csv").open() as file:
        assert {int(row["number"]) for row in csv.DictReader(file)} == {
            member.number for member in study.pareto
        }
    for run in children:
        assert run.data.metrics["n_weights"] > 0 and run.data.metrics["size_bytes"] > 0
        assert run.data.metrics["system/process_memory_usage_megabytes"] > 0
    folder = tracking.settings.home / "sweeps" / result.sweep_id / "dnn"
    kept = {int(path.stem) for path in folder.glob("*.keras")}
    assert kept == {member.number for member in study.pareto}


def test_with_plots_all_each_complete_trial_is_drawn_and_rows_only_where_they_may_be_shown(
    tracking: Tracking, workers: Cluster, client: Any, tmp_path: Path
) -> None:
    config = dataclasses.replace(QUICK, epochs=1, experiment="plots", plots="all", log_rows=True)
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    (parent,), children = runs_of(client, result.sweep_id)
    assert len(children) == 2
    for run in children:
        assert plots_of(client, run.info.run_id) >= PLOTS | {"mistakes.png", "learning_curves.csv"}
        client.download_artifacts(run.info.run_id, "plots", str(tmp_path))
        with (tmp_path / "plots" / "confusion_matrix.csv").open() as file:
            _, *rows = csv.reader(file)
        counts = np.array([row[1:] for row in rows], int)
        assert np.trace(counts) / counts.sum() == pytest.approx(run.data.metrics["val_accuracy"])
        assert "mlops.figures_failed" not in run.data.tags
    assert not plots_of(client, parent.info.run_id)


def test_a_sweep_in_which_nothing_keeps_what_is_required_has_no_candidate(
    tracking: Tracking, workers: Cluster
) -> None:
    config = dataclasses.replace(QUICK, experiment="required", require=("n_weights<2",))
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    (study,) = result.studies
    assert study.n_complete == 2
    assert study.best is None and study.candidate is None
    assert "dnn" in leaderboard(result) and result.undelivered == 0
