"""Where artifacts lie, and that nothing else is ever listed or deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from mlops.settings import Settings
from mlops.stores.tracking_removal import open_artifacts, remove_runs
from mlops.stores.tracking_rows import read_registry, read_tracked

RUN = "0" * 32
END = f"{RUN}/artifacts"


def place_of(settings: Settings, place: str) -> tuple[str, str]:
    objects, prefix = open_artifacts(settings, place, END)
    return objects.url, prefix


def test_artifacts_are_found_in_folders_in_s3_and_behind_a_server(tmp_path: Path) -> None:
    env = {"MLOPS_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "https://tracking"}
    team = Settings.from_env({**env, "MLOPS_ARTIFACTS_URL": "s3://artifacts/mlflow"})
    for place, found in {
        f"/a b/1/{END}": ("/a b/1", f"{END}/"),
        f"file:///a%20b/1/{END}": ("/a b/1", f"{END}/"),
        f"s3://other/x/{END}/": ("s3://other/x", f"{END}/"),
        f"mlflow-artifacts:/7/{END}": ("s3://artifacts/mlflow", f"7/{END}/"),
        f"mlflow-artifacts://host:5000/7/{END}": ("s3://artifacts/mlflow", f"7/{END}/"),
    }.items():
        assert place_of(team, place) == found
    with pytest.raises(MlopsError, match="set MLOPS_ARTIFACTS_URL"):
        place_of(Settings.from_env(env), f"mlflow-artifacts:/7/{END}")


@pytest.mark.parametrize(
    "place", ["/etc", f"/etc/{RUN}", f"/{END}/more", f"dbfs:/x/{END}", f"https://x/{END}"]
)
def test_a_place_that_mlflow_does_not_make_is_refused(tmp_path: Path, place: str) -> None:
    settings = Settings.from_env({"MLOPS_HOME": str(tmp_path)})
    with pytest.raises(MlopsError, match="Delete them by hand"):
        place_of(settings, place)


def test_a_run_goes_with_its_artifacts_its_logged_models_and_what_refers_to_it(
    home_with_database: Settings,
) -> None:
    from mlflow.entities import Dataset as Used
    from mlflow.entities import DatasetInput, LoggedModelOutput, Metric

    from mlops.mlflow_store import open_store_client

    settings, client = home_with_database, open_store_client(home_with_database)
    experiment = client.create_experiment("e", str(settings.artifact_root / "e"))
    ids = []
    for name in ("gone", "kept"):
        run = client.create_run(experiment, run_name=name)
        run_id = run.info.run_id
        client.log_batch(run_id, metrics=[Metric("m", 1.0, 1, 0)])
        client.log_param(run_id, "p", "v")
        client.log_text(run_id, "bytes", "folder/file")
        client.log_inputs(run_id, [DatasetInput(Used("d", "1", "local", "{}"), [])])
        model = client.create_logged_model(experiment, source_run_id=run_id)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        place = Path(model.artifact_location)
        place.mkdir(parents=True)
        (place / "file").write_text("bytes")
        ids.append(run_id)
    _, runs = read_registry(settings)
    remove_runs(settings, [runs[ids[0]]])
    remove_runs(settings, [runs[ids[0]]])  # again, as after a kill
    tracked = read_tracked(settings)
    assert set(tracked.runs) == {ids[1]}
    assert [run for _, _, run, _ in tracked.models] == [ids[1]]
    assert count(settings, "inputs") == 2
    for table in ("metrics", "latest_metrics", "params", "logged_models"):
        assert count(settings, table) == 1
    left = [path for path in settings.artifact_root.rglob("*") if path.is_file()]
    assert len(left) == 2
    assert client.get_run(ids[1]).data.metrics == {"m": 1.0}


def count(settings: Settings, table: str) -> Any:
    import sqlalchemy as sa

    engine = sa.create_engine(settings.mlflow_db_uri, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar()
