"""A real MLflow server with Podium's accounts, and what is in it before anybody tries anything."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from mlops.init import main
from mlops.settings import QUIET
from mlops.team.secrets import read_login
from tests.e2e.serving import free_port
from tests.server_process import running

ROOT = Path(__file__).parents[2]
START_S = 120

NOBODY = "nobody"
OTHER = "tina"
"""A trainer, too: who made what stands in the server."""
STOLEN = b"not what was signed"


@dataclass
class Team:
    """The server, its accounts' passwords, and how to ask it as one of them."""

    url: str
    secrets: Path
    artifacts: Path
    passwords: dict[str, str] = field(default_factory=dict)
    numbers: Any = field(default_factory=itertools.count)
    """Nothing is called the same twice."""

    def ask(self, who: str, method: str, path: str, **how: Any) -> requests.Response:
        """Sends a request as an account; `path` begins behind /api/."""
        path = path if path.startswith("/") else f"/api/{path}"
        login = None if who == NOBODY else (who, self.passwords[who])
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, auth=login, timeout=60, **how)

    def done(self, who: str, method: str, path: str, **how: Any) -> Any:
        """Sends a request that must be taken, and returns what it answers."""
        reply = self.ask(who, method, path, **how)
        assert reply.status_code == 200, (who, method, path, reply.status_code, reply.text)
        return reply.json() if reply.content else None

    def login(self, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
        """Gives an account's login to MLflow's clients, as its users do."""
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", who)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", self.passwords[who])

    # What is made.

    def name(self) -> str:
        return f"n{next(self.numbers)}"

    def experiment(self, who: str, name: str) -> str:
        made = self.done(who, "POST", "2.0/mlflow/experiments/create", json={"name": name})
        return str(made["experiment_id"])

    def run(self, who: str, experiment_id: str) -> str:
        content = {"experiment_id": experiment_id}
        made = self.done(who, "POST", "2.0/mlflow/runs/create", json=content)
        return str(made["run"]["info"]["run_id"])

    def model(self, who: str, name: str) -> str:
        self.done(who, "POST", "2.0/mlflow/registered-models/create", json={"name": name})
        return name

    def version(self, who: str, name: str, run_id: str) -> None:
        content = {"name": name, "source": f"runs:/{run_id}/model", "run_id": run_id}
        self.done(who, "POST", "2.0/mlflow/model-versions/create", json=content)

    def put(self, who: str, path: str, content: bytes = b"bytes") -> None:
        self.done(who, "PUT", f"2.0/mlflow-artifacts/artifacts/{path}", data=content)


@dataclass(frozen=True)
class Stage:
    """What stands in the server: a sweep of another trainer's, and a release of it.

    Attributes:
        sweep: Id of the experiment, `run` one of its runs.
        release: Id of the experiment, `release_run` its run, `file` where its bytes lie.
        model: The model, with version 1 and the alias champion.
    """

    team: Team
    sweep: str
    run: str
    release: str
    release_run: str
    model: str = "sides"

    @property
    def file(self) -> str:
        return f"{self.release}/{self.release_run}/artifacts/release/model.sig"

    @property
    def sweep_file(self) -> str:
        return f"{self.sweep}/{self.run}/artifacts/model/MLmodel"

    @property
    def candidates(self) -> str:
        return f"{self.model}-candidates"

    def bytes_of_release(self) -> dict[str, bytes]:
        folder = self.team.artifacts / self.release
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def make_stage(team: Team) -> Stage:
    sweep = team.experiment(OTHER, "sides")
    run = team.run(OTHER, sweep)
    model = Stage.model
    team.model(OTHER, f"{model}-candidates")
    team.version(OTHER, f"{model}-candidates", run)
    release = team.experiment("promoter", f"{model}-releases")
    release_run = team.run("promoter", release)
    team.model("promoter", model)
    content = {"name": model, "source": f"runs:/{release_run}/release", "run_id": release_run}
    team.done("promoter", "POST", "2.0/mlflow/model-versions/create", json=content)
    alias = {"name": model, "alias": "champion", "version": "1"}
    team.done("promoter", "POST", "2.0/mlflow/registered-models/alias", json=alias)
    stage = Stage(team, sweep, run, release, release_run)
    team.put(OTHER, stage.sweep_file)
    team.put("promoter", stage.file, b"signed")
    return stage


@contextmanager
def open_team(folder: Path, database: Path) -> Iterator[Team]:
    """Runs the server as docker-compose.yml does, on SQLite and a folder; its accounts are made."""
    place = folder / "secrets"
    assert main(["secrets", str(place)]) == 0
    (folder / "mlflow.db").write_bytes(database.read_bytes())
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "podium-accounts"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
    ]
    env = {
        **os.environ,
        **QUIET,
        "MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "deploy" / "basic_auth.ini"),
        "MLOPS_ACCOUNTS_DB_URL": f"sqlite:///{folder / 'accounts.db'}",
        "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(place / "mlflow" / "admin_password"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE": str(place / "mlflow" / "flask_secret"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
    }
    url = f"http://127.0.0.1:{port}"
    with running(command, env, folder / "log", url, START_S):
        with as_admin(url):
            assert main(["accounts", "--secrets", str(place)]) == 0
            more = ("--role", "trainer", "--password-file", str(place / "accounts" / OTHER))
            assert main(["account", OTHER, *more, "--secrets", str(place)]) == 0
        team = Team(url, place, folder / "artifacts")
        for file in (place / "accounts").iterdir():
            team.passwords[file.name] = file.read_text()
        team.passwords["admin"] = read_login(place / "admin" / "mlflow_credentials")[1]
        team.passwords["stranger"] = secrets.token_urlsafe()
        yield team


@contextmanager
def as_admin(url: str) -> Iterator[None]:
    """Has `mlops.init` find the server, and the admin's login in the secrets."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, "")  # what the program sets is undone, too
        yield
