"""A dataset that was really swept, erased while the tracking server goes on."""

from __future__ import annotations

from pathlib import Path

from experiments import run_sweep
from experiments.config import SweepConfig
from experiments.study_rows import read_studies
from experiments.workers.cluster import Cluster
from mlops.data import load_dataset
from mlops.erase import erase, find
from mlops.mlflow_store import open_client
from mlops.server import open_server
from mlops.settings import Settings
from tests.experiments.test_sweep import Notes
from tests.made_world import MARKER, find_bytes, make_table


def test_a_sweep_is_erased_with_its_data_beside_a_server_that_runs(
    workers: Cluster, tmp_path: Path
) -> None:
    # A home of its own: reading SQLite's files as bytes drops this process's locks on them.
    settings = Settings.from_env({"MLOPS_HOME": str(tmp_path / "home")})
    with open_server(settings) as server:
        server.wait()
        erase_a_sweep(settings, server.url, workers, tmp_path)


def erase_a_sweep(settings: Settings, url: str, workers: Cluster, tmp_path: Path) -> None:
    make_table(tmp_path, (MARKER, "elsewhere"), 1)
    path = str(tmp_path / "table1.csv")
    dataset = load_dataset(path, label="label")
    config = SweepConfig(
        dataset=path,
        label="label",
        architectures=("dnn",),
        trials=2,
        epochs=2,
        workers=1,
        experiment="erasing",
        log_rows=True,
    )
    result = run_sweep(config, settings=settings, cluster=workers, progress=Notes())
    assert result.studies[0].best is not None
    home = settings.home
    assert len(find_bytes(home, MARKER.encode())) >= 2
    (row,) = [one for one in read_studies(settings.study_url) if one.sweep == result.sweep_id]
    assert row.attrs["dataset_fingerprint"] == dataset.fingerprint
    kinds = {item.kind for item in find(settings, dataset.fingerprint)}
    assert kinds == {
        *("model version", "study", "sweep folder", "run", "dataset record", "dataset"),
    }
    done = erase(settings, dataset.fingerprint)
    assert done.tombstone is not None
    assert find_bytes(home, MARKER.encode()) == []
    assert find_bytes(home, dataset.fingerprint.encode()) == ["ledger.db"]
    client = open_client(url)
    experiment = client.get_experiment_by_name("erasing")
    assert client.search_runs([experiment.experiment_id]) == []
    assert client.search_model_versions("name = 'erasing-classifier-candidates'") == []
