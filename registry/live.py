"""The model that follows an alias, inside the unchanged `mlflow models serve`.

`registry.serve` writes a model folder that names this module as its loader. In each worker of the
server it loads what the parent wants, follows the parent from then on, puts `invocations` in the
place of MLflow's function of that name, and bounds the queue of requests. Where MLflow has no such
function any more, MLflow's own goes on: slower, and with fewer checks.
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from registry.serving.worker import Worker

_log = logging.getLogger(__name__)
_PARAMETERS: Final = ["data", "content_type", "model", "input_schema"]
_SERVER: Final = "mlflow.pyfunc.scoring_server"
_SCORING: Final[tuple[str, ...]] = ("max_rows", "max_batch", "max_wait_ms")


class LiveModel:
    """Answers with the release that holds the alias now. Safe to call from many threads."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Scores rows with the champion, as `mlops.scoring` says; MLflow calls this."""
        return self._worker.answering.champion.predict(model_input, params)


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> LiveModel:
    """Returns the live model, warm; MLflow calls this in each worker.

    Args:
        data_path: The model folder that `registry.serve` wrote.
        model_config: `state`, the folder of `registry.serving.state`; `drain_s`; `max_queue`;
            `watch_rows_s`, this worker's share; and what the scoring runtime takes.
    """
    from registry.serving.group import PARENT, end_with_parent
    from registry.serving.loading import load_release
    from registry.serving.metrics import WorkerMetrics, reserve_counters
    from registry.serving.shadow import Shadow
    from registry.serving.state import StateFolder, Wanted
    from registry.serving.watch import Watch
    from registry.serving.worker import Worker

    config = dict(model_config or {})
    folder = StateFolder(Path(config["state"]))
    scoring = {name: config[name] for name in _SCORING if name in config}
    if _is_server():  # first of all: whatever comes may hang
        parent = json.loads(os.environ.get(PARENT, "null"))
        end_with_parent(folder, parent, float(config.get("drain_s", 30)))
    pid = os.getpid()
    reason = reserve_counters(os.environ, pid)
    if reason is not None:
        _log.error("there is no room for this worker's metrics (%s): it counts unseen", reason)
    metrics = WorkerMetrics()

    def load(wanted: Wanted) -> Any:
        return load_release(wanted, scoring, metrics.on_batch)

    if _is_server():
        _import_heavy()
    shadow = Shadow(lambda value: folder.write_shadow(pid, value), metrics.shadowed)
    rows_s, offer = float(config.get("watch_rows_s", 0.0)), None
    if rows_s:
        offer = Watch(lambda value: folder.write_drift(pid, value), rows_s).offer
    worker = Worker(folder, load, metrics.meter, shadow.offer, pid, offer)
    worker.start()
    _enter_server(worker, metrics, int(config.get("max_queue", 256)))
    return LiveModel(worker)


def _is_server() -> bool:
    """Whether this is the scoring server, and not `mlflow models predict` or a person's Python."""
    return f"{_SERVER}.app" in sys.modules


def _import_heavy() -> None:
    """Imports what every release needs and takes it out of the garbage collector's sight.

    Before any network is there: what is frozen and in a cycle is never freed.
    """
    import keras  # noqa: F401
    import pandas  # noqa: F401

    gc.collect()
    gc.freeze()


def _enter_server(worker: Worker, metrics: Any, max_queue: int) -> None:
    """Takes the requests of the scoring server, if this process is one."""
    from registry.serving.admission import request_executor

    if not _is_server():
        worker.watch_in_thread()
        return
    executor = request_executor()
    executor.most, executor.on_refusal = max_queue, metrics.overloaded
    _take_invocations(worker, metrics)
    worker.watch_in_thread(lambda: metrics.queued(executor.waiting))


def _take_invocations(worker: Worker, metrics: Any) -> bool:
    """Puts our function in the place of MLflow's, if that is what we know."""
    from registry.serving.invocations import answer

    server: Any = sys.modules[_SERVER]
    if not is_known(server):
        _log.warning(
            "this mlflow reads requests otherwise: its own code goes on, slower and with fewer "
            "checks"
        )
        return False
    response: Any = server.InvocationsResponse

    def invocations(data: bytes, content_type: str | None, model: Any, input_schema: Any) -> Any:
        reply = answer(data, content_type, worker.answering, fell_back=metrics.fell_back)
        return response(reply.body, reply.status, "application/json")

    server.invocations = invocations
    return True


def is_known(server: Any) -> bool:
    """Tells whether this MLflow's scoring server has the function that ours can stand for."""
    theirs = getattr(server, "invocations", None)
    return (
        callable(theirs)
        and list(inspect.signature(theirs).parameters) == _PARAMETERS
        and getattr(server.InvocationsResponse, "_fields", ()) == ("response", "status", "mimetype")
    )
