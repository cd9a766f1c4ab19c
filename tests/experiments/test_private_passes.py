"""DP-SGD's steps, in a process of their own: Keras takes its backend but once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.privacy.accounting import plan

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-6
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
ON_JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": PATHS}


def ask(*names: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.private_child", *names],
        env={**os.environ, **ON_JAX},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return ask()


def test_without_noise_and_clipping_a_step_is_the_plain_one(report: Any) -> None:
    assert report["distance"] < ROUNDING


def test_no_row_moves_the_sum_by_more_than_the_clipping_norm(report: Any) -> None:
    shares = report["share_of_clip"]
    assert len(shares) == 4
    for clip, share in shares.items():
        assert share <= 1 + ROUNDING, clip
    assert shares["0.001"] > 0.999  # it was clipped


def test_padding_counts_for_nothing_and_parts_sum_up(report: Any) -> None:
    sums = report["sums"]
    assert sums["size"] > 1.0
    assert max(sums["beside"], sums["in_parts"], sums["each"]) < ROUNDING
    assert sums["nothing"] == 0.0


def test_each_row_has_a_dropout_of_its_own(report: Any) -> None:
    assert report["dropout"] > 0.1


def test_the_noise_has_the_standard_deviation_that_is_accounted(report: Any) -> None:
    noise = report["noise"]
    # Of n normal numbers it is within 1 +- 4 / sqrt(2 n), but once in 16,000 seeds.
    assert noise["moved"] == pytest.approx(1.0, abs=4 / (2 * noise["n_moved"]) ** 0.5)
    assert noise["added"] == pytest.approx(1.0, abs=4 / (2 * 200_000) ** 0.5)
    assert noise["added_mean"] == pytest.approx(0.0, abs=4 / 200_000**0.5)


def test_batches_are_drawn_as_they_are_accounted(report: Any) -> None:
    batches = report["batches"]
    assert batches["mean"] == pytest.approx(1.0, abs=0.05)
    assert batches["variance"] == pytest.approx(1.0, abs=0.2)
    least, most = batches["often"]
    assert 0.19 < least < 0.25 < most < 0.31  # each row, with the chance 0.25 in each of 1,000
    assert batches["repeats"] == 0
    assert batches["largest"] > 20  # more than twice the room that a batch has, and none cut short
    assert batches["n_keys"] == 1000  # no noise comes twice


def test_the_seed_does_not_tell_the_noise(report: Any) -> None:
    first, again, one, other = report["hashes"]
    assert first == again  # as a test passes in what is drawn from
    assert len({first, one, other}) == 3


def test_a_network_that_mixes_the_rows_of_a_batch_is_refused(report: Any) -> None:
    assert "normalises over its batch" in report["batch_norm"]


@pytest.mark.long
def test_every_architecture_trains_privately_and_goes_on_from_a_checkpoint() -> None:
    reports = ask("dnn", "cnn", "rnn", "vae")
    privacy = plan(8.0, 1e-5, 1.0, n_rows=1051, batch_size=64, epochs=3)
    for name, report in reports.items():
        assert report["n_before"] == 1, name
        assert report["epsilons"] == [privacy.spent(n) for n in (1, 2, 3)], name
        assert report["epsilons"][-1] <= 8.0, name
        # Means over training rows would tell of them without any noise.
        assert not [one for one in report["names"] if one.startswith("train")], name
    assert reports["dnn"]["value"] > 0.2  # by chance it is 0.1
    first, *_, last = reports["vae"]["elbos"]
    assert last > first
