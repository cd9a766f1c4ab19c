"""Where things live, by what the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops.settings import SETTINGS, Settings

SECRET = "hunter2"


def test_an_embedded_home_has_its_own_database_and_artifacts_and_no_accounts(
    tmp_path: Path,
) -> None:
    settings = Settings.from_env({"MLOPS_HOME": str(tmp_path)})
    assert settings.tracking_db_url == settings.mlflow_db_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.artifacts_url == str(settings.artifact_root) == str(tmp_path / "artifacts")
    assert settings.accounts_db_url is None
    assert settings.datasets_url == str(settings.datasets_folder) == str(tmp_path / "datasets")


def test_of_a_server_nothing_is_known_that_is_not_said() -> None:
    server = {"MLFLOW_TRACKING_URI": "https://door:8443"}
    settings = Settings.from_env(server)
    assert settings.tracking_db_url is settings.artifacts_url is settings.accounts_db_url is None
    said = {
        "MLOPS_TRACKING_DB_URL": "postgresql+psycopg://mlflow@postgres/mlflow",
        "MLOPS_ACCOUNTS_DB_URL": "postgresql+psycopg://mlflow@postgres/accounts",
        "MLOPS_ARTIFACTS_URL": "s3://artifacts/all",
    }
    settings = Settings.from_env(server | said)
    assert settings.tracking_db_url == said["MLOPS_TRACKING_DB_URL"]
    assert settings.accounts_db_url == said["MLOPS_ACCOUNTS_DB_URL"]
    assert settings.artifacts_url == said["MLOPS_ARTIFACTS_URL"]


def test_a_tracking_uri_that_is_a_database_is_the_one_behind_itself() -> None:
    url = "postgresql+psycopg://mlflow@postgres/mlflow"
    settings = Settings.from_env({"MLFLOW_TRACKING_URI": url})
    assert settings.tracking_db_url == url
    assert settings.artifacts_url is None


def test_a_setting_that_is_empty_is_not_set(tmp_path: Path) -> None:
    empty = dict.fromkeys(SETTINGS, "")
    home = {"MLOPS_HOME": str(tmp_path)}
    assert Settings.from_env(empty | home) == Settings.from_env(home)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name.endswith(("_URL", "_URI"))])
def test_what_may_hold_a_password_is_not_shown(name: str) -> None:
    url = f"postgresql://ada:{SECRET}@host/data"
    settings = Settings.from_env({name: url})
    assert SECRET not in repr(settings)
    assert url in (getattr(settings, one) for one in Settings.__slots__)


def test_replicas_are_a_list_with_commas_between() -> None:
    said = {"MLOPS_REPLICAS": " http://a:5002, b:5002,,"}
    assert Settings.from_env(said).replicas == ("http://a:5002", "b:5002")
    assert Settings.from_env({}).replicas == ()
