"""A run says how it was trained, and where: what is read is what was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.reproducing.environment import (
    ENVIRONMENT,
    describe_environment,
    name_instructions,
    read_environment,
)
from experiments.reproducing.recipe import RECIPE, Recipe, read_recipe, read_value
from mlops.errors import UsageError

RECIPE_OF_CNN = Recipe(
    architecture="experiments.architectures.cnn:CNN",
    objective="val_accuracy",
    params={"filters": 32, "learning_rate": 0.1 + 0.2, "augment": True, "class_weight": "none"},
    seed=4_294_967_295,
    epochs=8,
    dataset_fingerprint="f" * 64,
    threads=2,
    backend="jax",
    precision="bfloat16",
    xla="on",
    population=16,
)
OLDER = {
    "mlops.sweep": "s",
    "mlops.architecture": "vae",
    "mlops.seed": "7",
    "mlops.epochs": "3",
    "mlops.threads": "1",
    "mlops.dataset_fingerprint": "a" * 64,
}

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.text(max_size=20),
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_params_come_back_in_their_own_types_to_the_last_bit(params: dict[str, Any]) -> None:
    recipe = Recipe("own:Net", "val_accuracy", params, 1, 1, "f" * 64, 1, "tensorflow")
    read = read_recipe({RECIPE: recipe.to_tag()}, {}, [])
    assert read == recipe
    assert list(map(type, read.params.values())) == [type(params[name]) for name in read.params]


def test_a_recipe_keeps_all_that_a_training_was_asked_to_be() -> None:
    assert read_recipe({RECIPE: RECIPE_OF_CNN.to_tag()}, {}, []) == RECIPE_OF_CNN
    assert RECIPE_OF_CNN.numerics.precision == "bfloat16"


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-05, 32, True, False, None, "balanced", "1e"])
def test_what_older_versions_wrote_as_text_is_read_in_its_type(value: Any) -> None:
    read = read_value(str(value))
    assert (type(read), read) == (type(value), value)


def test_a_run_of_an_older_version_is_read_from_its_other_tags() -> None:
    params = {"architecture": "vae", "latent_dim": "8", "beta": "1.5", "learning_rate": "0.001"}
    read = read_recipe(OLDER, params, ["best_val_elbo", "train_loss"])
    assert read.params == {"latent_dim": 8, "beta": 1.5, "learning_rate": 0.001}
    assert (read.architecture, read.objective) == ("experiments.architectures.vae:VAE", "val_elbo")
    assert (read.backend, read.precision, read.population, read.refit) == (
        *("tensorflow", "float32"),
        *(None, False),
    )
    more = {"mlops.final": "refit", "mlops.population": "4", "mlops.backend": "jax"}
    assert read_recipe(OLDER | more, params, []).refit
    assert read_recipe(OLDER | more, params, []).population == 4


@pytest.mark.parametrize(
    ("tags", "fragment"),
    [
        ({RECIPE: "{"}, "is damaged; expected a JSON object"),
        ({RECIPE: "[1]"}, "is damaged; expected a JSON object"),
        (
            {RECIPE: json.dumps(RECIPE_OF_CNN.to_json() | {"noise": 1.0})},
            "says noise, which this version of Podium does not know",
        ),
        ({RECIPE: '{"seed": 1}'}, "is not whole"),
        ({RECIPE: json.dumps(RECIPE_OF_CNN.to_json() | {"seed": "1"})}, "is damaged in: seed"),
        ({RECIPE: json.dumps(RECIPE_OF_CNN.to_json() | {"epochs": True})}, "damaged in: epochs"),
        (OLDER | {"mlops.architecture": "mine"}, "does not say which class 'mine' is"),
        ({"mlops.architecture": "dnn"}, "does not say how it was trained: 'mlops.seed'"),
        (OLDER | {"mlops.seed": "many"}, "does not say how it was trained"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(tags: dict[str, str], fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        read_recipe(tags, {}, [])


def test_the_environment_names_hardware_versions_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_thunk_runtime=false")
    found = describe_environment("experiments.architectures.cnn:CNN")
    assert {"CPU", "instructions", "system", "Python", "keras", "numpy"} <= set(found)
    assert len(found["the architecture's module"]) == 12
    assert found["XLA_FLAGS"] == "--xla_cpu_use_thunk_runtime=false"
    assert (
        found["the architecture's module"]
        != (describe_environment("experiments.architectures.dnn:DNN")["the architecture's module"])
    )
    assert read_environment({ENVIRONMENT: json.dumps(found)}) == found


def test_of_an_older_run_the_versions_are_known() -> None:
    versions = {"python": "3.12.1", "keras": "3.9.0", "optuna": "4.0.0"}
    found = read_environment({"mlops.versions": json.dumps(versions)})
    assert found == {"Python": "3.12.1", "keras": "3.9.0"}
    for damaged in ("{", "[1]", "null"):
        assert read_environment({ENVIRONMENT: damaged}) == {}


def test_of_a_cpus_flags_those_count_that_kernels_are_chosen_by() -> None:
    assert name_instructions("fpu vme avx512f sse2 fma avx2") == "avx2 avx512f fma"
    assert name_instructions("fp asimd sve2") == "asimd sve2"
    assert name_instructions("") == "not known"
