"""What tells a training from its repetition, on made-up numbers and networks."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from experiments.reproducing.comparing import (
    LARGEST,
    Drift,
    compare_arrays,
    compare_metrics,
    compare_networks,
    describe_run,
    find_changes,
    without_names,
)
from experiments.reproducing.recipe import Recipe
from tests.faults.zeros import write_network


def test_arrays_drift_by_the_largest_difference_and_its_share() -> None:
    one = np.array([1.0, 2.0, np.nan, 0.0], np.float32)
    other = np.array([1.0, 1.5, np.nan, -0.25], np.float32)
    assert compare_arrays([(one, other), (one, one)]) == Drift(2, 8, 0.5, 1.0)
    assert compare_arrays([(one, one)]) == Drift(0, 4, 0.0, 0.0)
    gone = compare_arrays([(np.array([1.0]), np.array([np.nan]))])
    assert (gone.n, gone.absolute, gone.relative) == (1, math.inf, math.inf)


def test_metrics_part_at_the_first_epoch_that_differs_and_most_at_the_worst() -> None:
    recorded = {0: {"train_loss": 1.0, "epoch_s": 3.0}, 1: {"train_loss": 0.5, "val_loss": 2.0}}
    same = [{"train_loss": 1.0, "epoch_s": 9.0}, {"train_loss": 0.5, "val_loss": 2.0}]
    assert compare_metrics(recorded, same) == []
    other = [{"train_loss": 1.0}, {"train_loss": 0.25, "val_loss": 4.0}]
    (says,) = compare_metrics(recorded, other)
    assert says == (
        "metrics differ from epoch 1 on: train_loss was 0.5, is 0.25; "
        "most at epoch 1: val_loss was 2.0, is 4.0"
    )


def test_metrics_that_one_side_alone_has_are_not_compared() -> None:
    assert compare_metrics({0: {"val_auc": 1.0}}, [{"train_loss": 1.0}, {"train_loss": 1.0}]) == []


@pytest.mark.parametrize(
    ("recorded", "value", "same"),
    [
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (LARGEST, math.inf, True),
        (-LARGEST, math.inf, False),
        (0.1, 0.1, True),
        (0.1, math.nextafter(0.1, 1), False),
    ],
)
def test_metrics_are_equal_to_the_last_bit(recorded: float, value: float, same: bool) -> None:
    assert (compare_metrics({0: {"val_loss": recorded}}, [{"val_loss": value}]) == []) is same


def rewrite(
    path: Path,
    to: Path,
    config: Callable[[str], str] = str,
    weights: Callable[[h5py.File], None] = lambda _: None,
) -> Path:
    """Writes a network anew, changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        stored = io.BytesIO(old.read("model.weights.h5"))
        with h5py.File(stored, "r+") as file:
            weights(file)
        new.writestr("metadata.json", old.read("metadata.json"))
        new.writestr("config.json", config(old.read("config.json").decode()))
        new.writestr("model.weights.h5", stored.getvalue())
    return to


@pytest.fixture
def network(tmp_path: Path) -> Path:
    write_network(tmp_path / "one.keras")
    return tmp_path / "one.keras"


def test_the_names_of_layers_do_not_make_a_network_another(network: Path) -> None:
    def rename(text: str) -> str:
        return text.replace('"out"', '"out_7"').replace('"zeros"', '"functional_3"')

    other = rewrite(network, network.with_name("other.keras"), rename)
    assert compare_networks(network, other) == []


def test_a_network_with_the_same_weights_and_another_activation_is_built_otherwise(
    network: Path,
) -> None:
    def change(text: str) -> str:
        return text.replace("softmax", "sigmoid")

    (says,) = compare_networks(network, rewrite(network, network.with_name("o.keras"), change))
    assert says == "the packaged network is built otherwise than the recipe builds it"


def test_weights_that_differ_are_told_by_how_much(network: Path) -> None:
    def change(file: h5py.File) -> None:
        file["layers/out/vars/0"][3, 2] = 0.5

    other = rewrite(network, network.with_name("o.keras"), weights=change)
    (says,) = compare_networks(network, other)
    assert says == (
        "weights against the packaged network: 1 of 650 differ, by at most 0.5 (relative 1)"
    )


def test_a_zero_with_another_sign_is_not_identical(network: Path) -> None:
    def change(file: h5py.File) -> None:
        file["layers/out/vars/1"][0] = -0.0

    other = rewrite(network, network.with_name("o.keras"), weights=change)
    (says,) = compare_networks(network, other)
    assert says == "weights against the packaged network: equal as numbers, not in all bits"


def test_the_name_of_a_dtype_counts() -> None:
    def config(dtype: str, name: str, address: int) -> dict[str, Any]:
        policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": dtype}}
        inner = {"name": name, "dtype": policy | {"shared_object_id": address}}
        return {"module": "keras.layers", "class_name": "Dense", "config": inner}

    assert without_names(config("float32", "a", 1)) == without_names(config("float32", "b", 2))
    assert without_names(config("float32", "a", 1)) != without_names(config("float16", "a", 1))
    assert json.loads(json.dumps(without_names(config("float32", "a", 1))))


RECIPE = Recipe("own:Net", "val_accuracy", {}, 1, 1, "f" * 64, 1, "tensorflow")


def test_changes_are_named_with_what_they_were_and_are() -> None:
    then = describe_run(RECIPE, {"CPU": "old", "keras": "3.9", "XLA_FLAGS": "--a"})
    now = describe_run(RECIPE, {"CPU": "new", "keras": "3.9", "GPU": "H100"})
    assert find_changes(then, now) == [
        ("CPU", "old", "new"),
        ("XLA_FLAGS", "--a", "not set"),
        ("GPU", "not set", "H100"),
    ]
    assert find_changes(now, now) == []


def test_what_an_older_run_does_not_say_is_no_change() -> None:
    then = describe_run(RECIPE, {"keras": "3.9"})
    assert find_changes(then, describe_run(RECIPE, {"CPU": "new", "keras": "3.10"})) == [
        ("keras", "3.9", "3.10")
    ]
