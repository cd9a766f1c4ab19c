from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from experiments.architectures import open_architecture
from experiments.architectures.preprocessing import scaled_input
from experiments.built_in import BUILT_IN
from mlops.data import encode, load_dataset
from mlops.inputs import InputSpec
from mlops.network import check_network
from mlops.packaging import save_network

LAYERS = [
    {"cell": cell, "n_layers": n_layers, "bidirectional": bidirectional}
    for cell in ("gru", "lstm")
    for n_layers, bidirectional in ((1, False), (2, True))
]
"""Params of the networks that are tried."""


def spec_of(n_steps: int, n_features: int = 3, seed: int = 0) -> InputSpec:
    """Sequences of up to `n_steps`, with means and variances as odd as a user's."""
    rng = np.random.default_rng(seed)
    means = tuple((rng.normal(size=n_features) * 10.0 ** rng.integers(-6, 7, n_features)).tolist())
    variances = tuple((10.0 ** rng.uniform(-9, 9, n_features)).tolist())
    return InputSpec(
        kind="sequence",
        shape=(n_steps, n_features + 1),
        dtype="float32",
        columns=None,
        low=-1.0,
        high=1.0,
        mean=(*means, 0.0),
        variance=(*variances, 1.0),
        ragged=True,
    )


def sequences_of(spec: InputSpec, lengths: list[int], seed: int = 1) -> np.ndarray:
    """Returns sequences as `Dataset.x` has them, of values around the means of `spec`."""
    rng = np.random.default_rng(seed)
    x = np.zeros((len(lengths), *spec.shape), np.float32)
    for row, length in zip(x, lengths, strict=True):
        values = rng.normal(size=(length, spec.shape[1] - 1)) * np.sqrt(spec.variance[:-1])
        row[:length, :-1] = values + np.array(spec.mean[:-1])
        row[:length, -1] = 1.0
    return x


def widened(x: np.ndarray, n_steps: int) -> np.ndarray:
    """Returns the same sequences in a dataset whose longest has `n_steps`."""
    return np.pad(x, ((0, 0), (0, n_steps - x.shape[1]), (0, 0)))


def build(layers: dict[str, Any], spec: InputSpec) -> keras.Model:
    rnn = open_architecture(BUILT_IN["rnn"])
    keras.utils.set_random_seed(0)
    params = {**rnn.baseline(spec), "units": 8, "dropout": 0.3, **layers}
    return rnn.to_package(rnn.build(params, spec, 3))


def answers_of(model: keras.Model, rows: np.ndarray) -> np.ndarray:
    """Answers as they are served, from a compiled graph; compiling takes a second or more."""
    return np.asarray(model.predict(rows, verbose=0))


@pytest.mark.parametrize("seed", range(8))
def test_padding_is_exactly_zero_after_scaling_and_a_step_never_is(seed: int) -> None:
    spec = spec_of(7, seed=seed)
    x = sequences_of(spec, [1, 4, 7])
    x[0, 0, :-1] = np.float32(spec.mean[:-1])  # a step that is the very mean
    inputs, scaled = scaled_input(spec)
    found = answers_of(keras.Model(inputs, scaled), encode(x, spec, None))
    is_step = x[..., -1] == 1
    assert (found[~is_step] == 0.0).all()
    assert (found[is_step][:, -1] == 1.0).all()
    assert is_step.sum() == 12


@pytest.mark.parametrize("layers", LAYERS, ids=str)
def test_an_answer_does_not_depend_on_the_padding(layers: dict[str, Any]) -> None:
    lengths = [1, 3, 6, 6, 2]
    specs = {n_steps: spec_of(n_steps) for n_steps in (6, 7, 40)}
    models = {n_steps: build(layers, spec) for n_steps, spec in specs.items()}
    x = sequences_of(specs[6], lengths)
    answers = {}
    for n_steps, model in models.items():
        model.set_weights(models[6].get_weights())
        rows = encode(widened(x, n_steps), specs[n_steps], None)
        answers[n_steps] = answers_of(model, rows) if n_steps == 40 else np.asarray(model(rows))
    assert np.ptp(answers[6], axis=0).min() > 1e-3  # the sequences do differ
    for n_steps in (7, 40):
        np.testing.assert_allclose(answers[n_steps], answers[6], rtol=1e-5, atol=1e-7)
    for row, length, answer in zip(x, lengths, answers[40], strict=True):
        whole = build(layers, spec_of(length))  # of the same layers: nothing is padded
        whole.set_weights(models[6].get_weights())
        alone = np.asarray(whole(row[np.newaxis, :length]))[0]
        np.testing.assert_allclose(answer, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layers", LAYERS, ids=str)
def test_a_network_with_a_mask_is_packaged_and_answers_the_same(
    tmp_path: Path, layers: dict[str, Any]
) -> None:
    spec = spec_of(6)
    model = build(layers, spec)
    assert "Masking" in [type(layer).__name__ for layer in model.layers]
    save_network(model, tmp_path / "model.keras")
    network = check_network(tmp_path / "model.keras", "model.keras")
    assert [tensor.shape for tensor in network.inputs] == [(6, 4)]
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    rows = encode(sequences_of(spec, [1, 3, 6]), spec, None)
    np.testing.assert_array_equal(answers_of(loaded, rows), answers_of(model, rows))


@pytest.mark.parametrize("name", ["rnn", "dnn", "vae"])
def test_architectures_for_sequences_train_on_ragged_ones(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, 90)
    labels = np.arange(90) % 2
    steps = rng.normal(size=(lengths.sum(), 2)) + 3.0 * np.repeat(labels, lengths)[:, np.newaxis]
    np.savez(tmp_path / "a.npz", x=steps + 100.0, lengths=lengths, y=labels)
    dataset = load_dataset(str(tmp_path / "a.npz"))
    architecture = open_architecture(BUILT_IN[name])
    keras.utils.set_random_seed(0)
    params = {**architecture.baseline(dataset.input), "learning_rate": 0.01}
    model = architecture.build(params, dataset.input, 2)
    x, y = dataset.part("train")
    history = model.fit(x, y, epochs=8, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    if architecture.task == "classifier":
        assert history["accuracy"][-1] > 0.9
    save_network(architecture.to_package(model), tmp_path / "model.keras")


def test_nothing_is_masked_where_nothing_is_padded() -> None:
    sequence = InputSpec("sequence", (5, 2), "float32", None, -1.0, 9.0, (0.0, 3.0), (1.0, 2.0))
    image = InputSpec("image", (5, 4, 3), "uint8", None, 0.0, 255.0, (9.0,) * 3, (9.0,) * 3)
    for spec, before in ((sequence, ["Normalization"]), (image, ["Rescaling", "Reshape"])):
        names = [type(layer).__name__ for layer in build({}, spec).layers]
        assert names == ["InputLayer", *before, "GRU", "Dropout", "Dense", "Softmax"]
