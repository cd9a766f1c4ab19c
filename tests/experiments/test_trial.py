from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from optuna.distributions import BaseDistribution

from experiments.architectures import Architecture, open_architecture
from experiments.architectures.preprocessing import compile_classifier, scaled_input
from experiments.built_in import BUILT_IN
from experiments.checkpoint import Checkpoint
from experiments.training import Trained, train
from mlops.data import Dataset, load_dataset
from mlops.inputs import InputSpec


@pytest.fixture(scope="module")
def digits() -> Iterator[Dataset]:
    yield load_dataset("digits")


class Linear(Architecture):
    name = "linear"
    kinds = ("image",)

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {}

    def baseline(self, data: InputSpec) -> dict[str, Any]:
        return {}

    def build(self, params: dict[str, Any], data: InputSpec, n_classes: int) -> keras.Model:
        inputs, x = scaled_input(data)
        logits = keras.layers.Dense(n_classes)(keras.layers.Flatten()(x))
        return compile_classifier(keras.Model(inputs, logits), params["learning_rate"])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(digits: Dataset) -> None:
    dnn = open_architecture(BUILT_IN["dnn"])
    params = dnn.baseline(digits.input)
    one, again = (train(dnn, params, digits, seed=7, epochs=2) for _ in range(2))
    other = train(dnn, params, digits, seed=8, epochs=2)
    assert one.weights_sha256 == again.weights_sha256 != other.weights_sha256


def test_other_threads_that_draw_random_numbers_do_not_change_the_weights(
    digits: Dataset,
) -> None:
    dnn = open_architecture(BUILT_IN["dnn"])
    params = dnn.baseline(digits.input)
    alone = train(dnn, params, digits, seed=7, epochs=1)
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            random.random()
            np.random.random()
            time.sleep(0)

    other = threading.Thread(target=draw)
    other.start()
    try:
        disturbed = train(dnn, params, digits, seed=7, epochs=1)
    finally:
        stop.set()
        other.join()
    assert disturbed.weights_sha256 == alone.weights_sha256


def test_the_model_has_the_best_epochs_weights_and_the_first_of_equals(digits: Dataset) -> None:
    # A learning rate this high makes later epochs worse now and then.
    trained = train(Linear(), {"learning_rate": 0.5}, digits, seed=3, epochs=6)
    values = [row["val_accuracy"] for row in trained.history]
    assert trained.best_epoch == int(np.argmax(values)) != len(values) - 1
    x, y = digits.part("val")
    predicted = np.asarray(trained.model(x)).argmax(axis=1)
    assert np.isclose((predicted == y).mean(), max(values))


def test_each_epoch_is_told_with_the_names_that_all_classifiers_share(digits: Dataset) -> None:
    told: list[tuple[int, dict[str, float]]] = []

    def stop_after_two(epoch: int, metrics: dict[str, float]) -> bool:
        told.append((epoch, metrics))
        return epoch == 1

    trained = train(
        Linear(), {"learning_rate": 0.01}, digits, seed=3, epochs=9, on_epoch=stop_after_two
    )
    assert trained.stopped
    assert [epoch for epoch, _ in told] == [0, 1]
    assert set(told[0][1]) == {
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "val_balanced_accuracy",
        "val_macro_f1",
        "learning_rate",
        "epoch_s",
    }


def test_a_loss_that_is_not_finite_ends_the_training_and_what_came_before_counts(
    digits: Dataset,
) -> None:
    never = train(Linear(), {"learning_rate": float("inf")}, digits, seed=3, epochs=5)
    assert never.value is None
    assert len(never.history) == 1


def test_the_validation_of_an_epoch_is_what_keras_and_scikit_learn_make_of_its_weights(
    digits: Dataset,
) -> None:
    from sklearn import metrics

    trained = train(Linear(), {"learning_rate": 0.01}, digits, seed=3, epochs=1)
    x, y = digits.part("val")
    loss, accuracy = trained.model.evaluate(x, y, verbose=0)
    named = np.asarray(trained.model(x)).argmax(axis=1)
    (row,) = trained.history
    assert row["val_loss"] == pytest.approx(loss, rel=1e-4)
    assert row["val_accuracy"] == pytest.approx(accuracy)
    assert row["val_macro_f1"] == pytest.approx(metrics.f1_score(y, named, average="macro"))
    balanced = metrics.balanced_accuracy_score(y, named)
    assert row["val_balanced_accuracy"] == pytest.approx(balanced)


def test_the_best_epoch_is_the_best_by_the_objective_that_was_asked_for(digits: Dataset) -> None:
    trained = train(
        Linear(), {"learning_rate": 0.5}, digits, seed=3, epochs=6, objective="val_macro_f1"
    )
    values = [row["val_macro_f1"] for row in trained.history]
    assert trained.best_epoch == int(np.argmax(values))
    assert trained.value == max(values)


def test_balanced_class_weights_find_the_rare_class(digits: Dataset) -> None:
    # One nine to twenty others: a network that never says nine is right 95 times of 100.
    y = (digits.y == 9).astype(np.int64)
    keep = np.flatnonzero((y == 0) | (np.arange(len(y)) % 3 == 0))
    rare = dataclasses.replace(
        digits, x=digits.x[keep], y=y[keep], split=digits.split[keep], class_names=("other", "9")
    )

    def recall(class_weight: str) -> float:
        params = {"learning_rate": 0.001, "class_weight": class_weight}
        trained = train(Linear(), params, rare, seed=3, epochs=3)
        x, labels = rare.part("val")
        named = np.asarray(trained.model(x)).argmax(axis=1)
        return float((named[labels == 1] == 1).mean())

    assert recall("balanced") > recall("none") + 0.2


def test_a_refit_learns_from_validation_rows_too_and_keeps_the_last_epoch(digits: Dataset) -> None:
    both = np.where(digits.split == 1, 0, digits.split).astype(np.uint8)
    # The same rows in the same order, all of them for training.
    index = np.concatenate([np.flatnonzero(digits.split == part) for part in (0, 1, 2)])
    joined = dataclasses.replace(digits, x=digits.x[index], y=digits.y[index], split=both[index])
    refit = train(Linear(), {"learning_rate": 0.01}, digits, seed=3, epochs=2, refit=True)
    assert refit.value is None and refit.best_epoch is None
    assert [set(row) for row in refit.history] == [
        {"train_loss", "train_accuracy", "learning_rate", "epoch_s"}
    ] * 2
    assert len(joined.part("train")[0]) == len(digits.part("train")[0]) + len(digits.part("val")[0])
    x, y = joined.part("train")
    keras.backend.clear_session()
    assert refit.model.evaluate(x, y, verbose=0)[1] > 0.5


class CutShortError(Exception):
    pass


AUGMENTED = {"flip": "horizontal", "shift": 0.1, "rotation": 10.0, "cutout": 0.2}
RESUMED = {
    "dnn": {"dropout": 0.4},
    "cnn": {"dropout": 0.4, "batch_norm": True, **AUGMENTED},
    "rnn": {"dropout": 0.2},
    "vae": {},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_training_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(
    digits: Dataset, tmp_path: Path, name: str
) -> None:
    architecture = open_architecture(BUILT_IN[name])
    params = {**architecture.baseline(digits.input), **RESUMED[name]}
    few = dataclasses.replace(digits, x=digits.x[:300], y=digits.y[:300], split=digits.split[:300])

    def run(
        checkpoint: Checkpoint | None, cut_at: int | None = None
    ) -> tuple[Trained, list[dict[str, float]]]:
        told = []

        def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            told.append(metrics)
            if epoch == cut_at:
                raise CutShortError
            return False

        trained = train(
            architecture, params, few, seed=5, epochs=4, on_epoch=on_epoch, checkpoint=checkpoint
        )
        return trained, told

    whole, whole_told = run(None)
    path = tmp_path / "0.checkpoint"
    with pytest.raises(CutShortError):
        run(Checkpoint(path, "a", every_s=0.0), cut_at=2)
    resumed, told = run(Checkpoint(path, "a", every_s=0.0))
    assert resumed.n_before in (1, 2)  # it takes its time between two saves
    assert resumed.weights_sha256 == whole.weights_sha256
    assert (resumed.best_epoch, resumed.value) == (whole.best_epoch, whole.value)
    # Each epoch is told once more, since the attempt before may have said nothing of it.
    for row, expected in zip(told, whole_told, strict=True):
        assert {**row, "epoch_s": 0} == {**expected, "epoch_s": 0}


def test_a_checkpoint_of_another_training_or_a_damaged_one_counts_as_none(
    digits: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "0.checkpoint"
    params = {"learning_rate": 0.01}

    def n_before(key: str) -> int:
        checkpoint = Checkpoint(path, key, every_s=0.0)
        return train(Linear(), params, digits, seed=3, epochs=2, checkpoint=checkpoint).n_before

    assert n_before("a") == 0
    assert n_before("a") > 0
    assert n_before("b") == 0
    path.write_bytes(path.read_bytes()[:-50])
    assert n_before("b") == 0
    path.write_bytes(b"")
    assert n_before("b") == 0


def test_a_short_training_saves_no_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "0.checkpoint", "a", every_s=60.0)
    train(Linear(), {"learning_rate": 0.01}, digits, seed=3, epochs=2, checkpoint=checkpoint)
    assert list(tmp_path.iterdir()) == []
