from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.evaluation import score_classifier, score_vae
from mlops.inputs import Column, InputSpec
from mlops.packaging import ModelSpec
from mlops.scoring.model import rows_for
from registry.card import MAX_CHARACTERS, CardFacts, example_request, model_card
from registry.evidence import Commit, Evidence, Measured, Serving
from registry.gates import decide
from registry.policy import Policy
from tests.packaged_models import KINDS, spec_of

FACTS = CardFacts(
    name="pets-classifier",
    version=4,
    candidate_version=17,
    experiment_id="12",
    run_id="0123456789abcdef",
    previous=3,
    n_rows={"train": 600, "val": 200, "test": 200},
)


def classifier(n_classes: int = 3, right: float = 0.8, names: tuple[str, ...] = ()) -> Evidence:
    spec = ModelSpec(
        task="classifier",
        architecture="dnn",
        input=InputSpec("table", (2,), "float32", None, 0.0, 1.0, (0.5, 2.0), (1.0, 1.0)),
        class_names=names or tuple(f"class {i}" for i in range(n_classes)),
        dataset_name="pets",
        dataset_fingerprint="f" * 64,
        likelihood=None,
    )
    labels = np.arange(200) % n_classes
    named = np.where(np.arange(200) < 200 * right, labels, 0)
    answers = np.eye(n_classes)[named]
    score = score_classifier(answers, labels)
    measured = Measured(spec, answers, score, 5 << 20, 0, {"noise": score})
    return Evidence(measured, labels=labels, commit=Commit("abcdef0123456789", False))


def card(evidence: Evidence, **facts: Any) -> str:
    decision = decide(evidence, Policy())
    return model_card(evidence, decision, dataclasses.replace(FACTS, **facts))


def test_the_card_says_what_was_measured_and_where_it_comes_from() -> None:
    text = card(classifier())
    titles = re.findall("(?m)^#+ (.*)", text)
    assert titles == [
        "pets-classifier, version 4",
        "Metrics",
        "Classes",
        "Gates",
        "Limits",
        "How to call it",
        "Where it comes from",
    ]
    assert "Input: table, 2 of float32. Output: probabilities of 3 classes." in text
    assert "fingerprint ffffffffffff; rows: 600 train, 200 val, 200 test." in text
    assert re.search(r"\| accuracy \| 0\.8650 \| 0\.8\d+ to 0\.9\d+ \| 0\.3350 \|", text)
    assert "| macro\\_f1 |" in text and "Expected calibration error 0.135" in text
    assert re.search(r"\| class 0 \| 0\.\d{3} \| 1\.000 \| 0\.\d{3} \| 67 \|", text)
    assert "| finite\\_outputs | 0 of 200 not finite | at most 0 | pass |" in text
    assert (
        "[run 01234567](#/experiments/12/runs/0123456789abcdef); code: commit abcdef012345" in text
    )
    assert "(#/models/pets-classifier-candidates/versions/17)" in text
    assert "Follows [pets-classifier version 3](#/models/pets-classifier/versions/3)." in text
    assert "The first release." in card(classifier(), previous=None)


def test_the_limits_are_those_of_what_was_measured() -> None:
    text = card(classifier())
    assert "Latency and memory of serving were not measured." in text
    assert "Changed rows were tried in these ways only: noise." in text
    assert "Its training was not reproduced." in text
    assert "erred on no test row" not in text and "decisions" not in text.split("## Limits")[1]
    served = dataclasses.replace(
        classifier(right=1.0),
        serving=Serving(200, 1.0, 2.0, 1),
        reproduced="identical",
        n_decisions=9,
    )
    text = card(served)
    assert "not measured" not in text and "not reproduced" not in text
    assert "9 decisions were made on these test rows before" in text
    assert "it may still err on up to 1.5 % of such rows" in text
    seen = dataclasses.replace(served, candidate=dataclasses.replace(served.candidate, n_seen=5))
    assert "5 test rows stand in its training rows" in card(seen)
    assert "Fewer than 10 test rows of class 0, class 1" in card(classifier(40))


def test_a_vae_has_nats_and_no_classes() -> None:
    spec = spec_of("vae")
    rows = -20.0 + np.sin(np.arange(100.0))
    score = score_vae([{"anomaly_score": -one} for one in rows], chance=-40.0)
    text = card(Evidence(Measured(spec, rows, score, 1000)))
    assert "## Classes" not in text and "calibration" not in text
    assert re.search(r"\| elbo\\_at\\_mean \| -\d+\.\d+ \| -20\.\d+ to -19\.\d+ \| -40\.0000", text)


@pytest.mark.parametrize("n_classes", [2, 29, 120])
def test_the_card_fits_into_mlflows_database(n_classes: int) -> None:
    names = tuple(f"{'_' * 200}{i}" for i in range(n_classes))
    text = card(classifier(n_classes, names=names))
    assert len(text) <= MAX_CHARACTERS
    assert text.rstrip().endswith("(#/models/pets-classifier/versions/3).")
    shown = text.count("| \\_\\_")
    assert 2 <= shown <= 30
    if shown < n_classes:
        assert f"## Classes (the {shown} of {n_classes} with the lowest F1)" in text


def test_the_worst_classes_are_shown_where_not_all_can_be() -> None:
    text = card(classifier(50, right=0.9))  # the last 20 rows, of 20 classes, are named class 0
    shown = {int(one) for one in re.findall(r"\| class (\d+) \|", text)}
    wrong = {0, *range(30, 50)}
    assert wrong < shown and len(shown) == 30


def test_nothing_in_a_name_is_read_as_markdown_or_html() -> None:
    evil = ("a|b", "<img src=x>", "[x](javascript:1)\n# title")
    text = card(classifier(3, names=evil))
    assert "<img" not in text and "[x](" not in text and "\n# title" not in text
    assert "| a\\|b |" in text
    assert "&lt;img src=x&gt;" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_is_a_request_that_the_model_takes(kind: str, tmp_path: Path) -> None:
    import pandas as pd

    data = spec_of(kind).input
    body, note = example_request(data)
    if note:
        content = np.zeros(data.shape, data.dtype).tobytes()
        (tmp_path / "row.bin").write_bytes(content)
        (tmp_path / "row.png").write_bytes(_png(data.shape) if "png" in note else b"")
        body = subprocess.run(
            ["bash", "-c", f"printf %s {body}"], cwd=tmp_path, capture_output=True, check=True
        ).stdout.decode()
    sent = json.loads(body)
    rows = pd.DataFrame(sent["dataframe_records"]) if "inputs" not in sent else sent["inputs"]
    assert rows_for(data.to_json()).parse(rows).shape == (1, *data.shape)
    assert "curl" in card_of(kind)


def _png(shape: tuple[int, ...]) -> bytes:
    import io

    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(content, "png")
    return content.getvalue()


def card_of(kind: str) -> str:
    spec = spec_of(kind)
    if spec.task == "vae":
        rows = np.full(10, -1.0)
        score = score_vae([{"anomaly_score": 1.0}] * 10, chance=-9.0)
        return card(Evidence(Measured(spec, rows, score, 1000)))
    labels = np.arange(12) % 3
    answers = np.eye(3)[labels]
    measured = Measured(spec, answers, score_classifier(answers, labels), 1000)
    return card(Evidence(measured, labels=labels))


def test_the_command_can_be_typed_whatever_the_columns_are_called() -> None:
    columns = (Column('a "b" $HOME `ls`', ("x\n", "y")), Column("it's"))
    data = InputSpec("table", (3,), "float32", columns, 0.0, 1.0, (0.5, 0.5, 7.0), (1.0,) * 3)
    evidence = classifier()
    spec = dataclasses.replace(evidence.candidate.spec, input=data)
    text = card(dataclasses.replace(
        evidence, candidate=dataclasses.replace(evidence.candidate, spec=spec)
    ))  # fmt: skip
    command = next(line for line in text.splitlines() if line.startswith("    curl"))
    typed = subprocess.run(
        ["bash", "-c", f'curl() {{ printf %s "${{@: -1}}"; }}; {command}'],
        capture_output=True,
        check=True,
    )
    record = {'a "b" $HOME `ls`': "x\n", "it's": 7.0}
    assert json.loads(typed.stdout) == {"dataframe_records": [record]}


def test_a_long_row_is_described_instead_of_written_out() -> None:
    columns = tuple(Column(f"column {i}") for i in range(500))
    data = InputSpec("table", (500,), "float32", columns, 0.0, 1.0, (0.5,) * 500, (1.0,) * 500)
    body, note = example_request(data)
    assert body == "@rows.json" and "all 500 columns" in note
    plain = dataclasses.replace(data, columns=None)
    assert example_request(plain)[0] == "@rows.json"
    assert "a row as lists 500" in example_request(plain)[1]


def test_the_example_holds_no_row_of_the_dataset() -> None:
    body, _ = example_request(spec_of("mixed").input)
    assert json.loads(body)["dataframe_records"] == [
        {"weight": 0.5, "age": 0.5, "colour": "blue", "island": "3"}
    ]
