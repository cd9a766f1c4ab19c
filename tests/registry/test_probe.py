"""One child asks several models; what goes wrong in the process is shown with a fake of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mlops.data import Dataset, load_dataset
from mlops.dataset_store import DatasetStore
from mlops.errors import DataError, StructureError
from mlops.packaging import build_model_folder, load_model, save_network
from mlops.scoring_code import read_own
from registry.child import NO_NETWORK, Told
from registry.golden import write_golden
from registry.probe import Answered, ModelFailedError, Probed, collect, probe, probe_golden
from tests.packaged_models import build, network_of, spec_of


@dataclass(frozen=True, slots=True)
class Asked:
    """Models that were asked the test rows of a dataset, by name, and what they answered."""

    folders: dict[str, Path]
    dataset: Dataset
    probed: Probed

    def answer(self, name: str) -> Answered | ModelFailedError:
        return self.probed.answers[list(self.folders).index(name)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    root = tmp_path_factory.mktemp("asked")
    x = np.random.default_rng(0).random((80, 4, 4, 1), dtype=np.float32)
    np.savez(root / "a.npz", x=x, y=np.arange(80) % 3)
    dataset = load_dataset(str(root / "a.npz"))
    DatasetStore(root / "datasets").put(dataset)
    folders = {
        "classifier": build(root, "image_float32").folder,
        "other rows": build(root, "sequence").folder,
        "not finite": build_not_finite(root),
        "changed": shutil.copytree(root / "image_float32", root / "changed"),
        "vae": build(root, "vae").folder,
    }
    (folders["changed"] / "evil.py").write_text("raise SystemExit('ran')")
    probed = probe(
        list(folders.values()),
        store=DatasetStore(root / "datasets"),
        fingerprint=dataset.fingerprint,
    )
    return Asked(folders, dataset, probed)


def build_not_finite(root: Path) -> Path:
    network = network_of("image_float32")
    network.layers[-2].set_weights([np.full(w.shape, np.nan) for w in network.layers[-2].weights])
    save_network(network, root / "nan.keras")
    build_model_folder(root / "nan.keras", spec_of("image_float32"), root / "nan")
    return root / "nan"


def test_the_answers_of_a_classifier_are_those_of_its_network(asked: Asked) -> None:
    said = asked.answer("classifier")
    assert isinstance(said, Answered)
    x: Any = asked.dataset.requests("test")
    network = keras.saving.load_model(asked.folders["classifier"] / "data" / "model.keras")
    assert said.test.dtype == np.float64
    np.testing.assert_allclose(said.test, network.predict(x, verbose=0), atol=1e-6)
    shifted = x[:, [0, 0, 1, 2]][:, :, [0, 0, 1, 2]]
    np.testing.assert_allclose(
        said.perturbed["shift"], network.predict(shifted, verbose=0), atol=1e-6
    )
    off = np.abs(said.perturbed["noise"] - said.test).max()
    assert 0 < off < 0.1


def test_the_answers_of_a_vae_are_its_anomaly_scores(asked: Asked) -> None:
    said = asked.answer("vae")
    assert isinstance(said, Answered)
    model = load_model(asked.folders["vae"])
    wanted = [one["anomaly_score"] for one in model.predict(asked.dataset.requests("test"))]
    assert said.test.shape == said.perturbed["noise"].shape == (len(wanted),)
    np.testing.assert_allclose(said.test, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["classifier", "vae"])
def test_golden_requests_are_answered_as_the_model_answers_them_again(
    asked: Asked, name: str
) -> None:
    said = asked.answer(name)
    assert isinstance(said, Answered)
    again = load_model(asked.folders[name]).predict(said.golden.requests)
    if name == "vae":
        again = [one["anomaly_score"] for one in again]
    assert len(said.golden.requests) == 8
    np.testing.assert_allclose(said.golden.answers, again, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("other rows", r"the input has shape \(\d+, 4, 4, 1\) \(test rows\)$"),
        ("not finite", r"row 0 gives no finite answer: its numbers are too large \(test rows\)$"),
        ("changed", r"'evil.py' is not a file of a Podium model. The model is not loaded$"),
    ],
)
def test_a_model_that_fails_says_why_and_the_next_is_asked(
    asked: Asked, name: str, sentence: str
) -> None:
    said = asked.answer(name)
    assert isinstance(said, ModelFailedError)
    with pytest.raises(ModelFailedError, match=sentence):
        raise said


def test_it_is_said_how_the_models_were_kept_from_the_network(asked: Asked) -> None:
    isolation = asked.probed.isolation
    assert isolation == NO_NETWORK or isolation.startswith("not kept from the network: ")


def test_loading_leaves_a_model_folder_as_it_was(asked: Asked) -> None:
    names = {path.name for path in asked.folders["classifier"].rglob("*") if path.is_file()}
    assert len(names) == 4 + len(read_own())
    assert "__pycache__" not in {path.name for path in asked.folders["classifier"].rglob("*")}


def test_a_release_answers_its_golden_requests(asked: Asked, tmp_path: Path) -> None:
    said = asked.answer("classifier")
    assert isinstance(said, Answered)
    folder = shutil.copytree(asked.folders["classifier"], tmp_path / "release")
    write_golden(folder, said.golden)
    probe_golden(folder)


def test_a_release_that_answers_otherwise_is_told_apart(asked: Asked, tmp_path: Path) -> None:
    said = asked.answer("vae")
    assert isinstance(said, Answered)
    folder = shutil.copytree(asked.folders["vae"], tmp_path / "release")
    golden = replace(said.golden, answers=said.golden.answers + np.eye(8)[3])
    write_golden(folder, golden)
    with pytest.raises(ModelFailedError, match=r"1 of 8 golden rows .* row 3 most: expected 1\d\."):
        probe_golden(folder)


def test_a_release_without_golden_requests_is_not_loaded(asked: Asked) -> None:
    with pytest.raises(StructureError, match=r"golden.json is missing"):
        probe_golden(asked.folders["classifier"])


def test_a_dataset_that_is_not_stored_is_not_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no dataset"):
        probe([tmp_path], store=DatasetStore(tmp_path), fingerprint="0" * 64)


# What goes wrong in the process


def asks(*children: Told) -> tuple[Callable[[Sequence[str]], Told], list[Sequence[str]]]:
    """A fake of the child: one `Told` each time it is asked, and what it was asked."""
    left, seen = list(children), list[Sequence[str]]()

    def ask(rest: Sequence[str]) -> Told:
        seen.append(rest)
        return left.pop(0)

    return ask, seen


def read(said: Any) -> int:
    return int(said["answer"])


def failures(found: Sequence[Any]) -> list[str | int]:
    return [str(one) if isinstance(one, ModelFailedError) else one for one in found]


def test_of_a_model_that_kills_the_process_only_its_own_answer_is_lost() -> None:
    killed = Told(({"answer": 1},), NO_NETWORK, "was killed by signal 9 (Killed)")
    ask, seen = asks(killed, Told(({"answer": 3},), NO_NETWORK, None))
    found, isolation = collect(["a", "b", "c"], ask, read)
    assert failures(found) == [
        1,
        "the process that loaded it was killed by signal 9 (Killed)",
        3,
    ]
    assert seen == [["a", "b", "c"], ["c"]]
    assert isolation == NO_NETWORK


def test_a_process_that_leaves_without_a_word_is_a_failure_and_no_endless_loop() -> None:
    silent = Told((), NO_NETWORK, None)
    ask, seen = asks(silent, silent)
    found, _ = collect(["a", "b"], ask, read)
    assert failures(found) == ["the process that loaded it ended without an answer"] * 2
    assert seen == [["a", "b"], ["b"]]


def test_a_crash_after_the_last_answer_takes_nothing_back() -> None:
    ask, _ = asks(Told(({"answer": 1},), NO_NETWORK, "was killed by signal 11"))
    assert collect(["a"], ask, read)[0] == (1,)


def test_more_answers_than_were_asked_for_are_dropped() -> None:
    ask, _ = asks(Told(({"answer": 1}, {"answer": 2}), NO_NETWORK, None))
    assert collect(["a"], ask, read)[0] == (1,)


@pytest.mark.parametrize("said", [None, 1, [], "error", {}, {"answer": None}, {"answer": "x"}])
def test_an_answer_that_cannot_be_read_is_a_failure(said: Any) -> None:
    ask, _ = asks(Told((said, {"answer": 2}), NO_NETWORK, None))
    found, _ = collect(["a", "b"], ask, read)
    assert failures(found) == ["the process that loaded it answered what nobody can read", 2]


def test_the_parent_imports_no_tensorflow() -> None:
    code = "import sys, registry.probe, registry.serving_probe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "mlflow", "numpy"} & set(done.stdout.split())
