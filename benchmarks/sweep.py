"""The same trials by five ways of working: `python -m benchmarks.sweep`.

The same 24 parameter sets of the CNN on digits, 10 epochs each, no pruning; each way in a fresh
process, the same network (`CNN.build`), the same rows, the same seeds. Drawn once, the sets go to
all:

- a: Optuna and Keras, untracked, as a competent user writes it: one process, `study.optimize`,
  `model.fit` with validation data, TensorFlow's own choice of threads.
- b: a, each fit in a run of MLflow with its params, and `mlflow.keras.autolog()`.
- c: a, each fit in a run with its params, `log_metric` each epoch, `log_model` at the end.
- d: KerasTuner (an oracle that hands out the sets), each fit in a run with its params and MLflow's
  own Keras callback. KerasTuner keeps each trial's best epoch; no model is logged.
- e: this project, `run_sweep` with everything tracked, its own choice of workers. It is over when
  the best is registered and all is delivered.

b to e log to a server of the same kind: the embedded one on SQLite. The time of b and c is that of
`log_model`, which looks for the model's requirements in a process of its own.

How e gets the sets: the study is made before the sweep, with the sets enqueued and their seeds as
user attributes. A study without a run key counts as one whose maker died, so `open_search` makes
it whole and asks for what is waiting first. The trial that it enqueues itself, the baseline, comes
after them and is not reached.

Test accuracy is of the network that a way leaves its user with: the last epoch's of a, b and c, the
best epoch's of d and e. It is taken outside the measured time; for that, each trial of e keeps its
weights in a file, some milliseconds that do count. Best: of the trial with the highest validation
accuracy (of its best epoch, in all ways).

The second table is a search: a's with TPE (Optuna's default), 24 trials, no pruning, ends at a
validation accuracy; Podium's, with its own sampler, pruner and workers, is stopped when a trial has
reached that. `--only search` runs it alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.tables import print_aim, print_heading, print_rows
from experiments.built_in import BUILT_IN
from experiments.config import SweepConfig
from experiments.progress import Lines
from experiments.storage import open_storage
from experiments.studies import request_stop
from experiments.study import Tally, new_seed
from experiments.sweep import run_sweep
from experiments.tasks import Training, TrialResult
from experiments.trial import Fitted, fit_network
from experiments.workers.cluster import Cluster, open_cluster
from mlops.data import Dataset, load_dataset
from mlops.server import open_server
from mlops.settings import Settings, quiet

NAMES = {
    "a": "a: Optuna + Keras, untracked",
    "b": "b: a + mlflow autolog",
    "c": "c: a + log_metric, log_model",
    "d": "d: KerasTuner + MLflow callback",
    "e": "e: Podium, everything tracked",
}
SWEEP = "bench"
MORE_TRIALS = 2
"""Podium's search may take so many times the trials of a's before it is called not to arrive."""

Sets = list[dict[str, Any]]
"""For each trial its "params" and its "seed"."""


@dataclass(slots=True)
class Measured:
    """What a way did in one process. Times are seconds since 1970, without what does not count.

    Attributes:
        began, ended: Around all trials, and what comes after them, without start-up.
        seconds: Of each trial alone.
        finished: When each trial was done.
        val, test: Accuracies of each trial.
        started: When the process was started.
    """

    began: float = 0.0
    ended: float = 0.0
    seconds: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    started: float = 0.0

    @property
    def trial_s(self) -> float:
        return (self.ended - self.began) / len(self.seconds)

    @property
    def trial_with_start_s(self) -> float:
        return (self.ended - self.started) / len(self.seconds)

    def reached_at(self, value: float) -> float | None:
        """Returns when the first trial was done that is as good, or None."""
        found = zip(self.finished, self.val, strict=True)
        return min((at for at, one in found if one >= value), default=None)


def open_cnn() -> tuple[Any, Dataset]:
    from experiments.architectures import open_architecture

    return open_architecture(BUILT_IN["cnn"]), load_dataset("digits")


def draw_sets(n: int) -> Sets:
    """Returns the parameter sets: uniform draws from the CNN's space, always the same."""
    import optuna

    cnn, dataset = open_cnn()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=24))
    space = cnn.space(dataset.input)
    return [{"params": study.ask(space).params, "seed": new_seed("bench", i)} for i in range(n)]


@dataclass(slots=True)
class Keras:
    """What a, b, c and d train with: the same network, rows and seeds."""

    epochs: int
    measured: Measured = field(default_factory=Measured)
    cnn: Any = None
    dataset: Any = None
    paused_s: float = 0.0

    def __post_init__(self) -> None:
        self.cnn, self.dataset = open_cnn()

    def clock(self) -> float:
        """Returns the time without that spent on the test rows."""
        return time.time() - self.paused_s

    def build(self, params: dict[str, Any], seed: int) -> Any:
        import keras

        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        return self.cnn.build(params, self.dataset.input, len(self.dataset.class_names))

    def fit(self, model: Any, params: dict[str, Any], callbacks: Sequence[Any] = ()) -> Any:
        x, y = self.dataset.part("train")
        return model.fit(
            x,
            y,
            validation_data=self.dataset.part("val"),
            epochs=self.epochs,
            batch_size=params["batch_size"],
            callbacks=list(callbacks),
            verbose=0,
        )

    def note(self, began: float, history: Any) -> float:
        """Notes a trial that is done; returns its validation accuracy."""
        measured = self.measured
        measured.finished.append(self.clock())
        measured.seconds.append(measured.finished[-1] - began)
        measured.val.append(max(history.history["val_accuracy"]))
        return measured.val[-1]

    def score(self, model: Any) -> None:
        """Notes the test accuracy; the time of it does not count."""
        began = time.time()
        x, y = self.dataset.part("test")
        self.measured.test.append(float((model.predict(x, verbose=0).argmax(axis=1) == y).mean()))
        self.paused_s += time.time() - began


def suggest(trial: Any, space: dict[str, Any]) -> dict[str, Any]:
    """Asks for each param as a user writes it: `suggest_categorical`, `suggest_float`."""
    return {
        name: trial.suggest_categorical(name, one.choices)
        if hasattr(one, "choices")
        else trial.suggest_float(name, one.low, one.high, log=one.log)
        for name, one in space.items()
    }


Track = Callable[[dict[str, Any]], Any]


@contextlib.contextmanager
def track_nothing(params: dict[str, Any]) -> Iterator[tuple[list[Any], Callable[[Any], None]]]:
    yield [], lambda model: None


@contextlib.contextmanager
def track_params(params: dict[str, Any]) -> Iterator[tuple[list[Any], Callable[[Any], None]]]:
    """Of b: the rest is autolog's."""
    import mlflow

    with mlflow.start_run():
        mlflow.log_params(params)
        yield [], lambda model: None


@contextlib.contextmanager
def track_by_hand(params: dict[str, Any]) -> Iterator[tuple[list[Any], Callable[[Any], None]]]:
    """Of c."""
    import keras
    import mlflow

    def on_epoch_end(epoch: int, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            mlflow.log_metric(name, value, step=epoch)

    with mlflow.start_run():
        mlflow.log_params(params)
        watch = keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
        yield [watch], lambda model: mlflow.keras.log_model(model, name="model")


def search_with_optuna(sets: Sets | int, epochs: int, track: Track, sampler: Any) -> Measured:
    """Trains the sets, or as many trials as the number says, by `study.optimize`."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    keras = Keras(epochs)
    space = keras.cnn.space(keras.dataset.input)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in sets if isinstance(sets, list) else []:
        study.enqueue_trial(one["params"])

    def objective(trial: Any) -> float:
        began = keras.clock()
        params = suggest(trial, space)
        seed = sets[trial.number]["seed"] if isinstance(sets, list) else trial.number
        model = keras.build(params, seed)
        with track(params) as (callbacks, keep):
            history = keras.fit(model, params, callbacks)
            keep(model)
        value = keras.note(began, history)
        keras.score(model)
        return value

    keras.measured.began = keras.clock()
    study.optimize(objective, n_trials=len(sets) if isinstance(sets, list) else sets)
    keras.measured.ended = keras.clock()
    return keras.measured


@contextlib.contextmanager
def open_mlflow(home: Path) -> Iterator[None]:
    """Starts the server and points MLflow at it."""
    import mlflow

    with open_server(Settings.from_env({"MLOPS_HOME": str(home)})) as server:
        server.wait()
        mlflow.set_tracking_uri(server.url)
        mlflow.set_experiment("bench")
        yield


def run_a(sets: Sets, epochs: int, home: Path) -> Measured:
    return search_with_optuna(sets, epochs, track_nothing, None)


def run_b(sets: Sets, epochs: int, home: Path) -> Measured:
    import mlflow.keras

    with open_mlflow(home):
        mlflow.keras.autolog(silent=True)
        return search_with_optuna(sets, epochs, track_params, None)


def run_c(sets: Sets, epochs: int, home: Path) -> Measured:
    import mlflow.keras  # noqa: F401

    with open_mlflow(home):
        return search_with_optuna(sets, epochs, track_by_hand, None)


def run_d(sets: Sets, epochs: int, home: Path) -> Measured:
    import keras_tuner
    import mlflow.keras

    keras = Keras(epochs)
    space = keras.cnn.space(keras.dataset.input)

    class Given(keras_tuner.Oracle):  # type: ignore[misc]
        """Hands out the sets in order."""

        def populate_space(self, trial_id: str) -> dict[str, Any]:
            return {"status": "RUNNING", "values": sets[int(trial_id)]["params"]}

    class Network(keras_tuner.HyperModel):  # type: ignore[misc]
        def build(self, hp: Any) -> Any:
            params = {
                name: hp.Choice(name, list(one.choices))
                if hasattr(one, "choices")
                else hp.Float(name, one.low, one.high, sampling="log" if one.log else "linear")
                for name, one in space.items()
            }
            seeds = [one["seed"] for one in sets if one["params"] == params]
            return keras.build(params, seeds[0] if seeds else 0)

        def fit(self, hp: Any, model: Any, *args: Any, callbacks: Any = (), **kwargs: Any) -> Any:
            with mlflow.start_run():
                mlflow.log_params(hp.values)
                watch = mlflow.keras.MlflowCallback()
                return keras.fit(model, hp.values, [*callbacks, watch])

    class Tuner(keras_tuner.Tuner):  # type: ignore[misc]
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            began = keras.clock()
            (history,) = super().run_trial(trial, *args, **kwargs)
            keras.note(began, history)
            return history

        def _configure_tensorboard_dir(self, *_: Any) -> None:
            """It would import TensorBoard, which TensorFlow no longer brings and none asks for."""

    with open_mlflow(home):
        tuner = Tuner(
            Given(objective="val_accuracy", max_trials=len(sets)),
            Network(),
            directory=str(home),
            project_name="tuner",
        )
        keras.measured.began = keras.clock()
        tuner.search(verbose=0)
        keras.measured.ended = keras.clock()
    if len(keras.measured.seconds) < len(sets):
        raise RuntimeError("KerasTuner went on after a trial that failed; see above")
    for trial_id in sorted(tuner.oracle.trials):
        keras.score(tuner.load_model(tuner.oracle.trials[trial_id]))
    return keras.measured


class Kept(Cluster):
    """Workers that also keep the weights that each trial leaves, to answer the test rows later."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster._client, cluster._cluster)

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        return super().submit(run_and_keep, call, *args)


def run_and_keep(call: Callable[..., TrialResult], task: Any) -> TrialResult:
    return call(task, fit=fit_and_keep)


def fit_and_keep(training: Training, *args: Any, **kwargs: Any) -> Fitted:
    fitted = fit_network(training, *args, **kwargs)
    training.network.parent.mkdir(parents=True, exist_ok=True)
    path = training.network.parent / f"{training.name}.npz"
    np.savez(path, *fitted.trained.model.get_weights())
    return fitted


def score_kept(sets: Sets, folder: Path) -> list[float]:
    """Returns the test accuracy of each trial's kept weights."""
    keras = Keras(epochs=0)
    for number, one in enumerate(sets):
        model = keras.build(one["params"], one["seed"])
        with np.load(folder / f"cnn-{number:05d}.npz") as weights:
            model.set_weights([weights[name] for name in weights.files])
        keras.score(model)
    return keras.measured.test


def run_e(sets: Sets, epochs: int, home: Path) -> Measured:
    import optuna

    settings = Settings.from_env({"MLOPS_HOME": str(home)})
    storage = open_storage(settings.study_url)
    study = optuna.create_study(study_name=f"{SWEEP}-cnn", storage=storage, direction="maximize")
    for one in sets:
        study.enqueue_trial(one["params"], user_attrs={"seed": one["seed"]})
    config = SweepConfig(
        architectures=("cnn",), trials=len(sets), epochs=epochs, pruner="none", study=SWEEP
    )
    found = search_with_podium(config, settings, Lines())
    for trial in finished(study):
        if trial.params != sets[trial.number]["params"]:
            raise RuntimeError(f"trial {trial.number} has other params than it was given")
    found.test = score_kept(sets, home / "sweeps" / SWEEP / "cnn")
    return found


def search_with_podium(config: SweepConfig, settings: Settings, progress: Lines) -> Measured:
    """Runs a sweep; server and workers start side by side, as `run_sweep` starts them."""
    import optuna

    log = settings.home / "logs" / "workers.log"
    with (
        open_server(settings),
        open_cluster(config.n_workers, config.threads, log) as cluster,
    ):
        result = run_sweep(config, settings=settings, cluster=Kept(cluster), progress=progress)
        ended = time.time()
    if result.undelivered:
        raise RuntimeError(f"{result.undelivered} records are not delivered")
    study = optuna.load_study(study_name=f"{SWEEP}-cnn", storage=open_storage(settings.study_url))
    trials = finished(study)
    return Measured(
        began=min(one.datetime_start.timestamp() for one in trials),
        ended=ended,
        seconds=[one.duration.total_seconds() for one in trials],
        finished=[one.datetime_complete.timestamp() for one in trials],
        val=[one.value if one.state.name == "COMPLETE" else math.nan for one in trials],
    )


def finished(study: Any) -> list[Any]:
    """Returns the complete and the pruned trials, by number."""
    import optuna

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return list(study.get_trials(deepcopy=False, states=states))


class Until(Lines):
    """Asks the sweep to stop when a trial is as good as wanted."""

    def __init__(self, settings: Settings, value: float) -> None:
        super().__init__()
        self._settings, self._value = settings, value

    def update(self, study: str, tally: Tally) -> None:
        super().update(study, tally)
        if tally.value is not None and tally.value >= self._value:
            request_stop(open_storage(self._settings.study_url), SWEEP)


def search_a(n_trials: int, epochs: int, seed: int) -> Measured:
    import optuna

    sampler = optuna.samplers.TPESampler(seed=seed)
    return search_with_optuna(n_trials, epochs, track_nothing, sampler)


def search_e(n_trials: int, epochs: int, seed: int, value: float, home: Path) -> Measured:
    settings = Settings.from_env({"MLOPS_HOME": str(home)})
    config = SweepConfig(
        architectures=("cnn",), trials=n_trials, epochs=epochs, seed=seed, study=SWEEP
    )
    return search_with_podium(config, settings, Until(settings, value))


def in_process(call: Callable[..., Any], *args: Any) -> Any:
    """Runs a call in a fresh process of its own; notes when that was started."""
    started = time.time()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_set_up) as pool:
        found = pool.submit(call, *args).result()
    if isinstance(found, Measured):
        found.started = started
    return found


def _set_up() -> None:
    quiet()
    os.dup2(2, 1)  # what the parts print is not the table


@dataclass(frozen=True)
class Options:
    trials: int = 24
    """Parameter sets, and trials of a's search."""
    epochs: int = 10
    """Epochs of a trial."""
    repeats: int = 1
    """Fresh processes of each way, the ways taking turns."""
    seeds: int = 3
    """Searches of a, and of Podium, in the second table."""
    only: str = "a,b,c,d,e,search"
    """What to run."""


def main(args: Sequence[str] | None = None) -> None:
    typed = sys.argv[1:] if args is None else args
    options = tyro.cli(Options, args=typed, prog="python -m benchmarks.sweep")
    quiet()
    command = " ".join(["python -m benchmarks.sweep", *typed])
    chosen = options.only.split(",")
    ways = [name for name in NAMES if name in chosen]
    if "d" in ways and importlib.util.find_spec("keras_tuner") is None:
        print("d is left out: keras-tuner is not installed.\n", flush=True)
        ways.remove("d")
    if ways:
        compare(options, ways, command)
    if "search" in chosen:
        compare_searches(options, command)


def compare(options: Options, ways: list[str], command: str) -> None:
    calls = {"a": run_a, "b": run_b, "c": run_c, "d": run_d, "e": run_e}
    sets = in_process(draw_sets, options.trials)
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name in ways:
            with tempfile.TemporaryDirectory() as home:
                found[name].append(in_process(calls[name], sets, options.epochs, Path(home)))
            print(f"{NAMES[name]}: {found[name][-1].trial_s:.2f} s a trial", file=sys.stderr)
    mark = hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest()[:12]
    print_heading(
        "The same trials by five ways of working",
        f"digits, CNN, {len(sets)} parameter sets ({mark}), {options.epochs} epochs, no pruning; "
        f"{options.repeats} fresh process(es) a way",
        command,
    )
    trial_s = {
        name: statistics.median(one.trial_s for one in all_of) for name, all_of in found.items()
    }
    print_rows(
        (
            "way",
            "n trials",
            "s a trial",
            "the same with start-up",
            "one trial: least to most s",
            "ratio to a",
            "best: val accuracy",
            "best: test accuracy",
            "test accuracy, mean ± sd",
        ),
        [_row(name, found[name], trial_s[name], trial_s.get("a")) for name in ways],
    )
    if "e" in trial_s:
        for name, most in (("a", 0.5), ("b", 0.07)):
            ratio = trial_s["e"] / trial_s[name] if name in trial_s else None
            print_aim(f"e's seconds a trial, as a share of {name}'s", ratio, most)
    print(flush=True)


def _row(name: str, found: list[Measured], trial_s: float, first: float | None) -> list[object]:
    seconds = [one for each in found for one in each.seconds]
    tests = [one for each in found for one in each.test]
    best = [each.val.index(max(each.val)) for each in found]
    spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
    return [
        NAMES[name],
        len(seconds),
        trial_s,
        statistics.median(one.trial_with_start_s for one in found),
        f"{min(seconds):.2f} to {max(seconds):.2f}",
        None if first is None else f"{trial_s / first:.2f}",
        statistics.mean(each.val[i] for each, i in zip(found, best, strict=True)),
        statistics.mean(each.test[i] for each, i in zip(found, best, strict=True)),
        f"{statistics.mean(tests):.4f} ± {spread:.4f}",
    ]


def compare_searches(options: Options, command: str) -> None:
    rows: list[list[object]] = []
    ratios: list[float] = []
    for seed in range(options.seeds):
        a = in_process(search_a, options.trials, options.epochs, seed)
        value = max(a.val)
        with tempfile.TemporaryDirectory() as home:
            most = MORE_TRIALS * options.trials
            e = in_process(search_e, most, options.epochs, seed, value, Path(home))
        whole_s, own = a.ended - a.began, a.reached_at(value)
        at = e.reached_at(value)
        reached_s = None if at is None else at - e.began
        ratios.append(math.inf if reached_s is None else reached_s / whole_s)
        rows.append(
            [
                seed,
                value,
                whole_s,
                own - a.began,
                "not reached" if reached_s is None else reached_s,
                len(e.seconds),
                f"{ratios[-1]:.2f}",
                None if reached_s is None else f"{reached_s / (own - a.began):.2f}",
                None if at is None else f"{(at - e.started) / (a.ended - a.started):.2f}",
            ]
        )
    print_heading(
        "Time to the accuracy that a plain search ends with",
        f"digits, CNN, {options.epochs} epochs; a: TPE, {options.trials} trials, no pruning, "
        f"untracked; Podium: its defaults, at most {MORE_TRIALS * options.trials} trials, tracked",
        command,
    )
    print_rows(
        (
            "seed",
            "val accuracy",
            "a: whole search, s",
            "a: first there, s",
            "Podium: first there, s",
            "Podium: trials done",
            "ratio to a's whole",
            "ratio to a's first",
            "ratio to a's whole, both with start-up",
        ),
        rows,
    )
    print_aim("median ratio to a's whole search", statistics.median(ratios), 0.4)
    print(flush=True)


if __name__ == "__main__":
    from benchmarks.sweep import main as run

    run()
