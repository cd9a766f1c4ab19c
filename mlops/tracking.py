"""Runs: what is logged of a training, and how it gets to MLflow.

`Run` writes records to the local journal and returns; `MlflowSink` is the other end, which turns
records into MLflow's calls, each of which may be repeated without harm:

- a run is created with the tag `mlops.run_key` and is looked up by it after any doubt;
- metrics carry the time of their record, so that sending them twice stores them once;
- an artifact is uploaded under its own name, the file that makes a folder valid last;
- a candidate is looked up by its run before it is made.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlops.errors import TrackingError
from mlops.journal import Journal, Record

RUN_KEY = "mlops.run_key"
MODEL_PATH = "model"
LAST_FILES = ("MLmodel", "release.json", "model.sig")
"""Files that are uploaded after all others, in this order: with them a folder counts as whole."""

Status = Literal["RUNNING", "FINISHED", "KILLED", "FAILED"]


@dataclass(frozen=True, slots=True)
class RunDataset:
    """The dataset input of a run, as MLflow shows it."""

    name: str
    fingerprint: str
    source: str
    context: str
    profile: dict[str, Any]


class Run:
    """One MLflow run, by its key. Writes the journal, never the network.

    Example:
        >>> run = Run.create(journal, experiment="digits", name="cnn-0", params={"lr": 0.1})
        >>> run.log_metrics({"val_accuracy": 0.98}, step=3)
        >>> run.end("FINISHED")
    """

    def __init__(self, journal: Journal, key: str) -> None:
        """Continues the run with this key; `Run.create` begins one."""
        self.key = key
        self._journal = journal

    @classmethod
    def create(
        cls,
        journal: Journal,
        *,
        experiment: str,
        name: str,
        key: str | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        dataset: RunDataset | None = None,
    ) -> Run:
        """Begins a run. A tag `mlflow.parentRunId` may hold a run key; the drain resolves it."""
        run = cls(journal, key or new_run_key())
        journal.append(
            "create",
            run.key,
            at_ms=_now_ms(),
            experiment=experiment,
            name=name,
            params={name: str(value) for name, value in (params or {}).items()},
            tags=dict(tags or {}),
            dataset=None if dataset is None else _fields(dataset),
        )
        return run

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers at a step (an epoch, from 0), with the time of this call."""
        self._journal.append(
            "metrics",
            self.key,
            at_ms=_now_ms(),
            step=step,
            values={k: float(v) for k, v in values.items()},
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._journal.append("tags", self.key, values={k: str(v) for k, v in tags.items()})

    def log_artifact(self, source: Path, folder: str = "") -> None:
        """Logs a file, or a folder's content, under `folder`. Takes a copy; the source may go."""
        self._journal.append(
            "artifact", self.key, spooled=self._journal.spool(source), folder=folder
        )

    def register_candidate(self, name: str, model: Path, tags: Mapping[str, str]) -> None:
        """Logs a packaged model folder and makes it the newest version of `<name>-candidates`."""
        self.log_artifact(model, MODEL_PATH)
        self._journal.append("candidate", self.key, name=f"{name}-candidates", tags=dict(tags))

    def end(self, status: Status) -> None:
        """Ends the run; with "RUNNING" opens it again (a resumed study)."""
        self._journal.append("end", self.key, at_ms=_now_ms(), status=status)


def new_run_key() -> str:
    return secrets.token_hex(16)


def open_client(tracking_uri: str) -> Any:
    """Returns an `MlflowClient` that gives up soon: the journal holds what could not be sent.

    A POST is never repeated by the HTTP layer: a lost answer to "create run" would make two runs.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_PRINT_MODEL_URLS_ON_CREATION", "false")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@dataclass(slots=True)
class MlflowSink:
    """Delivers journal records to one MLflow server.

    Attributes:
        client: An `MlflowClient`.
        run_ids: MLflow's run id of each run key that was delivered or looked up.
        versions: The candidate version of each run key that was delivered.
        experiment_ids: MLflow's id of each experiment that was used.
        refused: What the server would not take, a sentence each; the run goes on without it.
    """

    client: Any
    run_ids: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    experiment_ids: dict[str, str] = field(default_factory=dict)

    def deliver(self, folder: Path, records: list[Record], doubtful: bool) -> int:
        """Sends records in order. Stops at a run that no record has created yet."""
        waiting = _Batches()
        done = 0
        for record in records:
            with self._errors(record):
                if (
                    record.kind not in ("open", "close", "create")
                    and self.find_run_id(record.run) is None
                ):
                    break
                if record.kind in ("metrics", "tags"):
                    waiting.add(record)
                else:
                    waiting.send(self, record.run)
                    self._send(folder, record, doubtful)
            done += 1
        for run in waiting.runs():
            with self._errors(records[0]):
                waiting.send(self, run)
        return done

    @contextlib.contextmanager
    def _errors(self, record: Record) -> Iterator[None]:
        """What may pass becomes ConnectionError; what the server will never take is put down."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as err:
            status = err.get_http_status_code()
            if status >= 500 or status == 429:
                raise ConnectionError(_first_line(err)) from err
            self.refused.append(f"{record.kind} of run {record.run}: {_first_line(err)}")
        except OSError as err:  # requests' errors are OSErrors too
            raise ConnectionError(_first_line(err)) from err

    def _send(self, folder: Path, record: Record, doubtful: bool) -> None:
        fields = record.fields
        if record.kind == "create":
            self._create(record, doubtful)
        elif record.kind == "artifact":
            self._upload(self.run_ids[record.run], folder / fields["spooled"], fields["folder"])
        elif record.kind == "candidate":
            self._register(record)
        elif record.kind == "end":
            run_id = self.run_ids[record.run]
            if fields["status"] == "RUNNING":
                self.client.update_run(run_id, status="RUNNING")
            else:
                self.client.set_terminated(run_id, fields["status"], fields["at_ms"])

    def find_run_id(self, key: str) -> str | None:
        """Returns MLflow's run id of a run key, or None while no such run is delivered."""
        if key not in self.run_ids:
            found = self._find_run(key)
            if found is None:
                return None
            self.run_ids[key] = found
        return self.run_ids[key]

    def _find_run(self, key: str) -> str | None:
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        runs = self.client.search_runs(experiments, f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _create(self, record: Record, doubtful: bool) -> None:
        fields = record.fields
        # After a restart, or after an answer that was lost, the run may be there already.
        run_id = self._find_run(record.run) if doubtful else None
        if run_id is None:
            tags = {**fields["tags"], RUN_KEY: record.run}
            parent = tags.get("mlflow.parentRunId")
            if parent is not None:
                tags["mlflow.parentRunId"] = self.find_run_id(parent)
            run_id = self.client.create_run(
                self._experiment(fields["experiment"]), fields["at_ms"], tags, fields["name"]
            ).info.run_id
        self.run_ids[record.run] = str(run_id)
        self._log_params(str(run_id), fields["params"])
        if fields["dataset"] is not None:
            self.client.log_inputs(run_id, [_dataset_input(fields["dataset"])])

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(items), 100):
            self.client.log_batch(run_id, params=items[start : start + 100], synchronous=True)

    def _experiment(self, name: str) -> str:
        if name not in self.experiment_ids:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                from mlflow.exceptions import MlflowException

                # Two processes may create it at once; the second then finds it.
                with contextlib.suppress(MlflowException):
                    self.client.create_experiment(name)
                found = self.client.get_experiment_by_name(name)
            if found is None or found.lifecycle_stage != "active":
                raise TrackingError(
                    f"the MLflow experiment {name!r} is deleted or cannot be made. Restore it "
                    "(mlflow experiments restore) or sweep into another with --experiment."
                )
            self.experiment_ids[name] = found.experiment_id
        return self.experiment_ids[name]

    def _upload(self, run_id: str, source: Path, folder: str) -> None:
        if not source.exists():
            return  # delivered before; the crash came before the note of it
        upload(self.client, run_id, source, folder)

    def _register(self, record: Record) -> None:
        run_id, name = self.run_ids[record.run], record.fields["name"]
        found = self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if found:
            self.versions[record.run] = int(found[0].version)
            return
        ensure_registered_model(self.client, name)
        version = self.client.create_model_version(
            name,
            f"runs:/{run_id}/{MODEL_PATH}",
            run_id,
            tags=record.fields["tags"],
            await_creation_for=0,
        )
        self.versions[record.run] = int(version.version)


def upload(client: Any, run_id: str, source: Path, folder: str) -> None:
    """Uploads a file, or a folder's files one by one, those that make it valid last.

    MLflow moves one file into place at once, but not a folder: killed in between, this leaves a
    folder without its last files, which nobody takes for a model.
    """
    if source.is_file():
        client.log_artifact(run_id, str(source), folder or None)
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    rank = {name: place for place, name in enumerate(LAST_FILES)}
    for path in sorted(files, key=lambda path: (rank.get(path.name, -1), path.as_posix())):
        inside = path.parent.relative_to(source).as_posix()
        target = "/".join(part for part in (folder, inside) if part not in ("", "."))
        client.log_artifact(run_id, str(path), target or None)


def ensure_registered_model(client: Any, name: str) -> None:
    """Creates a registered model unless it is there; two at once are no error."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


class _Batches:
    """Metrics and tags that wait to be sent together, by run."""

    def __init__(self) -> None:
        self._metrics: dict[str, list[tuple[str, float, int, int]]] = defaultdict(list)
        self._tags: dict[str, dict[str, str]] = defaultdict(dict)

    def add(self, record: Record) -> None:
        if record.kind == "tags":
            self._tags[record.run].update(record.fields["values"])
            return
        for name, value in record.fields["values"].items():
            # MLflow stores infinity as 1.8e308; not-a-number says the same and is shown as such.
            value = value if math.isfinite(value) else math.nan
            self._metrics[record.run].append(
                (name, value, record.fields["at_ms"], record.fields["step"])
            )

    def send(self, sink: MlflowSink, run: str) -> None:
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(*point) for point in self._metrics.pop(run, [])]
        tags = [RunTag(name, value) for name, value in self._tags.pop(run, {}).items()]
        for start in range(0, max(len(metrics), len(tags)), 100):
            sink.client.log_batch(
                sink.run_ids[run],
                metrics=metrics[start : start + 100],
                tags=tags[start : start + 100],
                synchronous=True,
            )

    def runs(self) -> set[str]:
        return {*self._metrics, *self._tags}


def _first_line(err: Exception) -> str:
    return str(err).strip().split("\n", 1)[0][:300]


def _dataset_input(fields: dict[str, Any]) -> Any:
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(
        dataset=Dataset(
            name=fields["name"],
            digest=fields["fingerprint"][:36],
            source_type="podium",
            source=json.dumps({"source": fields["source"], "fingerprint": fields["fingerprint"]}),
            profile=json.dumps(fields["profile"]),
        ),
        tags=[InputTag("mlflow.data.context", fields["context"])],
    )


def _fields(dataset: RunDataset) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in RunDataset.__slots__}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
