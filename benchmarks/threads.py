"""How many threads a worker should compute with: `python -m benchmarks.threads`.

The machine's cores are given to many workers with one thread each, or to one worker with all of
them, while each trains the same CNN for some epochs. What counts is how many rows all workers
together train a second, after the first epoch, which compiles. One thread a worker is the sweep's
default (`--threads`): a trial's weights repeat only under the same number.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks.tables import print_heading, print_rows
from experiments.trial import set_up_process
from mlops.settings import quiet

ROUNDS = 3
EPOCHS = 4


@dataclass(frozen=True, slots=True)
class Size:
    """A network and its rows; `filters` of the first convolution."""

    name: str
    side: int
    channels: int
    n_rows: int
    filters: int
    batch_size: int = 64


SIZES = (
    Size("digits: 8 x 8 x 1, 32 filters", 8, 1, 1051, 32),
    Size("MNIST: 28 x 28 x 1, 32 filters", 28, 1, 4000, 32),
    Size("CIFAR-10: 32 x 32 x 3, 64 filters", 32, 3, 2000, 64),
)


def train(size: Size, threads: int, began_at: float) -> float:
    """Trains in a fresh process; returns rows a second of the epochs after the first.

    Args:
        began_at: Seconds since 1970 at which all workers begin to train.
    """
    quiet()
    set_up_process(threads)
    import keras

    from experiments.architectures.preprocessing import compile_classifier
    from experiments.passes import open_passes

    rng = np.random.default_rng(0)
    x = rng.random((size.n_rows, size.side, size.side, size.channels), dtype=np.float32)
    y = rng.integers(0, 10, size.n_rows)
    inputs = keras.Input(x.shape[1:])
    h = keras.layers.Conv2D(size.filters, 3, activation="relu")(inputs)
    h = keras.layers.MaxPooling2D(2)(h)
    h = keras.layers.Conv2D(2 * size.filters, 3, activation="relu")(h)
    h = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(h))
    model = compile_classifier(keras.Model(inputs, keras.layers.Dense(10)(h)), 1e-3)
    passes = open_passes(model, (x, y))
    order = np.arange(size.n_rows)
    passes.train((x, y), order, size.batch_size)
    time.sleep(max(0.0, began_at - time.time()))
    began = time.perf_counter()
    for _ in range(EPOCHS):
        passes.train((x, y), order, size.batch_size)
    return EPOCHS * size.n_rows / (time.perf_counter() - began)


def measure(size: Size, workers: int, threads: int) -> float:
    """Returns the rows a second of all workers together."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        began_at = time.time() + 25.0  # TensorFlow's import and the first epoch are over by then
        return sum(pool.map(train, *zip(*[(size, threads, began_at)] * workers, strict=True)))


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    ways = {(cores, 1), (1, cores)}
    print_heading(
        "Threads a worker",
        f"random rows, two convolutions and two dense layers, batches of 64; medians of {ROUNDS}",
        "python -m benchmarks.threads",
    )
    rows = []
    for size in SIZES:
        found = {way: [measure(size, *way) for _ in range(ROUNDS)] for way in sorted(ways)}
        first = statistics.median(found[cores, 1])
        for (workers, threads), rates in found.items():
            median = statistics.median(rates)
            rows.append(
                (size.name, workers, threads, median, min(rates), max(rates), median / first)
            )
    print_rows(
        ("network", "workers", "threads", "rows a second", "least", "most", "ratio to one thread"),
        rows,
    )


if __name__ == "__main__":
    main()
