"""A trial trained again alone, in a fresh process, gives the same weights as in the sweep."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from experiments import run_sweep
from experiments.built_in import BUILT_IN
from experiments.config import SweepConfig
from experiments.storage import open_storage
from experiments.workers.cluster import Cluster, open_cluster
from tests.conftest import Tracking
from tests.experiments.test_sweep import Notes

pytestmark = pytest.mark.long

ALONE = """
import json, sys
from experiments.architectures import open_architecture
from experiments.training import train
from experiments.trial import set_up_process

set_up_process(threads=1)
from mlops.data import load_dataset

dataset = load_dataset("digits")
for path, params, seed, epochs in json.load(sys.stdin):
    trained = train(open_architecture(path), params, dataset, seed=seed, epochs=epochs)
    print(trained.weights_sha256)
"""


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    with open_cluster(1, 1, tmp_path_factory.mktemp("worker") / "worker.log") as cluster:
        yield cluster


def test_trials_repeat_alone_whatever_the_number_of_workers_was(
    tracking: Tracking, workers: Cluster, one_worker: Cluster, tmp_path: Path
) -> None:
    tasks: list[tuple[str, dict[str, object], int, int]] = []
    hashes: list[str] = []
    for cluster, n_workers in ((one_worker, 1), (workers, 2)):
        config = SweepConfig(
            trials=2, epochs=2, workers=n_workers, seed=21, experiment=f"repeat-{n_workers}"
        )
        result = run_sweep(config, settings=tracking.settings, cluster=cluster, progress=Notes())
        storage = open_storage(tracking.settings.study_url)
        for study in result.studies:
            # The last one: its process had trained other networks before.
            trial = optuna.load_study(study_name=study.study, storage=storage).trials[-1]
            assert trial.params != {}
            tasks.append((BUILT_IN[study.architecture], trial.params, trial.user_attrs["seed"], 2))
            hashes.append(trial.user_attrs["weights_sha256"])
    assert len(set(hashes)) >= 4
    alone = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
        check=True,
    )
    assert alone.stdout.split() == hashes


def test_a_sweep_with_one_worker_repeats_whole(tracking: Tracking, one_worker: Cluster) -> None:
    config = SweepConfig(
        architectures=("dnn",), trials=4, epochs=2, workers=1, seed=22, experiment="whole"
    )
    storage = open_storage(tracking.settings.study_url)
    seen = []
    for plots in ("all", "none"):  # what is drawn changes no weights
        drawn = dataclasses.replace(config, plots=plots)
        result = run_sweep(drawn, settings=tracking.settings, cluster=one_worker, progress=Notes())
        study = optuna.load_study(study_name=result.studies[0].study, storage=storage)
        seen.append([(t.params, t.user_attrs["weights_sha256"], t.state) for t in study.trials])
    assert seen[0] == seen[1]
