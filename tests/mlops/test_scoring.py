from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.packaging import load_model
from mlops.scoring import CHUNK_ROWS, gaussian_kl, reconstruction_error
from tests.packaged_models import (
    JSON,
    KINDS,
    MARK,
    Packaged,
    bad_bodies,
    build,
    columns_of,
    http_forms,
    python_forms,
    records_of,
    rows_of,
)

Post = Callable[..., tuple[int, str]]


def post(app: Any, body: Any, content_type: str = JSON) -> tuple[int, str]:
    """Sends one request to an ASGI application; returns the status and the text of the reply."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/invocations",
        "raw_path": b"/invocations",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", content_type.encode())],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent).decode()
    return int(sent[0]["status"]), text


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Packaged, Any]]:
    root = tmp_path_factory.mktemp("packaged")
    built = {kind: build(root, kind) for kind in KINDS}
    return {kind: (packaged, load_model(packaged.folder)) for kind, packaged in built.items()}


@pytest.fixture(scope="module")
def servers(models: dict[str, tuple[Packaged, Any]]) -> Iterator[dict[str, Post]]:
    """The scoring application of `mlflow models serve`, in this process, one a model."""
    from mlflow.pyfunc.scoring_server import init

    before = dict(os.environ)
    yield {kind: partial(post, init(model)) for kind, (_, model) in models.items()}
    os.environ.clear()
    os.environ.update(before)


def plain(answer: Any) -> Any:
    """Numbers of an answer as one array, whatever its form."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        return np.array([list(row.values()) for row in answer])
    return np.asarray(answer)


def expected(packaged: Packaged) -> Any:
    if packaged.spec.task == "classifier":
        return packaged.outputs[0]
    x, logits, mean, log_var = (np.asarray(o, np.float64) for o in packaged.outputs)
    p = 1 / (1 + np.exp(-logits))
    error = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2, 3))
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1).sum(axis=1)
    return np.stack([error, kl, error + kl], axis=1)


@pytest.mark.parametrize(
    ("kind", "form"), [(kind, form) for kind in KINDS for form in python_forms(kind)]
)
def test_every_form_in_python_gives_the_networks_answer(
    models: dict[str, tuple[Packaged, Any]], kind: str, form: str
) -> None:
    packaged, model = models[kind]
    answer = plain(model.predict(python_forms(kind)[form](packaged.rows, packaged.spec)))
    np.testing.assert_allclose(answer, expected(packaged), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "form"), [(kind, form) for kind in KINDS for form in http_forms(kind)]
)
def test_every_form_in_the_scoring_server_gives_the_networks_answer(
    models: dict[str, tuple[Packaged, Any]], servers: dict[str, Post], kind: str, form: str
) -> None:
    packaged, _ = models[kind]
    content_type, body = http_forms(kind)[form](packaged.rows, packaged.spec)
    status, text = servers[kind](body, content_type)
    assert status == 200, text
    answer = plain(json.loads(text)["predictions"])
    np.testing.assert_allclose(answer, expected(packaged), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_gets_a_sentence_without_the_data(servers: dict[str, Post], kind: str) -> None:
    for name, (body, piece) in bad_bodies(kind).items():
        status, text = servers[kind](body)
        assert status == 400, (name, text)
        message = json.loads(text)["message"]
        assert piece in message, (name, message)
        assert "expected" in message or name in ("null", "a dictionary"), (name, message)
        assert "Traceback" not in text and "71234567" not in text, (name, text)


@pytest.mark.parametrize(
    "data",
    [
        [[1.0, 2.0, 3.0], [1.0, 2.0]],
        [[1.0, 2.0, 3.0], [[1.0], 2.0, MARK]],
        np.array([["a", "b", "c"]]),
        np.array([1 + 2j, 1, 2]).reshape(1, 3),
        [[10**400, 1, 2]],
        [[1e39, 1, 2]],
        [["AAAA"]],
        [None],
        [object()],
        "AAAAAAAAAAAAAAAA",
        b"AAAAAAAAAAAAAAAA",
        {"width": [1.0], "height": [2.0, 3.0], "mass": [1.0]},
        np.zeros((2, 2, 2)),
        np.float32(3.0),
        MARK,
        object(),
        {1, 2, 3},
    ],
)
def test_whatever_comes_in_python_is_refused_with_what_was_expected(
    models: dict[str, tuple[Packaged, Any]], data: Any
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        models["table"][1].predict(data)
    assert caught.value.get_http_status_code() == 400
    columns = "width (number), height (number), mass (number)"
    assert f"expected a table with columns {columns}." in str(caught.value)
    assert "71234567" not in caught.value.serialize_as_json()
    caught.value.message = f"Failed to predict data '{MARK}'"
    assert "71234567" not in caught.value.message


def test_columns_come_as_a_dictionary_or_as_records_too(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    packaged, model = models["table"]
    rows = packaged.rows.tolist()
    for data in (columns_of(rows, packaged.spec), records_of(rows, packaged.spec)):
        np.testing.assert_allclose(model.predict(data), packaged.outputs[0], atol=1e-6)


def test_no_rows_give_no_answers(
    models: dict[str, tuple[Packaged, Any]], servers: dict[str, Post]
) -> None:
    import pandas as pd

    for kind in KINDS:
        packaged, model = models[kind]
        for nothing in ([], packaged.features[:0], pd.DataFrame()):
            assert len(model.predict(nothing)) == 0
        for key in ("inputs", "instances", "dataframe_records"):
            assert servers[kind]({key: []}) == (200, '{"predictions": []}')
    assert models["table"][1].predict([]).shape == (0, 3)


def test_labels_come_on_request(
    models: dict[str, tuple[Packaged, Any]], servers: dict[str, Post]
) -> None:
    packaged, _ = models["image_uint8"]
    body = {"inputs": packaged.rows.tolist(), "params": {"labels": True}}
    answer = json.loads(servers["image_uint8"](body)[1])["predictions"]
    best = packaged.outputs[0].argmax(axis=1)
    assert [row["label"] for row in answer] == [packaged.spec.class_names[i] for i in best]
    np.testing.assert_allclose([r["probabilities"] for r in answer], packaged.outputs[0], atol=1e-6)


def test_more_rows_than_a_chunk_come_back_in_order(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    packaged, model = models["table"]
    n = 2 * CHUNK_ROWS + 3
    rows = np.resize(packaged.rows, (n, 3))
    answer = model.predict(rows)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, np.resize(packaged.outputs[0], (n, 3)), atol=1e-6)


def test_many_threads_get_each_their_own_answer(models: dict[str, tuple[Packaged, Any]]) -> None:
    _, model = models["sequence"]
    rows = rows_of("sequence", 64)
    whole = model.predict(rows)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: model.predict(rows[i : i + 1]), range(64)))
    np.testing.assert_allclose(np.concatenate(answers), whole, atol=1e-6)


def test_an_answer_that_is_not_finite_is_an_error(models: dict[str, tuple[Packaged, Any]]) -> None:
    from mlflow.exceptions import MlflowException

    rows = rows_of("vae", 2)
    rows[1] = 3e38
    with pytest.raises(MlflowException, match="row 1 gives no finite answer"):
        models["vae"][1].predict(rows)


def test_loading_leaves_the_folder_as_it_was(models: dict[str, tuple[Packaged, Any]]) -> None:
    for packaged, _ in models.values():
        assert not list(packaged.folder.rglob("__pycache__"))


def test_two_scoring_files_in_one_process_run_each_their_own(
    models: dict[str, tuple[Packaged, Any]], tmp_path: Path
) -> None:
    import shutil

    import mlflow.pyfunc

    packaged, model = models["table"]
    other = tmp_path / "other"
    shutil.copytree(packaged.folder, other)
    (old,) = (other / "code").iterdir()
    text = old.read_text().replace("scores.argmax(axis=1)", "scores.argmin(axis=1)") + "# other\n"
    name = f"podium_scoring_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    old.unlink()
    (other / "code" / f"{name}.py").write_text(text)
    mlmodel = other / "MLmodel"
    mlmodel.write_text(mlmodel.read_text().replace(old.stem, name))

    def labels(loaded: Any) -> list[str]:
        return [row["label"] for row in loaded.predict(packaged.rows, params={"labels": True})]

    second = mlflow.pyfunc.load_model(str(other))
    again = load_model(packaged.folder)
    names = np.array(packaged.spec.class_names)
    best, worst = packaged.outputs[0].argmax(axis=1), packaged.outputs[0].argmin(axis=1)
    assert labels(model) == labels(again) == names[best].tolist()
    assert labels(second) == names[worst].tolist()
    assert {old.stem, name} <= set(sys.modules)


def test_scoring_imports_nothing_heavy_and_nothing_of_podium() -> None:
    import ast

    source = Path(importlib.import_module("mlops.scoring").__file__ or "").read_text()
    tree = ast.parse(source)
    top = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    heavy = {"numpy", "numpy.typing"}
    assert {name for name in top if name and name.split(".")[0] not in sys.stdlib_module_names} == (
        heavy
    )
    assert "import mlops" not in source and "from mlops" not in source


def test_reconstruction_error_is_the_negative_log_likelihood() -> None:
    x = np.array([[0.0, 1.0], [0.25, 0.5]])
    logits = np.array([[-1.0, 2.0], [0.5, 800.0]])
    p = 1 / (1 + np.exp(-logits[0]))
    by_hand = -(x[0] * np.log(p) + (1 - x[0]) * np.log(1 - p)).sum()
    errors = reconstruction_error(x, logits, "bernoulli")
    assert errors[0] == pytest.approx(by_hand)
    # At a logit of 800 the plain formula gives infinity: -(1-x) log(1-p) tends to (1-x) l.
    assert errors[1] == pytest.approx(0.75 * 0.5 + math.log1p(math.exp(-0.5)) + 0.5 * 800 - 0)
    gaussian = reconstruction_error(x, x + 1, "gaussian")
    assert gaussian == pytest.approx([2 * (0.5 + 0.5 * math.log(2 * math.pi))] * 2)
    with pytest.raises(ValueError, match="expected bernoulli or gaussian"):
        reconstruction_error(x, x, "poisson")


def test_gaussian_kl_is_the_integral_it_stands_for() -> None:
    mean, log_var = 0.7, -0.4
    z = np.linspace(-12, 12, 200_001)
    variance = math.exp(log_var)
    log_q = -0.5 * (np.log(2 * np.pi) + log_var + (z - mean) ** 2 / variance)
    log_p = -0.5 * (np.log(2 * np.pi) + z**2)
    integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
    kl = gaussian_kl([[mean, 0.0]], [[log_var, 0.0]])
    assert kl == pytest.approx([integral], abs=1e-9)
