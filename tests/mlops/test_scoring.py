from __future__ import annotations

import asyncio
import base64
import decimal
import hashlib
import importlib
import io
import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.packaging import load_model
from mlops.scoring import (
    CHUNK_ROWS,
    MAX_PIXELS,
    _rows_for,
    category_name,
    decode_picture,
    encode_table,
    gaussian_kl,
    reconstruction_error,
)
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
    rows = _rows_for(spec)
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
        _rows_for(spec).parse([png])


def test_no_rows_give_no_answers(
    models: dict[str, tuple[Packaged, Any]], servers: dict[str, Post]
) -> None:
    import pandas as pd

    for kind in KINDS:
        packaged, model = models[kind]
        nothing: Any
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
