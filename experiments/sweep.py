"""python -m experiments.sweep: search each architecture's hyperparameters on one dataset.

The driver. It reads the config, starts workers and the tracking server, and then asks Optuna,
submits to workers and tells Optuna, until every study has its trials. It imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.config import SweepConfig
from experiments.preparation import (
    check_backend,
    check_cluster,
    check_study,
    check_warm_start,
    describe_all,
    introduce,
    load_data,
)
from mlops.errors import MlopsError
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings, quiet

if TYPE_CHECKING:
    from experiments.driver import Driver
    from experiments.progress import Progress
    from experiments.results import SweepResult
    from experiments.workers.cluster import Workers
    from experiments.workers.packing import Packing
    from mlops.data import Dataset
    from mlops.gpus import Gpu


def run_sweep(
    config: SweepConfig,
    *,
    settings: Settings | None = None,
    cluster: Workers | None = None,
    progress: Progress | None = None,
    gpus: Sequence[Gpu] | None = None,
) -> SweepResult:
    """Runs a sweep to its end and returns what it found.

    Args:
        config: What to search.
        settings: Where things live; by default as the environment says.
        cluster: Workers to use; by default those of `config.cluster`, or else processes that are
            started on this machine and end with the sweep: on its GPUs, or `config.n_workers`.
        progress: Who is told how it goes; by default the terminal.
        gpus: Of this machine, to train on; by default those that the NVIDIA driver names.

    Raises:
        UsageError: the config cannot be; nothing was created.
        DataError: the dataset cannot be used; nothing was created.
        MlopsError: see the message.

    Example:
        >>> result = run_sweep(SweepConfig(dataset="digits", architectures=("cnn",), trials=10))
        >>> result.studies[0].best.value
    """
    import numpy as np

    from experiments.beat import beating
    from experiments.progress import open_progress
    from experiments.storage import open_storage
    from mlops.dataset_store import open_dataset_store

    quiet()
    began = time.monotonic()
    config.check()
    settings = settings or Settings.from_env()
    check_cluster(config, settings)
    check_backend(config)
    packing, why_none = _choose_packing(config, gpus)
    dataset = load_data(config)
    store = open_dataset_store(settings)
    store.reach()
    if config.warm_start is not None:
        check_warm_start(config, settings)
    if config.study is not None:
        check_study(config, settings, dataset)
        found = _find_finished(config, settings, dataset)
        if found is not None:
            say(f"The sweep {config.study!r} is finished; this is its result.")
            return found
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress or open_progress())
        server_url = stack.enter_context(_open_tracking(settings))
        for line in (introduce(config, dataset, packing), *why_none, *dataset.notes):
            progress.note(line)
        if cluster is None:
            logs = settings.home / "logs"
            cluster = stack.enter_context(
                _open_workers(config, settings, logs, progress.note, packing)
            )
        descriptions = describe_all(config, dataset, cluster, progress)
        store.put(dataset)
        if isinstance(dataset.x, np.memmap):  # the user's file may change; the store's does not
            dataset = store.get(dataset.fingerprint)
        storage = open_storage(settings.study_url)
        sweep_id = stack.enter_context(_choose_sweep(config, settings, storage, dataset, progress))
        driver = stack.enter_context(
            _open_driver(config, settings, dataset, sweep_id, cluster, progress, server_url)
        )
        driver.open_studies(storage, descriptions)
        stack.enter_context(beating(driver.studies))
        interrupted = driver.search(began) or driver.retrain() or driver.draw()
        return driver.finish(began, interrupted)


def _find_finished(config: SweepConfig, settings: Settings, dataset: Dataset) -> SweepResult | None:
    """Returns the result of a sweep that is done, from the studies alone; None if it is not."""
    from experiments.privacy.budget import find_spent
    from experiments.results import SweepResult, note_delivered, study_result
    from experiments.storage import open_storage
    from experiments.studies import find_studies
    from experiments.study import reopen_search
    from mlops.mlflow_sink import MlflowSink
    from mlops.mlflow_store import open_store_client

    storage = open_storage(settings.study_url)
    wanted = set(config.fingerprints(dataset.fingerprint).values())
    done = [
        record
        for record in find_studies(storage)
        if record.sweep == config.study
        and record.config_fingerprint in wanted
        and not record.unfinished
        and record.finished_target >= config.trials
    ]
    if {record.config_fingerprint for record in done} != wanted:
        return None
    experiment = config.experiment or dataset.name
    searches = [reopen_search(storage, record.name, config) for record in done]
    if any(one.best_run_id is None or one.candidate_version is None for one in searches):
        # They were delivered later, by `python -m mlops.sync`, or are not delivered yet.
        sink = MlflowSink(open_store_client(settings))
        for search in searches:
            note_delivered(search, sink, ask=True)
    return SweepResult(
        sweep_id=str(config.study),
        experiment=experiment,
        wall_s=0.0,
        studies=tuple(study_result(search, experiment) for search in searches),
        spent=find_spent(searches[0]),
    )


@contextlib.contextmanager
def _open_tracking(settings: Settings) -> Iterator[Callable[[], str]]:
    """Yields a function that waits for the tracking server and returns its address."""
    if settings.tracking_uri is not None:
        uri = settings.tracking_uri
        yield lambda: uri
        return
    from mlops.server import open_server

    with open_server(settings) as server:

        def wait() -> str:
            try:
                server.wait()
            except MlopsError as err:
                raise ConnectionError(str(err)) from err
            return str(server.url)

        yield wait


def _choose_packing(
    config: SweepConfig, gpus: Sequence[Gpu] | None
) -> tuple[Packing | None, list[str]]:
    """Returns how this machine's GPUs are shared, and a sentence for a person where none can be.

    Raises:
        UsageError: a GPU is asked for and there is none, or it is to hold too many trials.
    """
    from experiments.workers.packing import check_gpus, find_gpus, first_packing

    if config.cluster is not None:
        given = "--trials-per-gpu is of this machine's GPUs; workers of a cluster have their own."
        return None, [given] if config.trials_per_gpu is not None else []
    usable, why_none = find_gpus() if gpus is None else (tuple(gpus), None)
    check_gpus(config, usable, why_none)
    return first_packing(config, usable), [f"{why_none}."] if why_none else []


def _open_workers(
    config: SweepConfig,
    settings: Settings,
    logs: Path,
    note: Callable[[str], None],
    packing: Packing | None,
) -> contextlib.AbstractContextManager[Workers]:
    if config.cluster is not None:
        from experiments.workers.remote_cluster import open_remote_cluster

        return open_remote_cluster(config, settings, note)
    from experiments.workers.cluster import open_cluster

    log = logs / f"workers-{datetime.now(UTC):%Y%m%d-%H%M%S}.log"
    if packing is not None:
        from experiments.workers.gpu_cluster import open_gpu_cluster

        return open_gpu_cluster(config, packing, log)
    return open_cluster(config.n_workers, config.threads, log)


@contextlib.contextmanager
def _choose_sweep(
    config: SweepConfig, settings: Settings, storage: Any, dataset: Dataset, progress: Progress
) -> Iterator[str]:
    """Finds the sweep to go on with, or names a new one; holds its lock."""
    from experiments.studies import find_studies, home_of, is_locked, lock_sweep, remove_unborn

    sweep = config.study
    if sweep is not None:
        _check_not_elsewhere(sweep, settings, storage, progress)
    if sweep is None:
        wanted = set(config.fingerprints(dataset.fingerprint).values())
        for record in reversed(find_studies(storage)):
            if record.config_fingerprint not in wanted or not record.unfinished:
                continue
            if record.home != home_of(settings):
                continue  # it may be under way there; --study names it all the same
            if is_locked(settings.home, record.sweep):
                progress.note(
                    f"{record.sweep} searches the same in another process; beginning anew."
                )
                continue
            sweep = record.sweep
            break
    if sweep is None:
        remove_unborn(storage, settings.home)
        experiment = config.experiment or dataset.name
        sweep = f"{experiment}-{datetime.now(UTC):%Y%m%d-%H%M%S}".replace(" ", "-")
        while is_locked(settings.home, sweep) or any(
            record.sweep == sweep for record in find_studies(storage)
        ):
            sweep += "b"
    with lock_sweep(settings.home, sweep):
        yield sweep


def _check_not_elsewhere(sweep: str, settings: Settings, storage: Any, progress: Progress) -> None:
    """Refuses a sweep that a driver of another home drives now.

    Raises:
        MlopsError: it is under way there.
    """
    from experiments.beat import SILENT_S, is_beating
    from experiments.studies import find_studies, home_of

    records = [record for record in find_studies(storage) if record.sweep == sweep]
    homes = {record.home for record in records} - {home_of(settings)}
    if not homes:
        return
    home = " and ".join(sorted(homes))
    progress.note(
        f"{sweep} was begun in {home}; looking for {SILENT_S:.0f} s whether it is under way there."
    )
    if is_beating(storage, sweep):
        raise MlopsError(
            f"the sweep {sweep!r} is under way in another home: {home}. "
            "Wait for it, or give another --study."
        )


@contextlib.contextmanager
def _open_driver(
    config: SweepConfig,
    settings: Settings,
    dataset: Dataset,
    sweep_id: str,
    cluster: Workers,
    progress: Progress,
    server_url: Callable[[], str],
) -> Iterator[Driver]:
    from experiments.driver import Driver
    from experiments.interrupt import interruptible
    from experiments.runs import SweepRuns
    from mlops.drain import Drain
    from mlops.journal import Journal
    from mlops.mlflow_sink import MlflowSink
    from mlops.mlflow_store import open_client

    folder = settings.home / "journal" / sweep_id
    sinks: list[MlflowSink] = []

    def open_sink() -> MlflowSink:
        sinks.append(MlflowSink(open_client(server_url())))
        return sinks[-1]

    with Journal(folder, "driver") as journal, interruptible() as stop:
        drain = Drain(folder, open_sink).start()
        runs = SweepRuns(journal, config, dataset, sweep_id)
        driver = Driver(
            config, settings, dataset, sweep_id, cluster, progress, runs, drain, sinks, stop
        )
        try:
            yield driver
        except BaseException:
            with contextlib.suppress(MlopsError):  # the first error is the one to tell
                driver.abort()
            raise
        finally:
            drain.stop()


@dataclass(frozen=True)
class Options:
    """Options of the program; the sweep's own are in SweepConfig."""

    config: SweepConfig = field(default_factory=SweepConfig)
    config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """A TOML file with the same names as these options; an option goes before what it says."""
    json: bool = False
    """Print the result as one JSON line."""
    dry_run: bool = False
    """Check everything and say what would be done; create nothing."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options, typed: Sequence[str]) -> int:
    from experiments.results import leaderboard, next_steps

    settings = Settings.from_env()
    if options.dry_run:
        answer(_rehearse(options.config, settings))
        return 0
    result = run_sweep(options.config, settings=settings)
    if result.interrupted:
        say("Interrupted; what is finished is kept. To go on, type:")
        say(f"  {command_line('python', '-m', 'experiments.sweep', *typed)}")
    else:
        shown = say if options.json else answer
        shown(leaderboard(result))
        shown(next_steps(result, settings))
    if options.json:
        answer_json(result.to_json())
    if result.interrupted:
        return 130
    return 0 if all(one.best for one in result.studies) else 1


def _rehearse(config: SweepConfig, settings: Settings) -> str:
    """Returns what a sweep would do. Workers are asked, nothing is kept.

    Of a cluster that runs already, all workers are: whether they could train, and why not.
    """
    from experiments.progress import Lines
    from mlops.dataset_store import open_dataset_store

    config.check()
    check_cluster(config, settings)
    check_backend(config)
    packing, why_none = _choose_packing(config, None)
    dataset = load_data(config)
    open_dataset_store(settings).reach()
    lines = [introduce(config, dataset, packing), *why_none, *dataset.notes]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        progress = Lines()
        asked = config if config.cluster else dataclasses.replace(config, workers=1)
        packing, _ = _choose_packing(asked, None)
        opened = _open_workers(asked, settings, Path(scratch), progress.note, packing)
        cluster: Any = stack.enter_context(opened)
        if config.cluster is not None:
            lines += cluster.tell_workers()
        for one in describe_all(config, dataset, cluster, progress):
            lines.append(f"{one.name}: {config.trials} trials of {config.epochs} epochs over")
            lines += [f"  {name}: {space}" for name, space in one.space.items()]
    lines.append(
        f"Nothing was created. The experiment would be {config.experiment or dataset.name!r}."
    )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    typed = sys.argv[1:] if args is None else args
    return run_program(
        Options,
        lambda options: _main(options, typed),
        prog="python -m experiments.sweep",
        description="Search each architecture's hyperparameters on one dataset, track every trial.",
        args=args,
        read_defaults=_read_defaults,
    )


def _read_defaults(args: Sequence[str]) -> tuple[Options, list[str]]:
    from experiments.config_file import with_config_file

    config, rest = with_config_file(args)
    return Options(config), rest


if __name__ == "__main__":
    sys.exit(main())
