from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
)

from experiments.architectures import Architecture, describe, open_architecture
from experiments.architectures.preprocessing import compile_classifier, scaled_input
from experiments.architectures.vae import EVALUATION_SEED
from experiments.built_in import BUILT_IN
from mlops.errors import UsageError
from mlops.inputs import InputSpec
from mlops.packaging import save_network
from mlops.scoring import gaussian_kl, reconstruction_error

IMAGE = InputSpec("image", (8, 8, 1), "float32", None, 0.0, 16.0, (4.9,), (36.0,))
SHAPES = {
    "8x8": IMAGE,
    "17x17": dataclasses.replace(IMAGE, shape=(17, 17, 1)),
    "18x18": dataclasses.replace(IMAGE, shape=(18, 18, 1)),
    "33x20 colour": InputSpec(
        "image", (33, 20, 3), "uint8", None, 0.0, 255.0, (99.0,) * 3, (9.0,) * 3
    ),
    "224x224x3": InputSpec(
        "image", (224, 224, 3), "uint8", None, 0.0, 255.0, (99.0,) * 3, (9.0,) * 3
    ),
    "1x1": dataclasses.replace(IMAGE, shape=(1, 1, 1)),
    "table": InputSpec(
        "table", (3,), "float32", ("a", "b", "c"), -1.0, 9.0, (0.0, 1.0, 2.0), (1.0, 0.0, 4.0)
    ),
    "sequence": InputSpec("sequence", (5, 2), "float32", None, -1.0, 9.0, (0.0, 3.0), (1.0, 2.0)),
}
EVEN = (30, 30, 30, 30)
CASES = [
    (name, shape)
    for name, path in BUILT_IN.items()
    for shape, data in SHAPES.items()
    if data.kind in open_architecture(path).kinds
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_it_builds_on_every_shape_it_takes_and_can_be_packaged(
    name: str, shape: str, tmp_path: Path
) -> None:
    data = SHAPES[shape]
    architecture = open_architecture(BUILT_IN[name])
    model = architecture.build(architecture.baseline(data), data, 4)
    packaged = architecture.to_package(model)
    rows = np.ones((2, *data.shape), data.dtype)
    answers = packaged(rows)
    if architecture.task == "classifier":
        assert answers.shape == (2, 4)
        np.testing.assert_allclose(np.asarray(answers).sum(axis=1), 1.0, rtol=1e-5)
    else:
        scaled, output, mean, log_var = answers
        assert scaled.shape == output.shape == rows.shape
        assert mean.shape == log_var.shape == (2, architecture.baseline(data)["latent_dim"])
    if shape != "224x224x3":  # half a gigabyte for some
        save_network(packaged, tmp_path / "model.keras")


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_its_description_is_data(name: str, shape: str) -> None:
    description = describe(BUILT_IN[name], SHAPES[shape], EVEN, "accuracy")
    assert description.left_out is None
    assert set(description.space) == set(description.baseline)
    json.dumps(dataclasses.asdict(description))


def test_data_it_does_not_take_is_left_out_with_the_reason() -> None:
    assert describe(BUILT_IN["cnn"], SHAPES["table"], EVEN, "accuracy").left_out == (
        "takes images, and this dataset holds tables"
    )
    assert describe(BUILT_IN["rnn"], SHAPES["table"], EVEN, "accuracy").left_out is not None


def layers_of(model: keras.Model) -> list[str]:
    names = []
    for layer in model.layers:
        config = layer.get_config()
        size = config.get("filters") or config.get("units") or config.get("pool_size")
        name = type(layer).__name__
        names.append(f"{name} {size}" if size else name)
    return names


def test_the_cnn_baseline_is_the_tutorial_network_with_its_loss_from_logits() -> None:
    cnn = open_architecture(BUILT_IN["cnn"])
    data = SHAPES["224x224x3"]
    model = cnn.build(cnn.baseline(data), data, 10)
    assert [name for name in layers_of(model) if not name.startswith(("ReLU", "Dropout"))] == [
        "InputLayer",
        "Rescaling",
        "Conv2D 32",
        "MaxPooling2D (2, 2)",
        "Conv2D 64",
        "MaxPooling2D (2, 2)",
        "Conv2D 64",
        "Flatten",
        "Dense 64",
        "Dense 10",
    ]
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.loss.get_config()["from_logits"] is True
    assert model.layers[-1].activation is keras.activations.linear
    assert model.layers[-1].name == "logits"


@pytest.mark.parametrize(
    ("shape", "padding"), [("8x8", "same"), ("17x17", "same"), ("18x18", "valid")]
)
def test_the_cnn_pads_below_18_pixels_only(shape: str, padding: str) -> None:
    cnn = open_architecture(BUILT_IN["cnn"])
    model = cnn.build(cnn.baseline(SHAPES[shape]), SHAPES[shape], 10)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.padding for layer in convolutions} == {padding}


def test_tables_are_standardised_and_a_constant_feature_is_not_blown_up() -> None:
    dnn = open_architecture(BUILT_IN["dnn"])
    data = SHAPES["table"]
    model = dnn.build(dnn.baseline(data), data, 2)
    scale = keras.Model(model.input, model.get_layer("scale").output)
    row = np.array([[1.0, 3.0, 6.0]], np.float32)
    np.testing.assert_allclose(scale(row), [[1.0, 2.0, 2.0]], rtol=1e-5)


@pytest.mark.parametrize("shape", ["8x8", "table"])
def test_the_vae_scores_the_elbo_at_beta_1_whatever_beta_trains_it(shape: str) -> None:
    vae = open_architecture(BUILT_IN["vae"])
    data = SHAPES[shape]
    rows = np.random.default_rng(0).uniform(0, 9, (7, *data.shape)).astype(np.float32)
    values = {}
    for beta in (1.0, 4.0):
        keras.utils.set_random_seed(1)
        model = vae.build({**vae.baseline(data), "beta": beta}, data, 2)
        values[beta] = model.evaluate(rows, batch_size=3, verbose=0, return_dict=True)
    for name in ("elbo", "kl", "reconstruction"):
        assert values[1.0][name] == values[4.0][name]
    assert values[1.0]["loss"] != values[4.0]["loss"]
    elbo, loss = values[1.0]["elbo"], values[1.0]["loss"]
    assert math.isclose(elbo, -loss, rel_tol=1e-5)


@pytest.mark.parametrize("shape", ["8x8", "table", "sequence"])
def test_the_vae_agrees_with_the_formulas_in_numpy(shape: str) -> None:
    vae = open_architecture(BUILT_IN["vae"])
    data = SHAPES[shape]
    keras.utils.set_random_seed(2)
    model = vae.build(vae.baseline(data), data, 2)
    rows = np.random.default_rng(1).uniform(0, 9, (6, *data.shape)).astype(np.float32)
    found = model.evaluate(rows, verbose=0, return_dict=True)
    scaled, mean, log_var = (np.asarray(one) for one in model.encoder(rows))
    noise = np.asarray(keras.random.normal(mean.shape, seed=EVALUATION_SEED))
    output = np.asarray(model.decoder(mean + np.exp(log_var / 2) * noise))
    nats = reconstruction_error(scaled, output, vae.likelihood(data))
    kl = gaussian_kl(mean, log_var)
    assert math.isclose(found["reconstruction"], -nats.mean(), rel_tol=1e-4)
    assert math.isclose(found["kl"], kl.mean(), rel_tol=1e-4)
    assert math.isclose(found["elbo"], -(nats + kl).mean(), rel_tol=1e-4)


@pytest.mark.parametrize(
    ("path", "fragment"),
    [
        ("no_such_module:Thing", "cannot be imported"),
        ("math:Thing", "has no class 'Thing'"),
        ("math:sqrt", "is no architecture"),
        ("experiments.architectures:Architecture", "cannot be made"),
    ],
)
def test_what_is_no_architecture_is_refused_in_a_sentence(path: str, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        describe(path, IMAGE, EVEN, "accuracy")


def test_class_weights_are_searched_where_classes_are_unbalanced_and_only_there() -> None:
    even = describe(BUILT_IN["dnn"], IMAGE, (30, 21), "accuracy")
    odd = describe(BUILT_IN["dnn"], IMAGE, (30, 20), "macro_f1")
    assert "class_weight" not in even.space
    assert odd.baseline["class_weight"] == "none" and odd.objective == "val_macro_f1"
    assert set(odd.space) == set(odd.baseline)
    vae = describe(BUILT_IN["vae"], IMAGE, (90, 10), "macro_f1")
    assert "class_weight" not in vae.space and vae.objective == "val_elbo"


class Doubled(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


class Own(Architecture):
    name = "own"
    kinds = ("image",)

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {"extra": CategoricalDistribution(["none", "double"])}

    def baseline(self, data: InputSpec) -> dict[str, Any]:
        return {"extra": "none"}

    def build(self, params: dict[str, Any], data: InputSpec, n_classes: int) -> keras.Model:
        inputs, x = scaled_input(data)
        if params["extra"] == "double":
            x = Doubled(name="twice")(x)
        logits = keras.layers.Dense(n_classes)(keras.layers.Flatten()(x))
        return compile_classifier(keras.Model(inputs, logits), 0.001)


class Flat(Own):
    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {}

    def baseline(self, data: InputSpec) -> dict[str, Any]:
        return {}

    def build(self, params: dict[str, Any], data: InputSpec, n_classes: int) -> keras.Model:
        return super().build({"extra": "none"}, data, n_classes + 1)


class Broken(Flat):
    def build(self, params: dict[str, Any], data: InputSpec, n_classes: int) -> keras.Model:
        raise KeyError("depth")


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        # The layer that cannot be packaged comes with one choice only.
        ("Own", ("cannot be packaged with extra double", "layer 'twice'", "Doubled", "stock")),
        ("Flat", ("cannot be packaged with no params", "a softmax over 4 classes")),
        ("Broken", ("cannot be built with no params: KeyError: 'depth'",)),
    ],
)
def test_an_own_architecture_that_cannot_be_served_is_refused_before_it_is_trained(
    name: str, fragments: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        describe(f"{__name__}:{name}", IMAGE, EVEN, "accuracy")
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "not loaded" not in str(caught.value)


def test_a_param_is_called_the_same_and_means_the_same_in_every_architecture() -> None:
    """So that the UI's compare, parallel-coordinates and search pages work across them."""
    spaces = {name: open_architecture(path).space(IMAGE) for name, path in BUILT_IN.items()}
    for name in ("learning_rate", "batch_size"):
        assert len({distribution_to_json(space[name]) for space in spaces.values()}) == 1, name
    known: dict[str, BaseDistribution] = {}
    for space in spaces.values():
        for name, distribution in space.items():
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), name
            first = known.setdefault(name, distribution)
            assert type(first) is type(distribution), name
            for attribute in ("log", "step", "choices"):
                assert getattr(first, attribute, 0) == getattr(distribution, attribute, 0), name
    assert {"n_layers", "units", "dropout", "batch_norm"} <= set(known)
