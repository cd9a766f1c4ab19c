"""What tracking costs: `python -m benchmarks.tracking`.

Three tables:

- Microseconds that a training spends in `Run.log_metrics`, with the tracking server up, down (no
  one listens), hung (it takes a connection and never answers) and slow (each answer comes half a
  second late). As in a sweep, the training is a process of its own, which writes its journal, and
  the drain delivers from another one.
- HTTP requests a trial, counted over two sweeps that train nothing (`benchmarks.scale`) and differ
  in their number of trials: so that what a sweep costs once does not count.
- Seconds a trial. One CNN baseline on digits, 10 epochs, trained again and again in one process
  with one thread, the ways of tracking taking turns. Stock tracking is what one writes by hand:
  `mlflow.log_metrics` each epoch and `mlflow.keras.log_model` at the end, to the same embedded
  server.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import tyro

from benchmarks.scale import PATH, count_requests, open_bare_cluster
from benchmarks.tables import print_aim, print_heading, print_rows, print_table, quantile
from experiments.architectures import describe, open_architecture
from experiments.built_in import BUILT_IN
from experiments.config import SweepConfig
from experiments.progress import Lines
from experiments.storage import open_storage
from experiments.study import open_search
from experiments.sweep import run_sweep
from experiments.tasks import Training, TrialTask
from experiments.training import train
from experiments.trial import run_trial, set_up_process
from mlops.data import load_dataset
from mlops.dataset_store import open_dataset_store
from mlops.drain import Drain
from mlops.journal import Journal
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import open_client
from mlops.server import open_server
from mlops.settings import Settings, quiet
from mlops.tracking import Run, new_run_key

EPOCHS = 10
STEP_S = 0.001
SLOW_S = 0.5
STOP_S = 60.0
"""A drain ends after the delivery under way; a hung server holds that for the client's 20 s."""
CONTACT_S = 20.0
"""How long the drain may take to create the run, before the steps begin."""
EPOCH_S = 0.2
MOST_US = 1000.0
MOST_REQUESTS = 12
DRAIN_S = 1.0
"""The shortest drain interval that the aim of requests counts."""
METRICS = {f"metric_{i}": 0.123456789 * i for i in range(10)}


@dataclass(frozen=True)
class Options:
    steps: int = 5_000
    """Calls of `Run.log_metrics` in each state of the server; 0 leaves that table out."""
    requests: tuple[int, int] = (4, 16)
    """Trials of the two sweeps whose requests are counted; 0 0 leaves that table out."""
    rounds: int = 5
    """Trials of each way of tracking; 0 leaves that table out."""


def main(args: Sequence[str] | None = None) -> None:
    typed = sys.argv[1:] if args is None else args
    options = tyro.cli(Options, args=typed, prog="python -m benchmarks.tracking")
    quiet()
    command = " ".join(["python -m benchmarks.tracking", *typed])
    if options.steps:
        time_steps(options.steps, command)
    if options.requests[1]:
        count_trial_requests(*options.requests, command)
    if options.rounds:
        time_trials(options.rounds, command)


def time_steps(n_steps: int, command: str) -> None:
    rows: list[list[object]] = []
    worst = 0.0
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.from_env({"MLOPS_HOME": home})
        with open_server(settings) as server:
            server.wait()
            for state, reach in STATES.items():
                with reach(server.url) as url:
                    micros, n_left = _time_steps(settings.home / "journal" / state, url, n_steps)
                p99 = quantile(micros, 0.99)
                worst = max(worst, p99)
                rows.append([state, len(micros), quantile(micros, 0.5), p99, max(micros), n_left])
    print_heading(
        "What a step spends in Run.log_metrics",
        f"{len(METRICS)} metrics a step, a step each {1000 * STEP_S:g} ms, the drain in another "
        "process",
        command,
    )
    columns = ("server", "n steps", "p50, µs", "p99, µs", "most, µs")
    print_rows((*columns, "records undelivered at the last step"), rows)
    print_aim("p99 in the worst of them, µs", worst, MOST_US)
    print(flush=True)


def _time_steps(folder: Path, url: str, n_steps: int) -> tuple[list[float], int]:
    with Journal(folder, "driver") as journal:
        run = Run.create(journal, experiment="steps", name=folder.name)
        drain = Drain(folder, lambda: MlflowSink(open_client(url))).start()
        deadline = time.monotonic() + CONTACT_S
        while drain.undelivered() and drain.problem is None and time.monotonic() < deadline:
            time.sleep(0.05)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            micros = pool.submit(write_steps, folder, run.key, n_steps).result()
        n_left = drain.undelivered()
        drain.stop(timeout_s=STOP_S)
    return micros, n_left


def write_steps(folder: Path, key: str, n_steps: int) -> list[float]:
    """Logs metrics, step by step, in a process of its own; returns what each call took, in µs."""
    micros = []
    with Journal(folder, "trial") as journal:
        run = Run(journal, key)
        for step in range(n_steps):
            began = time.perf_counter_ns()
            run.log_metrics(METRICS, step=step)
            micros.append((time.perf_counter_ns() - began) / 1000)
            time.sleep(STEP_S)
    return micros


@contextlib.contextmanager
def reach_up(url: str) -> Iterator[str]:
    yield url


@contextlib.contextmanager
def reach_down(url: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def reach_hung(url: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects, nobody answers
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@contextlib.contextmanager
def reach_slow(url: str) -> Iterator[str]:
    target = (urlsplit(url).hostname, urlsplit(url).port)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), socket.create_connection(target) as server:
                copy = threading.Thread(target=self.answer, args=(server,), daemon=True)
                copy.start()
                while data := self.request.recv(65536):
                    server.sendall(data)

        def answer(self, server: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := server.recv(65536):
                    time.sleep(SLOW_S)
                    self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        relay.daemon_threads = True
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{relay.server_address[1]}"
        relay.shutdown()


STATES: dict[str, Callable[[str], contextlib.AbstractContextManager[str]]] = {
    "up": reach_up,
    "down": reach_down,
    "hung": reach_hung,
    "slow": reach_slow,
}


def count_trial_requests(n_few: int, n_many: int, command: str) -> None:
    few, many = _count_requests(n_few), _count_requests(n_many)
    n_more = n_many - n_few
    more = {name: (many[name] - few[name]) / n_more for name in many}
    a_trial = sum(more.values())
    most = MOST_REQUESTS + EPOCHS * EPOCH_S / DRAIN_S
    print_heading(
        "HTTP requests a trial",
        f"{EPOCHS} epochs of {EPOCH_S:g} s, 1 worker; sweeps of {n_few} and of {n_many} trials",
        command,
    )
    print_rows(("request", "a trial"), sorted(more.items(), key=lambda item: -item[1])[:8])
    print(f"- A sweep's own, beside its trials: {few.total() - n_few * a_trial:.0f}.")
    print_aim(
        f"requests a trial of {EPOCHS * EPOCH_S:g} s (12, and one each {DRAIN_S:g} s)",
        a_trial,
        most,
    )
    print(flush=True)


def _count_requests(n_trials: int) -> Counter[str]:
    """Returns the requests of a sweep from its start until all is delivered."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.from_env({"MLOPS_HOME": home})
        config = SweepConfig(
            architectures=(PATH,),
            trials=n_trials,
            epochs=EPOCHS,
            pruner="none",
            workers=1,
            experiment="requests",
        )
        log = settings.home / "logs" / "workers.log"
        with (
            open_server(settings) as server,
            open_bare_cluster(1, log, EPOCH_S) as cluster,
            count_requests() as requests,
        ):
            server.wait()
            result = run_sweep(config, settings=settings, cluster=cluster, progress=Lines())
            if result.undelivered:
                raise RuntimeError(f"{result.undelivered} records are not delivered")
            return requests


def time_trials(rounds: int, command: str) -> None:
    set_up_process(threads=1)
    import mlflow

    dataset = load_dataset("digits")
    cnn = open_architecture(BUILT_IN["cnn"])
    params = cnn.baseline(dataset.input)
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.from_env({"MLOPS_HOME": home})
        open_dataset_store(settings).put(dataset)
        config = SweepConfig(trials=10 * rounds, epochs=EPOCHS)
        search = open_search(
            open_storage(settings.study_url),
            "bench",
            describe(
                BUILT_IN["cnn"], dataset.input, tuple(dataset.class_counts("train")), "accuracy"
            ),
            config,
            {"sweep": "bench", "config_fingerprint": "bench", "run_key": "bench"},
        )

        def untracked() -> None:
            train(cnn, params, dataset, seed=1, epochs=EPOCHS)

        def with_journal() -> None:
            with Journal(Path(home) / "journal" / "bench", "trial") as journal:
                run = Run.create(journal, experiment="bench", name="cnn", params=params)

                def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
                    run.log_metrics(metrics, step=epoch)
                    return False

                train(cnn, params, dataset, seed=1, epochs=EPOCHS, on_epoch=on_epoch)
                run.end("FINISHED")

        def whole_trial() -> None:
            ask = search.ask()
            assert ask is not None
            training = Training(
                architecture=BUILT_IN["cnn"],
                objective="val_accuracy",
                params=params,
                seed=1,
                epochs=EPOCHS,
                dataset_fingerprint=dataset.fingerprint,
                datasets_url=settings.datasets_url,
                sweep="bench",
                study="cnn",
                number=f"{ask.number:05d}",
                origin=f"{ask.number:05d}",
                run_key=new_run_key(),
                home=Path(home),
            )
            task = TrialTask(
                training,
                search.name,
                settings.study_url,
                ask.trial_id,
                search.pruner,
                search.goals,
                -math.inf,
            )
            search.tell(ask.number, run_trial(task))

        def stock() -> None:
            with mlflow.start_run():
                mlflow.log_params(params)

                def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
                    mlflow.log_metrics(metrics, step=epoch)
                    return False

                trained = train(cnn, params, dataset, seed=1, epochs=EPOCHS, on_epoch=on_epoch)
                mlflow.keras.log_model(trained.model, name="model")

        ways = {
            "untracked": untracked,
            "journal": with_journal,
            "Podium's whole trial (journal, study, pruning, saved network)": whole_trial,
            "stock MLflow (log_metrics, log_model)": stock,
        }
        with open_server(settings) as server:
            server.wait()
            mlflow.set_tracking_uri(server.url)
            mlflow.set_experiment("bench")
            untracked()  # the first training of a process pays for TensorFlow's own start
            for _ in range(rounds):
                for name, way in ways.items():
                    began = time.perf_counter()
                    way()
                    seconds[name].append(time.perf_counter() - began)
    print_table(
        "What tracking costs a trial",
        f"digits, CNN baseline, {EPOCHS} epochs, 1 thread, ways taking turns in one process",
        command,
        "seconds",
        seconds,
    )


if __name__ == "__main__":
    from benchmarks.tracking import main as run

    run()
