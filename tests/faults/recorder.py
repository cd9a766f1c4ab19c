"""A tracking server of our own: the part of MLflow's REST API that the sink speaks, in memory.

It does what MLflow 3.17 does where that decides what a repetition costs: a metric's point is stored
once for each name, time, step and value; params do not change; runs and versions are made as often
as one asks. Artifacts go through it (`mlflow-artifacts:`), a file at a time. It outlives the
`tests.faults.front.Front` before it, so that a server can be killed and come back.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.front import Answer, Request

ARTIFACTS = "mlflow-artifacts:/"
MAX_METRICS, MAX_OTHERS = 1000, 100
LOCK_WAIT_S = 0.3
_CONDITION = re.compile(r"(tags\.|attributes\.)?`?([\w.]+)`?\s*(=|LIKE)\s*'([^']*)'")

Json = dict[str, Any]


class RefusedError(Exception):
    """What the API answers with an error code."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(slots=True)
class StoredRun:
    """A run as it stands in the store; `points` are (name, value, time, step)."""

    run_id: str
    experiment_id: str
    name: str
    start_ms: int
    tags: dict[str, str]
    status: str = "RUNNING"
    end_ms: int | None = None
    deleted: bool = False
    params: dict[str, str] = field(default_factory=dict)
    points: list[tuple[str, float, int, int]] = field(default_factory=list)
    inputs: dict[tuple[str, str], Json] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def artifact_path(self) -> str:
        return f"{self.experiment_id}/{self.run_id}/artifacts"

    def meets(self, kind: str, name: str, operator: str, value: str) -> bool:
        """Tells whether a condition of a search holds; of patterns there is "%" alone."""
        there = self.status if kind == "attributes." else self.tags.get(name)
        return there is not None and (operator == "LIKE" or there == value)

    def to_json(self) -> Json:
        latest: dict[str, tuple[str, float, int, int]] = {}
        for point in sorted(self.points, key=lambda point: (point[3], point[2])):
            latest[point[0]] = point
        info = {
            "run_id": self.run_id,
            "run_uuid": self.run_id,
            "run_name": self.name,
            "experiment_id": self.experiment_id,
            "status": self.status,
            "start_time": self.start_ms,
            "artifact_uri": ARTIFACTS + self.artifact_path,
            "lifecycle_stage": "deleted" if self.deleted else "active",
        }
        if self.end_ms is not None:
            info["end_time"] = self.end_ms
        return {
            "info": info,
            "data": {
                "params": _pairs(self.params),
                "tags": _pairs({**self.tags, "mlflow.runName": self.name}),
                "metrics": [
                    {"key": name, "value": value, "timestamp": at_ms, "step": step}
                    for name, value, at_ms, step in latest.values()
                ],
            },
            "inputs": {"dataset_inputs": list(self.inputs.values())},
        }


class Recorder:
    """The store and its API.

    Attributes:
        full: Whether its disk is full: writes are refused as MLflow refuses them.
        held: Whether another process holds its database: requests wait, and are then refused.
        runs: By id.
        versions: Candidates, in the order in which they were made.
    """

    def __init__(self) -> None:
        self.full = False
        self.held = threading.Event()
        self.experiments: dict[str, str] = {"0": "Default"}
        self.runs: dict[str, StoredRun] = {}
        self.models: set[str] = set()
        self.versions: list[Json] = []
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str], Callable[[Json], Json]] = {
            ("GET", "experiments/get-by-name"): self._get_experiment_by_name,
            ("GET", "experiments/get"): self._get_experiment,
            ("POST", "experiments/search"): self._search_experiments,
            ("POST", "experiments/create"): self._create_experiment,
            ("POST", "runs/create"): self._create_run,
            ("GET", "runs/get"): lambda asked: {"run": self._run(asked).to_json()},
            ("POST", "runs/update"): self._update_run,
            ("POST", "runs/search"): self._search_runs,
            ("POST", "runs/log-batch"): self._log_batch,
            ("POST", "runs/log-inputs"): self._log_inputs,
            ("POST", "runs/set-tag"): self._set_tag,
            ("POST", "runs/delete"): self._delete_run,
            ("GET", "metrics/get-history"): self._get_history,
            ("POST", "logged-models/search"): lambda asked: {"models": []},
            ("POST", "registered-models/create"): self._create_model,
            ("POST", "model-versions/create"): self._create_version,
            ("GET", "model-versions/search"): self._search_versions,
        }

    def answer(self, request: Request) -> Answer:
        try:
            with self._opened(request):
                return self._answer(request)
        except RefusedError as err:
            return _json({"error_code": err.code, "message": str(err)}, err.status)

    def _answer(self, request: Request) -> Answer:
        if request.path.startswith("/health") or request.path.startswith("/version"):
            return Answer(200, b"OK", "text/plain")
        if "/mlflow-artifacts/" in request.path:
            return self._artifact(request)
        call = self._calls.get((request.method, request.endpoint))
        if call is None:
            raise RefusedError("ENDPOINT_NOT_FOUND", f"no {request.target}", 404)
        asked = json.loads(request.body) if request.body else dict(request.query)
        return _json(call(asked))

    def _opened(self, request: Request) -> threading.Lock:
        """Returns the store's lock, to be entered; waits for who holds the database."""
        deadline = time.monotonic() + LOCK_WAIT_S
        while self.held.is_set():
            if time.monotonic() > deadline:
                raise RefusedError("TEMPORARILY_UNAVAILABLE", "database is locked", 503)
            time.sleep(0.005)
        writes = request.method != "GET" and not request.endpoint.endswith("search")
        if self.full and writes:
            raise RefusedError("INTERNAL_ERROR", "database or disk is full", 500)
        return self._lock

    def _get_experiment_by_name(self, asked: Json) -> Json:
        for experiment_id, name in self.experiments.items():
            if name == asked["experiment_name"]:
                return {"experiment": self._experiment(experiment_id)}
        raise RefusedError("RESOURCE_DOES_NOT_EXIST", "no such experiment", 404)

    def _get_experiment(self, asked: Json) -> Json:
        if asked["experiment_id"] not in self.experiments:
            raise RefusedError("RESOURCE_DOES_NOT_EXIST", "no such experiment", 404)
        return {"experiment": self._experiment(asked["experiment_id"])}

    def _search_experiments(self, asked: Json) -> Json:
        return {"experiments": [self._experiment(one) for one in self.experiments]}

    def _create_experiment(self, asked: Json) -> Json:
        if asked["name"] in self.experiments.values():
            raise RefusedError("RESOURCE_ALREADY_EXISTS", "that experiment exists")
        experiment_id = str(len(self.experiments))
        self.experiments[experiment_id] = asked["name"]
        return {"experiment_id": experiment_id}

    def _experiment(self, experiment_id: str) -> Json:
        return {
            "experiment_id": experiment_id,
            "name": self.experiments[experiment_id],
            "artifact_location": ARTIFACTS + experiment_id,
            "lifecycle_stage": "active",
        }

    def _create_run(self, asked: Json) -> Json:
        if asked["experiment_id"] not in self.experiments:
            raise RefusedError("RESOURCE_DOES_NOT_EXIST", "no such experiment", 404)
        run = StoredRun(
            run_id=secrets.token_hex(16),
            experiment_id=asked["experiment_id"],
            name=asked.get("run_name") or "unnamed",
            start_ms=int(asked.get("start_time", 0)),
            tags=_dict(asked.get("tags", [])),
        )
        self.runs[run.run_id] = run
        return {"run": run.to_json()}

    def _run(self, asked: Json, *, to_write: bool = False) -> StoredRun:
        run = self.runs.get(asked.get("run_id") or asked.get("run_uuid") or "")
        if run is None:
            raise RefusedError("RESOURCE_DOES_NOT_EXIST", "no such run", 404)
        if to_write and run.deleted:
            raise RefusedError("INVALID_PARAMETER_VALUE", "the run must be active")
        return run

    def _update_run(self, asked: Json) -> Json:
        run = self._run(asked, to_write=True)
        run.status = asked.get("status", run.status)
        run.name = asked.get("run_name") or run.name
        if "end_time" in asked:
            run.end_ms = int(asked["end_time"])
        return {"run_info": run.to_json()["info"]}

    def _search_runs(self, asked: Json) -> Json:
        wanted = _CONDITION.findall(asked.get("filter", ""))
        view = asked.get("run_view_type", "ACTIVE_ONLY")
        found = [
            run.to_json()
            for run in self.runs.values()
            if run.experiment_id in asked.get("experiment_ids", [])
            and (view == "ALL" or run.deleted == (view == "DELETED_ONLY"))
            and all(run.meets(*condition) for condition in wanted)
        ]
        return {"runs": found}

    def _log_batch(self, asked: Json) -> Json:
        run = self._run(asked, to_write=True)
        metrics, params = asked.get("metrics", []), _dict(asked.get("params", []))
        tags = _dict(asked.get("tags", []))
        if len(metrics) > MAX_METRICS or max(len(params), len(tags)) > MAX_OTHERS:
            raise RefusedError("INVALID_PARAMETER_VALUE", "too much in one call")
        if any(run.params.get(name, value) != value for name, value in params.items()):
            raise RefusedError("INVALID_PARAMETER_VALUE", "a param cannot be changed")
        run.params |= params
        run.tags |= tags
        for one in metrics:
            point = (one["key"], float(one["value"]), int(one["timestamp"]), int(one["step"]))
            if point not in run.points:
                run.points.append(point)
        return {}

    def _log_inputs(self, asked: Json) -> Json:
        run = self._run(asked, to_write=True)
        for one in asked.get("datasets", []):
            run.inputs[one["dataset"]["name"], one["dataset"]["digest"]] = one
        return {}

    def _set_tag(self, asked: Json) -> Json:
        self._run(asked, to_write=True).tags[asked["key"]] = asked["value"]
        return {}

    def _delete_run(self, asked: Json) -> Json:
        self._run(asked).deleted = True
        return {}

    def _get_history(self, asked: Json) -> Json:
        return {
            "metrics": [
                {"key": name, "value": value, "timestamp": at_ms, "step": step}
                for name, value, at_ms, step in self._run(asked).points
                if name == asked["metric_key"]
            ]
        }

    def _create_model(self, asked: Json) -> Json:
        if asked["name"] in self.models:
            raise RefusedError("RESOURCE_ALREADY_EXISTS", "that model exists")
        self.models.add(asked["name"])
        return {"registered_model": {"name": asked["name"]}}

    def _create_version(self, asked: Json) -> Json:
        if asked["name"] not in self.models:
            raise RefusedError("RESOURCE_DOES_NOT_EXIST", "no such model", 404)
        number = 1 + sum(one["name"] == asked["name"] for one in self.versions)
        version = {
            "name": asked["name"],
            "version": str(number),
            "source": asked["source"],
            "run_id": asked.get("run_id", ""),
            "status": "READY",
            "tags": asked.get("tags", []),
        }
        self.versions.append(version)
        return {"model_version": version}

    def _search_versions(self, asked: Json) -> Json:
        wanted = _CONDITION.findall(asked.get("filter", ""))
        found = [
            one
            for one in self.versions
            if all(one.get(name) == value for _, name, _, value in wanted)
        ]
        return {"model_versions": found}

    def _artifact(self, request: Request) -> Answer:
        if request.method == "GET":
            return _json({"files": self._list_files(request.query.get("path", ""))})
        if request.method != "PUT":
            raise RefusedError("ENDPOINT_NOT_FOUND", f"no {request.method} of artifacts", 404)
        _, run_id, _, path = request.endpoint.removeprefix("artifacts/").split("/", 3)
        self._run({"run_id": run_id}).files[path] = request.body
        return _json({})

    def _list_files(self, path: str) -> list[Json]:
        run_id, *inside = [part for part in path.split("/") if part][1:]
        prefix = "/".join([*inside[1:], ""]) if len(inside) > 1 else ""
        found: dict[str, Json] = {}
        for name, content in self._run({"run_id": run_id}).files.items():
            if name.startswith(prefix):
                first, *rest = name.removeprefix(prefix).split("/")
                found[first] = {"path": first, "is_dir": bool(rest), "file_size": len(content)}
        return list(found.values())


def _pairs(values: dict[str, str]) -> list[Json]:
    return [{"key": name, "value": value} for name, value in values.items()]


def _dict(pairs: list[Json]) -> dict[str, str]:
    return {pair["key"]: pair.get("value", "") for pair in pairs}


def _json(value: Json, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())
