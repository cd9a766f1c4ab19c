"""How often a watcher cries without a cause, and what it sees: `python -m benchmarks.drift`.

Five VAEs with the baseline's params on scikit-learn's digits. Each is given 900 of the 1,797 rows,
split as Podium splits any data, and packaged as a sweep packages its candidates; scores are those
that the packaged model answers. Its test rows and the 897 rows that it was never given are unseen
by it. Of these, again and again at random, 270 are the reference (the test split of all digits
has 385) and others the stream: no row of a window is one of the reference's.

Without a shift: a window of 500 such rows for each of many such draws. For long streams there are
too few digits; both statistics depend on the ranks of scores alone, so uniform numbers say what any
scores would.

With a shift: the same, with the stream's rows corrupted, in the ways of Hendrycks & Dietterich 2019
("Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", section 3) and of
Mu & Gilmer 2019 ("MNIST-C", section 3) that make sense for 8 x 8 pixels. Windows of one stream are
drawn without replacement each, and share rows with one another. The accuracy beside it is of the
baseline CNN, trained on the same rows: a shift may be seen that does no harm, or do harm unseen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tables import print_heading, print_rows
from registry.drift import Rule, Window, build_reference, judge_window

WHITE = 16.0
REFERENCE_ROWS = 270
WINDOW_ROWS = 500
STREAM = 6
"""Windows of a stream with a shift."""
GROWTH = 20
"""Windows over which a shift grows."""
RULE = Rule()
RULES: dict[str, Callable[[Window], bool]] = {
    "KS p < 0.001": lambda one: one.ks_p < 0.001,
    "PSI > 0.1": lambda one: one.psi > 0.1,
    "PSI > 0.2": lambda one: one.psi > 0.2,
    "KS p < 0.001 and PSI > 0.1": lambda one: one.ks_p < 0.001 and one.psi > 0.1,
    "KS p < 0.001 and PSI > 0.2": lambda one: one.ks_p < 0.001 and one.psi > 0.2,
}

Rows = npt.NDArray[np.float64]
Corruption = Callable[[Rows, np.random.Generator], Rows]


@dataclass(frozen=True, slots=True)
class World:
    """One VAE, and the rows that it has not seen.

    Attributes:
        score: Anomaly scores of rows, as the packaged model answers them.
        classify: Class of rows, by a CNN that was trained on the same rows.
        rows: (n, 8, 8, 1), 0 to 16; y: (n,) their digits.
    """

    score: Callable[[Rows], Rows]
    classify: Callable[[Rows], npt.NDArray[np.int64]]
    rows: Rows
    y: npt.NDArray[np.int64]


def noise(deviation: float) -> Corruption:
    def apply(rows: Rows, random: np.random.Generator) -> Rows:
        return rows + random.normal(0, deviation * WHITE, rows.shape)

    return apply


def blur(deviation: float) -> Corruption:
    from scipy.ndimage import gaussian_filter

    def apply(rows: Rows, _: Any) -> Rows:
        blurred: Rows = gaussian_filter(rows, (0, deviation, deviation, 0))
        return blurred

    return apply


def contrast(factor: float) -> Corruption:
    def apply(rows: Rows, _: Any) -> Rows:
        mean = rows.mean(axis=(1, 2, 3), keepdims=True)
        changed: Rows = (rows - mean) * factor + mean
        return changed

    return apply


def brightness(more: float) -> Corruption:
    return lambda rows, _: rows + more * WHITE


def move(pixels: int) -> Corruption:
    """Moves each row left, right, up or down; what comes in is black."""

    def apply(rows: Rows, random: np.random.Generator) -> Rows:
        ways = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])[random.integers(0, 4, len(rows))]
        wide = np.pad(rows, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
        starts = pixels * (1 - ways)
        return np.array(
            [
                row[down : down + 8, right : right + 8]
                for row, (down, right) in zip(wide, starts, strict=True)
            ]
        )

    return apply


def rotation(degrees: float) -> Corruption:
    from scipy.ndimage import rotate

    turn = partial(rotate, mode="grid-constant")  # "constant" makes the outermost pixels black

    def apply(rows: Rows, random: np.random.Generator) -> Rows:
        signs = random.choice([-1, 1], len(rows))
        turned = [
            turn(row, sign * degrees, (0, 1), reshape=False, order=1)
            for row, sign in zip(rows, signs, strict=True)
        ]
        return np.array(turned)

    return apply


def invert(share: float) -> Corruption:
    """Black for white, in a share of the rows."""

    def apply(rows: Rows, random: np.random.Generator) -> Rows:
        chosen = random.random(len(rows)) < share
        return np.where(chosen[:, None, None, None], WHITE - rows, rows)

    return apply


def corruptions() -> Iterator[tuple[str, str, Corruption]]:
    """Yields kind, severity and what it does to rows."""
    for deviation in (0.02, 0.05, 0.1, 0.2):
        yield "Gaussian noise", f"deviation {deviation:g} of white", noise(deviation)
    for deviation in (0.3, 0.5, 0.7, 1.0):
        yield "Gaussian blur", f"deviation {deviation:g} pixels", blur(deviation)
    for factor in (0.9, 0.75, 0.5):
        yield "contrast", f"times {factor:g}", contrast(factor)
    for more in (-0.1, 0.02, 0.05, 0.1):
        yield "brightness", f"{more:+g} of white", brightness(more)
    for pixels in (1, 2):
        yield "move", f"{pixels} pixel{'s' if pixels > 1 else ''}, one of 4 ways", move(pixels)
    for degrees in (5, 10, 20, 45):
        yield "rotation", f"{degrees} degrees, either way", rotation(degrees)
    for share in (0.05, 0.1, 0.25, 1.0):
        yield "inversion", f"{share:.0%} of the rows", invert(share)


def mixes() -> Iterator[tuple[str, Sequence[float]]]:
    """Yields a class mix and the weight of each digit in it."""
    yield "only 0 to 4", [1.0] * 5 + [0.0] * 5
    yield "only 5 to 9", [0.0] * 5 + [1.0] * 5
    yield "only 1", [float(digit == 1) for digit in range(10)]
    yield "only 8", [float(digit == 8) for digit in range(10)]
    yield "8 five times as often", [5.0 if digit == 8 else 1.0 for digit in range(10)]


def build_world(seed: int, folder: Path) -> World:
    import keras
    from sklearn.datasets import load_digits

    from benchmarks.models import baseline_cnn
    from experiments.architectures import open_architecture
    from experiments.built_in import BUILT_IN
    from mlops.data import load_dataset
    from mlops.packaging import ModelSpec, build_model_folder, load_model, save_network

    keras.utils.set_random_seed(seed)
    digits = load_digits()
    rows, y = digits.images[..., None].astype(np.float32), digits.target
    order = np.random.default_rng(seed).permutation(len(rows))
    given, kept = order[:900], order[900:]
    folder.mkdir()
    np.savez(folder / "digits.npz", x=rows[given], y=y[given])
    dataset = load_dataset(str(folder / "digits.npz"))
    vae = open_architecture(BUILT_IN["vae"])
    model = vae.build(vae.baseline(dataset.input), dataset.input, 10)
    x, _ = dataset.part("train")
    model.fit(x, epochs=60, batch_size=32, verbose=0)
    save_network(vae.to_package(model), folder / "n.keras")
    spec = ModelSpec(
        task="vae",
        architecture="vae",
        input=dataset.input,
        class_names=(),
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        likelihood=vae.likelihood(dataset.input),
    )
    build_model_folder(folder / "n.keras", spec, folder / "model")
    packaged = load_model(folder / "model")
    cnn = baseline_cnn(dataset, epochs=15)

    def score(rows: Rows) -> Rows:
        answers = packaged.predict(rows.astype(np.float32))
        return np.array([one["anomaly_score"] for one in answers])

    def classify(rows: Rows) -> npt.NDArray[np.int64]:
        return np.asarray(cnn.predict(rows.astype(np.float32), verbose=0).argmax(axis=1))

    names = np.array([int(name) for name in dataset.class_names])
    test, labels = dataset.requests("test"), names[dataset.labels("test")]
    unseen = np.concatenate([rows[kept], test]).astype(np.float64)
    return World(score, classify, unseen, np.concatenate([y[kept], labels]))


def split(n: int, random: np.random.Generator) -> tuple[Any, Any]:
    """Returns which rows are the reference's and which the stream's."""
    order = random.permutation(n)
    return order[:REFERENCE_ROWS], order[REFERENCE_ROWS:]


def interval(n_hits: int, n: int) -> str:
    """Returns a share with its 95 % interval (Clopper & Pearson 1934), in per cent."""
    from scipy.stats import beta

    low = beta.ppf(0.025, n_hits, n - n_hits + 1) if n_hits else 0.0
    high = beta.ppf(0.975, n_hits + 1, n - n_hits) if n_hits < n else 1.0
    return f"{100 * n_hits / n:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def unshifted(worlds: Sequence[World], n: int) -> list[Window]:
    """Judges n windows without a shift, of real digits."""
    windows = []
    for number, world in enumerate(worlds):
        random = np.random.default_rng(1000 + number)
        scores = world.score(world.rows)
        for _ in range(n // len(worlds)):
            mine, stream = split(len(scores), random)
            reference = build_reference(scores[mine])
            windows.append(judge_window(reference, scores[stream[:WINDOW_ROWS]], RULE))
    return windows


def print_unshifted(windows: Sequence[Window], n_worlds: int) -> None:
    print_heading(
        "Windows without a shift: flagged, % (95 % interval)",
        f"digits; {len(windows)} windows of {WINDOW_ROWS} rows, each with a reference of "
        f"{REFERENCE_ROWS} rows of its own; {n_worlds} VAEs",
        "python -m benchmarks.drift",
    )
    p = np.array([one.ks_p for one in windows])
    rows = [(f"p < {alpha:g}", interval(int((p < alpha).sum()), len(p))) for alpha in (0.1, 0.01)]
    rows += [
        (name, interval(sum(map(rule, windows)), len(windows))) for name, rule in RULES.items()
    ]
    print_rows(("rule", "flagged, %"), rows)
    psi = np.array([one.psi for one in windows])
    shares = np.quantile(psi, [0.5, 0.95, 0.99]).round(3).tolist()
    print(f"PSI without a shift: median {shares[0]}, 95 % below {shares[1]}, 99 % {shares[2]}.\n")


def simulated(n_reference: int, n_streams: int, length: int) -> tuple[int, int, int, float]:
    """Returns of streams without a shift: shifted windows, most of one stream, drifted streams, s.

    The last is the share of all windows during which a stream was drifted.
    """
    random = np.random.default_rng(n_reference)
    hits, most, drifted, during = 0, 0, 0, 0
    for _ in range(n_streams):
        reference = build_reference(1.0 + random.random(n_reference))
        shifted: list[bool] = []
        is_drifted, ever = False, False
        for _ in range(length):
            window = judge_window(reference, 1.0 + random.random(WINDOW_ROWS), RULE)
            shifted.append(window.shifted)
            is_drifted = RULE.is_drifted(is_drifted, shifted)
            ever |= is_drifted
            during += is_drifted
        hits += sum(shifted)
        most = max(most, sum(shifted))
        drifted += ever
    return hits, most, drifted, during / (n_streams * length)


def print_simulated(n_streams: int, length: int) -> None:
    print_heading(
        "Long streams without a shift, one reference each",
        f"uniform scores; {n_streams} streams of {length} windows of {WINDOW_ROWS} rows",
        "python -m benchmarks.drift",
    )
    rows = []
    for n in (135, 270, 1000, 10_000):
        hits, most, drifted, during = simulated(n, n_streams, length)
        shifted = interval(hits, n_streams * length)
        rows.append((n, shifted, most, interval(drifted, n_streams), f"{100 * during:.3f}"))
    print_rows(
        (
            "rows of the reference",
            "shifted windows, %",
            "most in one stream",
            f"streams that were ever drifted in {length} windows, %",
            "windows during which they were, %",
        ),
        rows,
    )


def watch_stream(reference_scores: Rows, draws: Iterator[Rows]) -> tuple[list[Window], int | None]:
    """Returns the windows of a stream, and after how many it was drifted; None where never."""
    reference = build_reference(reference_scores)
    windows: list[Window] = []
    since, was = None, False
    for scores in draws:
        windows.append(judge_window(reference, scores, RULE))
        was = RULE.is_drifted(was, [one.shifted for one in windows])
        if was and since is None:
            since = len(windows)
    return windows, since


@dataclass(slots=True)
class Found:
    """What was seen of one shift."""

    windows: list[Window]
    since: list[int | None]
    accuracy: list[float]

    def row(self, *names: str) -> tuple[object, ...]:
        late = [one for one in self.since if one is not None]
        shifted = sum(one.shifted for one in self.windows) / len(self.windows)
        psi = float(np.median([one.psi for one in self.windows]))
        return (
            *names,
            f"{100 * np.mean(self.accuracy):.1f}",
            f"{psi:.2f}",
            f"{100 * shifted:.1f}",
            f"{100 * len(late) / len(self.since):.1f}",
            f"{np.median(late):.0f}" if late else None,
        )


def detect(worlds: Sequence[World], corrupt: Corruption, n_streams: int) -> Found:
    found = Found([], [], [])
    for number, world in enumerate(worlds):
        random = np.random.default_rng(2000 + number)
        clean = world.score(world.rows)
        changed = np.clip(corrupt(world.rows, random), 0, WHITE)
        scores = world.score(changed)
        found.accuracy.append(float((world.classify(changed) == world.y).mean()))
        for _ in range(n_streams):
            mine, stream = split(len(clean), random)
            draws = (
                scores[random.choice(stream, WINDOW_ROWS, replace=False)] for _ in range(STREAM)
            )
            windows, since = watch_stream(clean[mine], draws)
            found.windows += windows
            found.since.append(since)
    return found


def detect_mix(worlds: Sequence[World], weights: Sequence[float], n_streams: int) -> Found:
    """With replacement: there are not so many rows of few classes."""
    found = Found([], [], [])
    for number, world in enumerate(worlds):
        random = np.random.default_rng(3000 + number)
        clean = world.score(world.rows)
        weight = np.array(weights)[world.y]
        is_right = world.classify(world.rows) == world.y
        found.accuracy.append(float((is_right * weight).sum() / weight.sum()))
        for _ in range(n_streams):
            mine, stream = split(len(clean), random)
            p = weight[stream] / weight[stream].sum()
            draws = (clean[random.choice(stream, WINDOW_ROWS, p=p)] for _ in range(STREAM))
            windows, since = watch_stream(clean[mine], draws)
            found.windows += windows
            found.since.append(since)
    return found


def print_detected(worlds: Sequence[World], n_streams: int) -> list[tuple[str, Found]]:
    print_heading(
        "What is seen",
        f"digits; {len(worlds)} VAEs, {n_streams} streams each of {STREAM} windows of "
        f"{WINDOW_ROWS} rows; reference of {REFERENCE_ROWS} rows; shifted: KS p < {RULE.alpha} and "
        f"PSI > {RULE.psi}; drifted: {RULE.begins} of the last {RULE.of} windows",
        "python -m benchmarks.drift",
    )
    found = [("none", "", detect(worlds, lambda rows, _: rows, n_streams))]
    for kind, severity, corrupt in corruptions():
        found.append((kind, severity, detect(worlds, corrupt, n_streams)))
    for mix, weights in mixes():
        found.append(("classes", mix, detect_mix(worlds, weights, n_streams)))
    print_rows(
        (
            "shift",
            "severity",
            "accuracy of the CNN, %",
            "median PSI",
            "windows shifted, %",
            "streams drifted, %",
            "windows till then, median",
        ),
        [one.row(kind, severity) for kind, severity, one in found],
    )
    return [(f"{kind} {severity}", one) for kind, severity, one in found]


def print_rules(found: Sequence[tuple[str, Found]], clean: Sequence[Window]) -> None:
    """Shows what each rule sees over all shifts together: why the rule is what it is."""
    shifts = [one.windows for name, one in found if not name.startswith("none")]
    print_rows(
        ("rule", "flagged without a shift, %", f"of windows of the {len(shifts)} shifts, mean %"),
        [
            (
                name,
                interval(sum(map(rule, clean)), len(clean)),
                f"{100 * np.mean([np.mean(list(map(rule, one))) for one in shifts]):.1f}",
            )
            for name, rule in RULES.items()
        ],
    )


def print_growth(worlds: Sequence[World], n_streams: int, most: float = 0.2) -> None:
    """A shift that grows: noise from none to `most` of white."""
    steps = [most * (step + 1) / GROWTH for step in range(GROWTH)]
    since: list[int | None] = []
    for number, world in enumerate(worlds):
        random = np.random.default_rng(4000 + number)
        clean = world.score(world.rows)
        grown = [world.score(np.clip(noise(step)(world.rows, random), 0, WHITE)) for step in steps]
        for _ in range(n_streams):
            mine, stream = split(len(clean), random)
            draws = (scores[random.choice(stream, WINDOW_ROWS, replace=False)] for scores in grown)
            since.append(watch_stream(clean[mine], draws)[1])
    late = [one for one in since if one is not None]
    print_heading(
        "A shift that grows slowly",
        f"digits; Gaussian noise that grows by {most / GROWTH:g} of white a window, for {GROWTH} "
        f"windows; {len(since)} streams",
        "python -m benchmarks.drift",
    )
    marks = np.quantile(late, [0.05, 0.5, 0.95], method="nearest").astype(int)
    print_rows(
        ("streams drifted, %", "after window: 5 %", "median", "95 %", "noise by then, median"),
        [
            (
                interval(len(late), len(since)),
                *marks.tolist(),
                f"{steps[marks[1] - 1]:.3f} of white",
            )
        ],
    )


def print_cost(world: World) -> None:
    """Times what a request pays for its offer, and what the thread pays a second by default."""
    from benchmarks.tables import print_table
    from registry.serving.watch import Watch

    def predict(rows: Any) -> Any:
        return [{"anomaly_score": one} for one in world.score(np.array(rows))]

    offers: dict[int, list[float]] = {1: [], 1000: []}
    passes = []
    for n, took in offers.items():
        rows = world.rows[:1].repeat(n, axis=0).tolist()
        for number in range(2000):
            if number % 200 == 0:  # none of them is too much to be sampled from
                watch = Watch(lambda value: None, rows_s=50.0, every_s=3600.0)
            began = time.perf_counter()
            watch.offer(rows, n, "vae", predict)
            took.append(1e6 * (time.perf_counter() - began))
    fifty = world.rows[:50].tolist()
    for _ in range(100):
        began = time.perf_counter()
        predict(fifty)
        passes.append(1e3 * (time.perf_counter() - began))
    print_table(
        "What watching costs",
        "digits, the baseline VAE; an offer is what a request waits for",
        "python -m benchmarks.drift",
        "microseconds",
        {f"offer of a request of {n} row(s)": took for n, took in offers.items()}
        | {"scoring 50 rows, in the thread, once a second": [1e3 * one for one in passes]},
    )


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.drift", description=__doc__)
    parser.add_argument("--vaes", type=int, default=5)
    parser.add_argument("--windows", type=int, default=5000)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--simulated", type=int, default=2000)
    asked = parser.parse_args()
    from mlops.settings import quiet

    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        worlds = [build_world(seed, Path(scratch) / str(seed)) for seed in range(asked.vaes)]
        clean = unshifted(worlds, asked.windows)
        print_unshifted(clean, len(worlds))
        print_simulated(asked.simulated, length=50)
        print_rules(print_detected(worlds, asked.streams), clean)
        print_growth(worlds, asked.streams)
        print_cost(worlds[0])


if __name__ == "__main__":
    main()
