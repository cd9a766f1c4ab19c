"""10,000 trials of one millisecond through all of Podium: `python -m benchmarks.scale`.

The real driver, cluster, study database, journals, drain and MLflow (the embedded server, SQLite),
with the random sampler and no pruning. Only the training is replaced: a trial sleeps a millisecond
and tells of one epoch; the search space is six params that need no Keras, and no network is saved,
so no candidate is made. It shows what a trial costs apart from training, and whether the ten
thousandth costs more than the first.

Then MLflow's answers about that experiment, as its UI asks for them, and TPE's own growth: how long
the sampler of `experiments.samplers` takes to propose params, with so many trials in memory and no
workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sqlite3
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import tyro

from benchmarks.tables import print_aim, print_heading, print_rows
from experiments.architectures import Description
from experiments.config import SweepConfig
from experiments.progress import Lines
from experiments.samplers import build_sampler
from experiments.study import Tally, new_seed
from experiments.sweep import run_sweep
from experiments.tasks import Training, TrialResult
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted, leave_terminal
from experiments.workers.cluster import Workers, open_cluster
from mlops.server import open_server
from mlops.settings import Settings, quiet
from mlops.sync import sync

PATH = "benchmarks.scale:Flat"
EXPERIMENT = "scale"
N_ASKS = 5
N_REQUESTS = 9
DELIVER_S = 3600.0
SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "filters": optuna.distributions.CategoricalDistribution([16, 32, 64]),
    "dense_units": optuna.distributions.CategoricalDistribution([32, 64, 128]),
    "batch_norm": optuna.distributions.CategoricalDistribution([False, True]),
    "dropout": optuna.distributions.FloatDistribution(0.0, 0.5),
    "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
    "batch_size": optuna.distributions.CategoricalDistribution([32, 64, 128]),
}
"""The CNN's, for images of 8 x 8."""


class Bare:
    """`Workers` that train nothing, and need no TensorFlow: an epoch is a pause."""

    def __init__(self, workers: Workers, epoch_s: float) -> None:
        self._workers = workers
        self._epoch_s = epoch_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        return self._workers.submit(run_bare, call, self._epoch_s, *args)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Describes the architecture that there is none of."""
        return Description(
            path=PATH,
            name="flat",
            task="classifier",
            objective="val_accuracy",
            left_out=None,
            space={n: optuna.distributions.distribution_to_json(one) for n, one in SPACE.items()},
            baseline={
                "filters": 32,
                "dense_units": 64,
                "batch_norm": False,
                "dropout": 0.0,
                "learning_rate": 1e-3,
                "batch_size": 32,
            },
            likelihood=None,
        )


@contextlib.contextmanager
def open_bare_cluster(n_workers: int, log: Path, epoch_s: float) -> Iterator[Any]:
    """Starts workers of this machine that need no TensorFlow; yields `Workers` (`Bare`)."""
    with open_cluster(n_workers, 1, log, preload="benchmarks.scale") as cluster:
        yield Bare(cluster, epoch_s)


def run_bare(call: Callable[..., TrialResult], epoch_s: float, task: Any) -> TrialResult:
    def fit(training: Training, on_epoch: OnEpoch, *_: Any, **__: Any) -> Fitted:
        value = training.seed / 2**32
        history = []
        for epoch in range(training.epochs):
            time.sleep(epoch_s)
            metrics = {"train_loss": 1.0 - value, "val_loss": 1.0 - value, "val_accuracy": value}
            history.append(metrics)
            on_epoch(epoch, metrics)
        trained = Trained(
            model=None,
            history=tuple(history),
            best_epoch=0,
            value=value,
            stopped=False,
            weights_sha256="0" * 64,
        )
        return Fitted(trained, lambda path: None)

    return call(task, fit=fit)


def dask_setup(worker: Any) -> None:
    """Dask calls this when a worker process starts."""
    leave_terminal()


@contextlib.contextmanager
def count_requests() -> Iterator[Counter[str]]:
    """Yields the HTTP requests of this process that were answered, by method and path."""
    counter: Counter[str] = Counter()

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple) and len(record.args) == 8:
                method, url = record.args[3:5]
                counter[f"{method} {str(url).split('?')[0]}"] += 1

    logger = logging.getLogger("urllib3.connectionpool")
    handler, level, propagate = Count(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield counter
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@dataclass(frozen=True, slots=True)
class Mark:
    """How it stood when so many trials were done. `n_ended`: runs that have ended in MLflow."""

    n: int
    at: float
    rss_mib: float
    n_ended: int


class Marks(Lines):
    """Notes when each trial was told, and how the driver stands at some of them."""

    def __init__(self, database: Path, every: int) -> None:
        super().__init__()
        self._database, self._every = database, every
        self.told: dict[int, float] = {}
        self.marks: list[Mark] = []

    def update(self, study: str, tally: Tally) -> None:
        super().update(study, tally)
        n = tally.n_finished
        if n in self.told:
            return
        self.told[n] = time.monotonic()
        if n // self._every > (self.marks[-1].n if self.marks else 0) // self._every:
            rss_mib = psutil.Process().memory_info().rss / 2**20
            self.marks.append(Mark(n, self.told[n], rss_mib, _count_ended(self._database)))

    def trial_ms(self, first: int, last: int) -> float | None:
        """Returns what the trials from `first` to `last` (from 1) cost each; None if not all ran.

        Every trial ends in the driver, one after another, so that is the time between two ends.
        """
        n_before = min((n for n in self.told if n >= first - 1), default=last)
        n_last = min((n for n in self.told if n >= last), default=n_before)
        if n_last <= n_before:
            return None
        return 1000 * (self.told[n_last] - self.told[n_before]) / (n_last - n_before)


def _count_ended(database: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as found:
            (n,) = found.execute("SELECT count(*) FROM runs WHERE status <> 'RUNNING'").fetchone()
            return int(n)
    except sqlite3.OperationalError:  # it is being made
        return 0


@dataclass(frozen=True)
class Options:
    trials: int = 10_000
    """Trials of one millisecond."""
    workers: int | None = None
    """Worker processes; by default one a core."""
    tpe: tuple[int, ...] = (100, 1_000, 2_000, 5_000, 10_000)
    """Numbers of trials at which TPE is asked; none leaves it out."""


def main(args: Sequence[str] | None = None) -> None:
    typed = sys.argv[1:] if args is None else args
    options = tyro.cli(Options, args=typed, prog="python -m benchmarks.scale")
    quiet()
    command = " ".join(["python -m benchmarks.scale", *typed])
    if options.trials:
        with tempfile.TemporaryDirectory() as home:
            run_many(options, Settings.from_env({"MLOPS_HOME": home}), command)
    if options.tpe:
        print_tpe(options, command)


def run_many(options: Options, settings: Settings, command: str) -> None:
    config = SweepConfig(
        architectures=(PATH,),
        trials=options.trials,
        epochs=1,
        sampler="random",
        pruner="none",
        experiment=EXPERIMENT,
        workers=options.workers,
        plots="none",
    )
    marks = Marks(settings.home / "mlflow.db", max(1, options.trials // 10))
    log = settings.home / "logs" / "workers.log"
    with open_server(settings) as server:
        server.wait()
        with count_requests() as requests:
            with open_bare_cluster(config.n_workers, log, epoch_s=0.001) as cluster:
                marks.told[0] = time.monotonic()
                result = run_sweep(config, settings=settings, cluster=cluster, progress=marks)
            over_s = time.monotonic() - marks.told[0]
            left = _deliver(dataclasses.replace(settings, tracking_uri=server.url))
        delivered_s = time.monotonic() - marks.told[0]
        n_done = max(marks.told)
        sizes = {
            "MLflow's": (settings.home / "mlflow.db").stat().st_size,
            "Optuna's": (settings.home / "studies.db").stat().st_size,
        }
        print_heading(
            f"{n_done:,} trials of one millisecond",
            f"six params, random sampler, {config.n_workers} workers, MLflow and Optuna on SQLite",
            command,
        )
        _print_marks(marks)
        print(f"- Trials done after {marks.told[n_done] - marks.told[0]:.1f} s.")
        print(f"- Sweep over after {over_s:.1f} s, {result.undelivered} records undelivered.")
        print(f"- Delivered after {delivered_s:.1f} s, {left} records undelivered.")
        print(
            "- Databases: "
            + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
        )
        _print_requests(requests, n_done)
        early, late = marks.trial_ms(101, 1_100), marks.trial_ms(9_001, 10_000)
        if early is not None and late is not None:
            print(f"- A trial of 101 to 1,100: {early:.1f} ms; of 9,001 to 10,000: {late:.1f} ms.")
        ratio = None if early is None or late is None else late / early
        print_aim("a trial of 9,001 to 10,000, as a multiple of one of 101 to 1,100", ratio, 1.5)
        print(flush=True)
        _print_answers(server.url, n_done, command)


def _deliver(settings: Settings) -> int:
    """Delivers what the sweep left, as `python -m mlops.sync` does; returns what is left."""
    deadline = time.monotonic() + DELIVER_S
    while True:
        found = sync(settings)
        if not (found.busy or found.undelivered) or time.monotonic() > deadline:
            return found.undelivered
        time.sleep(0.5)


def _print_marks(marks: Marks) -> None:
    rows: list[list[object]] = []
    n_before = 1  # the first trial waits for the start of the sweep
    for mark in marks.marks:
        ms = marks.trial_ms(n_before + 1, mark.n)
        rows.append([mark.n, mark.at - marks.told[0], ms, mark.rss_mib, mark.n - mark.n_ended])
        n_before = mark.n
    columns = ("trials", "after s", "ms a trial since the row above", "driver RSS, MiB")
    print_rows((*columns, "runs not ended in MLflow yet"), rows)


def _print_requests(requests: Counter[str], n_trials: int) -> None:
    # Ids of experiments and runs, and names of files, would make each path its own.
    print(f"- Requests a trial: {requests.total() / n_trials:.2f}, of which")
    for name, n in requests.most_common(8):
        print(f"  {name}: {n / n_trials:.2f}")


def _print_answers(url: str, n_trials: int, command: str) -> None:
    """Prints how long MLflow takes for what its UI asks of the experiment's page."""
    api = f"{url}/ajax-api/2.0/mlflow"
    name = f"{api}/experiments/get-by-name?experiment_name={EXPERIMENT}"
    experiment_id = json.loads(_ask(name))["experiment"]["experiment_id"]
    page = {"experiment_ids": [experiment_id], "max_results": 100, "run_view_type": "ACTIVE_ONLY"}
    by_value = {**page, "order_by": ["metrics.`best_val_accuracy` DESC"]}
    asks: dict[str, tuple[str, dict[str, Any] | None]] = {
        "page (HTML)": (f"{url}/", None),
        "experiment": (f"{api}/experiments/get?experiment_id={experiment_id}", None),
        "first 100 runs, newest first": (
            f"{api}/runs/search",
            {**page, "order_by": ["attributes.start_time DESC"]},
        ),
        "first 100 runs, best first (the link that a sweep prints)": (
            f"{api}/runs/search",
            by_value,
        ),
        "first 100 runs, by a param and a metric": (
            f"{api}/runs/search",
            {**by_value, "filter": "params.filters = '32' and metrics.best_val_accuracy > 0.5"},
        ),
    }
    rows: list[list[object]] = []
    for what, (address, body) in asks.items():
        seconds = []
        for _ in range(N_REQUESTS):
            began = time.perf_counter()
            _ask(address, body)
            seconds.append(time.perf_counter() - began)
        rows.append([what, len(seconds), statistics.median(seconds), min(seconds), max(seconds)])
    print_heading(
        f"What MLflow takes to show {n_trials:,} runs", "the experiment of the table above", command
    )
    print_rows(("asked for", "n", "median s", "least", "most"), rows)


def _ask(url: str, body: dict[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=300) as answer:
        found: bytes = answer.read()
        return found


def print_tpe(options: Options, command: str) -> None:
    config = SweepConfig().resolved()
    random = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(direction="maximize", sampler=random)
    rows: list[list[object]] = []
    for n in sorted(options.tpe):
        study.sampler = random
        while len(study.get_trials(deepcopy=False)) < n:
            trial = study.ask(SPACE)
            study.tell(trial, new_seed(trial.number) / 2**32)
        seconds = []
        for i in range(N_ASKS):
            study.sampler = build_sampler(config, new_seed("tpe", n, i))
            began = time.perf_counter()
            trial = study.ask(SPACE)
            seconds.append(time.perf_counter() - began)
            study.tell(trial, new_seed(trial.number) / 2**32)
        rows.append([n, len(seconds), *(1000 * f(seconds) for f in (statistics.median, min, max))])
    print_heading(
        "How long TPE takes to propose params",
        "six params, all trials complete, in memory",
        command,
    )
    print_rows(("trials", "n", "median ms", "least", "most"), rows)


if __name__ == "__main__":
    from benchmarks.scale import main as run

    run()
