"""A sweep whose dataset is kept on S3: a real SeaweedFS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import run_sweep
from experiments.config import SweepConfig
from experiments.sweep import main
from experiments.workers.cluster import Cluster
from mlops.dataset_store import open_dataset_store
from mlops.errors import MlopsError
from mlops.objects import open_objects
from mlops.settings import Settings
from tests.conftest import Tracking
from tests.experiments.test_sweep import QUICK, Notes, everything_in
from tests.mlops.table_files import DIGITS
from tests.object_store import SECRET, ObjectStore, open_object_store, use


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with open_object_store(tmp_path_factory.mktemp("seaweed"), "datasets") as server:
        yield server


def test_what_a_sweep_stores_on_s3_another_machine_has(
    tracking: Tracking,
    workers: Cluster,
    server: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use(monkeypatch, server.env())
    settings = dataclasses.replace(tracking.settings, datasets_url="s3://datasets/swept")
    config = dataclasses.replace(QUICK, experiment="on-s3")
    result = run_sweep(config, settings=settings, cluster=workers, progress=Notes())
    (study,) = result.studies
    assert study.candidate is not None and result.undelivered == 0
    assert len(list(open_objects("s3://datasets/swept").list())) == 4
    elsewhere = dataclasses.replace(settings, home=tmp_path / "elsewhere")
    assert open_dataset_store(elsewhere).get(DIGITS).fingerprint == DIGITS


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no object store answers at"),
        (
            {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere"},
            "there is no login for s3://datasets/refused",
        ),
        ({"MLOPS_DATASETS_URL": "s3://absent"}, "has no bucket 'absent'"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_before_anything_is_made(
    server: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    fragment: str,
) -> None:
    home = tmp_path / "home"
    use(monkeypatch, server.env())
    use(monkeypatch, {"MLOPS_HOME": str(home), "MLOPS_DATASETS_URL": "s3://datasets/refused"})
    use(monkeypatch, changes)
    with pytest.raises(MlopsError, match=fragment):
        run_sweep(SweepConfig(), settings=Settings.from_env())
    for options in ([], ["--dry-run"]):
        assert main(options) == 1
        *_, said = capsys.readouterr().err.strip().splitlines()
        assert said.startswith("python -m experiments.sweep: ")
        assert fragment in said and SECRET not in said
    assert everything_in(home) == set()
