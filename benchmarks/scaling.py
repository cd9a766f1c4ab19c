"""Trials an hour by worker processes, here and on simulated hosts: `python -m benchmarks.scaling`.

Every row is whole sweeps: driver, study database (PostgreSQL), journals, MLflow (the embedded
server). A trial is the CNN on the digits with the params of its baseline, so that all trials cost
the same; only seeds differ. The workers of a row are started once and train two trials each that do
not count; then come `repeats` sweeps. The rate of a sweep is of its trials after the first of each
worker: from when the last of those was told until the last trial was told. Efficiency is the rate
beside that of one worker, for each worker.

Workers "here" are those that a sweep starts itself. A simulated host is a `dask worker` with its
processes beside a `dask scheduler`, as on a cluster, all on this machine's cores. With
`--homes shared` they see the driver's home; with `--homes own` each host has an MLOPS_HOME of its
own, rows come from an S3 store and results go through the tracking server.

The second table is the driver's share: trials of a millisecond that train nothing
(`benchmarks.scale`). Its wall time counts everything that a trial costs on this machine, workers,
databases and MLflow too; the driver's own CPU time is what bounds how many workers it can feed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import tyro

from benchmarks.scale import PATH, Bare, open_bare_cluster
from benchmarks.tables import print_heading, print_rows
from experiments.config import SweepConfig
from experiments.progress import Lines
from experiments.study import Tally
from experiments.sweep import run_sweep
from experiments.workers.cluster import open_cluster
from experiments.workers.remote_cluster import open_remote_cluster
from mlops.server import open_server
from mlops.settings import Settings, quiet
from tests.database_server import serve_postgresql
from tests.object_store import open_object_store

ROOT = Path(__file__).parents[1]
EPOCH_S = 0.001
START_S = 180.0
FIX = (
    "filters=32",
    "dense_units=64",
    "batch_norm=false",
    "dropout=0.0",
    "learning_rate=0.001",
    "batch_size=32",
)


@dataclass(frozen=True)
class Options:
    workers: tuple[int, ...] = (1, 2, 4)
    """Worker processes."""
    hosts: int = 2
    """Simulated hosts, among which the workers of a row are shared out; 0 leaves them out."""
    homes: Literal["shared", "own"] = "shared"
    """Whether the hosts see the driver's home, or each has its own."""
    trials: int = 24
    """Trials of a sweep."""
    epochs: int = 10
    """Epochs of a trial."""
    bare: int = 200
    """Trials of a sweep that trains nothing; 0 leaves that table out."""
    repeats: int = 3
    """Sweeps of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """Workers of one place. `hosts`: 0 is here."""

    hosts: int
    workers: int

    @property
    def place(self) -> str:
        return f"{self.hosts} simulated host(s)" if self.hosts else "here"


class Told(Lines):
    """Notes when each trial was told, and the driver's CPU seconds until then."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[int, float, float]] = []

    def update(self, study: str, tally: Tally) -> None:
        n = tally.n_finished
        if not self.marks or n > self.marks[-1][0]:
            cpu = psutil.Process().cpu_times()
            self.marks.append((n, time.monotonic(), cpu.user + cpu.system))

    def note(self, line: str) -> None:
        """Says nothing: the table is what is printed."""

    def cost(self, n_before: int) -> tuple[float, float]:
        """Returns wall and CPU seconds of each trial after the first `n_before`."""
        first = next(mark for mark in self.marks if mark[0] >= n_before)
        last = self.marks[-1]
        n = last[0] - first[0]
        if n <= 0:
            raise ValueError(f"more than {n_before} trials are needed to say what one costs")
        return (last[1] - first[1]) / n, (last[2] - first[2]) / n


class Hosts:
    """A scheduler and hosts, as `dask scheduler` and `dask worker` processes of this machine."""

    def __init__(self, folder: Path, env: dict[str, str], own_homes: bool) -> None:
        self._folder = folder
        self._env = {**os.environ, **env, "PYTHONPATH": str(ROOT)}
        self._own_homes = own_homes
        self._started: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start(self, row: Row, preload: str) -> None:
        """Starts the scheduler, and the workers of a row; returns once all are there."""
        file = self._folder / "scheduler.json"
        self._run("scheduler", "--port", "0", "--scheduler-file", str(file))
        _wait(file.exists)
        self.address = json.loads(file.read_text())["address"]
        for host in range(row.hosts):
            n = row.workers // row.hosts + (host < row.workers % row.hosts)
            home = {"MLOPS_HOME": str(self._folder / f"host-{host}")} if self._own_homes else {}
            if n:
                self._run(
                    *("worker", self.address, "--nworkers", str(n), "--nthreads", "1"),
                    *("--memory-limit", "0", "--local-directory", str(self._folder)),
                    *("--preload", preload),
                    env=home,
                )
        _wait(lambda: self._n_workers() == row.workers)

    def _n_workers(self) -> int:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])

    def _run(self, *args: str, env: dict[str, str] | None = None) -> None:
        with (self._folder / "dask.log").open("a") as log:
            command = [sys.executable, "-m", "dask", *args, "--host", "127.0.0.1"]
            self._started.append(
                subprocess.Popen(
                    [*command, "--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
                    cwd=self._folder,
                    env={**self._env, **(env or {})},
                    stdout=log,
                    stderr=log,
                )
            )

    def end(self) -> None:
        for process in reversed(self._started):
            for one in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.kill()
            process.wait()


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the simulated hosts are not there after {START_S:.0f} s")
        time.sleep(0.5)


def set_up_nothing(threads: int) -> None:
    """In a worker: nothing computes there."""


@contextlib.contextmanager
def open_workers(row: Row, settings: Settings, options: Options, is_bare: bool) -> Iterator[Any]:
    """Starts the workers of a row; yields `Workers`, all of them ready."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as end:
        folder = Path(name)
        if not row.hosts:
            log = folder / "workers.log"
            opened: Any = (
                open_bare_cluster(row.workers, log, EPOCH_S)
                if is_bare
                else open_cluster(row.workers, 1, log)
            )
            yield end.enter_context(opened)
            return
        hosts = Hosts(folder, _env_of(settings), options.homes == "own")
        end.callback(hosts.end)
        hosts.start(row, "benchmarks.scale" if is_bare else "experiments.trial")
        config = SweepConfig(
            architectures=(PATH if is_bare else "cnn",), cluster=hosts.address, workers=row.workers
        )
        set_up = {"set_up": set_up_nothing} if is_bare else {}
        cluster = end.enter_context(open_remote_cluster(config, settings, _say, **set_up))
        while cluster.n_alive() < row.workers:
            cluster.end_silent()
            time.sleep(0.1)
        yield Bare(cluster, EPOCH_S) if is_bare else cluster


def _env_of(settings: Settings) -> dict[str, str]:
    """Returns what a host must know of its own: it is told the rest by the driver."""
    return {
        "MLOPS_HOME": str(settings.home),
        "MLFLOW_TRACKING_URI": str(settings.tracking_uri),
        "MLOPS_DATASETS_URL": settings.datasets_url,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def measure(
    row: Row, settings: Settings, options: Options, is_bare: bool
) -> list[tuple[float, float]]:
    """Returns wall and driver CPU seconds a trial, of each sweep."""
    n_trials = options.bare if is_bare else options.trials
    config = SweepConfig(
        architectures=(PATH if is_bare else "cnn",),
        epochs=1 if is_bare else options.epochs,
        sampler="random",
        pruner="none",
        fix=() if is_bare else FIX,
        workers=row.workers,
        plots="none",
    )
    found = []
    with open_workers(row, settings, options, is_bare) as cluster:
        for repeat in range(options.repeats + 1):  # the first does not count
            told = Told()
            name = f"{'bare' if is_bare else 'cnn'}-{row.hosts}-{row.workers}-{repeat}"
            one = dataclasses.replace(
                config,
                study=name,
                experiment=name,
                trials=n_trials if repeat else 2 * row.workers,
            )
            result = run_sweep(one, settings=settings, cluster=cluster, progress=told)
            (study,) = result.studies
            if study.n_complete != one.trials or study.n_failed:
                raise RuntimeError(f"{row}: {study.n_complete} trials of {one.trials} are complete")
            if repeat:
                found.append(told.cost(row.workers))
                _say(f"{name}: {found[-1][0]:.3f} s a trial")
    return found


def rows_of(options: Options) -> list[Row]:
    here = [Row(0, n) for n in options.workers]
    return here + [Row(min(options.hosts, n), n) for n in options.workers if options.hosts]


def rate_rows(found: dict[Row, list[float]], n_cores: int) -> list[list[object]]:
    """Returns the cells of the first table.

    Args:
        found: Seconds a trial of each sweep, by row; the others are compared with the first row.
        n_cores: More workers than cores cannot be faster than as many as cores.
    """
    first, seconds = next(iter(found.items()))
    alone = 3600 / statistics.median(seconds) / first.workers
    rows: list[list[object]] = []
    for row, seconds in found.items():
        rates = sorted(3600 / one for one in seconds)
        median = statistics.median(rates)
        rows.append(
            [
                row.place,
                row.workers,
                len(rates),
                f"{median:.0f}",
                f"{rates[0]:.0f}",
                f"{rates[-1]:.0f}",
                f"{median / (alone * row.workers):.2f}",
                f"{median / (alone * min(row.workers, n_cores)):.2f}",
            ]
        )
    return rows


def main(args: Sequence[str] | None = None) -> None:
    typed = sys.argv[1:] if args is None else args
    options = tyro.cli(Options, args=typed, prog="python -m benchmarks.scaling")
    quiet()
    command = " ".join(["python -m benchmarks.scaling", *typed])
    n_cores = len(os.sched_getaffinity(0))
    rows = rows_of(options)
    homes = f"; hosts with {options.homes} homes" if options.hosts else ""
    with open_stores(options) as settings:
        if options.trials:
            found = {row: measure(row, settings, options, is_bare=False) for row in rows}
            print_heading(
                "Trials an hour by workers",
                f"digits, CNN, baseline params, {options.epochs} epochs, {options.trials} trials a "
                f"sweep, one thread a trial; PostgreSQL, embedded MLflow, all on {n_cores} "
                f"cores{homes}",
                command,
            )
            seconds = {row: [wall for wall, _ in costs] for row, costs in found.items()}
            columns = ("workers", "how many", "n sweeps", "median trials an hour", "least", "most")
            print_rows(
                (*columns, "efficiency", f"efficiency of {n_cores} cores"),
                rate_rows(seconds, n_cores),
            )
        if options.bare:
            bare = {row: measure(row, settings, options, is_bare=True) for row in rows}
            print_heading(
                "What a trial costs apart from training",
                f"trials of one millisecond, {options.bare} a sweep, random sampler; PostgreSQL, "
                f"embedded MLflow, all on {n_cores} cores{homes}",
                command,
            )
            columns = ("workers", "how many", "n sweeps", "median ms a trial", "least", "most")
            print_rows(
                (*columns, "of it driver CPU, ms: median", "least", "most"),
                [[one.place, one.workers, len(costs), *_ms(costs)] for one, costs in bare.items()],
            )


def _ms(costs: Sequence[tuple[float, float]]) -> list[object]:
    return [
        1000 * say(part)
        for part in zip(*costs, strict=True)
        for say in (statistics.median, min, max)
    ]


@contextlib.contextmanager
def open_stores(options: Options) -> Iterator[Settings]:
    """Starts database, tracking server and, for homes of their own, S3; yields their settings."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as end:
        home = Path(name) / "home"
        settings = Settings.from_env({"MLOPS_HOME": str(home)})
        server = end.enter_context(open_server(settings))
        server.wait()
        url = end.enter_context(serve_postgresql())
        settings = dataclasses.replace(settings, study_url=url, tracking_uri=server.url)
        if options.hosts and options.homes == "own":
            store = end.enter_context(open_object_store(Path(name) / "s3", "datasets"))
            os.environ.update(store.env())
            settings = dataclasses.replace(settings, datasets_url="s3://datasets")
        yield settings


if __name__ == "__main__":
    from benchmarks.scaling import main as run

    run()
