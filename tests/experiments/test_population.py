"""Populations and JAX's passes, in a process of their own: Keras takes its backend but once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ON_JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
TOLERANCE = 2e-5
"""Between weights of a member and of the same training alone, after two epochs: rounding."""


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    names = os.environ.get("PODIUM_TEST_POPULATIONS", "dnn").split()
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.jax_child", *names],
        env={**os.environ, **ON_JAX},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == sorted(names)
    return found


def test_a_member_is_the_same_bit_for_bit_whoever_its_neighbours_are(reports: Any) -> None:
    for name, report in reports.items():
        # The fourth took the place of the first, which was stopped after an epoch.
        assert report["epochs"] == [1, 2, 2, 2], name
        assert report["stopped"] == [True, False, False, False], name
        assert set(report["copies"]) == {report["hashes"][3]}, name
        assert len(set(report["hashes"])) == 4, name


def test_a_member_agrees_with_the_same_training_alone(reports: Any) -> None:
    for name, report in reports.items():
        assert report["distance"] <= TOLERANCE, name
        assert report["alone"] == pytest.approx(report["values"][1], rel=1e-5), name
        assert len(set(report["alone_hashes"])) == 1, name  # alone it is repeatable, too


def test_each_member_has_its_own_learning_rate(reports: Any) -> None:
    for report in reports.values():
        assert report["rates"] == pytest.approx([1e-3, 4e-3, 2e-3, 1e-3], rel=1e-6)


def test_a_population_trains_in_bfloat16_and_leaves_float32_networks(reports: Any) -> None:
    for name, report in reports.items():
        mixed = report["bfloat16"]
        assert mixed["n_mixed"] > 0, name
        assert mixed["computes"] == ["float32"], name
        assert set(mixed["copies"]) == {mixed["hashes"][1]}, name
        assert not set(mixed["hashes"]) & set(report["hashes"]), name
        # A gradient near 0 whose sign is rounded away is a whole step to Adam: what is compared
        # is what the networks do.
        assert mixed["alone"] == pytest.approx(mixed["value"], rel=0.02), name
        assert mixed["value"] == pytest.approx(report["values"][1], rel=0.05), name


def test_params_of_another_shape_fail_alone(reports: Any) -> None:
    assert "expected params of one shape" in reports["dnn"]["odd"]
