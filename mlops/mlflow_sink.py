"""What the drain delivers to: an MLflow server.

`MlflowSink` turns the records that `mlops.tracking.Run` wrote into MLflow's calls, each of which
may be repeated without harm:

- a run is created with the tag `mlops.run_key` and is looked up by it after any doubt;
- metrics carry the time of their record, so that sending them twice stores them once;
- an artifact is uploaded under its own name, the file that makes a folder valid last;
- a candidate is looked up by its run before it is made;
- of two ends of one run the later one counts, in whatever order they arrive.

What a server refuses for good (a metric with a name it does not take) is put down in
`MlflowSink.refused` and left out, alone. What may pass (no answer, no permission, a full disk)
waits. A server error that one record causes every time cannot be told from the second kind: it
waits too, with the records behind it in its own journal.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.drain import ServerFaultError
from mlops.errors import first_line
from mlops.journal import Record, read_undelivered
from mlops.mlflow_store import (
    REFUSALS,
    ensure_experiment,
    ensure_registered_model,
    upload,
)
from mlops.tracking import MODEL_PATH, RUN_KEY

PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
"""What MLflow stores of a value; it drops the rest without a word."""

PARENT = "mlflow.parentRunId"


@dataclass(slots=True)
class MlflowSink:
    """Delivers journal records to one MLflow server.

    Attributes:
        client: An `MlflowClient`.
        run_ids: MLflow's run id of each run key that was delivered or looked up.
        versions: The candidate version of each run key that was delivered.
        refused: What the server would not take, a sentence each, once; the run goes on without it.
        experiment_ids: MLflow's id of each experiment that was used.
        orphans: The keys of the runs that were closed because their process is gone.
    """

    client: Any
    run_ids: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    experiment_ids: dict[str, str] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    _reported: set[object] = field(default_factory=set)
    _single: set[str] = field(default_factory=set)

    def deliver(self, folder: Path, records: list[Record], doubtful: bool) -> int:
        """Sends records in order; stops at a run that another journal has yet to create.

        Raises:
            ConnectionError: nothing could be sent; what was sent before a failure is returned.
        """
        batches = _Batches()
        unknown: set[str] = set()
        done = 0
        try:
            for record in records:
                if record.kind in ("open", "close"):
                    pass
                elif self._must_wait(folder, record, unknown):
                    break
                elif record.kind in ("metrics", "tags"):
                    batches.add(done, record)
                else:
                    self._send_batch(batches, record.run)
                    self._apply(folder, record, doubtful)
                done += 1
            for run in batches.runs():
                self._send_batch(batches, run)
        except Exception:
            # What is sent is sent: with a slow or a failing server, too, a long journal ends.
            done = min(done, batches.first_unsent(done))
            if done == 0:
                raise
        return done

    def find_run_id(self, key: str) -> str | None:
        """Returns MLflow's run id of a run key, or None while no such run is delivered."""
        if key not in self.run_ids:
            with _translated():
                found = self._find_runs(key, self._all_experiments())
            if not found:
                return None
            self.run_ids[key] = found[0]
        return self.run_ids[key]

    def find_version(self, key: str) -> int | None:
        """Returns the candidate version made of the run with this key, or None."""
        if key not in self.versions:
            run_id = self.find_run_id(key)
            if run_id is None:
                return None
            with _translated():
                found = self.client.search_model_versions(f"run_id = '{run_id}'")
            if not found:
                return None
            self.versions[key] = min(int(version.version) for version in found)
        return self.versions[key]

    def _must_wait(self, folder: Path, record: Record, unknown: set[str]) -> bool:
        """Tells whether a record speaks of a run whose creation stands undelivered in a journal.

        Adds the run to `unknown` if no journal and no server knows it.
        """
        key = record.fields["tags"].get(PARENT) if record.kind == "create" else record.run
        if key is None or key in unknown or self.find_run_id(key) is not None:
            return False
        for one in read_undelivered(folder):
            if one is not None and one.kind == "create" and one.run == key:
                return True
        unknown.add(key)
        return False

    def _apply(self, folder: Path, record: Record, doubtful: bool) -> None:
        fields = record.fields
        try:
            with _translated():
                if record.kind == "create":
                    self._create(record, doubtful)
                    return
                run_id = self._get_run_id(record.run)
                if record.kind == "artifact":
                    self._upload(run_id, folder / fields["spooled"], fields["folder"], doubtful)
                elif record.kind == "candidate":
                    self._register(record, run_id)
                elif record.kind == "end":
                    self._end(record, run_id)
                elif record.kind == "orphan":
                    self._close_orphan(record, run_id)
        except _RefusedError as err:
            self._refuse(f"{record.kind} of run {record.run}", err)

    def _get_run_id(self, key: str) -> str:
        run_id = self.find_run_id(key)
        if run_id is None:
            raise _RefusedError("no journal and no server knows of that run")
        return run_id

    def _refuse(self, what: str, err: _RefusedError) -> None:
        # Once a reason: an epoch later the server will not like the name of a metric any better.
        reason = (what.split(" of run ")[0], str(err))
        if reason not in self._reported:
            self._reported.add(reason)
            self.refused.append(f"{what}: {err}")

    def _create(self, record: Record, doubtful: bool) -> None:
        fields = record.fields
        # The search comes last before the creation: a request that a hung server kept from an
        # earlier try is done by then.
        experiment_id = self._experiment(fields["experiment"])
        found = self._find_runs(record.run, [experiment_id]) if doubtful else []
        if found:
            run_id = found[0]
        else:
            run_id = self._create_run(record, experiment_id)
            if not doubtful:
                self._single.add(record.run)
        self.run_ids[record.run] = run_id
        self._log(record.run, run_id, params=fields["params"])
        if fields["dataset"] is not None:
            self.client.log_inputs(run_id, [_dataset_input(fields["dataset"])])

    def _create_run(self, record: Record, experiment_id: str) -> str:
        fields = record.fields
        tags = {name: _stored(value, TAG_CHARACTERS) for name, value in fields["tags"].items()}
        needed = {RUN_KEY: record.run}
        parent = tags.pop(PARENT, None)
        parent_id = None if parent is None else self.find_run_id(parent)
        if parent_id is not None:
            needed[PARENT] = parent_id
        elif parent is not None:
            self._refuse(f"parent of run {record.run}", _RefusedError(f"no run {parent} is known"))
        try:
            with _translated():
                run = self.client.create_run(
                    experiment_id, fields["at_ms"], {**tags, **needed}, fields["name"]
                )
            return str(run.info.run_id)
        except _RefusedError:
            # Either the experiment was deleted meanwhile, which is said here and waits,
            self.experiment_ids.pop(fields["experiment"], None)
            experiment_id = self._experiment(fields["experiment"])
        # or it is one of the tags, which must not cost the run.
        run = self.client.create_run(experiment_id, fields["at_ms"], needed, fields["name"])
        self._log(record.run, run.info.run_id, tags=tags)
        return str(run.info.run_id)

    def _end(self, record: Record, run_id: str) -> None:
        if record.run not in self._single:
            self._remove_twins(record.run, run_id)
        status, at_ms = record.fields["status"], record.fields["at_ms"]
        if status == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            return
        # A worker that died after its last record, and the driver who saw it die, each end the
        # run, in two journals; so the order of arrival says nothing.
        present = self.client.get_run(run_id).info
        if present.status == "RUNNING" or (present.end_time or 0) <= at_ms:
            self.client.set_terminated(run_id, status, at_ms)

    def _close_orphan(self, record: Record, run_id: str) -> None:
        self._remove_twins(record.run, run_id)
        info = self.client.get_run(run_id).info
        if info.status == "RUNNING" and info.lifecycle_stage == "active":
            # The tag first: killed in between, the run is still RUNNING and is closed again.
            self.client.set_tag(run_id, "mlops.orphaned", "true")
            self.client.set_terminated(run_id, "FAILED", max(record.fields["at_ms"], 1))
            self.orphans.add(record.run)

    def _remove_twins(self, key: str, run_id: str) -> None:
        """Removes the empty run that a lost answer to "create run" may have left.

        A hung server may do the first request after it has answered the search for its result.
        """
        for twin in self._find_runs(key, self._all_experiments()):
            if twin != run_id:
                self.client.delete_run(twin)
        self._single.add(key)

    def _find_runs(self, key: str, experiments: list[str]) -> list[str]:
        """Returns the ids of the runs with a key; the one that was written to comes first."""
        from mlflow.entities import ViewType

        runs = self.client.search_runs(
            experiments, f"tags.`{RUN_KEY}` = '{key}'", ViewType.ALL, max_results=100
        )
        # A deleted run comes after a living one, but is found: its records are then refused.
        runs.sort(
            key=lambda run: (
                run.info.lifecycle_stage != "active",
                -len(run.data.params) - len(run.data.metrics) - len(run.data.tags),
                run.info.run_id,
            )
        )
        return [str(run.info.run_id) for run in runs]

    def _all_experiments(self) -> list[str]:
        from mlflow.entities import ViewType

        found: list[str] = []
        token = None
        while True:
            page = self.client.search_experiments(view_type=ViewType.ALL, page_token=token)
            found += [experiment.experiment_id for experiment in page]
            token = page.token
            if not token:
                return found

    def _experiment(self, name: str) -> str:
        if name not in self.experiment_ids:
            self.experiment_ids[name] = ensure_experiment(self.client, name)
        return self.experiment_ids[name]

    def _send_batch(self, batches: _Batches, key: str) -> None:
        metrics, tags = batches.get(key)
        if metrics or tags:
            try:
                run_id = self._get_run_id(key)
            except _RefusedError as err:
                self._refuse(f"metrics and tags of run {key}", err)
            else:
                self._log(key, run_id, metrics=metrics, tags=tags)
        batches.forget(key)

    def _log(
        self,
        key: str,
        run_id: str,
        *,
        metrics: Sequence[_Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Logs all in as few calls as MLflow's limits allow; leaves out what is refused, alone."""
        from mlflow.entities import Metric, Param, RunTag

        # The client itself splits this into calls of 1,000 metrics, 100 params and 100 tags.
        batch: dict[str, list[Any]] = {
            "metrics": [Metric(*point) for point in metrics],
            "params": [Param(k, _stored(v, PARAM_CHARACTERS)) for k, v in (params or {}).items()],
            "tags": [RunTag(k, _stored(v, TAG_CHARACTERS)) for k, v in (tags or {}).items()],
        }
        try:
            with _translated():
                self.client.log_batch(run_id, **batch, synchronous=True)
            return
        except _RefusedError:
            pass
        for kind, items in batch.items():
            for item in items:
                try:
                    with _translated():
                        self.client.log_batch(run_id, **{kind: [item]}, synchronous=True)
                except _RefusedError as err:
                    self._refuse(f"{kind.removesuffix('s')} {item.key!r} of run {key}", err)

    def _upload(self, run_id: str, source: Path, folder: str, doubtful: bool) -> None:
        if not source.exists():
            if doubtful:
                return  # delivered before; the crash came before the note of it
            raise _RefusedError(f"its copy {source.name!r} beside the journal is gone")
        # A run has one model. Packaged anew after a crash, its bytes would differ, under a version
        # that is there already.
        if folder != MODEL_PATH or not self._has_model(run_id):
            upload(self.client, run_id, source, folder)

    def _has_model(self, run_id: str) -> bool:
        found = {file.path for file in self.client.list_artifacts(run_id, MODEL_PATH)}
        return f"{MODEL_PATH}/MLmodel" in found

    def _register(self, record: Record, run_id: str) -> None:
        name = record.fields["name"]
        found = [
            int(version.version)
            for version in self.client.search_model_versions(f"run_id = '{run_id}'")
            if version.name == name
        ]
        if not found:
            ensure_registered_model(self.client, name)
            version = self.client.create_model_version(
                name,
                f"runs:/{run_id}/{MODEL_PATH}",
                run_id,
                tags=record.fields["tags"],
                await_creation_for=0,
            )
            found = [int(version.version)]
        self.versions[record.run] = min(found)


_Point = tuple[str, float, int, int]
"""A metric's name, value, time in milliseconds and step."""


class _Batches:
    """Metrics and tags that wait to be sent together, by run."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[int, list[_Point], dict[str, str]]] = {}

    def add(self, place: int, record: Record) -> None:
        """Adds the record at a place among those that are delivered."""
        _, metrics, tags = self._waiting.setdefault(record.run, (place, [], {}))
        fields = record.fields
        if record.kind == "tags":
            tags.update(fields["values"])
            return
        for name, value in fields["values"].items():
            # MLflow stores infinity as 1.8e308; not-a-number says the same and is shown as such.
            value = value if math.isfinite(value) else math.nan
            metrics.append((name, value, fields["at_ms"], fields["step"]))

    def get(self, run: str) -> tuple[list[_Point], dict[str, str]]:
        _, metrics, tags = self._waiting.get(run, (0, [], {}))
        return metrics, tags

    def forget(self, run: str) -> None:
        self._waiting.pop(run, None)

    def runs(self) -> list[str]:
        return list(self._waiting)

    def first_unsent(self, default: int) -> int:
        return min((place for place, _, _ in self._waiting.values()), default=default)


class _RefusedError(Exception):
    """The server will never take it."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """What may pass becomes ConnectionError; what the server will never take, _RefusedError."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import HTTPError

    try:
        yield
    except MlflowException as err:
        if err.error_code in REFUSALS:
            raise _RefusedError(first_line(err)) from err
        if isinstance(err, RestException):
            raise ServerFaultError(first_line(err)) from err
        raise ConnectionError(first_line(err)) from err
    except HTTPError as err:  # of an artifact
        if err.response is not None and err.response.status_code in (400, 413, 415, 422):
            raise _RefusedError(first_line(err)) from err
        raise ServerFaultError(first_line(err)) from err
    except ConnectionError:
        raise
    except OSError as err:  # the other errors of requests are OSErrors too
        raise ConnectionError(first_line(err)) from err


def _stored(value: str, limit: int) -> str:
    """Returns a value as every store takes it: within the limit, and saying so where it is cut."""
    # PostgreSQL takes no NUL and no lone surrogate; MLflow answers 500, as often as one asks.
    value = value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if len(value) <= limit:
        return value
    note = f"... (cut: {len(value)} characters)"
    return value[: limit - len(note)] + note


def _dataset_input(fields: dict[str, Any]) -> Any:
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
