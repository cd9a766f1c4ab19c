"""Who may do what with the accounts of a team: each cell of the table by a real request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlops.dataset_store import open_dataset_store
from mlops.errors import MlopsError
from mlops.init import main
from mlops.journal import Journal
from mlops.mlflow_store import open_client
from mlops.settings import Settings
from mlops.sync import sync
from mlops.team.accounts_app import stream_artifacts
from mlops.team.rules import why_odd
from mlops.team.secrets import read_login
from mlops.tracking import Run, new_run_key
from registry.alias import Registry, open_registry
from registry.catalog import Catalog
from registry.promote import promote
from registry.rollback import rollback
from registry.serving.follower import Accepted, Follower
from registry.serving.state import StateFolder
from registry.status import look
from tests.mlops.team_server import (
    NOBODY,
    OTHER,
    ROOT,
    STOLEN,
    Stage,
    Team,
    as_admin,
    make_stage,
    open_team,
)
from tests.registry.sides import NAME, Sides, make_dataset, probe_sides

ROLES = (NOBODY, "viewer", "trainer", "promoter", "server", "admin")

TABLE = """\
| what | nobody | viewer | trainer | promoter | server | admin |
|---|---|---|---|---|---|---|
| read an experiment of sweeps | 401 | 200 | 200 | 200 | 403 | 200 |
| read an experiment of releases | 401 | 200 | 200 | 200 | 200 | 200 |
| search the runs of a sweep | 401 | 200 | 200 | 200 | 200, none | 200 |
| search the runs of releases | 401 | 200 | 200 | 200 | 200 | 200 |
| make an experiment | 401 | 403 | 200 | 403 | 403 | 200 |
| make an experiment named `*-releases` | 401 | 403 | 403 | 200 | 403 | 200 |
| make an experiment at `file:///etc` | 401 | 403 | 403 | 403 | 403 | 200 |
| rename an experiment into `*-releases` | 401 | 403 | 403 | 403 | 403 | 200 |
| delete an experiment of one's own | 401 | - | 200 | 403 | - | 200 |
| delete an experiment of another trainer's | 401 | 403 | 403 | 403 | 403 | 200 |
| log a metric in an experiment of another trainer's | 401 | 403 | 200 | 403 | 403 | 200 |
| log a metric in a run of a release | 401 | 403 | 403 | 200 | 403 | 200 |
| delete a run of another trainer's | 401 | 403 | 200 | 403 | 403 | 200 |
| delete the run of a release | 401 | 403 | 403 | 403 | 403 | 200 |
| read an artifact of a sweep | 401 | 200 | 200 | 200 | 403 | 200 |
| read an artifact of a release | 401 | 200 | 200 | 200 | 200 | 200 |
| write an artifact of a sweep | 401 | 403 | 200 | 403 | 403 | 200 |
| write an artifact of a release | 401 | 403 | 403 | 200 | 403 | 200 |
| delete an artifact of a release | 401 | 403 | 403 | 403 | 403 | 200 |
| write a path with `..` into a release | 401 | 403 | 403 | 403 | 403 | 400 |
| read a candidate | 401 | 200 | 200 | 200 | 403 | 200 |
| read a release's version | 401 | 200 | 200 | 200 | 200 | 200 |
| make a model named `*-candidates` | 401 | 403 | 200 | 403 | 403 | 200 |
| make any other model | 401 | 403 | 403 | 200 | 403 | 200 |
| make a version of `*-candidates` | 401 | 403 | 200 | 403 | 403 | 200 |
| make a version of any other model | 401 | 403 | 403 | 200 | 403 | 200 |
| make a version at `file:///etc` | 401 | 403 | 403 | 403 | 403 | 400 |
| tag a candidate | 401 | 403 | 200 | 200 | 403 | 200 |
| tag a release's version | 401 | 403 | 403 | 200 | 403 | 200 |
| set an alias of a release | 401 | 403 | 403 | 200 | 403 | 200 |
| delete an alias of a release | 401 | 403 | 403 | 403 | 403 | 200 |
| rename a model of candidates into a release's | 401 | 403 | 403 | 403 | 403 | 200 |
| delete a version of a release's model | 401 | 403 | 403 | 403 | 403 | 200 |
| delete the model of releases | 401 | 403 | 403 | 403 | 403 | 200 |
| make a prompt | 401 | 403 | 403 | 403 | 403 | 200 |
| make a webhook | 401 | 403 | 403 | 403 | 403 | 200 |
| make a webhook to a private address | 401 | 403 | 403 | 403 | 403 | 400 |
| make an account | 401 | 403 | 403 | 403 | 403 | 200 |
| give a right to an account | 401 | 403 | 403 | 403 | 403 | 200 |
| ask a gateway, a job, an assistant | 401 | 403 | 403 | 403 | 403 | - |
| ask with a foreign Host header | 403 | 403 | 403 | 403 | 403 | 403 |
"""
"""As docs/operations.md shows it. A dash: there is nothing to ask."""

Action = Callable[[Stage, str], "int | str"]
ACTIONS: dict[str, Action] = {}


def action(what: str) -> Callable[[Action], Action]:
    def take(ask: Action) -> Action:
        ACTIONS[what] = ask
        return ask

    return take


def read_table() -> dict[str, dict[str, str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()[2:]
    ]
    return {row[0]: dict(zip(ROLES, row[1:], strict=True)) for row in rows}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Team]:
    with open_team(tmp_path_factory.mktemp("team"), mlflow_database) as team:
        yield team


@pytest.fixture(scope="module")
def stage(team: Team) -> Stage:
    return make_stage(team)


@pytest.mark.parametrize("what", read_table())
def test_each_role_may_do_what_the_table_says_and_no_more(stage: Stage, what: str) -> None:
    before = stage.bytes_of_release()
    wanted = read_table()[what]
    found = {who: str(ACTIONS[what](stage, who)) for who in ROLES if wanted[who] != "-"}
    assert found == {who: status for who, status in wanted.items() if status != "-"}
    changed = {"write an artifact of a release", "delete an artifact of a release"}
    assert what in changed or stage.bytes_of_release() == before


def test_the_manual_shows_this_table() -> None:
    assert TABLE in (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert list(ACTIONS) == list(read_table())


def status(stage: Stage, who: str, method: str, path: str, **how: Any) -> int:
    return stage.team.ask(who, method, path, **how).status_code


def post(stage: Stage, who: str, path: str, **content: Any) -> int:
    return status(stage, who, "POST", f"2.0/mlflow/{path}", json=content)


def maker(who: str, usual: str) -> str:
    """Who makes what another may then try something on: those who may, themselves."""
    return who if who in (usual, "admin") else usual


@action("read an experiment of sweeps")
def _(stage: Stage, who: str) -> int:
    query = {"experiment_id": stage.sweep}
    return status(stage, who, "GET", "2.0/mlflow/experiments/get", params=query)


@action("read an experiment of releases")
def _(stage: Stage, who: str) -> int:
    query = {"experiment_id": stage.release}
    return status(stage, who, "GET", "2.0/mlflow/experiments/get", params=query)


def search(stage: Stage, who: str, experiment_id: str) -> int | str:
    content = {"experiment_ids": [experiment_id]}
    reply = stage.team.ask(who, "POST", "2.0/mlflow/runs/search", json=content)
    if reply.status_code != 200:
        return reply.status_code
    return 200 if reply.json().get("runs") else "200, none"


@action("search the runs of a sweep")
def _(stage: Stage, who: str) -> int | str:
    return search(stage, who, stage.sweep)


@action("search the runs of releases")
def _(stage: Stage, who: str) -> int | str:
    return search(stage, who, stage.release)


@action("make an experiment")
def _(stage: Stage, who: str) -> int:
    return post(stage, who, "experiments/create", name=stage.team.name())


@action("make an experiment named `*-releases`")
def _(stage: Stage, who: str) -> int:
    return post(stage, who, "experiments/create", name=f"{stage.team.name()}-releases")


@action("make an experiment at `file:///etc`")
def _(stage: Stage, who: str) -> int:
    name = stage.team.name() + "-releases" * (who == "promoter")
    return post(stage, who, "experiments/create", name=name, artifact_location="file:///etc")


@action("rename an experiment into `*-releases`")
def _(stage: Stage, who: str) -> int:
    made = stage.team.experiment(maker(who, "trainer"), stage.team.name())
    new = f"{stage.team.name()}-releases"
    return post(stage, who, "experiments/update", experiment_id=made, new_name=new)


@action("delete an experiment of one's own")
def _(stage: Stage, who: str) -> int:
    name = stage.team.name() + "-releases" * (who == "promoter")
    owner = "trainer" if who == NOBODY else who
    made = stage.team.experiment(owner, name)
    return post(stage, who, "experiments/delete", experiment_id=made)


@action("delete an experiment of another trainer's")
def _(stage: Stage, who: str) -> int:
    made = stage.team.experiment(OTHER, stage.team.name())
    return post(stage, who, "experiments/delete", experiment_id=made)


@action("log a metric in an experiment of another trainer's")
def _(stage: Stage, who: str) -> int:
    metric = {"key": "loss", "value": 1.0, "timestamp": 1, "step": 0}
    return post(stage, who, "runs/log-metric", run_id=stage.run, **metric)


@action("log a metric in a run of a release")
def _(stage: Stage, who: str) -> int:
    metric = {"key": "loss", "value": 1.0, "timestamp": 1, "step": 0}
    return post(stage, who, "runs/log-metric", run_id=stage.release_run, **metric)


@action("delete a run of another trainer's")
def _(stage: Stage, who: str) -> int:
    return post(stage, who, "runs/delete", run_id=stage.team.run(OTHER, stage.sweep))


@action("delete the run of a release")
def _(stage: Stage, who: str) -> int:
    made = stage.team.run("promoter", stage.release)
    return post(stage, who, "runs/delete", run_id=made)


def artifact(stage: Stage, who: str, method: str, path: str, **how: Any) -> int:
    both = [
        status(stage, who, method, f"{api}/2.0/mlflow-artifacts/artifacts/{path}", **how)
        for api in ("/api", "/ajax-api")
    ]
    assert both[0] == both[1]
    return both[0]


@action("read an artifact of a sweep")
def _(stage: Stage, who: str) -> int:
    return artifact(stage, who, "GET", stage.sweep_file)


@action("read an artifact of a release")
def _(stage: Stage, who: str) -> int:
    query = {"run_id": stage.release_run, "path": "release/model.sig"}
    found = status(stage, who, "GET", "/get-artifact", params=query)
    assert artifact(stage, who, "GET", stage.file) == found
    return found


@action("write an artifact of a sweep")
def _(stage: Stage, who: str) -> int:
    return artifact(stage, who, "PUT", stage.sweep_file, data=STOLEN)


@action("write an artifact of a release")
def _(stage: Stage, who: str) -> int:
    before = stage.bytes_of_release()
    found = artifact(stage, who, "PUT", stage.file, data=STOLEN)
    assert (stage.bytes_of_release() == before) == (found != 200)
    stage.team.put("admin", stage.file, b"signed")
    query = {"run_uuid": stage.release_run, "path": "release/more"}
    by_page = status(
        stage, who, "POST", "/ajax-api/2.0/mlflow/upload-artifact", params=query, data=STOLEN
    )
    assert by_page == found
    return found


@action("delete an artifact of a release")
def _(stage: Stage, who: str) -> int:
    spare = stage.file.replace("model.sig", stage.team.name())
    stage.team.put("promoter", spare)
    found = status(stage, who, "DELETE", f"2.0/mlflow-artifacts/artifacts/{spare}")
    whole = [stage.release, f"{stage.release}/{stage.release_run}"] * (found != 200)
    for path in whole:
        assert status(stage, who, "DELETE", f"2.0/mlflow-artifacts/artifacts/{path}") == found
    return found


@action("write a path with `..` into a release")
def _(stage: Stage, who: str) -> int:
    path = f"{stage.sweep}/%252e%252e/{stage.file}"
    return artifact(stage, who, "PUT", path, data=STOLEN)


@action("read a candidate")
def _(stage: Stage, who: str) -> int:
    query = {"name": stage.candidates, "version": "1"}
    return status(stage, who, "GET", "2.0/mlflow/model-versions/get", params=query)


@action("read a release's version")
def _(stage: Stage, who: str) -> int:
    query = {"name": stage.model, "version": "1"}
    return status(stage, who, "GET", "2.0/mlflow/model-versions/get", params=query)


@action("make a model named `*-candidates`")
def _(stage: Stage, who: str) -> int:
    return post(stage, who, "registered-models/create", name=f"{stage.team.name()}-candidates")


@action("make any other model")
def _(stage: Stage, who: str) -> int:
    return post(stage, who, "registered-models/create", name=stage.team.name())


@action("make a version of `*-candidates`")
def _(stage: Stage, who: str) -> int:
    source = {"source": f"runs:/{stage.run}/model", "run_id": stage.run}
    return post(stage, who, "model-versions/create", name=stage.candidates, **source)


@action("make a version of any other model")
def _(stage: Stage, who: str) -> int:
    source = {"source": f"runs:/{stage.run}/model", "run_id": stage.run}
    return post(stage, who, "model-versions/create", name=stage.model, **source)


@action("make a version at `file:///etc`")
def _(stage: Stage, who: str) -> int:
    name = stage.model if who == "promoter" else stage.candidates
    return post(stage, who, "model-versions/create", name=name, source="file:///etc")


def tag(stage: Stage, who: str, name: str) -> int:
    content = {"name": name, "version": "1", "key": "mlops.decision", "value": "promoted"}
    return post(stage, who, "model-versions/set-tag", **content)


@action("tag a candidate")
def _(stage: Stage, who: str) -> int:
    return tag(stage, who, stage.candidates)


@action("tag a release's version")
def _(stage: Stage, who: str) -> int:
    return tag(stage, who, stage.model)


@action("set an alias of a release")
def _(stage: Stage, who: str) -> int:
    content = {"name": stage.model, "alias": "challenger", "version": "1"}
    return post(stage, who, "registered-models/alias", **content)


def delete(stage: Stage, who: str, path: str, **content: Any) -> int:
    return status(stage, who, "DELETE", f"2.0/mlflow/{path}", json=content)


@action("delete an alias of a release")
def _(stage: Stage, who: str) -> int:
    return delete(stage, who, "registered-models/alias", name=stage.model, alias="challenger")


@action("rename a model of candidates into a release's")
def _(stage: Stage, who: str) -> int:
    name = stage.team.name()
    made = stage.team.model(maker(who, "trainer"), f"{name}-candidates")
    return post(stage, who, "registered-models/rename", name=made, new_name=name)


@action("delete a version of a release's model")
def _(stage: Stage, who: str) -> int:
    made = stage.team.model(maker(who, "promoter"), stage.team.name())
    stage.team.version("promoter", made, stage.run)
    return delete(stage, who, "model-versions/delete", name=made, version="1")


@action("delete the model of releases")
def _(stage: Stage, who: str) -> int:
    made = stage.team.model(maker(who, "promoter"), stage.team.name())
    return delete(stage, who, "registered-models/delete", name=made)


@action("make a prompt")
def _(stage: Stage, who: str) -> int:
    name = stage.team.name() + "-candidates" * (who == "trainer")
    tags = [{"key": "mlflow.prompt.is_prompt", "value": "true"}]
    return post(stage, who, "registered-models/create", name=name, tags=tags)


def webhook(stage: Stage, who: str, url: str) -> int:
    events = [{"entity": "MODEL_VERSION", "action": "CREATED"}]
    content = {"name": stage.team.name(), "url": url, "events": events}
    return post(stage, who, "webhooks", **content)


@action("make a webhook")
def _(stage: Stage, who: str) -> int:
    return webhook(stage, who, "https://8.8.8.8/hook")


@action("make a webhook to a private address")
def _(stage: Stage, who: str) -> int:
    private = ("127.0.0.1", "10.0.0.1", "169.254.169.254", "localhost", "[::ffff:10.0.0.1]")
    (found,) = {webhook(stage, who, f"https://{host}/hook") for host in private}
    return found


@action("make an account")
def _(stage: Stage, who: str) -> int:
    login = {"username": stage.team.name(), "password": "a-long-enough-password"}
    return post(stage, who, "users/create", **login)


@action("give a right to an account")
def _(stage: Stage, who: str) -> int:
    made = stage.team.experiment(maker(who, "trainer"), stage.team.name())
    content = {
        "username": "viewer",
        "resource_type": "experiment",
        "resource_id": made,
        "permission": "EDIT",
    }
    path = "3.0/mlflow/users/permissions/grant"
    return status(stage, who, "POST", path, json=content)


@action("ask a gateway, a job, an assistant")
def _(stage: Stage, who: str) -> int:
    asked = [
        ("POST", "/gateway/mlflow/v1/chat/completions"),
        ("POST", "/gateway/any/mlflow/invocations"),
        ("POST", "/v1/traces"),
        ("POST", "/ajax-api/3.0/jobs/search"),
        ("GET", "/ajax-api/3.0/mlflow/assistant/config"),
        ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"),
        ("POST", "/api/3.0/mlflow/gateway/secrets/create"),
        ("POST", "/ajax-api/3.0/mlflow/scorer/invoke"),
        ("POST", "/ajax-api/3.0/mlflow/demo/generate"),
        ("POST", "/ajax-api/2.0/mlflow/runs/create-promptlab-run"),
        ("POST", "/api/2.0/mlflow/artifacts/presigned-upload-url"),
        ("POST", f"/api/2.0/mlflow-artifacts/mpu/create/{stage.sweep_file}"),
    ]
    found = {(method, path): status(stage, who, method, path, json={}) for method, path in asked}
    assert len(set(found.values())) == 1, found
    return next(iter(found.values()))


@action("ask with a foreign Host header")
def _(stage: Stage, who: str) -> int:
    host = {"Host": "evil.example.org"}
    if who != NOBODY:  # whose login is asked for first, at the artifacts
        assert artifact(stage, who, "GET", stage.file, headers=host) == 403
    query = {"experiment_id": stage.sweep}
    return status(stage, who, "GET", "2.0/mlflow/experiments/get", params=query, headers=host)


# Tricks.

SAYS_TWO = [
    # What MLflow 3.17 checks a right on, and what it does then, are two runs.
    ("POST", "2.0/mlflow/runs/set-tag", {"key": "k", "value": "v"}),
    ("POST", "2.0/mlflow/runs/log-batch", {"params": [{"key": "k", "value": "v"}]}),
    ("POST", "2.0/mlflow/runs/delete", {}),
    ("POST", "2.0/mlflow/runs/update", {"status": "FAILED"}),
]


@pytest.mark.parametrize(("method", "path", "content"), SAYS_TWO)
@pytest.mark.parametrize("names", [("run_uuid", "runId"), ("run_id", "run_uuid")])
def test_a_request_that_names_two_runs_is_refused(
    stage: Stage, method: str, path: str, content: dict[str, Any], names: tuple[str, str]
) -> None:
    before = run_of(stage)
    own, others = names
    asked = {own: stage.run, others: stage.release_run, **content}
    assert stage.team.ask("trainer", method, path, json=asked).status_code == 400
    assert run_of(stage) == before


def run_of(stage: Stage) -> Any:
    query = {"run_id": stage.release_run}
    return stage.team.done("admin", "GET", "2.0/mlflow/runs/get", params=query)


@pytest.mark.parametrize("api", ["/api", "/ajax-api"])
def test_an_upload_that_names_two_runs_is_refused(stage: Stage, api: str) -> None:
    before = stage.bytes_of_release()
    for query in (
        {"run_id": stage.run, "run_uuid": stage.release_run, "path": "release/model.sig"},
        [("run_uuid", stage.run), ("run_uuid", stage.release_run), ("path", "release/model.sig")],
    ):
        path = f"{api}/2.0/mlflow/upload-artifact"
        reply = stage.team.ask("trainer", "POST", path, params=query, data=STOLEN)
        assert reply.status_code in (400, 403, 404)
    assert stage.bytes_of_release() == before


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x+json"])
def test_a_delete_whose_query_and_body_differ_moves_no_alias(stage: Stage, kind: str) -> None:
    body = f'{{"name": "{stage.model}", "alias": "champion"}}'
    for path in ("registered-models/alias", "registered-models/delete"):
        query = {"name": stage.candidates, "alias": "x"}
        reply = stage.team.ask(
            "trainer",
            "DELETE",
            f"2.0/mlflow/{path}",
            params=query,
            data=body,
            headers={"Content-Type": kind},
        )
        assert reply.status_code in (400, 403)
    assert aliases_of(stage)["champion"] == "1"


def aliases_of(stage: Stage) -> dict[str, str]:
    query = {"name": stage.model}
    found = stage.team.done("admin", "GET", "2.0/mlflow/registered-models/get", params=query)
    return {one["alias"]: one["version"] for one in found["registered_model"]["aliases"]}


@pytest.mark.parametrize(
    "content",
    [
        {"name": "x", "artifactLocation": "file:///etc"},
        {"name": "x", "artifact_location": " file:///etc"},
        {"name": "x", "artifact_location": "/etc"},
        {"name": "x", "artifact_location": "s3://artifacts/1"},
        {"name": "x", "artifact_location": "mlflow-artifacts:/1"},
        {"name": "x-Releases"},
        {"name": " x-releases "},
        {"experiment_id": "SWEEP", "newName": "x-releases"},
        {"experiment_id": "SWEEP", "new_name": "x-RELEASES"},
    ],
)
def test_no_spelling_makes_a_place_or_a_name_that_is_not_a_trainers(
    stage: Stage, content: dict[str, str]
) -> None:
    path = "update" if "experiment_id" in content else "create"
    asked = {name: stage.sweep if value == "SWEEP" else value for name, value in content.items()}
    for body in ({"json": asked}, as_text(asked)):
        reply = stage.team.ask("trainer", "POST", f"2.0/mlflow/experiments/{path}", **body)
        assert reply.status_code in (400, 403)


def as_text(content: dict[str, str]) -> dict[str, Any]:
    """A body as old clients sent it: JSON within a JSON string."""
    double = json.dumps(json.dumps(content))
    return {"data": double, "headers": {"Content-Type": "application/json"}}


@pytest.mark.parametrize("who", ["trainer", "server", "viewer"])
@pytest.mark.parametrize(
    "path",
    [
        "FILE",
        "/FILE",
        "./FILE",
        "SWEEP/../FILE",
        "SWEEP/%2e%2e/FILE",
        "SWEEP/%252e%252e/FILE",
        "SWEEP%2F..%2FFILE",
        "SWEEP//../FILE",
        "0FILE",
        "%2531/../FILE",
        "workspaces/a/SWEEP/../../../FILE",
        "workspaces/../FILE",
        "file:///SWEEP/../FILE",
        "models/FILE",
        "no-id/FILE",
        "..",
        "../mlflow.db",
        "SWEEP/../../mlflow.db",
    ],
)
def test_no_path_of_the_artifact_proxy_leads_to_a_releases_bytes(
    stage: Stage, who: str, path: str
) -> None:
    before = stage.bytes_of_release()
    outside = (stage.team.artifacts.parent / "mlflow.db").stat().st_size
    path = path.replace("FILE", stage.file).replace("SWEEP", stage.sweep)
    for api in ("/api", "/ajax-api"):
        whole = f"{stage.team.url}{api}/2.0/mlflow-artifacts/artifacts/{path}"
        for method in ("PUT", "DELETE", "POST", "PATCH"):
            assert ask_raw(stage, who, method, whole) in (400, 403, 404, 405), (method, path)
        for kind in ("create", "complete", "abort"):
            mpu = whole.replace("/artifacts/artifacts", "/artifacts").replace(
                "mlflow-artifacts/artifacts", f"mlflow-artifacts/mpu/{kind}"
            )
            assert ask_raw(stage, who, "POST", mpu) in (400, 403, 404, 405)
    assert stage.bytes_of_release() == before
    assert (stage.team.artifacts.parent / "mlflow.db").stat().st_size >= outside


def test_a_backslash_is_a_letter_of_a_name(stage: Stage) -> None:
    before = stage.bytes_of_release()
    path = f"/api/2.0/mlflow-artifacts/artifacts/{stage.sweep}/x/..%5C..%5C{stage.file}"
    assert ask_raw(stage, "trainer", "PUT", stage.team.url + path) == 200
    assert stage.bytes_of_release() == before


def ask_raw(stage: Stage, who: str, method: str, url: str) -> int:
    """Sends a path as it is; requests would take the dots out of it."""
    connection = http.client.HTTPConnection(stage.team.url.removeprefix("http://"), timeout=60)
    login = base64.b64encode(f"{who}:{stage.team.passwords[who]}".encode()).decode()
    path = url.removeprefix(stage.team.url)
    with contextlib.closing(connection):
        connection.request(method, path, STOLEN, {"Authorization": f"Basic {login}"})
        return connection.getresponse().status


@pytest.mark.parametrize("path", ["SWEEP", "SWEEP/RUN/artifacts", "", ".", "SWEEP/../SWEEP"])
def test_the_server_lists_and_reads_nothing_but_releases(stage: Stage, path: str) -> None:
    path = path.replace("SWEEP", stage.sweep).replace("RUN", stage.run)
    reply = stage.team.ask("server", "GET", "2.0/mlflow-artifacts/artifacts", params={"path": path})
    assert reply.status_code == 403
    query = {"run_id": stage.run}
    for path in ("runs/get", "artifacts/list", "metrics/get-history"):
        reply = stage.team.ask("server", "GET", f"2.0/mlflow/{path}", params=query)
        assert reply.status_code == 403
    found = stage.team.done("server", "GET", "2.0/mlflow/registered-models/search")
    assert not any(one["name"].endswith("-candidates") for one in found["registered_models"])


def test_an_account_without_a_role_sees_nothing(stage: Stage) -> None:
    team = stage.team
    login = {"username": "newcomer", "password": "a-long-enough-password"}
    team.done("admin", "POST", "2.0/mlflow/users/create", json=login)
    team.passwords["newcomer"] = login["password"]
    query = {"experiment_id": stage.sweep}
    for who in ("newcomer", "stranger"):
        reply = team.ask(who, "GET", "2.0/mlflow/experiments/get", params=query)
        assert reply.status_code == (403 if who == "newcomer" else 401)
    assert post(stage, "newcomer", "experiments/create", name=team.name()) == 403


# Names.


@pytest.mark.parametrize(
    "name",
    [
        *(
            "*",
            "**",
            "?",
            "%",
            " ",
            "x ",
            " x",
            "x\t",
            "x\n",
            "x.",
            "x..",
            "x .",
            "x\x00y",
            "x\u200by",
        ),
        *("x\u00adreleases", "x\u202ereleases", "x\u00a0y", "x\u3000y", "x\u2028y", "\ufeffx"),
    ],
)
def test_a_name_that_looks_like_another_or_means_all_is_not_given(stage: Stage, name: str) -> None:
    assert why_odd(name) is not None
    for who, kind, odd in (
        ("promoter", "registered-models", name),
        ("trainer", "registered-models", f"x-candidates{name[-1]}"),
        ("trainer", "experiments", name),
        ("promoter", "experiments", f"x-releases{name[-1]}"),
    ):
        if why_odd(odd) is not None:
            assert post(stage, who, f"{kind}/create", name=odd) == 400
    made = stage.team.experiment("trainer", stage.team.name())
    content = {"experiment_id": made, "new_name": name}
    assert post(stage, "trainer", "experiments/update", **content) == 400


@pytest.mark.parametrize("name", ["digits", "a b", "a.b", "Ziffern für alle", "数字", "a*", "100%"])
def test_a_usual_name_is_not_odd(name: str) -> None:
    assert why_odd(name) is None


def test_a_model_called_as_the_wildcard_changes_no_grant_on_all(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    team = stage.team

    def granted() -> dict[str, Any]:
        query = {"workspace": "default"}
        found = team.done("admin", "GET", "3.0/mlflow/roles/list", params=query)
        return {
            role["name"]: [one for one in role["permissions"] if one["resource_pattern"] == "*"]
            for role in found["roles"]
            if role["name"] in ROLES
        }

    before = granted()
    team.model("admin", "*")  # whom no rule keeps from it
    assert granted() == before
    init(team, capsys, "accounts")
    assert granted() == before


# Logins.


def test_who_has_an_account_is_for_admins_to_see(stage: Stage) -> None:
    for api in ("/api", "/ajax-api"):
        found = {
            who: status(stage, who, "GET", f"{api}/2.0/mlflow/users/list")
            for who in ROLES
            if who != NOBODY
        }
        assert found == {who: 200 if who == "admin" else 403 for who in found}
        assert status(stage, NOBODY, "GET", f"{api}/2.0/mlflow/users/list") == 401
        assert status(stage, "viewer", "GET", f"{api}/2.0/mlflow/users/current") == 200


def test_the_gateways_are_shut_without_a_look_at_the_login(stage: Stage) -> None:
    path = "/gateway/mlflow/v1/chat/completions"
    for asked in (path, "/gateway/unknown"):
        for who in ("viewer", "admin", "stranger"):
            password = stage.team.passwords[who]
            login = "Basic " + base64.b64encode(f"{who}:{password}".encode()).decode()
            second = {"X-MLflow-Authorization": login}
            assert status(stage, NOBODY, "POST", asked, json={}, headers=second) == 401
            assert status(stage, who, "POST", asked, json={}) == 403


def test_a_wrong_login_takes_as_long_whether_there_is_such_an_account(stage: Stage) -> None:
    def fastest(name: str) -> float:
        took = []
        for n in range(5):
            stage.team.passwords[name] = f"wrong-{n}"
            began = time.perf_counter()
            assert status(stage, name, "GET", "2.0/mlflow/users/current") == 401
            took.append(time.perf_counter() - began)
        return min(took)

    right = stage.team.passwords["viewer"]
    known, unknown = fastest("viewer"), fastest("no-such-account")
    stage.team.passwords["viewer"] = right
    assert 0.5 < known / unknown < 2


@pytest.mark.parametrize("method", ["DELETE", "GET", "POST", "PUT"])
@pytest.mark.parametrize("path", ["/api/2.0/mlflow/runs/search", "/health", "/v1/traces"])
@pytest.mark.parametrize("length", ["Content-Length: 1073741824", "Transfer-Encoding: chunked"])
def test_the_login_is_asked_for_before_a_body_is_read(
    stage: Stage, method: str, path: str, length: str
) -> None:
    host = stage.team.url.removeprefix("http://")
    name, _, port = host.partition(":")
    lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", length, "", "")
    with socket.create_connection((name, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(12) == b"HTTP/1.1 401"  # though nothing of the body has come


# Artifacts that lie in S3.

PLACE = "/api/2.0/mlflow-artifacts/artifacts/"


@dataclass
class Objects:
    """Stands for a client of S3: has one object, and tells how much of it was read."""

    content: bytes
    n_read: int = 0
    is_closed: bool = False

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        if (Bucket, Key) != ("artifacts", "root/1/run/artifacts/a b.txt"):
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"ContentLength": len(self.content), "Body": self}

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        for start in range(0, len(self.content), size):
            self.n_read += size
            yield self.content[start : start + size]

    def close(self) -> None:
        self.is_closed = True


def fetch(app: Any, path: str, *, method: str = "GET", goes_after: int = 99) -> tuple[int, bytes]:
    """Asks an ASGI application; the client goes after some messages of the answer."""
    said: list[dict[str, Any]] = []
    server = ("localhost", 80)
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    scope |= {"asgi": {"spec_version": "2.3"}, "server": server, "client": server}

    async def ask() -> None:
        gone = asyncio.Event()
        first = [{"type": "http.request"}]

        async def receive() -> Any:
            if first:
                return first.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            said.append(message)
            if len(said) >= goes_after:
                gone.set()
                await asyncio.sleep(3600)  # as a client that reads no more

        await app(scope | {"app": app, "router": app.router}, receive, send)

    asyncio.run(ask())
    return said[0]["status"], b"".join(one.get("body", b"") for one in said)


def test_an_artifact_in_s3_is_sent_as_it_is_read_and_never_copied_to_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fastapi import FastAPI
    from mlflow.server import handlers
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    objects = Objects(bytes(1_000_000))
    store = S3ArtifactRepository("s3://artifacts/root")
    monkeypatch.setattr(store, "_get_s3_client", lambda: objects)
    monkeypatch.setattr(handlers, "_artifact_repo", store)
    monkeypatch.setattr(handlers, "_send_artifact", handlers._send_artifact)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = FastAPI()
    stream_artifacts(app)
    for place in (PLACE, PLACE.replace("/api/", "/ajax-api/")):
        path = place + "1/run/artifacts/a b.txt"
        assert fetch(app, path) == (200, objects.content)
        assert objects.is_closed
        assert fetch(app, path, method="HEAD")[0] == 405
        assert fetch(app, place + "1/run/artifacts")[0] == 404  # a folder
        assert fetch(app, place + "1/../2")[0] == 400
        objects.n_read, objects.is_closed = 0, False
        fetch(app, path, goes_after=3)
        assert objects.is_closed and 0 < objects.n_read < 300_000
    assert not list(tmp_path.iterdir())
    # What Flask would send is fetched from the same place, with MLflow's rights asked again.
    reply = handlers._send_artifact(store, "1/run/artifacts/a b.txt")
    assert reply.status_code == 302
    assert reply.headers["Location"] == (
        "/ajax-api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/a%20b.txt"
    )


# What `python -m mlops.init` does to it.


def init(team: Team, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with as_admin(team.url):
        assert main([*args, "--secrets", str(team.secrets)]) == 0
    return capsys.readouterr().out


def test_accounts_may_be_made_again_and_mend_what_a_crash_left_out(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    team = stage.team
    init(team, capsys, "accounts")
    assert init(team, capsys, "accounts").strip() == "Everything is there."
    # As if the server had died between the making and the grants.
    made = team.experiment(OTHER, team.name())
    model = team.model("promoter", team.name())
    found = team.done("admin", "GET", "3.0/mlflow/roles/list", params={"workspace": "default"})
    for role in found["roles"]:
        for one in role["permissions"]:
            if role["name"] in ROLES and one["resource_pattern"] in (made, model):
                gone = {"role_permission_id": one["id"]}
                team.done("admin", "DELETE", "3.0/mlflow/roles/permissions/remove", json=gone)
    own = {"username": "promoter", "resource_type": "registered_model", "resource_id": model}
    grant = own | {"permission": "MANAGE"}
    team.done("admin", "POST", "3.0/mlflow/users/permissions/grant", json=grant)
    assert post(stage, "trainer", "runs/create", experiment_id=made) == 403
    said = init(team, capsys, "accounts")
    assert f"trainer: EDIT on experiment {made}" in said
    assert f"account promoter: no MANAGE on registered_model {model}" in said
    assert post(stage, "trainer", "runs/create", experiment_id=made) == 200
    assert delete(stage, "promoter", "registered-models/delete", name=model) == 403
    assert post(stage, OTHER, "experiments/delete", experiment_id=made) == 200  # still her own


def test_an_account_gets_another_role_and_loses_what_it_had(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team = stage.team
    file = tmp_path / "new" / "ada"
    said = init(team, capsys, "account", "ada", "--role", "trainer", "--password-file", str(file))
    team.passwords["ada"] = file.read_text()
    assert team.passwords["ada"] not in said
    assert file.stat().st_mode & 0o777 == 0o600
    made = team.experiment("ada", team.name())
    said = init(team, capsys, "account", "ada", "--role", "viewer")
    assert "ada is no trainer any more" in said
    assert post(stage, "ada", "experiments/create", name=team.name()) == 403
    assert post(stage, "ada", "experiments/delete", experiment_id=made) == 403
    assert post(stage, "ada", "runs/create", experiment_id=made) == 403


def test_a_password_is_changed_and_the_old_one_is_refused_at_once(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team = stage.team
    file = tmp_path / "bob"
    init(team, capsys, "account", "bob", "--role", "viewer", "--password-file", str(file))
    old = team.passwords["bob"] = file.read_text()
    query = {"experiment_id": stage.sweep}
    assert status(stage, "bob", "GET", "2.0/mlflow/experiments/get", params=query) == 200
    # As a rotation that was killed after it had asked the server leaves it.
    file.with_name("bob.new").write_text("a-password-that-was-made-before")
    init(team, capsys, "account", "bob", "--password-file", str(file), "--rotate")
    assert file.read_text() == "a-password-that-was-made-before"
    assert not file.with_name("bob.new").exists()
    assert status(stage, "bob", "GET", "2.0/mlflow/experiments/get", params=query) == 401
    team.passwords["bob"] = file.read_text()
    assert status(stage, "bob", "GET", "2.0/mlflow/experiments/get", params=query) == 200
    init(team, capsys, "account", "bob", "--password-file", str(file), "--rotate")
    assert file.read_text() not in (old, team.passwords["bob"])


def test_the_admin_changes_the_own_password_and_the_secrets_follow(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    team = stage.team
    file = team.secrets / "mlflow" / "admin_password"
    login = team.secrets / "admin" / "mlflow_credentials"
    args = ("account", "admin", "--password-file", str(file))
    assert init(team, capsys, *args).strip() == "Everything is there."
    init(team, capsys, *args, "--rotate")
    query = {"experiment_id": stage.sweep}
    assert status(stage, "admin", "GET", "2.0/mlflow/experiments/get", params=query) == 401
    login.unlink()
    assert main(["secrets", str(team.secrets)]) == 0
    assert read_login(login) == ("admin", file.read_text())
    team.passwords["admin"] = file.read_text()
    assert status(stage, "admin", "GET", "2.0/mlflow/experiments/get", params=query) == 200
    init(team, capsys, "accounts")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nina", "--role", "trainer"], "there is no account 'nina'"),
        (["tina", "--role", "trainr"], "did you mean 'trainer'?"),
        (["tina"], "nothing to do"),
        (["tina", "--role", "viewer", "--rotate"], "expected --password-file FILE"),
    ],
)
def test_what_cannot_be_done_to_an_account_is_said(
    team: Team, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    with as_admin(team.url):
        assert main(["account", *args, "--secrets", str(team.secrets)]) == 2
    assert words in capsys.readouterr().err


def test_a_wrong_login_is_said_without_the_password(
    team: Team, capsys: pytest.CaptureFixture[str]
) -> None:
    with as_admin(team.url), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-password")
        assert main(["accounts", "--secrets", str(team.secrets)]) == 1
    err = capsys.readouterr().err
    assert "did not accept the admin's login" in err
    assert "not-the-password" not in err


# Podium's own programs, as the accounts that they run with.


def test_a_sweeps_journal_is_delivered_by_any_trainer(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("bytes")
    for number, who in enumerate((OTHER, "trainer")):  # the second finds what the first has made
        team.login(monkeypatch, who)
        home = tmp_path / who
        key = new_run_key()
        with Journal(home / "journal" / "sweep", "driver") as journal:
            params = {"units": 3}
            run = Run.create(journal, experiment="drained", name="trial", key=key, params=params)
            run.log_metrics({"loss": 1.0}, step=0)
            run.register_candidate("drained-classifier", tmp_path / "model", {"mlops.value": "1"})
            run.end("FINISHED")
        env = {"MLOPS_HOME": str(home), "MLFLOW_TRACKING_URI": team.url}
        done = sync(Settings.from_env(env))
        assert (done.undelivered, done.problems, done.refused) == (0, (), ())
        client = open_client(team.url)
        version = client.get_model_version("drained-classifier-candidates", str(number + 1))
        found = client.get_run(version.run_id)
        assert (found.info.status, found.data.metrics["loss"]) == ("FINISHED", 1.0)
        # A second run that a lost answer left: any trainer's drain takes it away.
        client.delete_run(client.create_run(found.info.experiment_id).info.run_id)


def test_a_promoter_promotes_and_rolls_back_and_a_server_follows(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    dataset = make_dataset(tmp_path / "data")
    home = tmp_path / "home"
    team.login(monkeypatch, "trainer")
    (tmp_path / "models").mkdir()
    sides = Sides(open_client(team.url), dataset, tmp_path, tmp_path / "models", {})
    sides.register(right=1.0, value=0.8)

    public = team.secrets / "public" / "release.pem"
    settings = Settings.from_env(
        {
            "MLOPS_HOME": str(home),
            "MLFLOW_TRACKING_URI": team.url,
            "MLOPS_SIGNING_KEY": str(team.secrets / "promoter" / "signing.pem"),
            "MLOPS_PUBLIC_KEYS": str(public),
        }
    )
    open_dataset_store(settings).put(dataset)
    with pytest.raises(MlopsError, match="does not allow"), registry_of(settings) as registry:
        promote(registry, NAME)  # a trainer does not
    for version in (1, 2):
        team.login(monkeypatch, "promoter")
        with registry_of(settings) as registry:
            assert registry.actor.name == "promoter"
            assert promote(registry, NAME).version == version
        if version == 1:
            team.login(monkeypatch, "trainer")
            sides.register(right=9.0, value=0.99)
            team.login(monkeypatch, "server")
            folder = StateFolder.of(home, NAME, "champion", 1)
            folder.create()
            follower = Follower(
                Catalog(open_client(team.url)), NAME, {"champion": "champion"}, folder, [public]
            )
            assert served(follower) == 1
    team.login(monkeypatch, "promoter")
    with registry_of(settings) as registry:
        rollback(registry, NAME)
    team.login(monkeypatch, "server")
    assert Catalog(open_client(team.url)).find_aliases(NAME) == {"champion": 1}


def test_who_may_only_read_sees_how_the_models_stand(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for who in ("viewer", "server"):
        stage.team.login(monkeypatch, who)
        home = tmp_path / who
        env = {"MLOPS_HOME": str(home), "MLFLOW_TRACKING_URI": stage.team.url}
        seen = look(Settings.from_env(env), Stage.model)
        (model,) = seen.overview.models
        (champion,) = model.aliases
        assert (champion.alias, champion.version, seen.is_sound) == ("champion", 1, True)
        assert bool(model.candidates) == (who == "viewer")
        assert "There is no ledger" in seen.notes[0]
        assert not home.exists()


def registry_of(settings: Settings) -> contextlib.AbstractContextManager[Registry]:
    return open_registry(settings, probe=probe_sides)


def served(follower: Follower) -> int:
    (news,) = follower.look()
    assert isinstance(news, Accepted), news
    return news.version
