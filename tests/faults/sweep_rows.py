"""Rows in which a sweep's processes die, or are told to end; the same command is typed again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.storage import open_storage
from experiments.studies import find_studies
from tests.faults import sweep
from tests.faults.check import Found, Outcome
from tests.faults.stage import Stage
from tests.faults.tape import Item, Said

N_ITEMS = sweep.N_TRIALS * (2 * sweep.N_EPOCHS + 2)
"""What the workers of a sweep acknowledge, if none of them is killed."""
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
END_S = 120.0


def worker_killed(stage: Stage) -> Outcome:
    """A worker is killed at a random step of a trial, once or twice in a sweep."""
    driver = _start(stage)
    for _ in range(stage.rng.choice((1, 2))):
        stage.wait_for_done(stage.rng.randrange(1, N_ITEMS - 1))
        _signal(stage.rng.sample(_workers(stage), 1), signal.SIGKILL)
    return _finish(stage, driver)


def driver_killed(stage: Stage) -> Outcome:
    """The driver is killed, its workers die with it; the same command goes on."""
    driver = _start(stage)
    for _ in range(stage.rng.choice((1, 2))):
        _wait(stage)
        driver.kill()
        driver = _type_again(stage, driver)
    return _finish(stage, driver)


def driver_told_to_end(*numbers: signal.Signals) -> Callable[[Stage], Outcome]:
    """Returns the row in which the driver gets a signal, as do its workers with Ctrl-C."""

    def row(stage: Stage) -> Outcome:
        driver = _start(stage)
        _wait(stage)
        for number in numbers:
            workers = _workers(stage) if number == signal.SIGINT else []
            _signal([driver.pid, *workers], number)
        return _finish(stage, _type_again(stage, driver))

    return row


def _start(stage: Stage) -> Any:
    forkserver._forkserver.ensure_running()
    address = forkserver._forkserver._forkserver_address
    warm = None if stage.server.kind == "mlflow" else address
    return stage.start(sweep.drive, stage.settings.home, warm, daemon=False)


def _type_again(stage: Stage, driver: Any) -> Any:
    """Types the same command again, unless the first was over: that would be another sweep.

    Raises:
        TimeoutError: the first has not ended.
    """
    driver.join(END_S)
    if driver.is_alive():
        raise TimeoutError(f"the driver is alive {END_S:.0f} s after it was told to end")
    return driver if _is_over(stage) else _start(stage)


def _is_over(stage: Stage) -> bool:
    """Tells whether the study says that all is done, its candidate too."""
    storage = open_storage(stage.settings.study_url)
    found = find_studies(storage)
    storage.engine.dispose()
    return bool(found) and not any(study.unfinished for study in found)


def _wait(stage: Stage) -> None:
    """Waits for a random moment, of which some are before the first trial or after the last."""
    stage.wait_for_done(stage.n_done() + stage.rng.randrange(N_ITEMS + 1))
    time.sleep(stage.rng.uniform(0.0, 0.4))


def _workers(stage: Stage) -> list[int]:
    return [int(path.stem) for path in stage.script.tapes.glob("*.tape") if path.stem.isdigit()]


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _finish(stage: Stage, driver: Any) -> Outcome:
    """Ends the row with what a user would do; compares MLflow with what the study says."""
    driver.join(END_S)
    left = []
    if driver.is_alive():
        left.append(f"the last command has not ended in {END_S:.0f} s")
    elif driver.exitcode != 0 and not _is_over(stage):
        log = stage.settings.home.parent / "driver.log"
        last = log.read_text().strip().splitlines()[-1:]
        left.append(f"the last command ended with {driver.exitcode}: {last}")
    storage = open_storage(stage.settings.study_url)
    names = optuna.get_all_study_names(storage)
    if len(names) != 1:
        raise ValueError(f"one sweep was typed, and these studies are there: {names}")
    study = optuna.load_study(study_name=names[0], storage=storage)
    trials = study.get_trials(deepcopy=False)
    outcome = _compare_study(stage, trials)
    said = _said(stage, study.user_attrs, trials)
    storage.engine.dispose()
    return stage.end(said, _known) + outcome + Outcome(0, lost=len(left), said=tuple(left))


def _compare_study(stage: Stage, trials: list[FrozenTrial]) -> Outcome:
    """Returns what is wrong with the study itself: trials lost, repeated, or left RUNNING."""
    finished = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    told = max((n for word, n in stage.said().notes if word == "finished"), default=0)
    origins = Counter(trial.user_attrs.get("origin", trial.number) for trial in finished)
    keys = Counter(trial.user_attrs.get("run_key") for trial in finished)
    lost = [f"{len(finished)} trials are finished, {sweep.N_TRIALS} are wanted, {told} were told"]
    lost *= len(finished) < max(sweep.N_TRIALS, told)
    doubled = [f"trial {one} was finished {n} times" for one, n in origins.items() if n > 1]
    doubled += [f"{n} finished trials have the run {one}" for one, n in keys.items() if n > 1]
    if len(finished) > sweep.N_TRIALS:
        doubled.append(f"{len(finished)} trials are finished, {sweep.N_TRIALS} were wanted")
    orphaned = [f"trial {one.number} is RUNNING" for one in trials if one.state.name == "RUNNING"]
    said = (*lost, *doubled, *orphaned)
    return Outcome(0, len(lost), len(doubled), len(orphaned), said=said)


def _said(stage: Stage, attrs: dict[str, Any], trials: list[FrozenTrial]) -> Said:
    """Returns what must be in MLflow: what the workers' tapes say, and what the study says."""
    said = stage.said()
    parent = attrs["run_key"]
    said.take("done", ("run", parent))
    said.take("done", ("end", parent, "FINISHED"))
    best = max((t for t in trials if t.value is not None), key=lambda t: t.value)
    said.take("done", ("metric", parent, f"best_{sweep.OBJECTIVE}", 0, best.value))
    key = attrs.get("candidate_run_key")
    said.take("done", ("version", key, f"{stage.script.name}-classifier-candidates"))
    for trial in trials:
        key = trial.user_attrs.get("run_key")
        if key is None:
            continue
        finished = trial.state in STATUS
        items = [("run", key), ("parent", key, parent), ("param", key, "architecture", "flat")]
        items += [("param", key, name, str(value)) for name, value in trial.params.items()]
        for item in items:
            # Of a trial that was killed, its run may never have been begun.
            said.take("done" if finished else "about", item)
        for status in [STATUS[trial.state]] if finished else ["FAILED", "KILLED"]:
            said.take("done" if finished else "about", ("end", key, status))
    return said


def _known(item: Item, run: Found) -> bool:
    """Tells whether tapes or study tell of such an item; the driver logs others besides."""
    if item[0] == "param":
        return run.parent is not None
    return item[0] in ("metric", "version") and not item[2].startswith("system/")
