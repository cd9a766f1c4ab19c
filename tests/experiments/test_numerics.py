"""Mixed precision, XLA, and rows that stay on the device, with TensorFlow on a CPU."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from experiments.architectures import open_architecture
from experiments.architectures.preprocessing import compile_classifier
from experiments.built_in import BUILT_IN
from experiments.config import SweepConfig
from experiments.device_rows import KeptRows
from experiments.numerics import DEFAULT, Numerics, check_device, check_gpu, mixed_layers
from experiments.passes import TensorFlowPasses, make_variables, open_passes
from experiments.preparation import check_backend
from experiments.training import score_classifier, seed_keras, train
from mlops.data import Dataset, load_dataset
from mlops.errors import UsageError
from mlops.evaluation import classifier_metrics
from mlops.packaging import save_network

MIXED = Numerics("bfloat16")


@pytest.fixture(scope="module")
def digits() -> Iterator[Dataset]:
    yield load_dataset("digits")


def build(name: str, dataset: Dataset, **params: Any) -> Any:
    architecture = open_architecture(BUILT_IN[name])
    own = {**architecture.baseline(dataset.input), **params}
    return architecture.build(own, dataset.input, len(dataset.class_names))


def config_of(path: Path) -> Any:
    """Returns a network's configuration without the numbers of objects, which are addresses."""

    def plain(value: dict[str, Any]) -> dict[str, Any]:
        return {key: one for key, one in value.items() if key != "shared_object_id"}

    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"), object_hook=plain)


@pytest.mark.parametrize("name", BUILT_IN)
def test_training_in_bfloat16_leaves_a_float32_network_that_scores_as_it_was_chosen_by(
    name: str, digits: Dataset, tmp_path: Path
) -> None:
    architecture = open_architecture(BUILT_IN[name])
    params = architecture.baseline(digits.input)
    found = []
    for numerics in (DEFAULT, MIXED):
        trained = train(architecture, params, digits, seed=5, epochs=2, numerics=numerics)
        path = tmp_path / f"{numerics.precision}.keras"
        save_network(architecture.to_package(trained.model), path)
        found.append(trained)
    exact, mixed = found
    assert exact.weights_sha256 != mixed.weights_sha256  # it did compute otherwise
    assert {variable.dtype for variable in mixed.model.weights} == {"float32"}
    assert {layer.compute_dtype for layer in mixed.model._flatten_layers()} <= {"float32", "uint8"}
    packaged = config_of(path)
    assert "bfloat16" not in json.dumps(packaged)
    assert packaged == config_of(tmp_path / "float32.keras")
    x, y = digits.part("val")
    loaded = keras.models.load_model(path)
    best = mixed.history[mixed.best_epoch]
    if architecture.task == "classifier":
        named = np.asarray(loaded(x)).argmax(axis=1)
        told = classifier_metrics(named, y, 10)["accuracy"]
        assert told == best["val_accuracy"] == mixed.value
        # Measured on this machine: at most 0.04 between the two, over the four, after two epochs.
        assert mixed.value == pytest.approx(exact.value, abs=0.1)
    else:
        again = open_passes(mixed.model, (x,)).evaluate(x)
        assert again["elbo"] == mixed.value
        assert mixed.value == pytest.approx(exact.value, rel=0.02)


def test_only_the_training_step_computes_in_bfloat16_and_never_what_needs_digits(
    digits: Dataset,
) -> None:
    model = build("cnn", digits, batch_norm=True)
    mixed = {layer.name.rstrip("_0123456789") for layer in mixed_layers(model)}
    assert mixed == {
        *("conv2d", "batch_normalization", "re_lu", "max_pooling2d"),
        *("flatten", "dense", "dropout"),
    }
    seen = []
    hidden = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))

    def step(*_: Any) -> None:
        seen.append((hidden.compute_dtype, hidden(np.ones((2, hidden.kernel.shape[0]))).dtype))
        raise ValueError

    with pytest.raises(ValueError):
        MIXED.step(model, step)()
    assert [str(one).rpartition(" ")[2].strip("<>'") for one in seen[0]] == ["bfloat16"] * 2
    assert hidden.compute_dtype == "float32"  # after an error, too


def test_what_makes_a_reconstruction_is_float32_through_the_layers_that_shape_it() -> None:
    rows = np.random.default_rng(0).integers(0, 255, (40, 20, 20, 3), dtype=np.uint8)
    spec = dataclasses.replace(
        load_dataset("digits").input,
        shape=(20, 20, 3),
        dtype="uint8",
        high=255.0,
        mean=(9.0,) * 3,
        variance=(9.0,) * 3,
    )
    vae = open_architecture(BUILT_IN["vae"])
    model = vae.build(vae.baseline(spec), spec, 0)
    exact = {layer.name for layer in model._flatten_layers()} - {
        layer.name for layer in mixed_layers(model)
    }
    last = [layer.name for layer in model.decoder.layers if "conv2d" in layer.name][-1]
    assert {"scale", "z_mean", "z_log_var", last} <= exact
    for numerics in (DEFAULT, MIXED):
        open_passes(model, (rows,), numerics).train((rows,), np.arange(40), 16)
    assert np.isfinite(model.get_metrics_result()["elbo"])


def test_layers_that_say_another_dtype_keep_it() -> None:
    inputs = keras.Input((4,))
    own = keras.layers.Dense(3, dtype="float64", name="own")
    hidden = keras.layers.Dense(3, name="hidden")
    outputs = keras.layers.Softmax()(keras.layers.Dense(2, name="last")(hidden(own(inputs))))
    assert [layer.name for layer in mixed_layers(keras.Model(inputs, outputs))] == ["hidden"]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), None])
def test_a_gpu_that_computes_in_bfloat16_is_taken(capability: Any) -> None:
    check_gpu("NVIDIA H100", capability)


def test_a_gpu_without_bfloat16_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"8\.0 or more; Tesla T4 has 7\.5\. Leave --precision"):
        check_gpu("Tesla T4", (7, 5))
    check_device("bfloat16")  # a CPU has it


def test_xla_is_as_the_network_says_unless_it_is_asked_for(digits: Dataset) -> None:
    model = build("dnn", digits)
    assert not model.jit_compile  # Keras' own rule, on a CPU
    for xla, found in (("auto", False), ("on", True), ("auto", True), ("off", False)):
        Numerics(xla=xla).set_up(model)
        assert model.jit_compile is found


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.long
def test_xla_changes_the_last_bits_only(name: str, digits: Dataset) -> None:
    architecture = open_architecture(BUILT_IN[name])
    # Without dropout and noise: XLA draws from generators of its own.
    params = {**architecture.baseline(digits.input), "dropout": 0.0}
    off, on = (
        train(architecture, params, digits, seed=5, epochs=1, numerics=Numerics(xla=xla))
        for xla in ("off", "on")
    )
    assert off.weights_sha256 != on.weights_sha256
    assert on.history[0]["train_loss"] == pytest.approx(off.history[0]["train_loss"], rel=0.02)


def test_jax_cannot_be_asked_to_leave_xla_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UsageError, match="--xla off cannot be with KERAS_BACKEND=jax"):
        check_backend(SweepConfig(xla="off"))
    check_backend(SweepConfig(xla="on"))
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    check_backend(SweepConfig(xla="off"))


def train_with_room(
    room_bytes: float, rows: tuple[np.ndarray, ...], shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Trains two epochs with rows kept on the device, or not; returns the weights."""
    keras.backend.clear_session()
    seed_keras(3)
    inputs = keras.Input(shape, dtype=rows[0].dtype.name)
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dropout(0.3)(keras.layers.Dense(16, activation="relu")(x))
    model = compile_classifier(keras.Model(inputs, keras.layers.Dense(4)(x)), 1e-2)
    make_variables(model, tuple(part[:1] for part in rows))
    passes = TensorFlowPasses(model, rows, DEFAULT, room_bytes)
    for epoch in range(2):
        passes.train(rows, np.random.default_rng(epoch).permutation(len(rows[0])), 32)
    logits = passes.forward(rows[0])
    assert np.isfinite(score_classifier(model, logits, rows[1], 4)["val_loss"])
    return [np.asarray(one) for one in model.get_weights()]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_rows_that_stay_on_the_device_give_the_same_weights_bit_for_bit(dtype: str) -> None:
    random = np.random.default_rng(0)
    shape = (5, 5, 3)  # 75 bytes of uint8: no whole number of words
    x = random.integers(-128 if dtype == "int16" else 0, 255, (150, *shape)).astype(dtype)
    rows = (x, random.integers(0, 4, 150), np.ones(150, np.float32))
    sent = train_with_room(0.0, rows, shape)
    kept = train_with_room(1e9, rows, shape)
    for one, other in zip(sent, kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_training_on_a_cpu_keeps_no_copy_of_its_rows(digits: Dataset) -> None:
    x, y = digits.part("train")
    rows = (x, y, np.ones(len(x), np.float32))
    passes: Any = open_passes(build("dnn", digits), rows)
    assert passes._kept.find(rows) is None


def test_rows_are_brought_to_the_device_once_and_again_only_if_they_are_others() -> None:
    brought = []
    kept = KeptRows(lambda part: brought.append(part.nbytes) or part, room_bytes=100)
    rows, others = (np.zeros(10), np.zeros(2)), (np.zeros(10), np.zeros(2))
    assert kept.find(rows) is not None
    assert kept.find(rows) is not None
    assert brought == [80, 16]
    assert kept.find(others) is not None
    assert brought == [80, 16] * 2
    assert kept.find((np.zeros(13),)) is None  # 104 bytes
