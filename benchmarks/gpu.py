"""What a GPU does with small networks, one at a time and many: `python -m benchmarks.gpu`.

The baseline CNN on made-up pictures of CIFAR-10's shape, trained by:

- stock Keras: `Model.fit` on TensorFlow with validation data, as its user gets it;
- Podium, one trial at a time, on TensorFlow (XLA off and on) and on JAX;
- K processes that each train one trial at a time, on TensorFlow;
- populations of P trials in one program, on JAX.

Each way has processes of its own. A trial is all that a sweep's worker does for it but telling of
it: it builds the network, traces and compiles, trains, validates after each epoch. Trials an hour
count all that, after one trial that warms the process up; of a population all its members count.
Images a second are the training rows over the time of an epoch, validation included, the first
epoch of a trial, which compiles, left out.

The share of the ceiling is the arithmetic that the network needs (two operations a multiplication
and addition; a training step is three forward passes, validation one) over what the device did
when it multiplied large matrices, by the same backend and in the same precision. Memory is the most
that a process' allocator held on the GPU, or on a CPU the most that the process held.

`--small` takes minutes on a CPU: few pictures, few members. On a CPU each process computes by one
thread, as in a sweep, and so does the ceiling.

A GPU needs the packages that bring CUDA: `pip install 'jax[cuda12]'`, `'tensorflow[and-cuda]'`. A
machine that has JAX alone measures JAX's ways alone.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.models import coloured_pictures
from benchmarks.tables import print_aim, print_heading, print_rows
from experiments.built_in import BUILT_IN
from experiments.numerics import Numerics, Precision, Xla

Backend = Literal["tensorflow", "jax"]
BACKENDS: tuple[Backend, ...] = ("tensorflow", "jax")
MEET_S = 600.0
"""Seconds until all processes of a way have trained their first trial."""
AIM = 20.0
"""Times the trials an hour of one at a time, that a population of `AIM_SIZE` should do."""
AIM_SIZE = 64


@dataclass(frozen=True, slots=True)
class Options:
    """Train the baseline CNN on pictures of CIFAR-10's shape in every way there is."""

    images: int = 50_000
    """Pictures; of them somewhat more than half are trained on, a fifth validates."""
    epochs: int = 5
    """Epochs of a trial."""
    rounds: int = 3
    """Trials of each way, or populations, one after another."""
    populations: tuple[int, ...] = (1, 4, 16, 64)
    """Members of a population."""
    processes: tuple[int, ...] = (2, 4, 8)
    """Processes that train at the same time on one device."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    backends: tuple[Backend, ...] = BACKENDS
    """Those that are not installed are left out, with a word."""
    matrix: int = 8192
    """Side of the matrices whose product is the ceiling."""
    small: bool = False
    """Few of all that, for a CPU."""

    def sized(self) -> Options:
        if not self.small:
            return self
        return replace(
            self, images=600, epochs=3, rounds=3, populations=(1, 4), processes=(2,), matrix=1024
        )


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train.

    Attributes:
        size: Members of a population; 0 trains without one.
        processes: That train at the same time.
        stock: Whether Keras' own `fit` trains.
    """

    backend: Backend
    precision: Precision
    xla: Xla = "auto"
    size: int = 0
    processes: int = 1
    stock: bool = False

    @property
    def name(self) -> str:
        backend = {"tensorflow": "TensorFlow", "jax": "JAX"}[self.backend]
        if self.stock:
            return f"stock Keras, Model.fit, {backend}"
        if self.size:
            return f"population of {self.size}, {backend}"
        xla = "" if self.xla == "auto" else f", XLA {self.xla}"
        if self.processes > 1:
            return f"{self.processes} processes, one at a time, {backend}{xla}"
        return f"one at a time, {backend}{xla}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process did.

    Attributes:
        device: What it computed on.
        on_gpu: Whether that is a GPU.
        trials_s: Seconds of each round; `n_trials` are done in one.
        epochs_s: Seconds of each epoch but the first of a round; all members train in one.
        n_train, n_val: Rows of one network.
        flops: Operations of one forward pass of one row.
        memory_mb: The most that was held, in megabytes of 10**6 bytes.
    """

    device: str
    on_gpu: bool
    n_trials: int
    trials_s: list[float]
    epochs_s: list[float]
    n_train: int
    n_val: int
    flops: float
    memory_mb: float

    @property
    def trials_an_hour(self) -> float:
        return 3600 * self.n_trials / statistics.median(self.trials_s)

    @property
    def images_a_second(self) -> list[float]:
        return [self.n_trials * self.n_train / one for one in self.epochs_s]

    @property
    def flops_a_second(self) -> float:
        work = self.n_trials * self.flops * (3 * self.n_train + self.n_val)
        return work / statistics.median(self.epochs_s)


# In the processes.

_meeting: Any = None


def set_up(backend: Backend, meeting: Any) -> None:
    """Makes a fresh process compute by a backend, and take the GPU's memory as it needs it."""
    global _meeting
    _meeting = meeting
    os.environ["KERAS_BACKEND"] = backend
    # So that several processes share a GPU, and that what they hold says something.
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from experiments.trial import set_up_process

    set_up_process(threads=1)


def measure(way: Way, options: Options, pictures: Path) -> Measured:
    """Trains a trial or a population that does not count, waits for the others, then the rounds."""
    import numpy as np

    from experiments.architectures import open_architecture
    from mlops.data import load_dataset

    cnn, dataset = open_architecture(BUILT_IN["cnn"]), load_dataset(str(pictures))
    params = cnn.baseline(dataset.input)
    model = cnn.build(params, dataset.input, len(dataset.class_names))
    flops = forward_flops(model)
    counts = dataset.counts()

    def run(number: int, epochs: int) -> list[float]:
        if way.stock:
            return fit_stock(cnn, params, dataset, number, epochs, way.precision)
        if way.size:
            return train_population(cnn, params, dataset, number, epochs, way)
        from experiments.training import train

        numerics = Numerics(way.precision, way.xla)
        done = train(cnn, params, dataset, seed=number, epochs=epochs, numerics=numerics)
        return [one["epoch_s"] for one in done.history]

    run(0, 1)
    _meeting.wait(MEET_S)
    trials_s, epochs_s = [], []
    for number in range(1, options.rounds + 1):
        began = time.perf_counter()
        epochs_s += run(number, options.epochs)[1:]
        trials_s.append(time.perf_counter() - began)
    assert np.isfinite(epochs_s).all()
    device, on_gpu = find_device()
    return Measured(
        device=device,
        on_gpu=on_gpu,
        n_trials=way.size or 1,
        trials_s=trials_s,
        epochs_s=epochs_s,
        n_train=counts["train"],
        n_val=counts["val"],
        flops=flops,
        memory_mb=peak_memory_mb(),
    )


def fit_stock(
    cnn: Any, params: dict[str, Any], dataset: Any, seed: int, epochs: int, precision: Precision
) -> list[float]:
    """Trains as Keras' own guides do, in its own mixed precision; returns seconds an epoch."""
    import keras

    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: ends.append(time.perf_counter()),
    )
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy("float32" if precision == "float32" else "mixed_bfloat16")
    model = cnn.build(params, dataset.input, len(dataset.class_names))
    x, y = dataset.part("train")
    began = time.perf_counter()
    model.fit(
        x,
        y,
        validation_data=dataset.part("val"),
        epochs=epochs,
        batch_size=params["batch_size"],
        callbacks=[clock],
        verbose=0,
    )
    return [after - before for before, after in zip([began, *ends], ends, strict=False)]


def train_population(
    cnn: Any, params: dict[str, Any], dataset: Any, number: int, epochs: int, way: Way
) -> list[float]:
    """Trains a population with a learning rate each; returns seconds an epoch of all together."""
    from experiments.population import Member, Population

    outcomes: list[Any] = []

    def members() -> Iterator[Member]:
        for place in range(way.size):
            own = {**params, "learning_rate": 3e-4 * 10 ** (place / way.size)}
            yield Member(own, 1000 * number + place, lambda *_: False, outcomes.append)

    population = Population(
        cnn,
        dataset,
        size=way.size,
        epochs=epochs,
        objective="val_accuracy",
        numerics=Numerics(way.precision),
    )
    population.train(members())
    for one in outcomes:
        if isinstance(one, Exception):
            raise one
    return [one["epoch_s"] for one in outcomes[0].history]


def forward_flops(model: Any) -> float:
    """Returns the operations of a forward pass of one row: those of matrix products alone."""
    import math

    import keras

    total = 0
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            places = math.prod(layer.output.shape[1:-1])
            total += 2 * places * math.prod(layer.kernel.shape)
    return float(total)


def measure_ceiling(precision: Precision, side: int) -> tuple[float, str]:
    """Returns the operations a second of a product of two square matrices, the best of some."""
    import keras
    import numpy as np

    values = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    seconds = []
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        matrix = tf.cast(tf.constant(values), precision)
        tf_product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)))

        def multiply() -> None:
            float(tf_product(matrix))
    else:
        import jax
        import jax.numpy as jnp

        array = jnp.asarray(values, precision)
        product = jax.jit(lambda a: jnp.sum(a @ a))

        def multiply() -> None:
            float(product(array))

    for _ in range(10):
        began = time.perf_counter()
        multiply()  # to the end: a number comes back
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds), find_device()[0]


def find_device() -> tuple[str, bool]:
    """Returns the name of what Keras computes on, and whether it is a GPU."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(device)
            return str(details.get("device_name", "a GPU")), True
        return "CPU", False
    import jax

    first = jax.local_devices()[0]
    return ("CPU", False) if first.platform == "cpu" else (str(first.device_kind), True)


def peak_memory_mb() -> float:
    import keras

    if not find_device()[1]:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return float(tf.config.experimental.get_memory_info("GPU:0")["peak"]) / 1e6
    import jax

    return float(jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]) / 1e6


# In the program.


def ways_of(options: Options) -> list[Way]:
    """Returns all ways, stock Keras first; those of one precision together."""
    found: list[Way] = []
    for precision in options.precisions:
        if "tensorflow" in options.backends:
            found.append(Way("tensorflow", precision, stock=True))
            found += [Way("tensorflow", precision, xla) for xla in ("off", "on")]
            found += [Way("tensorflow", precision, processes=n) for n in options.processes]
        if "jax" in options.backends:
            found.append(Way("jax", precision))
            found += [Way("jax", precision, size=size) for size in options.populations]
    return found


def run_way(way: Way, options: Options, pictures: Path) -> list[Measured]:
    context = multiprocessing.get_context("spawn")
    meeting = context.Barrier(way.processes)
    with ProcessPoolExecutor(
        way.processes, mp_context=context, initializer=set_up, initargs=(way.backend, meeting)
    ) as pool:
        tasks = [pool.submit(measure, way, options, pictures) for _ in range(way.processes)]
        return [task.result() for task in tasks]


def run_ceiling(backend: Backend, precision: Precision, side: int) -> tuple[float, str]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=set_up, initargs=(backend, None)
    ) as pool:
        return pool.submit(measure_ceiling, precision, side).result()


def main(args: Sequence[str] | None = None) -> None:
    typed = sys.argv[1:] if args is None else args
    options = tyro.cli(Options, args=typed, prog="python -m benchmarks.gpu").sized()
    missing = [one for one in options.backends if importlib.util.find_spec(one) is None]
    options = replace(
        options, backends=tuple(one for one in options.backends if one not in missing)
    )
    command = " ".join(["python -m benchmarks.gpu", *typed])
    ceilings = print_ceilings(options, command)
    with tempfile.TemporaryDirectory() as folder:
        coloured_pictures(Path(folder), options.images)
        print_ways(options, ceilings, Path(folder) / "coloured.npz", command)
    for one in missing:
        print(f"- {one} is not installed: its ways were not measured.")


Ceilings = dict[tuple[Backend, Precision], float]


def print_ceilings(options: Options, command: str) -> Ceilings:
    """Prints what the device does at most, in operations a second."""
    found: Ceilings = {}
    rows = []
    device = ""
    for backend in options.backends:
        for precision in options.precisions:
            flops, device = run_ceiling(backend, precision, options.matrix)
            found[backend, precision] = flops
            rows.append((backend, precision, flops / 1e12))
    print_heading(
        "The ceiling: a product of large matrices",
        f"two square matrices of {options.matrix}, the best of 10. Device: {device}, 1 thread "
        "where it is a CPU",
        command,
    )
    print_rows(("backend", "precision", "10^12 operations a second"), rows)
    return found


def print_ways(options: Options, ceilings: Ceilings, pictures: Path, command: str) -> None:
    done: dict[Way, list[Measured]] = {}
    failed: dict[Way, str] = {}
    for way in ways_of(options):
        try:
            done[way] = run_way(way, options, pictures)
        except Exception as err:  # it may be too large for the device: the others go on
            failed[way] = f"{type(err).__name__}: {str(err).strip()[:200]}"
        print(way.name, way.precision, failed.get(way, "done"), file=sys.stderr)
    some = next(iter(done.values()))[0]
    print_heading(
        "Trials of a small network on one device",
        f"baseline CNN, batches of 32, made-up pictures of 32 x 32 x 3 in uint8: {some.n_train} "
        f"to train, {some.n_val} to validate; {options.epochs} epochs a trial; "
        f"rounds: n = {options.rounds}. Device: {some.device}",
        command,
    )
    print_rows(
        (
            "way",
            "precision",
            "images a second, median",
            "least",
            "most",
            "trials an hour",
            "times the first of its precision",
            "share of the ceiling, %",
            "MB a process",
        ),
        [_row(way, found, done, ceilings) for way, found in done.items()],
    )
    for way, reason in failed.items():
        print(f"- {way.name}, {way.precision}: failed ({reason}).")
    for precision in options.precisions:
        _print_aims(precision, done)


def _row(
    way: Way, found: list[Measured], done: dict[Way, list[Measured]], ceilings: Ceilings
) -> Sequence[object]:
    first = next(measured for other, measured in done.items() if other.precision == way.precision)
    # Of several processes the sum: they trained at the same time.
    images = [sum(one) for one in zip(*(one.images_a_second for one in found), strict=True)]
    # A GPU's ceiling is for all of them; a CPU's is one thread's, and each has its own.
    ceiling = ceilings[way.backend, way.precision] * (1 if found[0].on_gpu else len(found))
    share = sum(one.flops_a_second for one in found) / ceiling
    return (
        way.name,
        way.precision,
        statistics.median(images),
        min(images),
        max(images),
        _trials_an_hour(found),
        f"{_trials_an_hour(found) / _trials_an_hour(first):.2f}",
        100 * share,
        max(one.memory_mb for one in found),
    )


def _trials_an_hour(found: list[Measured]) -> float:
    return sum(one.trials_an_hour for one in found)


def _print_aims(precision: Precision, done: dict[Way, list[Measured]]) -> None:
    """Prints the aim, beside stock Keras and beside the better of Podium's own ways alone."""
    population = done.get(Way("jax", precision, size=AIM_SIZE))
    rivals = {
        "stock Keras": [Way("tensorflow", precision, stock=True)],
        "Podium's one at a time on TensorFlow": [
            Way("tensorflow", precision, "off"),
            Way("tensorflow", precision, "on"),
        ],
    }
    for name, ways in rivals.items():
        there = [done[way] for way in ways if way in done]
        found = None
        if population and population[0].on_gpu and there:
            found = _trials_an_hour(population) / max(map(_trials_an_hour, there))
        print_aim(
            f"on a GPU, {precision}, trials an hour of a population of {AIM_SIZE} as a multiple "
            f"of {name}",
            found,
            least=AIM,
        )


if __name__ == "__main__":
    from benchmarks.gpu import main as run

    run()
