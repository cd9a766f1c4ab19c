"""Whether explanations say something of what was learned: sanity tests on trained networks.

Trained on the digits, a few epochs each. What is asserted is far from what is measured
(docs/benchmarks.md), and the networks are the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.explanations import (
    Asked,
    ask,
    ask_by_heart,
    completeness_errors,
    correlations,
    drops_of,
    gradients_of,
    learned_layers,
    main,
    randomise,
    shuffled,
)
from experiments.built_in import BUILT_IN
from mlops.data import Dataset, load_dataset

N_ROWS = 32
EPOCHS = 5
CLASSIFIERS = ("dnn", "cnn", "rnn")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def networks(digits: Dataset) -> Iterator[dict[str, Asked]]:
    yield {name: ask(name, digits, 0, EPOCHS, N_ROWS) for name in BUILT_IN}


def test_attributions_add_up_for_every_architecture(networks: dict[str, Asked]) -> None:
    """With 128 points, as they are served: within 0.01 in probability, of a VAE 0.05 nats."""
    for name, asked in networks.items():
        errors = completeness_errors(asked, 128)
        assert errors.shape == (N_ROWS,)
        assert errors.max() < (0.05 if name == "vae" else 0.01)
        assert np.abs(gradients_of(asked)[0]).sum() > 1.0


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_new_weights_change_the_map_and_a_copy_does_not(
    networks: dict[str, Asked], name: str
) -> None:
    """Adebayo et al. 2018, section 3: from the top layer down, and all at once."""
    import keras

    keras.utils.set_random_seed(4)
    asked = networks[name]
    maps, drops = gradients_of(asked)[0], drops_of(asked)
    copy = randomise(asked.network, 0)
    np.testing.assert_array_equal(gradients_of(asked, copy)[0], maps)
    np.testing.assert_allclose(correlations(asked, maps, maps), 1.0)
    for n_layers in (1, None):
        other = randomise(asked.network, n_layers)
        found = correlations(asked, maps, gradients_of(asked, other)[0])
        of_drops = correlations(asked, drops, drops_of(asked, other))
        assert found.mean() < 0.3
        assert of_drops.mean() < 0.3


def test_what_learned_the_same_from_another_seed_is_explained_alike(
    digits: Dataset, networks: dict[str, Asked]
) -> None:
    """The control of the tests beside it."""
    asked, alike = networks["dnn"], ask("dnn", digits, 1, EPOCHS, N_ROWS)
    maps, others = gradients_of(asked)[0], gradients_of(asked, alike.network)[0]
    assert correlations(asked, maps, others).mean() > 0.5


@pytest.mark.long
def test_what_learned_shuffled_labels_by_heart_is_explained_otherwise(
    digits: Dataset, networks: dict[str, Asked]
) -> None:
    """Adebayo et al. 2018, section 4."""
    asked = networks["dnn"]
    nonsense = ask_by_heart("dnn", shuffled(digits, 0), 1, 60, N_ROWS)
    assert nonsense.train_accuracy > 0.9 and nonsense.accuracy < 0.3
    maps, others = gradients_of(asked)[0], gradients_of(asked, nonsense.network)[0]
    assert correlations(asked, maps, others).mean() < 0.3


def test_both_find_the_one_column_that_decides(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 5)).astype(np.float32)
    np.savez(tmp_path / "planted.npz", x=x, y=(x[:, 2] > 0).astype(np.int64))
    asked = ask("dnn", load_dataset(str(tmp_path / "planted.npz")), 0, 10, N_ROWS)
    assert asked.accuracy is not None and asked.accuracy > 0.9
    for maps in (gradients_of(asked)[0], drops_of(asked)):
        share = np.abs(maps).sum(axis=0) / np.abs(maps).sum()
        assert share[2] > 0.6


def test_layers_get_new_weights_from_the_top_and_scaling_stays(
    networks: dict[str, Asked],
) -> None:
    network = networks["cnn"].network
    names = learned_layers(network)
    assert names[0].startswith("conv2d") and names[-1] == "logits"
    for n_layers in (1, 3):
        other = randomise(network, n_layers)
        same = [
            np.array_equal(network.get_layer(name).kernel, other.get_layer(name).kernel)
            for name in names
        ]
        assert same == [True] * (len(names) - n_layers) + [False] * n_layers
    assert other.get_layer("scale").get_config() == network.get_layer("scale").get_config()


@pytest.mark.long
def test_the_benchmark_prints_all_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--rows", "6", "--epochs", "1", "--shuffled-epochs", "2", "--seeds", "2")
    main([*options, "--steps", "32", "40"])
    told = capsys.readouterr().out
    assert told.count("### ") == 5
    assert told.count("| vae | nats | 32 | 12 |") == told.count("| rnn | probability | 40 |") == 1
    assert "| cnn | another seed | 12 | " in told
    assert "| cnn | new weights from logits up: 1 of 5 | 12 | " in told
    assert told.count("| cnn, 32 x 32 x 3 | 10 | ") == 1
    assert "largest error with 40 points: " in told
