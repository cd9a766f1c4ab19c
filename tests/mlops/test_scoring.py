from __future__ import annotations

import asyncio
import base64
import decimal
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.packaging import load_model
from mlops.scoring import (
    MAX_PIXELS,
    STATUS,
    category_name,
    decode_picture,
    encode_table,
    gaussian_kl,
    reconstruction_error,
    scoring_error,
)
from mlops.scoring.batches import Batches
from mlops.scoring.compiled import CHUNK_ROWS
from mlops.scoring.explain import EXPLAIN_S, EXPLAINED_AT_ONCE, MAX_EXPLAINED, Gradients
from mlops.scoring.model import load_pyfunc, rows_for
from mlops.scoring_code import read_own
from tests.packaged_models import (
    JSON,
    KINDS,
    MARK,
    Packaged,
    bad_bodies,
    build,
    columns_of,
    features_of,
    http_forms,
    name_code,
    python_forms,
    records_of,
    rows_of,
    spec_of,
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
        if name not in ("null", "a dictionary"):  # these MLflow answers itself
            assert list(json.loads(text)) == ["code", "message", "field"]
            assert json.loads(text)["code"] in STATUS
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


def test_cells_that_cannot_be_read_in_python_are_refused(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    packaged, model = models["mixed"]
    good = packaged.rows[0]
    frame = pd.DataFrame([good], columns=list("abcd"))
    for data, piece in (
        ([good, good[:3]], "row 1 is not a list of 4 cells"),
        ([good, None], "expected a table"),
        ([[1.0] * 5], "has shape (5,)"),
        (np.zeros((2, 5)), "has shape (2, 5)"),
        ({"weight": [1.0], "age": [1.0, 2.0], "colour": ["red"], "island": ["3"]}, "one length"),
        ({"weight": 1.0, "age": 1.0, "colour": "red", "island": "3"}, "are not lists"),
        (frame, "columns 'weight', 'age', 'colour', 'island' are missing"),
        (frame.set_axis(["weight", "age", "colour", "weight"], axis=1), "'island' is missing"),
        (
            pd.DataFrame([[*good, 1.0]], columns=["weight", "age", "colour", "island", "age"]),
            "column 'age' is there twice",
        ),
        (
            columns_of([good], packaged.spec) | {"weight": np.array(["2020-01-01"], "M8[ns]")},
            "column 'weight' holds datetime64",
        ),
        (
            {**columns_of([good], packaged.spec), "colour": [pd.Timestamp(0)]},
            "row 0 holds something else than text or numbers in column 'colour'",
        ),
    ):
        with pytest.raises(MlflowException) as caught:
            model.predict(data)
        assert piece in str(caught.value) and caught.value.get_http_status_code() == 400


def test_text_beside_numbers_over_http_is_read_as_what_it_was(servers: dict[str, Post]) -> None:
    """MLflow makes an array of text of a list that holds numbers and text."""
    rows = [[1e16, 30, "red", 3.0], [1e-5, -1.5, "green", 3], [True, 0.1, "3.0", "Dream"]]
    by_name = {"dataframe_records": records_of(rows, spec_of("mixed"))}
    status, text = servers["mixed"]({"inputs": rows})
    assert (status, text) == servers["mixed"](by_name)
    assert status == 200


def test_a_table_of_one_category_column_is_a_table(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    import pandas as pd

    columns = [{"name": "colour", "categories": ["AAAA", "b"], "missing": "flagged", "fill": None}]
    spec = models["mixed"][0].spec.input.to_json() | {"shape": [3], "columns": columns}
    rows = rows_for(spec)
    wanted = [[1, 0, 0], [0, 0, 1]]
    cells = ["AAAA", None]
    for data in (
        pd.DataFrame({"colour": cells}),
        pd.DataFrame([[cell] for cell in cells]),
        [[cell] for cell in cells],
        [{"colour": cell} for cell in cells],
        {"colour": cells},
    ):
        assert rows.parse(data).tolist() == wanted


def test_pictures_are_decoded_as_training_decodes_them(
    models: dict[str, tuple[Packaged, Any]], servers: dict[str, Post]
) -> None:
    import pandas as pd

    packaged, model = models["image_uint8"]
    small, large = packaged.rows[0], picture_of((9, 7, 3))
    files = [file_of(small), file_of(large), file_of(large, "JPEG"), small.tobytes()]
    wanted = [small, *(decode_picture(file, (4, 4, 3)) for file in files[1:3]), small]
    answer = model.predict(np.stack(wanted))
    texts = [base64.b64encode(file).decode() for file in files]
    for data in (texts, files, pd.DataFrame({"file": files}), pd.DataFrame({"file": texts})):
        np.testing.assert_array_equal(model.predict(data), answer)
    status, text = servers["image_uint8"]({"instances": texts})
    assert status == 200
    np.testing.assert_allclose(json.loads(text)["predictions"], answer, atol=1e-6)


def test_a_bad_picture_is_refused_with_its_row(servers: dict[str, Post]) -> None:
    good = picture_of((9, 7, 3))
    png, jpeg = file_of(good), file_of(good, "JPEG")
    broken = (
        (png[:-30], "row 1 is a damaged or incomplete PNG or JPEG file"),
        (jpeg[:200] + jpeg[-2:], "row 1 is a damaged or incomplete PNG or JPEG file"),
        (png_of(60_000, 60_000), "row 1 is a picture of 3600000000 pixels, more than 89478485"),
        (jpeg[:-2], "row 1 decodes to"),  # not told as a picture
        (file_of(good, "BMP"), "row 1 decodes to"),
    )
    for content, piece in broken:
        rows = [base64.b64encode(file).decode() for file in (png, content)]
        status, text = servers["image_uint8"]({"inputs": rows})
        assert status == 400 and piece in text, text
        assert "expected uint8 of shape (n, 4, 4, 3), or PNG or JPEG files." in text
    status, text = servers["image_float32"]({"inputs": rows[:1]})
    assert status == 400
    assert "row 0 is a PNG or JPEG file, but this model takes raw values only" in text
    spec = spec_of("image_uint8").input.to_json() | {"shape": [4, 4, 2]}
    with pytest.raises(ValueError, match="row 0 is a picture, which has 1, 3 or 4 channels, not 2"):
        rows_for(spec).parse([png])


def test_no_rows_are_refused_as_empty(
    models: dict[str, tuple[Packaged, Any]], servers: dict[str, Post]
) -> None:
    import pandas as pd

    for kind in KINDS:
        packaged, model = models[kind]
        nothing: Any
        for nothing in ([], packaged.features[:0], pd.DataFrame()):
            assert refusal(model, nothing)[:2] == ("empty", None)
        for key in ("inputs", "instances", "dataframe_records"):
            status, text = servers[kind]({key: []})
            assert (status, json.loads(text)["code"]) == (400, "empty")


def refusal(model: Any, data: Any, **params: Any) -> tuple[str, str | None, str]:
    """The code, the field and the sentence of what a model answers to bad input."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        model.get_raw_model().predict(data, params)
    error = json.loads(caught.value.serialize_as_json())
    assert list(error) == ["code", "message", "field"]
    assert (caught.value.code, caught.value.field) == (error["code"], error["field"])
    assert caught.value.get_http_status_code() == caught.value.http_status == STATUS[error["code"]]
    assert str(MARK) not in caught.value.to_json()
    return error["code"], error["field"], error["message"]


def mixed_rows(**cells: Any) -> list[dict[str, Any]]:
    good = records_of(rows_of("mixed"), spec_of("mixed"))
    return [good[0], {**good[1], **cells}]


PIXELS = [[0] * 48, [0] * 48]
BAD: list[tuple[str, Any, str, str | None]] = [
    # kind, input, code, field
    ("table", [[1.0, 2.0]], "wrong_shape", None),
    ("table", np.zeros((2, 2, 2)), "wrong_shape", None),
    ("table", [1.0, 2.0, 3.0], "wrong_shape", None),
    ("table", MARK, "wrong_type", None),
    ("image_uint8", ["AAAA"], "wrong_shape", "rows[0]"),
    ("ragged", [np.zeros((6, 2))], "wrong_shape", "rows[0]"),
    ("ragged", [np.zeros((2, 2)), np.zeros((6, 2))], "wrong_shape", "rows[1]"),
    ("mixed", [[1.0] * 5], "wrong_shape", "rows[0]"),
    ("table", [[1.0, 2.0, 3.0], [1.0, 2.0]], "ragged", "rows[1]"),
    ("table", [[1.0, 2.0], [1.0, 2.0, 3.0]], "ragged", "rows[0]"),
    ("ragged", [[[1.0, 2.0]], [[1.0, MARK], [1.0]]], "ragged", "rows[1]"),
    ("image_float32", [[[[0.0]] * 4] * 4, [[[0.0]] * 4] * 3], "ragged", "rows[1]"),
    ("mixed", {"weight": [1.0], "age": [1.0, 2.0], "colour": ["red"]}, "ragged", None),
    ("image_uint8", [PIXELS[0], [*PIXELS[1][:-1], True]], "not_a_number", "rows[1]"),
    ("image_uint8", [PIXELS[0], [False] * 48], "not_a_number", "rows[1]"),
    ("image_uint8", np.zeros((1, 48), bool), "not_a_number", "rows[0]"),
    ("image_float32", [[*[0.5] * 15, True]], "not_a_number", "rows[0]"),
    ("sequence", [[[0, 1]] * 4 + [[True, 1]]], "not_a_number", "rows[0]"),
    ("sequence", [np.zeros(10), np.ones(10, bool)], "not_a_number", "rows[1]"),
    ("ragged", [[[0.5, 1]], [[True, 1]]], "not_a_number", "rows[1]"),
    ("sequence", np.array([[*[0.5] * 9, None]], object), "not_a_number", "rows[0]"),
    ("sequence", np.array([[*[0.5] * 9, True]], object), "not_a_number", "rows[0]"),
    ("sequence", [[*[0.5] * 9, {}]], "not_a_number", "rows[0]"),
    ("image_uint8", [PIXELS[0], [*PIXELS[1][:-1], None]], "not_a_number", "rows[1]"),
    ("image_uint8", [PIXELS[0], [*PIXELS[1][:-1], str(MARK)]], "not_a_number", "rows[1]"),
    ("mixed", mixed_rows(age=f"x{MARK}"), "not_a_number", "rows[1].age"),
    ("mixed", mixed_rows(weight=None), "not_a_number", "rows[1].weight"),
    ("table", [{"width": 1.0, "height": 2.0, "mass": None}], "not_a_number", "rows[0].mass"),
    ("image_uint8", [PIXELS[0], [256] * 48], "out_of_range", "rows[1]"),
    ("image_uint8", [PIXELS[0], [-1] * 48], "out_of_range", "rows[1]"),
    ("image_uint8", [[0.5] * 48], "out_of_range", "rows[0]"),
    ("sequence", [[math.nan] * 10], "out_of_range", "rows[0]"),
    ("sequence", [[1e39] * 10], "out_of_range", "rows[0]"),
    ("sequence", [[10**400] * 10], "out_of_range", "rows[0]"),
    ("table", [[1.0, 2.0, 3.0], [1.0, math.inf, 3.0]], "out_of_range", "rows[1].height"),
    ("mixed", mixed_rows(weight=math.inf), "out_of_range", "rows[1].weight"),
    ("mixed", {"weight": [MARK]}, "missing_key", "columns.age"),
    ("mixed", mixed_rows(size=MARK), "unknown_key", "columns"),
    ("sequence", [f"!{MARK}"], "not_base64", "rows[0]"),
    ("mixed", mixed_rows(colour=[MARK]), "wrong_type", "rows[1].colour"),
    ("mixed", mixed_rows(island=None), "wrong_type", "rows[1].island"),
    ("sequence", {"steps": [MARK]}, "wrong_type", None),
    ("sequence", object(), "wrong_type", None),
    ("vae", np.full((1, 4, 4, 1), 3e38, np.float32), "not_finite", "rows[0]"),
]


@pytest.mark.parametrize(("kind", "data", "code", "field"), BAD)
def test_what_is_wrong_has_a_code_and_a_place(
    models: dict[str, tuple[Packaged, Any]], kind: str, data: Any, code: str, field: str | None
) -> None:
    _, model = models[kind]
    found = refusal(model, data)
    assert found[:2] == (code, field), found
    assert "expected" in found[2]


def test_true_is_1_in_a_column_of_numbers(models: dict[str, tuple[Packaged, Any]]) -> None:
    packaged, model = models["table"]
    for data in (
        [[True, 2.0, False]],
        np.array([[True, 2.0, False]], object),
        records_of([[True, 2.0, False]], packaged.spec),
    ):
        np.testing.assert_array_equal(model.predict(data), model.predict([[1.0, 2.0, 0.0]]))


def test_nesting_however_deep_is_refused(models: dict[str, tuple[Packaged, Any]]) -> None:
    deep: list[Any] = [1.0]
    for _ in range(100_000):
        deep = [deep]
    for kind in ("image_uint8", "ragged", "table", "mixed"):
        assert refusal(models[kind][1], deep)[0] in ("wrong_shape", "not_a_number", "ragged")


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["AAAA", "red", "3", "\ud800", 10**400, 256, {}, []]),
)
KEYS = st.sampled_from(["weight", "age", "colour", "island", "width", "height", "mass", "a", ""])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, min_size=1, max_size=5)
    ),
    max_leaves=30,
)


@st.composite
def almost_rows(draw: st.DrawFn, rows: Any) -> Any:
    """Good rows with something else in one place, however deep, or one thing less."""
    copy = json.loads(json.dumps(rows))
    place = copy
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.booleans()):
            break
        place = inner
    if draw(st.booleans()):
        place[key] = draw(VALUES)
    else:
        del place[key]
    return copy


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_comes_is_answered_or_refused_with_400(
    models: dict[str, tuple[Packaged, Any]], kind: str, data: st.DataObject
) -> None:
    packaged, model = models[kind]
    lists = http_forms(kind)["inputs of records" if kind == "ragged" else "inputs"]
    body = lists(packaged.rows, packaged.spec)[1]["inputs"]
    sent = data.draw(st.one_of(VALUES, almost_rows(body)))
    try:
        answer = model.get_raw_model().predict(sent)
    except Exception as err:
        code = getattr(err, "code", None)
        assert code in STATUS and STATUS[code] == 400, (sent, err, err.__cause__)
        json.loads(err.to_json())  # type: ignore[attr-defined]
    else:
        assert np.isfinite(plain(answer)).all()


def test_parameters_are_checked_by_name_and_by_type(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    packaged, model = models["image_uint8"]
    for name in ("labels", "explain"):
        found = refusal(model, packaged.rows, **{name: "yes"})
        assert found[:2] == ("wrong_type", f"params.{name}")
    assert refusal(model, packaged.rows, label=True)[:2] == ("unknown_key", "params")


def test_every_code_has_a_status_and_stands_in_the_docstring() -> None:
    import mlops.scoring

    for code, status in STATUS.items():
        assert re.search(rf"\b{code}\b", mlops.scoring.__doc__ or ""), code
        error: Any = scoring_error(code, "A sentence.", "rows[0]")
        assert error.get_http_status_code() == status
        assert json.loads(error.to_json()) == {
            "code": code,
            "message": "A sentence.",
            "field": "rows[0]",
        }


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


def reopened(packaged: Packaged, **config: Any) -> Any:
    """The model itself, loaded as a server loads it."""
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(packaged.folder), model_config=config or None)
    return loaded.get_raw_model()


def test_a_server_may_limit_the_rows_of_a_request(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    import pandas as pd

    packaged, _ = models["mixed"]
    model = reopened(packaged, max_rows=3)
    rows = packaged.rows
    assert len(model.predict(rows[:3])) == 3
    frame = pd.DataFrame(records_of(rows, packaged.spec))
    for data in (rows, features_of("mixed"), frame, columns_of(rows, packaged.spec)):
        code, field, sentence = refusal(model, data)
        assert (code, field) == ("too_many_rows", None)
        assert "it has 4 rows, more than the 3 of a request" in sentence


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"max_row": 3}, "has no max_row; expected max_rows, max_batch, max_wait_ms"),
        ({"max_rows": 0}, "max_rows is 0; expected a whole number"),
        ({"max_batch": None}, "max_batch is None"),
        ({"max_batch": True}, "max_batch is True"),
        ({"max_wait_ms": -1}, "max_wait_ms is -1; expected 0 to 60000"),
        ({"max_wait_ms": math.nan}, "max_wait_ms is nan"),
    ],
)
def test_a_setting_that_there_is_not_is_refused_when_a_model_is_loaded(
    config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_pyfunc("nowhere", config)


class Held:
    """A forward pass over rows (n, 1) that doubles them, and waits while it is held."""

    def __init__(self, max_batch: int = 8, max_wait_s: float = 0.0) -> None:
        self.passes: list[int] = []
        self.free = threading.Event()
        self.started = threading.Event()
        self.batches = Batches(self.score, max_batch, max_wait_s)

    def score(self, rows: Any) -> Any:
        self.passes.append(len(rows))
        self.started.set()
        assert self.free.wait(30)
        if (rows < 0).any():
            raise RuntimeError("negative")
        return rows * 2.0

    def wait_for(self, n_requests: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.batches._waiting) < n_requests:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def ones(value: float, n: int = 1) -> Any:
    return np.full((n, 1), value)


def test_a_lone_request_is_computed_at_once_and_in_its_own_thread() -> None:
    held = Held()
    held.free.set()
    before = threading.active_count()
    for value in range(3):
        assert held.batches.score(ones(value)).tolist() == [[2 * value]]
    assert held.passes == [1, 1, 1] and threading.active_count() == before


def test_requests_that_come_during_a_pass_share_the_next() -> None:
    held = Held()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(held.batches.score, ones(0))
        held.started.wait(30)
        others = [pool.submit(held.batches.score, ones(i, 1 + i % 2)) for i in range(1, 6)]
        held.wait_for(5)
        held.free.set()
        assert first.result(30).tolist() == [[0]]
        for i, other in enumerate(others, 1):
            assert other.result(30).tolist() == [[2 * i]] * (1 + i % 2)
    assert held.passes == [1, 8]


def test_a_pass_takes_no_more_rows_than_it_may() -> None:
    held = Held(max_batch=4)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(held.batches.score, ones(0))]
        held.started.wait(30)
        for i in range(1, 6):
            futures.append(pool.submit(held.batches.score, ones(i, 3 if i == 3 else 1)))
            held.wait_for(i)
        held.free.set()
        assert [future.result(30)[0, 0] for future in futures] == [0, 2, 4, 6, 8, 10]
    assert held.passes == [1, 2, 4, 1]


def test_a_large_request_waits_for_nobody() -> None:
    held = Held(max_batch=4)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(held.batches.score, ones(0))
        held.started.wait(30)
        held.started.clear()
        large = pool.submit(held.batches.score, ones(1, 4))
        assert held.started.wait(30)  # while the first one is still under way
        held.free.set()
        assert (first.result(30).shape, large.result(30).shape) == ((1, 1), (4, 1))


def test_a_request_that_makes_its_pass_fail_fails_alone() -> None:
    held = Held()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(held.batches.score, ones(0))
        held.started.wait(30)
        good, bad, other = (pool.submit(held.batches.score, ones(value)) for value in (1, -1, 2))
        held.wait_for(3)
        held.free.set()
        with pytest.raises(RuntimeError, match="negative"):
            bad.result(30)
        answers = [future.result(30).tolist() for future in (first, good, other)]
    assert answers == [[[0]], [[2]], [[4]]]
    assert held.passes == [1, 3, 1, 1, 1]
    assert held.batches.score(ones(3)).tolist() == [[6]]


def test_a_leader_that_fails_while_it_waits_for_more_leaves_nobody_waiting() -> None:
    batches = Batches(lambda rows: rows * 2.0, 8, 1e30)  # longer than a lock can wait
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(batches.score, ones(i)) for i in range(4)]:
            with pytest.raises(OverflowError):
                future.result(10)
    assert (batches._n_rows, len(batches._waiting), batches._is_led) == (0, 0, False)


def test_a_pass_waits_for_more_rows_where_it_is_told_to() -> None:
    held = Held(max_batch=4, max_wait_s=30.0)
    held.free.set()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: held.batches.score(ones(i))[0, 0], range(4)))
    assert (answers, held.passes) == ([0, 2, 4, 6], [4])
    short = Held(max_batch=4, max_wait_s=0.05)
    short.free.set()
    started = time.monotonic()
    assert short.batches.score(ones(1)).tolist() == [[2]]
    assert 0.05 <= time.monotonic() - started < 10


def test_nobody_is_left_waiting_and_no_answer_goes_to_another() -> None:
    held = Held(max_batch=5)
    held.free.set()

    def ask(i: int) -> bool:
        n = i % 7 + 1
        return held.batches.score(ones(i, n)).tolist() == [[2.0 * i]] * n

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(3000)))
    assert sum(held.passes) == sum(i % 7 + 1 for i in range(3000))


def test_rows_that_give_no_finite_answer_fail_only_their_own_request(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    packaged, _ = models["vae"]
    model = reopened(packaged)
    passes: list[int] = []
    free, started = threading.Event(), threading.Event()

    def hold(n: int) -> None:
        passes.append(n)
        started.set()
        free.wait(30)

    model.on_batch = hold
    bad = np.full((1, 4, 4, 1), 3e38, np.float32)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(model.predict, packaged.rows[:1])
        started.wait(30)
        futures = [pool.submit(model.predict, packaged.rows[i : i + 1]) for i in (1, 2)]
        failing = pool.submit(refusal, model, bad)
        while len(model._batches._waiting) < 3:
            time.sleep(0.001)
        free.set()
        answers = [future.result(30)[0] for future in (first, *futures)]
    assert passes == [1, 3]
    assert failing.result()[:2] == ("not_finite", "rows[0]")
    np.testing.assert_allclose(plain(answers), expected(packaged)[:3], rtol=1e-5)


def baselines_of(packaged: Packaged) -> Any:
    """What explanations start from, worked out by hand."""
    spec = packaged.spec.input
    if spec.kind == "image":
        return np.zeros_like(packaged.features)
    if not spec.ragged:
        return np.broadcast_to(np.float32(spec.mean), packaged.features.shape)
    padded = np.tile(np.float32([0.5, 0.25, 0.0]), (4, 5, 1))  # each step is the mean step
    padded[..., 2] = packaged.features[..., 2]
    return padded


def numbers_in(value: Any) -> Any:
    return np.array(list(value.values()) if isinstance(value, dict) else value, np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_add_up_to_the_difference_from_the_baseline(
    models: dict[str, tuple[Packaged, Any]], servers: dict[str, Post], kind: str
) -> None:
    """The axiom of completeness (Sundararajan, Taly and Yan 2017, section 3, proposition 1)."""
    packaged, model = models[kind]
    rows, spec = packaged.rows, packaged.spec
    answers = model.predict(rows, params={"explain": True})
    at_rows = plain(model.predict(rows))
    before = plain(model.predict(baselines_of(packaged)))
    for i, answer in enumerate(answers):
        if spec.task == "vae":
            after, start = answer["anomaly_score"], answer["baseline_anomaly_score"]
            assert start == pytest.approx(before[i, 2], rel=1e-5)
        else:
            best = at_rows[i].argmax()
            after, start = answer["probabilities"][best], answer["baseline_probability"]
            assert answer["label"] == spec.class_names[best]
            assert start == pytest.approx(before[i, best], abs=1e-6)
        found = numbers_in(answer["attributions"])
        if spec.input.columns:
            assert list(answer["attributions"]) == [column.name for column in spec.input.columns]
        else:
            assert found.shape == np.shape(rows[i])
        assert found.sum() == pytest.approx(after - start, abs=2e-3)
    content_type, body = (
        http_forms(kind)["base64 inputs" if kind != "mixed" else "inputs"](rows, spec)
        if kind != "table"
        else http_forms(kind)["inputs"](rows, spec)
    )
    status, text = servers[kind]({**body, "params": {"explain": True}}, content_type)
    assert status == 200, text
    for one, other in zip(json.loads(text)["predictions"], answers, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(
            numbers_in(one["attributions"]), numbers_in(other["attributions"]), atol=1e-6
        )


def test_a_linear_network_is_explained_by_its_weights() -> None:
    import keras

    for dtype in ("float32", "uint8"):
        x = keras.Input((2, 3), dtype=dtype)
        flat = keras.layers.Flatten()(keras.layers.Rescaling(0.5, offset=1.0)(x))
        dense = keras.layers.Dense(4)
        network = keras.Model(x, dense(flat))
        gradients = Gradients(network, (2, 3), "classifier", None)
        row = np.arange(6, dtype=np.float32).reshape(2, 3) * 40
        start = np.full((2, 3), 7.0, np.float32)
        weights = np.asarray(dense.kernel).reshape(2, 3, 4)
        for target in range(4):
            found, before = gradients.integrated(row, start, target)
            np.testing.assert_allclose(
                found, 0.5 * weights[..., target] * (row - start), rtol=1e-4, atol=1e-4
            )
            assert before == pytest.approx(np.asarray(network(start[None]))[0, target], rel=1e-5)


def test_layers_that_train_otherwise_are_explained_as_they_answer() -> None:
    """Augmentation and dropout are on where nobody says that this is no training."""
    import keras

    keras.utils.set_random_seed(3)
    x = keras.Input((8, 8, 1), dtype="uint8")
    y = keras.layers.RandomFlip()(keras.layers.Rescaling(1 / 255)(x))
    y = keras.layers.Dropout(0.5)(keras.layers.Flatten()(y))
    network = keras.Model(x, keras.layers.Softmax()(keras.layers.Dense(3)(y)))
    row = np.random.default_rng(1).integers(0, 256, (8, 8, 1)).astype(np.float32)
    gradients = Gradients(network, (8, 8, 1), "classifier", None)
    found, before = gradients.integrated(row, np.zeros_like(row), 1)
    answer = np.asarray(network(row[None].astype(np.uint8), training=False))[0, 1]
    assert found.sum() == pytest.approx(answer - before, abs=1e-4)
    again, _ = gradients.integrated(row, np.zeros_like(row), 1)
    np.testing.assert_array_equal(found, again)


def test_only_so_many_rows_are_explained_at_a_time(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    packaged, model = models["table"]
    rows = np.resize(packaged.rows, (MAX_EXPLAINED + 1, 3))
    code, _, sentence = refusal(model, rows, explain=True)
    assert code == "too_many_rows"
    assert "it has 65 rows, more than the 64 of a request with an explanation" in sentence
    assert len(model.predict(rows[1:], params={"explain": True})) == MAX_EXPLAINED


def test_only_two_requests_are_explained_at_a_time_and_scores_go_on(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    packaged, _ = models["table"]
    model = reopened(packaged, max_batch=1)  # each has a pass of its own
    free, inside = threading.Event(), threading.Semaphore(0)
    held = iter(range(2))

    def hold(_: int) -> None:
        if next(held, None) is not None:
            inside.release()
            free.wait(30)

    model.on_batch = hold
    explain = {"explain": True}
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(model.predict, packaged.rows, explain) for _ in range(2)]
        try:
            for _ in slow:
                assert inside.acquire(timeout=30)
            code, field, sentence = refusal(model, packaged.rows, explain=True)
            scores = model.predict(packaged.rows)
        finally:
            free.set()
        assert [len(future.result(30)) for future in slow] == [4, 4]
    assert (code, field) == ("overloaded", "params.explain")
    assert f"{EXPLAINED_AT_ONCE} requests are being explained" in sentence
    np.testing.assert_allclose(scores, packaged.outputs[0], atol=1e-6)
    refusal(model, [["x"]], explain=True)  # gives its place back too
    assert len(model.predict(packaged.rows, explain)) == 4


def test_no_row_is_explained_when_nobody_waits_for_it_any_more(
    models: dict[str, tuple[Packaged, Any]],
) -> None:
    packaged, loaded = models["table"]
    model = loaded.get_raw_model()
    scores = model.predict(packaged.rows)
    answers = model.predict(packaged.rows, {"labels": True})
    with pytest.raises(Exception, match=rf"could not be explained in {EXPLAIN_S:g} s"):
        model._explained(packaged.features, scores, answers, time.monotonic() - 1)
    assert "attributions" not in answers[0]


LONG = "a" * 100_000
BOMBS: dict[str, tuple[str, Any, str]] = {
    "a long text in a table of numbers": (
        "table",
        [[LONG, "b", "b"], *[["b"] * 3] * 2000],
        "not_a_number",
    ),
    "a long text among numbers": ("mixed", [LONG, *[1] * 2000], "not_a_number"),
    "a long text in a row": ("mixed", [[LONG, *["b"] * 6000]], "wrong_shape"),
    "a long text in a step": ("ragged", [[[LONG, *["b"] * 6000]]], "not_a_number"),
    "a name a record": ("table", [{f"k{i}": 1} for i in range(8000)], "unknown_key"),
    "a name a record of an image": (
        "image_uint8",
        [{f"k{i}": 1} for i in range(8000)],
        "ragged",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_short_request_takes_little_memory(bomb: str) -> None:
    kind, data, code = BOMBS[bomb]
    rows = rows_for(spec_of(kind).input.to_json())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            rows.parse(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert peak < 4e6


@pytest.mark.parametrize("kind", ["table", "mixed"])
def test_names_that_are_none_are_refused_and_no_name_is_repeated(
    models: dict[str, tuple[Packaged, Any]], kind: str
) -> None:
    import pandas as pd

    packaged, model = models[kind]
    names = [column.name for column in packaged.spec.input.columns or ()]
    odd = pd.DataFrame([[1.0] * len(names)], columns=pd.Index([{"a": 1}, *names[1:]], dtype=object))
    assert refusal(model, odd)[:2] == ("wrong_type", "columns")
    more = columns_of(packaged.rows, packaged.spec) | {str(MARK): [1.0] * 4, "b": [1.0] * 4}
    code, field, sentence = refusal(model, more)
    assert (code, field) == ("unknown_key", "columns")
    assert "2 columns are not of this model's" in sentence


def test_an_answer_that_is_not_finite_is_an_error(models: dict[str, tuple[Packaged, Any]]) -> None:
    from mlflow.exceptions import MlflowException

    rows = rows_of("vae", 2)
    rows[1] = 3e38
    with pytest.raises(MlflowException, match="row 1 gives no finite answer"):
        models["vae"][1].predict(rows)


def test_loading_leaves_the_folder_as_it_was(models: dict[str, tuple[Packaged, Any]]) -> None:
    for packaged, _ in models.values():
        assert not list(packaged.folder.rglob("__pycache__"))


def test_two_scoring_runtimes_in_one_process_run_each_their_own(
    models: dict[str, tuple[Packaged, Any]], tmp_path: Path
) -> None:
    import shutil

    import mlflow.pyfunc

    packaged, model = models["table"]
    other = tmp_path / "other"
    shutil.copytree(packaged.folder, other)
    (old,) = (other / "code").iterdir()
    code = old / "model.py"
    text = code.read_text().replace("scores.argmax(axis=1)", "scores.argmin(axis=1)") + "# other\n"
    code.write_text(text)
    name = name_code(other)

    def labels(loaded: Any) -> list[str]:
        return [row["label"] for row in loaded.predict(packaged.rows, params={"labels": True})]

    second = mlflow.pyfunc.load_model(str(other))
    again = load_model(packaged.folder)
    names = np.array(packaged.spec.class_names)
    best, worst = packaged.outputs[0].argmax(axis=1), packaged.outputs[0].argmin(axis=1)
    assert labels(model) == labels(again) == names[best].tolist()
    assert labels(second) == names[worst].tolist()
    for path in (packaged.folder / "code" / old.name).iterdir():
        own, others = (sys.modules[runtime_module(each, path)] for each in (old.name, name))
        assert own is not others
        assert Path(others.__file__ or "") == other / "code" / name / path.name


def runtime_module(runtime: str, path: Path) -> str:
    return runtime if path.stem == "__init__" else f"{runtime}.{path.stem}"


def test_scoring_imports_nothing_heavy_and_nothing_of_podium() -> None:
    import ast

    top = set()
    for name, content in read_own().items():
        source = content.decode()
        tree = ast.parse(source)
        for node in tree.body:
            if isinstance(node, ast.Import):
                top |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                top.add(node.module or "")
        relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert all(node.level <= 1 for node in relative), name
        assert "import mlops" not in source and "from mlops" not in source
    heavy = {"numpy", "numpy.typing"}
    assert {name for name in top if name.split(".")[0] not in sys.stdlib_module_names} == heavy


def test_importing_scoring_reads_all_of_its_files() -> None:
    """A model folder is checked before it is imported; nobody checks what is read later."""
    code = "import sys, mlops.scoring; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = {runtime_module("mlops.scoring", Path(name)) for name in read_own()}
    assert len(wanted) > 10 and wanted <= set(done.stdout.split())


def column(name: str, categories: Any = None, missing: str = "refused", fill: Any = None) -> Any:
    return {"name": name, "categories": categories, "missing": missing, "fill": fill}


def numbers_in_every_form() -> dict[str, Any]:
    import pandas as pd

    values = [1.0, 0.0, -0.0, 7.0]
    return {
        "float64": pd.Series(values),
        "float32": pd.Series(values, dtype="float32"),
        "int": pd.Series(values).astype(int),
        "object": pd.Series(values, dtype=object),
        "mixed objects": pd.Series([1, np.float32(0), False, decimal.Decimal(7)], dtype=object),
        "decimals": pd.Series([decimal.Decimal(int(value)) for value in values]),
        "Int64": pd.Series(values, dtype="Int64"),
        "Float64": pd.Series(values, dtype="Float64"),
        "arrow": pd.Series(values, dtype="double[pyarrow]"),
        "categories": pd.Series(values, dtype="category"),
    }


@pytest.mark.parametrize("form", numbers_in_every_form())
def test_numbers_of_every_dtype_are_the_same_numbers(form: str) -> None:
    import pandas as pd

    series = numbers_in_every_form()[form]
    found = encode_table(pd.DataFrame({"a": series}), [column("a")])
    assert found.dtype == np.float32
    assert found.tobytes() == np.array([1, 0, 0, 7], np.float32).tobytes()  # no -0.0


@pytest.mark.parametrize("dtype", ["float64", "object", "Float64", "Int64", "double[pyarrow]"])
def test_missing_numbers_of_every_dtype_are_filled_and_flagged(dtype: str) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": pd.Series([1, None, 3], dtype=dtype)})
    flagged = encode_table(frame, [column("a", None, "flagged", 2.5)])
    assert flagged.tolist() == [[1, 0], [2.5, 1], [3, 0]]
    filled = encode_table(frame, [column("a", None, "filled", 2.5)])
    assert filled.tolist() == [[1], [2.5], [3]]
    with pytest.raises(ValueError, match="row 1 lacks a value in column 'a'"):
        encode_table(frame, [column("a")])
    frame["b"] = ["x", "", None]
    assert encode_table(frame, [column("b", ["x"], "flagged")]).tolist() == [[1, 0], [0, 1], [0, 1]]
    with pytest.raises(ValueError, match="row 1 lacks a value in column 'b'"):
        encode_table(frame, [column("b", ["x"])])


@pytest.mark.parametrize("n", [1, 30])  # few rows go another way than many
def test_categories_of_every_dtype_are_the_same_categories(n: int) -> None:
    import pandas as pd

    known = ["3", "3.5", "True", "x"]
    wanted = np.tile(np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.float32), (n, 1))
    for cells in (
        ["3", "4"],
        [3, 4],
        [3.0, 4.0],
        [3, None],
        pd.array([3, 4], dtype="Int64"),
        pd.array([3, None], dtype="Int64"),
        pd.Categorical(["3", "4"]),
        pd.Categorical([3, 4]),
        np.array([3, "x" * 9], object),
        [decimal.Decimal("3.0"), decimal.Decimal(1)],
    ):
        frame = pd.concat([pd.DataFrame({"a": cells})] * n, ignore_index=True)
        columns = [column("a", known, "filled")]
        np.testing.assert_array_equal(encode_table(frame, columns), wanted)
    # True is equal to 1, but not the same category.
    mixed = pd.DataFrame({"a": np.array([True, 3, 1, "x", 3.5, None] * n, object)})
    found = encode_table(mixed, [column("a", known, "filled")])[:6]
    assert found.argmax(axis=1).tolist() == [2, 0, 0, 3, 1, 0]
    assert found.sum(axis=1).tolist() == [1, 1, 0, 1, 1, 0]
    bools = encode_table(pd.DataFrame({"a": [True, False]}), [column("a", known)])
    assert bools[:, 2].tolist() == [1, 0]


def test_what_a_column_cannot_hold_is_refused_with_column_and_row() -> None:
    import pandas as pd

    for cells, piece in (
        ([1.0, "7.5"], "row 1 holds text where a number was expected in column 'a'"),
        (["x", "y"], "row 0 holds text"),
        ([None, "x"], "row 1 holds text"),
        ([1.0, math.inf], "row 1 holds infinity or a number too large in column 'a'"),
        ([1.0, 1e39], "row 1 holds infinity or a number too large"),
        ([1, 10**400], "row 1 holds a number too large in column 'a'"),
        ([1j, 1.0], "row 0 holds something else than numbers in column 'a'"),
        ([pd.Timestamp(0), None], "row 0 holds something else than numbers"),
        ([1.0, [2.0]], "row 1 holds something else than numbers"),
    ):
        frame = pd.DataFrame({"a": pd.Series(cells)})
        with pytest.raises(ValueError, match=piece):
            encode_table(frame, [column("a", None, "filled", 0.5)])
    for n in (1, 60):
        frame = pd.DataFrame({"a": [*["x"] * n, b"y"]})
        with pytest.raises(ValueError, match=f"row {n} holds something else than text or numbers"):
            encode_table(frame, [column("a", ["x"])])


def test_a_table_encodes_to_features_in_the_order_of_its_columns() -> None:
    import pandas as pd

    columns = [column("b", ["x", "y"], "flagged"), column("a", None, "flagged", 9.0), column("c")]
    frame = pd.DataFrame({"c": [5.0], "more": ["?"], "a": [None], "b": ["y"]})
    assert encode_table(frame, columns).tolist() == [[0, 1, 0, 9, 1, 5]]
    assert encode_table(frame[:0], columns).shape == (0, 6)


def test_the_name_of_a_category_is_the_same_for_equal_numbers() -> None:
    for value in (3, 3.0, np.int8(3), np.float32(3), decimal.Decimal("3.00"), "3"):
        assert category_name(value) == "3"
    assert category_name(2**60 + 1) == str(2**60 + 1)
    names = [category_name(value) for value in (True, np.False_, -0.0, 0.5)]
    assert names == ["True", "False", "0", "0.5"]
    for other in (b"x", None, [1], object()):
        with pytest.raises(ValueError, match="holds something else than text or numbers"):
            category_name(other)


def picture_of(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


def file_of(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(content, kind, **options)
    return content.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says to be so large, and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_picture_decodes_to_its_own_pixels() -> None:
    for shape in ((6, 5, 1), (6, 5, 3), (6, 5, 4)):
        pixels = picture_of(shape)
        found = decode_picture(file_of(pixels.squeeze()), shape)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels)


def test_a_picture_of_another_mode_is_brought_to_the_channels() -> None:
    from PIL import Image

    colour = Image.fromarray(picture_of((6, 5, 3)))
    grey = np.asarray(colour.convert("L"))[..., np.newaxis]
    np.testing.assert_array_equal(decode_picture(file_of(colour), (6, 5, 1)), grey)
    assert (decode_picture(file_of(colour), (6, 5, 4))[..., 3] == 255).all()
    thrice = np.repeat(grey, 3, axis=2)
    np.testing.assert_array_equal(decode_picture(file_of(colour.convert("L")), (6, 5, 3)), thrice)
    palette = colour.quantize(16)
    wanted = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_picture(file_of(palette), (6, 5, 3)), wanted)
    bits = colour.convert("1")
    wanted = np.asarray(bits.convert("L"))[..., np.newaxis]
    np.testing.assert_array_equal(decode_picture(file_of(bits), (6, 5, 1)), wanted)
    deep = grey[..., 0].astype(np.uint16) * 256 + 200
    np.testing.assert_array_equal(decode_picture(file_of(deep), (6, 5, 1)), grey)
    cmyk = file_of(Image.new("CMYK", (5, 6), (0, 255, 255, 0)), "JPEG")
    np.testing.assert_allclose(decode_picture(cmyk, (6, 5, 3))[0, 0], [255, 0, 0], atol=2)


def test_what_is_transparent_shows_white() -> None:
    from PIL import Image

    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = [200, 100, 0, 255]
    found = decode_picture(file_of(pixels), (2, 2, 3))
    assert found.tolist() == [[[200, 100, 0], [255] * 3], [[255] * 3] * 2]
    np.testing.assert_array_equal(decode_picture(file_of(pixels), (2, 2, 4)), pixels)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    found = decode_picture(file_of(palette, transparency=0), (1, 2, 1))
    assert found.tolist() == [[[255], [1]]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation: int, kind: str) -> None:
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(picture_of((6, 5, 3)), kind, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert upright.shape == ((6, 5, 3) if orientation < 5 else (5, 6, 3))
    height, width, channels = upright.shape
    np.testing.assert_array_equal(decode_picture(content, (height, width, channels)), upright)


def test_a_picture_of_another_size_is_resized_over_all_its_pixels() -> None:
    from PIL import Image

    pixels = picture_of((60, 40, 3))
    wanted = np.asarray(Image.fromarray(pixels).resize((4, 6), Image.Resampling.BILINEAR))
    found = decode_picture(file_of(pixels), (6, 4, 3))
    np.testing.assert_array_equal(found, wanted)
    assert found.std() < pixels.std() / 3  # noise averages out
    assert decode_picture(file_of(pixels), (90, 90, 3)).shape == (90, 90, 3)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})]
)
def test_a_picture_cut_off_anywhere_is_refused(kind: str, options: dict[str, Any]) -> None:
    content = file_of(picture_of((6, 5, 3)), kind, **options)
    assert decode_picture(content, (6, 5, 3)).shape == (6, 5, 3)
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r"is (neither|a damaged or|an incomplete)"):
            decode_picture(content[:size], (6, 5, 3))


def test_other_files_and_bombs_are_refused() -> None:
    for kind in ("GIF", "BMP", "TIFF", "WEBP"):
        with pytest.raises(ValueError, match="is neither a PNG nor a JPEG file"):
            decode_picture(file_of(picture_of((6, 5, 3)), kind), (6, 5, 3))
    for size in ((MAX_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ValueError, match=r"pixels, more than 89478485"):
            decode_picture(png_of(*size), (6, 5, 3))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        decode_picture(png_of(10, 10), (6, 5, 3))


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


def test_a_csv_without_names_loses_no_row(servers: dict[str, Post]) -> None:
    rows = rows_of("image_float32", 3).reshape(3, -1)
    rows[:, :4] = 0.0  # as names, pandas tells those that are the same apart
    lines = [",".join(map(str, row)) for row in rows.tolist()]
    counted = ",".join(map(str, range(rows.shape[1])))

    status, text = servers["image_float32"]("\n".join(lines).encode(), "text/csv")
    named = servers["image_float32"]("\n".join([counted, *lines]).encode(), "text/csv")

    assert (status, json.loads(text)["code"]) == (400, "missing_key")
    assert "begins with numbers, where the names of its columns were expected" in text
    assert named[0] == 200
    assert len(json.loads(named[1])["predictions"]) == 3
