"""Compares what processes logged with what stands in the server: exactly once, and nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.tracking import RUN_KEY
from tests.faults.recorder import Recorder
from tests.faults.tape import Item, Said, digest

STAGING = ".artifact.uploading."
"""MLflow's own files while something is uploaded. One may be left, empty, where a client breaks off
at the very start. MLflow neither lists nor downloads it: it is no artifact."""


@dataclass(frozen=True, slots=True)
class Found:
    """One run of a server that is not deleted, with all that hangs on it."""

    run_id: str
    key: str
    status: str
    orphaned: bool
    parent: str | None
    has_model: bool
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row came to.

    Attributes:
        acknowledged: Items whose call returned.
        lost: Acknowledged, and not in MLflow; or a failure that nobody was told of.
        duplicated: There more than once.
        orphaned: Runs that stay RUNNING without a process, versions without a model or a run.
        strange: There, and never logged.
        said: A sentence for each of those.
    """

    acknowledged: int
    lost: int = 0
    duplicated: int = 0
    orphaned: int = 0
    strange: int = 0
    said: tuple[str, ...] = field(default=())

    @property
    def good(self) -> bool:
        return not (self.lost or self.duplicated or self.orphaned or self.strange)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.orphaned + other.orphaned,
            self.strange + other.strange,
            self.said + other.said,
        )


def compare(said: Said, found: Iterable[Found]) -> Outcome:
    """Returns what is lost, duplicated, orphaned and strange."""
    runs = list(found)
    there: Counter[Item] = Counter()
    keys = {run.run_id: run.key for run in runs}
    orphaned: list[str] = []
    for run in runs:
        there[("run", run.key)] += 1
        there.update(run.items)
        if run.parent is not None:
            there[("parent", run.key, keys.get(run.parent, f"no run {run.parent}"))] += 1
        if run.status == "RUNNING":
            orphaned.append(f"run {run.key} is RUNNING")
        orphaned += _orphaned_versions(run)
    expected = said.done | said.about
    lost = [f"lost: {item}" for item in sorted(said.done - set(there), key=repr)]
    strange = [f"never logged: {item}" for item in there if item not in expected]
    # Two values for one point, or two runs of one key, are duplicates too.
    doubled = [f"{n} times: {item}" for item, n in there.items() if n > 1]
    doubled += [
        f"{n} values: {place}"
        for place, n in Counter(item[:4] for item in there if item[0] == "metric").items()
        if n > 1
    ]
    for run in runs:
        must, may = _statuses(said, run.key)
        if run.status != "RUNNING" and run.status not in must | may:
            strange.append(f"run {run.key} is {run.status}; expected {sorted(must | may)}")
        if run.orphaned and "FAILED" not in may:
            strange.append(f"run {run.key} was ended, and is called orphaned")
    return Outcome(
        acknowledged=said.n_done,
        lost=len(lost),
        duplicated=len(doubled),
        orphaned=len(orphaned),
        strange=len(strange),
        said=(*lost, *doubled, *orphaned, *strange),
    )


def _statuses(said: Said, key: str) -> tuple[set[str], set[str]]:
    """Returns what a run's status must be one of, and what else it may be."""
    must: set[str] = set()
    may: set[str] = set()
    for what, status in said.ends.get(key, []):
        if what == "done":
            must, may = {status}, set()
        else:
            may = may | {status}
    if not must or must == {"RUNNING"} or "RUNNING" in may:
        may = may | {"FAILED"}  # nobody ended it: sync does
    return must - {"RUNNING"}, may


def _orphaned_versions(run: Found) -> list[str]:
    versions = [item for item in run.items if item[0] == "version"]
    return [f"version {item} has no model" for item in versions if not run.has_model]


def read_recorder(recorder: Recorder) -> list[Found]:
    """Returns all that a recorder has, past its own API."""
    found = []
    for run in recorder.runs.values():
        versions = [one for one in recorder.versions if one["run_id"] == run.run_id]
        if run.deleted and not versions:
            continue
        key = run.tags.get(RUN_KEY, f"?{run.run_id}")
        items: list[Item] = _data_items(key, run.tags, run.params)
        items += [("metric", key, name, step, value) for name, value, _, step in run.points]
        items += [("input", key, name) for name, _ in run.inputs]
        items += [
            ("file", key, path, hashlib.sha256(content).hexdigest())
            for path, content in run.files.items()
        ]
        items += [("version", key, one["name"]) for one in versions]
        found.append(_found(run.run_id, key, run.status, run.tags, items))
    return found


def read_mlflow(client: Any, experiments: Iterable[str]) -> list[Found]:
    """Returns the runs of some experiments; one that is not there has none.

    Args:
        client: An `MlflowClient` whose artifacts are files of this machine.
        experiments: Names.
    """
    known = [client.get_experiment_by_name(name) for name in experiments]
    found = []
    for experiment in known:
        token = None
        while experiment is not None:
            page = client.search_runs([experiment.experiment_id], page_token=token)
            found += [_read_run(client, run) for run in page]
            token = page.token
            if not token:
                break
    return found


def _read_run(client: Any, run: Any) -> Found:
    tags = run.data.tags
    key = tags.get(RUN_KEY, f"?{run.info.run_id}")
    items = _data_items(key, tags, run.data.params)
    for name in run.data.metrics:
        items += [
            ("metric", key, name, point.step, point.value)
            for point in client.get_metric_history(run.info.run_id, name)
        ]
    items += [("input", key, one.dataset.name) for one in run.inputs.dataset_inputs]
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    items += [
        ("file", key, file.relative_to(root).as_posix(), digest(file))
        for file in root.rglob("*")
        if file.is_file() and not file.name.startswith(STAGING)
    ]
    versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    items += [("version", key, version.name) for version in versions]
    return _found(run.info.run_id, key, run.info.status, tags, items)


def _data_items(key: str, tags: dict[str, str], params: dict[str, str]) -> list[Item]:
    items: list[Item] = [("param", key, name, value) for name, value in params.items()]
    items += [
        ("tag", key, name, value)
        for name, value in tags.items()
        if name not in (RUN_KEY, "mlops.orphaned") and not name.startswith("mlflow.")
    ]
    return items


def _found(run_id: str, key: str, status: str, tags: dict[str, str], items: list[Item]) -> Found:
    return Found(
        run_id=run_id,
        key=key,
        status=status,
        orphaned="mlops.orphaned" in tags,
        parent=tags.get("mlflow.parentRunId"),
        has_model=any(item[0] == "file" and item[2] == "model/MLmodel" for item in items),
        items=tuple(items),
    )
