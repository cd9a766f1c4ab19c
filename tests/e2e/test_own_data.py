"""The README's "Your own data" and "Your own architecture": its commands are typed here.

Files of real data are swept and promoted, and answers are compared with the truth and with what
the same release says offline. The table is served by the line that promotion prints; the code that
answers for the others is the same, and runs in this process.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest

from mlops.data import PARTS, Dataset, load_dataset
from mlops.mlflow_store import open_store_client
from mlops.server import open_server
from mlops.settings import Settings
from tests.e2e.conftest import Swept
from tests.e2e.own_data import PICTURES, write_penguins, write_pictures, write_strokes
from tests.e2e.serving import Indoors, Scorer, free_port, serve

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SMALL = {
    "penguins.csv": "--trials 2 --epochs 20",
    "photographs": "--trials 1 --epochs 6",
    "strokes.npz": "--trials 1 --epochs 12",
    "own_architecture": "--trials 1 --epochs 6",
}
"""What is added to the README's commands, so that they take seconds."""
LAMBDA = """
import keras
from own_architecture import ResidualMLP
from experiments.architectures.preprocessing import compile_classifier

class Doubled(ResidualMLP):
    name = "doubled"

    def build(self, params, data, n_classes):
        model = super().build(params, data, n_classes)
        logits = keras.layers.Lambda(lambda x: 2 * x, name="twice")(model.output)
        return compile_classifier(keras.Model(model.input, logits), params["learning_rate"])
"""


def section(title: str) -> str:
    """The README's text under a heading of the second level."""
    text = (ROOT / "README.md").read_text()
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def readme_command(title: str, word: str) -> str:
    """The one sweep command of a section that has this word."""
    lines = section(title).splitlines()
    (line,) = [line for line in lines if line.startswith("python -m experiments") and word in line]
    return line


@dataclass(frozen=True, slots=True)
class Place:
    """A home, and beside it the files as a user has them."""

    settings: Settings
    env: dict[str, str]
    cwd: Path

    def type(self, command: str, folder: str = ".") -> Swept:
        """Types a command that succeeds."""
        done = self.run(command, folder)
        assert done.returncode == 0, done.stderr
        return Swept(self.settings, self.env, self.cwd, done.stdout, done.stderr)

    def run(self, command: str, folder: str = ".") -> subprocess.CompletedProcess[str]:
        cwd = self.cwd / folder
        return subprocess.run(
            command, shell=True, env=self.env, cwd=cwd, capture_output=True, text=True
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    cwd = tmp_path_factory.mktemp("own")
    write_penguins(cwd / "penguins.csv")
    write_pictures(cwd / "photographs", 150)
    write_strokes(cwd / "strokes.npz", (0, 1, 2, 3))
    shutil.copytree(ROOT / "examples", cwd / "examples")
    (cwd / "examples" / "lambda_architecture.py").write_text(LAMBDA)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "MLOPS_HOME": str(cwd / "home"), "PYTHONPATH": str(ROOT), "PATH": path}
    settings = Settings.from_env({"MLOPS_HOME": env["MLOPS_HOME"]})
    with open_server(settings) as server:  # one for all sweeps, which join it
        server.wait()
        yield Place(settings, env, cwd)


@dataclass(frozen=True, slots=True)
class Release:
    """What answers for a champion, and the same release in this process."""

    scorer: Scorer | Indoors
    model: Any

    def ask(self, body: dict[str, Any]) -> tuple[list[str], np.ndarray]:
        """Labels and probabilities (n, classes)."""
        status, text = self.scorer.post({**body, "params": {"labels": True}})
        assert status == 200, text
        answers = json.loads(text)["predictions"]
        return [one["label"] for one in answers], np.array(
            [one["probabilities"] for one in answers]
        )

    def refusal(self, body: dict[str, Any]) -> str:
        """The sentence with which rows are refused."""
        status, text = self.scorer.post(body)
        assert status == 400, text
        return str(json.loads(text)["message"])

    def offline(self, dataset: Dataset) -> np.ndarray:
        """Probabilities of the test rows as a network sees them, (n, classes)."""
        trained_on = self.model.metadata.metadata["podium"]["dataset"]
        assert trained_on["fingerprint"] == dataset.fingerprint
        return np.asarray(self.model.predict(dataset.part("test")[0]))


def follow(place: Place, dataset: str) -> Swept:
    """Sweep, promote: the README's command, then the line that was printed."""
    command = readme_command("Your own data", f"--dataset {dataset}")
    swept = place.type(f"{command} {SMALL[dataset]} --workers 1")
    return place.type(swept.printed_command("registry.promote"))


def follow_to_the_end(place: Place, dataset: str, servers: contextlib.ExitStack) -> Scorer:
    promoted = follow(place, dataset)
    port = free_port()
    command = promoted.printed_command("models serve").replace("5001", str(port))
    log = place.cwd / f"serve-{dataset}.log"
    return servers.enter_context(serve(command, port, place.env, place.cwd, log))


@pytest.fixture(scope="module")
def under_way(place: Place) -> Iterator[dict[str, Future[Any]]]:
    """All that takes long, two at a time."""
    own = readme_command("Your own architecture", "own_architecture") + " --workers 1 "
    refused = own.replace("own_architecture:ResidualMLP", "lambda_architecture:Doubled")
    with contextlib.ExitStack() as servers, ThreadPoolExecutor(2) as pool:
        yield {
            "penguins.csv": pool.submit(follow_to_the_end, place, "penguins.csv", servers),
            "photographs": pool.submit(follow, place, "photographs"),
            "strokes.npz": pool.submit(follow, place, "strokes.npz"),
            "own": pool.submit(place.type, own + SMALL["own_architecture"], "examples"),
            "refused": pool.submit(place.run, refused + "--experiment refused", "examples"),
        }


def released(place: Place, name: str) -> Any:
    """The champion, loaded in this process."""
    client = open_store_client(place.settings)
    version = client.get_model_version_by_alias(name, "champion")
    target = place.cwd / f"release-{name}"
    target.mkdir()
    folder = client.download_artifacts(version.run_id, "release", str(target))
    return mlflow.pyfunc.load_model(folder)


@pytest.fixture(scope="module")
def penguins(place: Place, under_way: dict[str, Future[Any]]) -> Release:
    scorer = under_way["penguins.csv"].result()
    return Release(scorer, released(place, "penguins-classifier"))


@pytest.fixture(scope="module")
def photographs(place: Place, under_way: dict[str, Future[Any]]) -> Release:
    under_way["photographs"].result()
    model = released(place, "photographs-classifier")
    return Release(Indoors(model), model)


@pytest.fixture(scope="module")
def strokes(place: Place, under_way: dict[str, Future[Any]]) -> Release:
    under_way["strokes.npz"].result()
    model = released(place, "strokes-classifier")
    return Release(Indoors(model), model)


def part_of(dataset: Dataset) -> np.ndarray:
    """The indices of the test rows; rows stand in the file's order."""
    return np.flatnonzero(dataset.split == PARTS.index("test"))


def test_a_table_is_answered_by_column_name_in_any_order_with_cells_missing(
    place: Place, penguins: Release
) -> None:
    dataset = load_dataset(str(place.cwd / "penguins.csv"), label="species")
    table = pd.read_csv(place.cwd / "penguins.csv").iloc[part_of(dataset)]
    species, cells = table["species"].tolist(), table.drop(columns="species")
    assert cells["sex"].isna().any()
    shuffled = cells[cells.columns[[3, 0, 6, 2, 5, 1, 4]]]
    records = json.loads(shuffled.to_json(orient="records"))
    labels, probabilities = penguins.ask({"dataframe_records": records})
    assert np.mean([*map(str.__eq__, labels, species)]) > 0.9
    np.testing.assert_allclose(probabilities, penguins.offline(dataset), atol=1e-6)
    split = json.loads(shuffled[reversed(shuffled.columns)].to_json(orient="split"))
    again, same = penguins.ask({"dataframe_split": split})
    assert again == labels
    np.testing.assert_array_equal(same, probabilities)


def test_a_category_never_seen_and_missing_cells_are_answered(
    place: Place, penguins: Release
) -> None:
    body = json.loads((place.cwd / "examples" / "penguins.json").read_text())
    known, stranger = body["dataframe_records"]
    assert stranger["island"] == "Atlantis"
    assert stranger["sex"] is None
    labels, probabilities = penguins.ask(body)
    assert labels == ["Adelie", "Gentoo"]
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    refusal = penguins.refusal({"dataframe_records": [{**known, "year": None}]})
    assert "row 0 lacks a value in column 'year'" in refusal  # which the file never lacks


def test_a_missing_and_an_extra_column_are_named(place: Place, penguins: Release) -> None:
    body = json.loads((place.cwd / "examples" / "penguins.json").read_text())
    known = body["dataframe_records"][0]
    without = {name: cell for name, cell in known.items() if name != "body_mass_g"}
    refusal = penguins.refusal({"dataframe_records": [without]})
    assert "column 'body_mass_g' is missing" in refusal
    refusal = penguins.refusal({"dataframe_records": [{**known, "colour": "black"}]})
    assert "a column is not of this model's" in refusal


def test_pictures_are_answered_as_the_files_they_are(place: Place, photographs: Release) -> None:
    folder = place.cwd / "photographs"
    dataset = load_dataset(str(folder))
    assert "of 300 pictures were resized" in dataset.notes[0]
    files = sorted(folder.glob("*/*"))
    chosen = [files[index] for index in part_of(dataset)]
    assert {file.suffix for file in chosen} == {".png", ".jpg"}
    encoded = [base64.b64encode(file.read_bytes()).decode() for file in chosen]
    labels, probabilities = photographs.ask({"inputs": encoded})
    assert np.mean([*map(str.__eq__, labels, [file.parent.name for file in chosen])]) > 0.9
    assert set(labels) == set(PICTURES)
    np.testing.assert_allclose(probabilities, photographs.offline(dataset), atol=1e-6)
    cut_off = base64.b64encode(chosen[-1].read_bytes()[:500]).decode()
    refusal = photographs.refusal({"inputs": [encoded[0], cut_off]})
    assert "row 1 is " in refusal or "row 1 decodes to" in refusal


def test_sequences_of_unequal_length_are_answered(place: Place, strokes: Release) -> None:
    dataset = load_dataset(str(place.cwd / "strokes.npz"))
    sequences = dataset.requests("test")
    assert len({len(steps) for steps in sequences}) > 2
    records = [{"steps": steps.tolist()} for steps in sequences]
    labels, probabilities = strokes.ask({"dataframe_records": records})
    truth = [dataset.class_names[index] for index in dataset.labels("test")]
    assert np.mean([*map(str.__eq__, labels, truth)]) > 0.9
    np.testing.assert_allclose(probabilities, strokes.offline(dataset), atol=1e-6)
    alone = strokes.ask({"dataframe_records": records[:1]})[1]
    np.testing.assert_allclose(alone, probabilities[:1], atol=1e-6)
    refusal = strokes.refusal({"dataframe_records": [{"steps": [[0.0] * 7]}]})
    assert "row 0 has shape (1, 7)" in refusal


def test_an_architecture_of_ones_own_is_searched_beside_a_stock_one_and_promoted(
    place: Place, under_way: dict[str, Future[Any]]
) -> None:
    swept = under_way["own"].result()
    for name in ("residual", "dnn"):
        (line,) = [line for line in swept.stdout.splitlines() if line.startswith(f"{name} ")]
        assert re.search(r"digits-classifier-candidates [12]$", line), line
    promoted = place.type(swept.printed_command("registry.promote"))
    assert "digits-classifier version 1 is champion" in promoted.stdout
    lines = (ROOT / "examples" / "own_architecture.py").read_text().splitlines()
    assert len(lines) < 80


def test_a_layer_that_cannot_be_packaged_is_refused_before_anything_is_trained(
    place: Place, under_way: dict[str, Future[Any]]
) -> None:
    done = under_way["refused"].result()
    assert done.returncode == 2
    refusal = done.stderr.strip().splitlines()[-1]
    shown = section("Your own architecture").split("```text\n")[1].split("```")[0].strip()
    assert shown in refusal
    assert "layer 'twice' is a keras.layers.Lambda" in shown
    assert open_store_client(place.settings).get_experiment_by_name("refused") is None


def test_the_readmes_config_file_says_what_is_searched(place: Place) -> None:
    command = readme_command("Your own data", "--config")
    shown = place.type(f"{command} --dry-run")
    spaces = shown.stdout + shown.stderr
    assert "cnn: 10 trials" in spaces  # the command line goes before the file
    cnn, dnn = spaces.split("dnn: 10 trials")
    assert '"choices": [16, 32]}' in cnn
    assert '"low": 0.0003, "high": 0.003, "log": true' in cnn
    assert '"low": 0.0001, "high": 0.01, "log": true' in dnn


def test_each_option_that_the_readme_names_exists(place: Place) -> None:
    told = section("Your own data") + section("Your own architecture")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", told))
    programs = ("experiments.sweep", "experiments.status")
    known = "".join(place.type(f"python -m {name} --help").stdout for name in programs)
    assert {option for option in named if f" {option} " not in known} == set()


def test_the_status_lists_what_was_swept(place: Place, penguins: Release) -> None:
    shown = place.type("python -m experiments.status").stdout
    assert re.search(r"^penguins-[\d-]+: done", shown, re.MULTILINE)
