"""Wall time of a promotion by step: `python -m benchmarks.promotion`.

A DNN of about 5 MB on the digits is promoted in a process of its own, as a person types it: first
without a champion, then against one. What loads libraries (the program's own imports, and
TensorFlow in the child that asks the models) and what scores the test rows are told apart from the
rest, which is what the aim is about. The gate of latency is off by default; it is timed apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.models import package, register
from benchmarks.tables import print_aim, print_heading, print_rows
from mlops.settings import Settings, quiet

AIM_S = 5.0
NAME = "digits-classifier"
COMMAND = "python -m benchmarks.promotion"
IMPORTS = "loading this program's libraries"
PROBE = "child: TensorFlow, models loaded, test rows answered three times over"
STEPS = (
    IMPORTS,
    "opening registry and ledger",
    PROBE,
    "signing and verifying",
    "requests to MLflow, and its files",
    "events of the ledger",
    "the rest: checks, gates, statement, card",
)


def main() -> None:
    parser = argparse.ArgumentParser(COMMAND, description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    quiet()
    if asked.one:
        home, version = asked.one
        print(json.dumps(_promote_timed(Path(home), int(version))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings.from_env({"MLOPS_HOME": scratch})
        size = _prepare(settings, asked.rounds)
        rounds = range(1, asked.rounds + 1)
        timings = [_in_its_own_process(settings.home, version) for version in rounds]
        startup = [_time_startup() for _ in range(asked.rounds)]
        serving = _time_serving(settings)
    _print(timings, startup, serving, size)


def _prepare(settings: Settings, n: int) -> int:
    """Registers candidates with a network of about 5 MB, as a sweep does; returns its bytes."""
    import keras

    from mlops.data import load_dataset

    dataset = load_dataset("digits")
    keras.utils.set_random_seed(0)
    rows = keras.Input(dataset.input.shape, dtype=dataset.input.dtype)
    hidden = keras.layers.Flatten()(keras.layers.Rescaling(1 / 16)(rows))
    for _ in range(2):
        hidden = keras.layers.Dense(1060, activation="relu")(hidden)
    network = keras.Model(rows, keras.layers.Softmax()(keras.layers.Dense(10)(hidden)))
    network.compile("adam", "sparse_categorical_crossentropy")
    x, y = dataset.part("train")
    network.fit(x, y, epochs=3, verbose=0)
    folder = settings.home / "model"
    package(keras.Model(network.inputs, network.outputs), dataset, "dnn", folder)
    register(settings, NAME, dataset, [folder] * n)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_its_own_process(home: Path, version: int) -> dict[str, float]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.promotion", "--one", str(home), str(version)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    found["whole"] = time.perf_counter() - began
    return found


class _Timed:
    """Stands for an object, and adds up how long its methods take; of nested ones the outer."""

    def __init__(self, inner: Any, step: str, spent: dict[str, float]) -> None:
        self._of = (inner, step, spent)

    def __getattr__(self, name: str) -> Any:
        inner, step, spent = self._of
        found = getattr(inner, name)
        if not callable(found):
            return found
        if name == "lease":
            return found
        return _timed(found, step, spent)


def _timed(function: Callable[..., Any], step: str, spent: dict[str, float]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _timing(step, spent):
            return function(*args, **kwargs)

    return run


@contextmanager
def _timing(step: str, spent: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        spent[step] += time.perf_counter() - began


def _promote_timed(home: Path, version: int) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    with _timing(IMPORTS, spent):
        import mlflow
        import model_signing.signing
        import model_signing.verifying

        from registry import deciding, promote, publishing, releases  # noqa: F401
        from registry.alias import open_registry
    assert mlflow and model_signing
    with _timing(STEPS[1], spent):
        opened = open_registry(Settings.from_env({"MLOPS_HOME": str(home)}))
        registry = opened.__enter__()
    for module, name in ((publishing, "sign"), (releases, "verify")):
        setattr(module, name, _timed(getattr(module, name), STEPS[3], spent))
    catalog: Any = _Timed(registry.catalog, STEPS[4], spent)
    ledger: Any = _Timed(registry.ledger, STEPS[5], spent)
    probe = _timed(registry.probe, PROBE, spent)
    timed = dataclasses.replace(registry, catalog=catalog, ledger=ledger, probe=probe)
    done = promote.promote(timed, NAME, version)
    assert done.decision == "promoted", done
    opened.__exit__(None, None, None)
    spent[STEPS[6]] = time.perf_counter() - began - sum(spent.values())
    return dict(spent)


def _time_startup() -> float:
    """Seconds until Python has loaded what the child loads before it asks a model."""
    code = "import mlflow.pyfunc, tensorflow, keras, mlops.packaging"
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    return time.perf_counter() - began


def _time_serving(settings: Settings) -> float:
    from mlops.packaging import check_model_folder
    from registry.golden import golden_requests
    from registry.serving_probe import measure_serving

    folder = settings.home / "model"
    requests = golden_requests(check_model_folder(folder).input, n=1)
    began = time.perf_counter()
    measure_serving(folder, json.dumps({"inputs": requests}).encode())
    return time.perf_counter() - began


def _print(
    timings: list[dict[str, float]], startup: list[float], serving: float, size: int
) -> None:
    print_heading(
        "A promotion, step by step",
        f"digits, DNN of {size / 1e6:.1f} MB, embedded store; the first round without a champion",
        COMMAND,
    )
    first, *others = timings
    rows = [
        (step, len(others), _median(others, step), *_range(others, step), first.get(step))
        for step in (*STEPS, "whole")
    ]
    print_rows(("step", "n", "median s", "least", "most", "first promotion, s"), rows)
    print(f"- Libraries of the child alone: {statistics.median(startup):.1f} s, n {len(startup)}.")
    print(f"- The gates of latency and memory (off by default), once: {serving:.1f} s.")
    beyond = [one["whole"] - one[IMPORTS] - one[PROBE] for one in others]
    print_aim(
        "beyond library start-up, the scoring of test rows and the latency gate, s",
        statistics.median(beyond),
        AIM_S,
    )


def _median(timings: list[dict[str, float]], step: str) -> float:
    return statistics.median(one.get(step, 0.0) for one in timings)


def _range(timings: list[dict[str, float]], step: str) -> tuple[float, float]:
    values = [one.get(step, 0.0) for one in timings]
    return min(values), max(values)


if __name__ == "__main__":
    main()
