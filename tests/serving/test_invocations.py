"""A request gets the predictions that MLflow's own function gives it, and clear errors."""

from __future__ import annotations

import io
import json
import threading
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.pyfunc import scoring_server

from mlops.scoring import scoring_error
from registry.serving.invocations import Answering, Loaded, Reply, answer
from registry.serving.metrics import Meter
from registry.serving.shadow import Offer
from tests.packaged_models import KINDS, MARK, Packaged, bad_bodies, build, http_forms
from tests.serving.bodies import BODIES

JSON = "application/json"
RAGGED = (400, "ragged")
SHARED = [HealthCheck.function_scoped_fixture]


@dataclass
class Counted:
    """Counts in memory."""

    seen: Counter[str] = field(default_factory=Counter)

    def meter(self) -> Meter:
        def count(result: str) -> Any:
            return lambda *_: self.seen.update([result])

        return Meter(count("ok"), count("bad_input"), count("failed"), count("seconds"))


@dataclass(frozen=True, slots=True)
class Both:
    """A packaged model as MLflow loads it, and its scoring runtime."""

    packaged: Packaged
    theirs: Any
    ours: Any


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for kind in KINDS:
        packaged = build(root, kind)
        theirs = mlflow.pyfunc.load_model(str(packaged.folder))
        found[kind] = Both(packaged, theirs, theirs.get_raw_model())
    return found


def loaded(predict: Any, version: int = 7, counted: Counted | None = None) -> Loaded:
    return Loaded(version, predict, (counted or Counted()).meter())


def ask(both: Both, body: Any, content_type: str | None = JSON) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answer(content, content_type, Answering(loaded(both.ours.predict)))


def code_of(reply: Reply) -> str:
    said = json.loads(reply.body)
    assert set(said) == {"code", "message", "field"}
    assert str(MARK) not in reply.body.decode()
    code: str = said["code"]
    return code


def flat(predictions: Any) -> Any:
    if predictions and isinstance(predictions[0], dict):
        return [list(row.values()) for row in predictions]
    return predictions


@pytest.mark.parametrize(("kind", "form"), [(k, form) for k in KINDS for form in http_forms(k)])
def test_each_form_gets_the_predictions_that_mlflow_gives(
    models: dict[str, Both], kind: str, form: str
) -> None:
    both = models[kind]
    content_type, body = http_forms(kind)[form](both.packaged.rows, both.packaged.spec)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    stock = scoring_server.invocations(content, content_type, both.theirs, None)
    reply = ask(both, content, content_type)
    assert (reply.status, stock.status) == (200, 200), reply.body
    mine = json.loads(reply.body)
    assert mine["model_version"] == 7
    expected = json.loads(stock.response)["predictions"]
    np.testing.assert_allclose(flat(mine["predictions"]), flat(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "bad"), [(k, bad) for k in KINDS for bad in bad_bodies(k)])
def test_what_the_model_refuses_is_answered_with_400_and_no_echo(
    models: dict[str, Both], kind: str, bad: str
) -> None:
    body, _ = bad_bodies(kind)[bad]
    reply = ask(models[kind], body)
    assert reply.status == 400
    assert code_of(reply) != "model_failed"


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{}", None, 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "application/json; charset=latin-1", 415, "unsupported_media_type"),
        (b"{}", "application/json; format=pandas", 415, "unsupported_media_type"),
        (b"", JSON, 400, "bad_json"),
        (b'{"inputs": [[NaN]]}', JSON, 400, "bad_json"),
        (b'{"inputs": [["\xff"]]}', JSON, 400, "bad_json"),
        (b'{"inputs": [71234567.25', JSON, 400, "bad_json"),
        (b'{"inputs": ' + b"[" * 100_000, JSON, 400, "bad_json"),
        (b"[[71234567.25]]", JSON, 400, "wrong_type"),
        (b"{}", JSON, 400, "missing_key"),
        (b'{"params": {}}', JSON, 400, "missing_key"),
        (b'{"inputs": [1], "instances": [1]}', JSON, 400, "ambiguous_input"),
        (b'{"inputs": [1], "signature_name": "x"}', JSON, 400, "unknown_key"),
        (b'{"inputs": [1], "params": [true]}', JSON, 400, "wrong_type"),
        (b'{"dataframe_split": {"columns": ["a"]}}', JSON, 400, "wrong_type"),
        (
            b'{"dataframe_split": {"columns": ["a"], "data": [[1, 71234567.25]]}}',
            JSON,
            400,
            "ragged",
        ),
        (
            b'{"dataframe_split": {"columns": [{"a": 71234567.25}, "b"], "data": [[1, 2]]}}',
            JSON,
            400,
            "wrong_type",
        ),
        (b'{"dataframe_split": {"columns": "ab", "data": [[1, 2]]}}', JSON, 400, "wrong_type"),
        (b'{"dataframe_split": {"data": {"a": 71234567.25}}}', JSON, 400, "wrong_type"),
        (b'{"dataframe_split": {"data": [[1]], "index": [1, 2]}}', JSON, 400, "ragged"),
        (b'{"dataframe_records": {"a": 1}}', JSON, 400, "wrong_type"),
        (b'{"dataframe_records": [{"a": 1}, [["b", 71234567.25]]]}', JSON, 400, "ragged"),
        (b'a,b\n1\n"71234567.25', "text/csv", 400, "bad_csv"),
        (b"\xff\xfe71234567.25", "text/csv", 400, "bad_csv"),
        (b"", "text/csv", 400, "bad_csv"),
        (b"71234567.25", "application/vnd.apache.parquet", 400, "bad_parquet"),
    ],
)
def test_what_fails_before_the_model_has_a_code_and_no_echo(
    models: dict[str, Both], content: bytes, content_type: str | None, status: int, code: str
) -> None:
    reply = ask(models["table"], content, content_type)
    assert (reply.status, code_of(reply)) == (status, code)


def wide(n: int) -> str:
    return ",".join(f"c{i}" for i in range(n))


def parquet(table: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def repeated(text: str, n: int) -> Any:
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [text])


PARQUET = "application/vnd.apache.parquet"
LARGE = (400, "too_many_rows")
BOMBS: dict[str, tuple[str, bytes, tuple[int, str]]] = {
    "a name a record": (
        JSON,
        json.dumps({"dataframe_records": [{f"k{i}": 1} for i in range(8000)]}).encode(),
        LARGE,
    ),
    "one long row": (
        JSON,
        json.dumps({"dataframe_split": {"data": [[1] * 8000, *[[1]] * 8000]}}).encode(),
        LARGE,
    ),
    "short lines": ("text/csv", (wide(8000) + "\n" + "1\n" * 20_000).encode(), LARGE),
    "short lines of another end": (
        "text/csv",
        (wide(8000) + "\r" + "1\r" * 20_000).encode(),
        LARGE,
    ),
    "a long line after the first": (
        "text/csv",
        ("a,b\n" + "1," * 8000 + "\n" + "1\n" * 20_000).encode(),
        LARGE,
    ),
    "equal names": ("text/csv", b"a," * 50_000 + b"\n1\n", (400, "bad_csv")),
    "no names": ("text/csv", b"," * 100_000 + b"\n1\n", (400, "bad_csv")),
    "a number again and again": (
        PARQUET,
        parquet(pa.table({"width": np.ones(5_000_000, np.uint8)})),
        LARGE,
    ),
    "a list of a number again and again": (
        PARQUET,
        parquet(pa.table({"width": pa.array([np.ones(5_000_000, np.uint8)])})),
        LARGE,
    ),
    "a text again and again": (
        PARQUET,
        parquet(pa.table({"width": repeated("a" * 100_000, 20_000)})),
        LARGE,
    ),
    "a text again and again in a list": (
        PARQUET,
        parquet(
            pa.table({"w": pa.ListArray.from_arrays([0, 2000], repeated("a" * 100_000, 2000))})
        ),
        LARGE,
    ),
    "a text that begins as the one before": (
        PARQUET,
        parquet(
            pa.table({"width": [f"{'a' * 100_000}{i}" for i in range(1000)]}),
            use_dictionary=False,
            column_encoding="DELTA_BYTE_ARRAY",
        ),
        LARGE,
    ),
    "bytes of one width": (
        PARQUET,
        parquet(pa.table({"width": pa.array([b"a" * 10**6] * 100, pa.binary(10**6))})),
        LARGE,
    ),
    "packed bytes": (
        PARQUET,
        parquet(pa.table({"w": [b"a" * 80_000_000]}), use_dictionary=False, compression="zstd"),
        LARGE,
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_short_request_makes_no_large_table(models: dict[str, Both], bomb: str) -> None:
    content_type, content, expected = BOMBS[bomb]
    assert len(content) < 300_000
    ask(models["table"], b"a,b\n1,2\n", "text/csv")  # imports
    arrow_before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        reply = ask(models["table"], content, content_type)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (reply.status, code_of(reply)) == expected
    assert peak < 20e6
    assert pa.default_memory_pool().max_memory() - arrow_before < 20e6


def test_a_sparse_table_of_some_size_is_read(models: dict[str, Both]) -> None:
    both = models["mixed"]
    columns = {
        "weight": np.ones(10_000),
        "age": np.ones(10_000),
        "colour": ["red", "green"] * 5000,
        "island": ["3", "Dream"] * 5000,
    }
    assert ask(both, parquet(pa.table(columns)), PARQUET).status == 200
    texts = [np.random.default_rng(i).bytes(48) for i in range(3000)]
    for options in ({}, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}):
        content = parquet(pa.table({"file": texts}), **options)
        assert ask(models["image_uint8"], content, PARQUET).status == 200


def test_a_charset_of_utf_8_is_taken(models: dict[str, Both]) -> None:
    rows = models["table"].packaged.rows.tolist()
    assert ask(models["table"], {"inputs": rows}, "application/json; charset=UTF-8").status == 200


def test_labels_come_beside_the_probabilities(models: dict[str, Both]) -> None:
    rows = models["table"].packaged.rows.tolist()
    reply = ask(models["table"], {"inputs": rows, "params": {"labels": True}})
    first = json.loads(reply.body)["predictions"][0]
    assert first["label"] in ("ant", "bee", "cat")
    assert sum(first["probabilities"]) == pytest.approx(1.0, abs=1e-5)


def test_a_parameter_that_is_not_known_is_refused(models: dict[str, Both]) -> None:
    rows = models["table"].packaged.rows.tolist()
    reply = ask(models["table"], {"inputs": rows, "params": {"temperature": 2}})
    assert (reply.status, code_of(reply)) == (400, "unknown_key")


@settings(deadline=None, max_examples=300, suppress_health_check=SHARED)
@given(st.sampled_from(KINDS), BODIES)
def test_no_json_whatever_it_holds_makes_the_server_fail(
    models: dict[str, Both], kind: str, body: dict[str, Any]
) -> None:
    reply = ask(models[kind], body)
    assert reply.status in (200, 400)
    if reply.status == 400:
        code_of(reply)


@settings(deadline=None, max_examples=200, suppress_health_check=SHARED)
@given(
    st.sampled_from([JSON, "text/csv", "application/vnd.apache.parquet", "x/y", None]),
    st.binary(max_size=60),
)
def test_no_bytes_whatever_they_are_make_the_server_fail(
    models: dict[str, Both], content_type: str | None, content: bytes
) -> None:
    reply = ask(models["table"], content, content_type)
    assert reply.status in (400, 415)
    code_of(reply)


# The canary and the shadow.


def answers(value: float) -> Any:
    return lambda rows, params: np.array([[value, 1 - value]])


def fails(rows: Any, params: Any) -> Any:
    raise RuntimeError("71234567.25")


BODY = b'{"inputs": [[1.0]]}'


def test_a_share_of_the_requests_is_answered_by_the_challenger() -> None:
    champion, challenger = Counted(), Counted()
    answering = Answering(
        loaded(answers(0.9), 7, champion), loaded(answers(0.1), 8, challenger), share=0.25
    )
    for draw in (0.0, 0.24, 0.25, 0.99):
        answer(BODY, JSON, answering, draw=lambda draw=draw: draw)  # type: ignore[misc]
    assert (champion.seen["ok"], challenger.seen["ok"]) == (2, 2)


def test_where_the_challenger_fails_the_champion_answers() -> None:
    champion, challenger, fallbacks = Counted(), Counted(), []
    answering = Answering(
        loaded(answers(0.9), 7, champion), loaded(fails, 8, challenger), share=1.0
    )
    reply = answer(BODY, JSON, answering, fell_back=lambda: fallbacks.append(1))
    assert (reply.status, json.loads(reply.body)["model_version"]) == (200, 7)
    assert (challenger.seen["failed"], champion.seen["ok"], fallbacks) == (1, 1, [1])


def test_where_only_the_challenger_has_no_finite_answer_the_champion_answers() -> None:
    champion, challenger, fallbacks = Counted(), Counted(), []

    def overflows(rows: Any, params: Any) -> Any:
        raise scoring_error("not_finite", "A sentence.", "rows[0]")

    answering = Answering(
        loaded(answers(0.9), 7, champion), loaded(overflows, 8, challenger), share=1.0
    )
    reply = answer(BODY, JSON, answering, fell_back=lambda: fallbacks.append(1))
    assert (reply.status, json.loads(reply.body)["model_version"]) == (200, 7)
    assert (challenger.seen["failed"], challenger.seen["bad_input"]) == (1, 0)
    assert (champion.seen["ok"], fallbacks) == (1, [1])
    both = Answering(loaded(overflows, 7, champion), loaded(overflows, 8, challenger), share=1.0)
    reply = answer(BODY, JSON, both)
    assert (reply.status, code_of(reply), champion.seen["bad_input"]) == (400, "not_finite", 1)


def test_what_the_caller_did_wrong_is_the_challengers_answer_too(models: dict[str, Both]) -> None:
    challenger = loaded(models["table"].ours.predict, 8)
    reply = answer(b'{"inputs": [["x"]]}', JSON, Answering(loaded(fails), challenger, share=1.0))
    assert reply.status == 400


def test_a_failure_is_one_sentence_and_no_trace() -> None:
    counted = Counted()
    reply = answer(BODY, JSON, Answering(loaded(fails, 7, counted)))
    assert (reply.status, code_of(reply)) == (500, "model_failed")
    assert b"Traceback" not in reply.body
    assert counted.seen["failed"] == 1


def test_the_shadow_is_offered_what_the_champion_answered() -> None:
    offers: list[Offer] = []
    answering = Answering(loaded(answers(0.9)), loaded(answers(0.1), 8), 0.0, offers.append)
    reply = answer(BODY, JSON, answering)
    assert json.loads(reply.body)["model_version"] == 7
    (offer,) = offers
    assert (offer.champion, offer.challenger, offer.rows) == (7, 8, [[1.0]])
    assert offer.answer.tolist() == [[0.9, 0.1]] or np.allclose(offer.answer, [[0.9, 0.1]])


def test_the_watcher_is_offered_what_anybody_answered_and_nothing_else() -> None:
    offers: list[tuple[Any, int]] = []

    def watch(rows: Any, n: int) -> None:
        offers.append((rows, n))

    for champion in (answers(0.9), fails):
        for share in (0.0, 1.0):
            watched = Answering(loaded(champion), loaded(answers(0.1), 8), share, None, watch)
            answer(BODY, JSON, watched)
            answer(b'{"inputs": [', JSON, watched)
    assert offers == [([[1.0]], 1)] * 3


def test_a_swap_under_load_gives_each_request_one_model_whole() -> None:
    current = [Answering(loaded(answers(0.7), 7))]
    wrong: list[Any] = []
    done = threading.Event()

    def client() -> None:
        while not done.is_set():
            said = json.loads(answer(BODY, JSON, current[0]).body)
            if said["predictions"][0][0] != pytest.approx(said["model_version"] / 10):
                wrong.append(said)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in [8, 9, 7] * 30:
        current[0] = Answering(loaded(answers(version / 10), version))
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_mlflow_has_the_function_that_is_replaced_with_the_parameters_that_we_know() -> None:
    from registry.live import is_known

    assert is_known(scoring_server)
    assert not is_known(SimpleNamespace())
    assert not is_known(SimpleNamespace(invocations=lambda data, content_type, model: None))
