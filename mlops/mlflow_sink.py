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
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.creations import Creations
from mlops.drain import Part, ServerFaultError
from mlops.errors import first_line
from mlops.journal import Record, find_spooled
from mlops.machine_lock import machine_lock
from mlops.mlflow_store import (
    REFUSALS,
    ensure_experiment,
    ensure_registered_model,
    upload,
)
from mlops.run_batches import Batch, Batches, merge
from mlops.run_lookup import Recent, RunLookup
from mlops.tracking import CANDIDATES, MODEL_PATH, RELEASES, RUN_KEY

FIRST_INPUT_WAIT_S = 30.0
N_REFUSED = 100
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
"""What MLflow stores of a value; it drops the rest without a word."""

PARENT = "mlflow.parentRunId"


@dataclass(slots=True)
class MlflowSink:
    """Delivers journal records to one MLflow server.

    What it remembers of a run it may forget, after some thousand others, and looks up again.

    Attributes:
        client: An `MlflowClient`.
        run_ids: MLflow's run id of each run key that was delivered or looked up.
        versions: The candidate version of each run key that was delivered.
        refused: What the server would not take, a sentence each, once, the first of them; the run
            goes on without it.
        experiment_ids: MLflow's id of each experiment that was used.
        orphans: The keys of the runs that were closed because their process is gone.
        doubtful_input_s: How long after the first use of a dataset another writer's first use of it
            may be under way.
    """

    client: Any
    run_ids: Recent[str] = field(default_factory=Recent)
    versions: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    experiment_ids: dict[str, str] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    doubtful_input_s: float = 10.0
    _lookup: RunLookup = field(init=False)
    _batches: Batches = field(default_factory=Batches)
    _creations: Creations | None = None
    _reported: set[object] = field(default_factory=set)
    _single: Recent[bool] = field(default_factory=Recent)
    """The runs that are known to have no twin."""
    _ends: Recent[int] = field(default_factory=Recent)
    """When a run ended, as the server has it, in milliseconds; -1 of one that is RUNNING."""
    _first_inputs: dict[tuple[str, str, str], float] = field(default_factory=dict)
    _doubtful_inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _call: _Call = field(default_factory=lambda: _Call())

    def __post_init__(self) -> None:
        self._lookup = RunLookup(self.client)

    def deliver(self, folder: Path, part: Part) -> None:
        """Sends records in order; stops at a run that another journal has yet to create.

        Params, metrics and tags are kept back until the run ends, or for `flush`: so a trial's
        params, which the driver's journal has, go out with its metrics, in one request.

        Raises:
            ConnectionError: a record could not be sent. What was sent before it counts: with a
                slow or a failing server, too, a long journal ends.
        """
        if self._creations is None or self._creations.folder != folder:
            self._creations = Creations(folder)
        self._call = _Call()
        for place, record in enumerate(part.records):
            if record.kind not in ("open", "close"):
                if self._must_wait(self._creations, record, part.is_away):
                    break
                self._take(folder, part, place)
            part.n_taken = place + 1

    def flush(self) -> None:
        """Sends what was kept back. One run's batch that fails does not keep the others back.

        Raises:
            ConnectionError: some of it could not be sent.
        """
        fault: ServerFaultError | None = None
        try:
            for run in self._batches.runs():
                try:
                    self._send_batch(run)
                except ServerFaultError as err:
                    fault = fault or err
        finally:
            self._batches = Batches()
        if fault is not None:
            raise fault

    def find_run_id(self, key: str) -> str | None:
        """Returns MLflow's run id of a run key, or None while no such run is delivered."""
        if key not in self.run_ids:
            with _translated():
                found = self._lookup.find(key)
            if not found:
                return None
            self.run_ids[key] = found[0]
            if len(found) == 1:
                self._call.single.add(key)
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

    def _must_wait(self, creations: Creations, record: Record, is_away: bool) -> bool:
        """Tells whether a record speaks of a run whose creation stands undelivered in a journal.

        Args:
            is_away: Whether that may be a journal of another host.
        """
        key = record.fields["tags"].get(PARENT) if record.kind == "create" else record.run
        if key is None or key in self.run_ids or key in self._call.unknown:
            return False
        if creations.is_waiting(key):
            return True
        if self.find_run_id(key) is None:
            if is_away:
                return True
            self._call.unknown.add(key)
        return False

    def _take(self, folder: Path, part: Part, place: int) -> None:
        record = part.records[place]
        if record.kind in ("metrics", "tags"):
            self._batches.add(part, place, record)
            return
        if record.kind != "create":
            self._send_batch(record.run)
        try:
            with _translated():
                self._apply(folder, part, place)
        except _RefusedError as err:
            self._refuse(f"{record.kind} of run {record.run}", err)

    def _apply(self, folder: Path, part: Part, place: int) -> None:
        record = part.records[place]
        if record.kind == "create":
            self._create(part, place)
            return
        run_id = self._get_run_id(record.run)
        if record.kind in ("artifact", "candidate"):
            source = find_spooled(folder, record.fields["spooled"])
            if source is None:
                raise _RefusedError("what it names is no copy that was made beside the journal")
            self._upload(run_id, source, record.fields["folder"], part.doubtful)
        if record.kind == "candidate":
            self._register(record, run_id)
        elif record.kind == "end":
            self._end(record, run_id)
        elif record.kind == "orphan":
            self._close_orphan(record, run_id)

    def _get_run_id(self, key: str) -> str:
        run_id = self.find_run_id(key)
        if run_id is None:
            raise _RefusedError("no journal and no server knows of that run")
        return run_id

    def _refuse(self, what: str, err: _RefusedError) -> None:
        # Once a reason: an epoch later the server will not like the name of a metric any better.
        reason = (what.split(" of run ")[0], str(err))
        if reason not in self._reported and len(self.refused) < N_REFUSED:
            self._reported.add(reason)
            self.refused.append(f"{what}: {err}")

    def _create(self, part: Part, place: int) -> None:
        record = part.records[place]
        if record.fields["experiment"].endswith(RELEASES):
            raise _RefusedError(f"experiments named ...{RELEASES} hold what promotions make")
        experiment_id = self._experiment(record.fields["experiment"])
        found = self._find_created(part, place, experiment_id) if part.doubtful else []
        if found:
            run_id = found[0]
        else:
            run_id = self._create_run(record, experiment_id)
            # Creations are sent one after another. So of several that are doubtful only the first
            # that is not there may be under way in a hung server still; its end looks for a twin.
            if not part.doubtful or self._call.passed_doubt:
                self._single[record.run] = True
            self._call.passed_doubt = True
            self._ends[record.run] = -1
        self.run_ids[record.run] = run_id
        if record.fields["params"]:
            self._batches.add(part, place, record)
        if record.fields["dataset"] is not None:
            self._log_input(record, run_id)

    def _log_input(self, record: Record, run_id: str) -> None:
        """Logs the dataset that a run was made with.

        Of two writers who are the first with a dataset, MLflow keeps one's: the other's inputs lead
        nowhere then. So those of one machine do it one after another; for those of others, what was
        logged near the first time is looked at again at the run's end.
        """
        dataset = record.fields["dataset"]
        place = (record.fields["experiment"], dataset["name"], dataset["fingerprint"])
        with contextlib.ExitStack() as stack:
            if place not in self._first_inputs:
                what = json.dumps([self.client.tracking_uri, *place])
                stack.enter_context(machine_lock(what, wait_s=FIRST_INPUT_WAIT_S))
            self.client.log_inputs(run_id, [_dataset_input(dataset)])
        now = time.monotonic()
        if now - self._first_inputs.setdefault(place, now) < self.doubtful_input_s:
            self._doubtful_inputs[record.run] = dataset

    def _mend_input(self, key: str, run_id: str) -> None:
        dataset = self._doubtful_inputs.pop(key, None)
        if dataset is not None and not self.client.get_run(run_id).inputs.dataset_inputs:
            self.client.log_inputs(run_id, [_dataset_input(dataset)])

    def _find_created(self, part: Part, place: int, experiment_id: str) -> list[str]:
        """Returns the runs that an earlier try at this creation has made.

        Asks once for all creations of the part, before the first of them: a request that a hung
        server kept from an earlier try is done by then, or has its twin found at the run's end.
        """
        if experiment_id not in self._call.created:
            name = part.records[place].fields["experiment"]
            creations = [
                one
                for one in part.records[place:]
                if one.kind == "create" and one.fields["experiment"] == name
            ]
            self._call.created[experiment_id] = self._lookup.find_created(experiment_id, creations)
        return self._call.created[experiment_id].get(part.records[place].run, [])

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
        self._log(record.run, run.info.run_id, Batch(tags=tags))
        return str(run.info.run_id)

    def _end(self, record: Record, run_id: str) -> None:
        key, status, at_ms = record.run, record.fields["status"], record.fields["at_ms"]
        if key not in self._single:
            self._remove_twins(key, run_id)
        self._mend_input(key, run_id)
        ended_ms = self._ends.pop(key, None)
        if status == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            self._ends[key] = -1
            return
        if ended_ms is None:
            info = self.client.get_run(run_id).info
            ended_ms = -1 if info.status == "RUNNING" else info.end_time or 0
        # A worker that died after its last record, and the driver who saw it die, each end the
        # run, in two journals; so the order of arrival says nothing.
        if ended_ms <= at_ms:
            self.client.set_terminated(run_id, status, at_ms)
            ended_ms = at_ms
        self._ends[key] = ended_ms

    def _close_orphan(self, record: Record, run_id: str) -> None:
        self._remove_twins(record.run, run_id)
        self._ends.pop(record.run, None)
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
        if key not in self._call.single:  # else that search was made a moment ago
            for twin in self._lookup.find(key):
                if twin != run_id:
                    self.client.delete_run(twin)
        self._single[key] = True

    def _experiment(self, name: str) -> str:
        if name not in self.experiment_ids:
            self.experiment_ids[name] = ensure_experiment(self.client, name)
        return self.experiment_ids[name]

    def _send_batch(self, key: str) -> None:
        """Sends what is kept back of a run; what one journal says is not the other's fault."""
        batches = self._batches.pop(key)
        if not batches:
            return
        try:
            run_id = self._get_run_id(key)
            self._log(key, run_id, merge(batches))
        except _RefusedError as err:
            self._refuse(f"metrics and tags of run {key}", err)
        except ServerFaultError:
            if len(batches) == 1:
                raise
            for batch in batches:
                self._log(key, run_id, batch)
                batch.let_go()
        for batch in batches:
            batch.let_go()

    def _log(self, key: str, run_id: str, batch: Batch) -> None:
        """Logs all in as few calls as MLflow's limits allow; leaves out what is refused, alone."""
        from mlflow.entities import Metric, Param, RunTag

        # The client itself splits this into calls of 1,000 metrics, 100 params and 100 tags.
        items: dict[str, list[Any]] = {
            "metrics": [Metric(*point) for point in batch.metrics],
            "params": [Param(k, _stored(v, PARAM_CHARACTERS)) for k, v in batch.params.items()],
            "tags": [RunTag(k, _stored(v, TAG_CHARACTERS)) for k, v in batch.tags.items()],
        }
        try:
            with _translated():
                self.client.log_batch(run_id, **items, synchronous=True)
            return
        except _RefusedError:
            pass
        for kind, ones in items.items():
            for one in ones:
                try:
                    with _translated():
                        self.client.log_batch(run_id, **{kind: [one]}, synchronous=True)
                except _RefusedError as err:
                    self._refuse(f"{kind.removesuffix('s')} {one.key!r} of run {key}", err)

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
        """Tells whether a whole model is there: its manifest goes last, in one write."""
        found = {one.path: one.file_size for one in self.client.list_artifacts(run_id, MODEL_PATH)}
        # Of a server that died while it took the file there may be an empty one.
        return (found.get(f"{MODEL_PATH}/MLmodel") or 0) > 0

    def _register(self, record: Record, run_id: str) -> None:
        name = record.fields["name"]
        if not name.endswith(CANDIDATES):
            raise _RefusedError(f"a model of candidates is named ...{CANDIDATES}")
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


@dataclass(slots=True)
class _Call:
    """What is found out in one call of `deliver`, and may be otherwise in the next.

    Attributes:
        unknown: The keys that no journal and no server knows.
        single: The keys of which the server has one run.
        created: The runs that doubtful creations have made, by experiment and key.
        passed_doubt: Whether a creation was sent; what follows in the part never was before.
    """

    unknown: set[str] = field(default_factory=set)
    single: set[str] = field(default_factory=set)
    created: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    passed_doubt: bool = False


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
