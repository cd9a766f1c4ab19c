"""The benchmark for GPUs, in small, on a CPU; what it prints there is tested, not how fast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import Measured, Options, Way, ways_of

ROOT = Path(__file__).parents[1]
TINY = (
    *("--images", "300", "--epochs", "2", "--rounds", "1", "--populations", "2"),
    *("--processes", "2", "--precisions", "bfloat16", "--matrix", "256"),
)
NOT_MEASURED = "aim at least 20, not measured."


def run(*options: str, first_on_path: Path = ROOT) -> str:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(first_on_path), str(ROOT)]),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *TINY, *options],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def cells(table: str, way: str) -> list[str]:
    row = next(line for line in table.splitlines() if line.startswith(f"| {way} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.long
def test_tensorflow_is_measured_alone_beside_stock_keras_and_in_processes() -> None:
    table = run("--backends", "tensorflow")
    stock = cells(table, "stock Keras, Model.fit, TensorFlow")
    assert stock[6] == "1.00"
    for way in ("one at a time, TensorFlow, XLA off", "one at a time, TensorFlow, XLA on"):
        assert all(float(cell) > 0 for cell in cells(table, way)[2:])
    assert float(cells(table, "2 processes, one at a time, TensorFlow")[5]) > 0
    assert table.count(NOT_MEASURED) == 2
    assert "failed" not in table


@pytest.mark.long
def test_jax_is_measured_where_tensorflow_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ModuleNotFoundError('none here')")
    table = run("--backends", "jax", first_on_path=tmp_path)
    for way in ("one at a time, JAX", "population of 2, JAX"):
        assert all(float(cell) > 0 for cell in cells(table, way)[2:])
    assert table.count(NOT_MEASURED) == 2
    assert "failed" not in table


def test_each_precision_begins_with_stock_keras_and_has_every_way() -> None:
    ways = ways_of(Options())
    assert len(set(ways)) == len(ways) == 2 * (1 + 2 + 3 + 1 + 4)
    assert [way.stock for way in ways] == ([True] + [False] * 10) * 2
    assert {way.size for way in ways if way.backend == "jax"} == {0, 1, 4, 16, 64}
    assert not any(way.backend == "tensorflow" for way in ways_of(Options(backends=("jax",))))


def test_all_members_of_a_population_count_as_trials_and_as_images() -> None:
    measured = Measured(
        device="a GPU",
        on_gpu=True,
        n_trials=64,
        trials_s=[100.0, 128.0, 900.0],
        epochs_s=[2.0, 4.0],
        n_train=1000,
        n_val=300,
        flops=1e6,
        memory_mb=1.0,
    )
    assert measured.trials_an_hour == 3600 * 64 / 128
    assert measured.images_a_second == [32000.0, 16000.0]
    assert measured.flops_a_second == pytest.approx(64 * 1e6 * (3 * 1000 + 300) / 3.0)
    assert Way("jax", "bfloat16", size=64).name == "population of 64, JAX"
