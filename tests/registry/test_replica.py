"""What a replica's pages say, a stranger's too."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.replica import (
    NO_REPLICA,
    Page,
    Replica,
    quantile_ms,
    read_drift,
    read_metrics,
    read_replica,
    read_traffic,
)

URL = "http://h:5002"
MODEL = {
    "name": "digits",
    "alias": "champion",
    "version": 3,
    "since": "2026-11-26T12:00:00+01:00",
    "statement_sha256": "s",
    "workers": 2,
    "workers_wanted": 2,
    "challenger": None,
}
METRICS = b"""\
# TYPE podium_requests_total counter
podium_requests_total{result="ok",version="3"} 90.0
podium_requests_total{result="ok",version="2"} 5.0
podium_requests_total{result="failed",version="3"} 1.0
podium_requests_total{result="overloaded",version="none"} 1.0
podium_requests_total{result="bad_input",version="3"} 3.0
# TYPE podium_request_seconds histogram
podium_request_seconds_bucket{le="0.001",role="champion"} 40.0
podium_request_seconds_bucket{le="0.002",role="champion"} 60.0
podium_request_seconds_bucket{le="0.01",role="champion"} 100.0
podium_request_seconds_bucket{le="+Inf",role="champion"} 100.0
podium_request_seconds_bucket{le="+Inf",role="challenger"} 7.0
# TYPE podium_release_verifies gauge
podium_release_verifies{role="champion"} 1.0
podium_registry_reachable 0.0
podium_refused_releases_total{reason="unverified"} 2.0
podium_refused_releases_total{reason="not_loaded"} 0.0
podium_server_restarts_total 1.0
"""
DRIFT = {
    "watcher": "digits-vae",
    "watcher_version": 2,
    "window_rows": 500,
    "windows": 4,
    "n_rows": 2100,
    "psi": 0.31234,
    "ks": 0.2,
    "ks_p": 1e-9,
    "drifted": True,
    "drifted_since": "2026-11-26T12:00:00+00:00",
    "last_window_at": "2026-11-26T12:05:00+00:00",
    "alpha": 0.001,
    "n_dropped": 0,
}


def page(value: Any, status: int = 200) -> Page:
    return status, value if isinstance(value, bytes) else json.dumps(value).encode()


def replica(**changes: Any) -> Replica:
    return read_replica(URL, page(MODEL | changes), page(METRICS), None)


def test_the_pages_of_a_replica_are_read() -> None:
    found = read_replica(URL, page(MODEL), page(METRICS), page(DRIFT))
    assert (found.state, found.name, found.alias, found.workers) == (
        *("answers", "digits", "champion"),
        2,
    )
    assert found.champion is not None
    assert found.champion.since == datetime(2026, 11, 26, 11, tzinfo=UTC)
    traffic = found.traffic
    assert (traffic.n_requests, traffic.n_failed, traffic.n_bad_input) == (100, 2, 3)
    assert traffic.failed_share == 0.02
    assert traffic.p50_ms == pytest.approx(1.5)
    assert traffic.p95_ms == pytest.approx(9.0)
    assert found.refused == {"unverified": 2}
    assert (found.n_restarts, found.follows, found.verifies) == (1, False, True)
    assert found.drift.state == "drifted"


def test_a_replica_that_answers_with_what_the_alias_holds_has_no_fault() -> None:
    found = read_replica(URL, page(MODEL), page(b""), None)
    assert found.faults("champion", 3) == ()
    assert found.faults("champion", None) == ()


@pytest.mark.parametrize(
    ("changes", "metrics", "fault"),
    [
        ({"version": 2}, b"", "answers with version 2, and champion is 3"),
        ({"workers": 0}, b"", "has no worker that answers"),
        ({"workers": 1}, b"", "has 1 of 2 workers"),
        ({}, b"podium_registry_reachable 0.0\n", "does not reach the registry"),
        (
            {},
            b'podium_release_verifies{role="champion"} 0.0\n',
            "answers with what does not verify with its keys any more",
        ),
    ],
)
def test_what_is_amiss_is_said(changes: dict[str, Any], metrics: bytes, fault: str) -> None:
    found = read_replica(URL, page(MODEL | changes), page(metrics), None)
    assert found.faults("champion", 3) == (fault,)


def test_a_server_of_an_earlier_version_does_not_say_how_many_workers_it_shall_have() -> None:
    told = {key: value for key, value in MODEL.items() if key != "workers_wanted"}
    found = read_replica(URL, page(told | {"workers": 1}), None, None)
    assert (found.workers_wanted, found.faults("champion", 3)) == (None, ())


def test_a_challenger_counts_for_its_own_alias() -> None:
    found = replica(challenger={"alias": "challenger", "version": 4, "since": None})
    assert found.is_of("challenger")
    assert not found.is_of("staging")
    assert found.answering("challenger") == found.challenger
    assert "answers with version 4, and challenger is 5" in found.faults("challenger", 5)
    assert found.faults("staging", 3)[0] == "answers with no staging"


def test_one_that_loads_its_first_release_is_starting() -> None:
    said = b"nothing answers yet: the first release is being loaded.\n"
    found = read_replica(URL, (404, said), None, None)
    assert (found.state, found.reason) == ("starting", "is starting: it loads its first release")


@pytest.mark.parametrize(
    "answer",
    [
        page(b"<html>"),
        page([1]),
        page({"name": "digits"}),
        page({**MODEL, "version": "3"}),
        page({**MODEL, "version": True}),
        page({**MODEL, "name": ""}),
        page(b"[" * 100_000),
        page(MODEL, 500),
        page(b"not found", 404),
    ],
)
def test_another_server_is_no_replica(answer: Page) -> None:
    found = read_replica(URL, answer, page(METRICS), None)
    assert (found.state, found.reason) == ("silent", NO_REPLICA)


ONE = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "3"])
JSON = ONE | st.lists(ONE, max_size=2) | st.dictionaries(st.sampled_from(["alias", "version"]), ONE)
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.dictionaries(st.sampled_from(list(MODEL)), JSON), st.binary(max_size=200))
def test_whatever_a_server_answers_is_read_without_an_error(
    changes: dict[str, Any], metrics: bytes
) -> None:
    read_replica(URL, page(MODEL | changes), (200, metrics), None)


@QUICK
@given(st.dictionaries(st.sampled_from(list(DRIFT)), JSON))
def test_whatever_is_said_of_drift_is_read_without_an_error(changes: dict[str, Any]) -> None:
    assert read_drift(page(DRIFT | changes)).words


@pytest.mark.parametrize(
    "content", [b"a{", b"a 1 2 3 4", b"\xff\xfe", b"a b\n", b'a{le="x"} 1', b"<html></html>"]
)
def test_what_is_no_metrics_page_counts_nothing(content: bytes) -> None:
    assert read_traffic(read_metrics(content)).n_requests == 0


def test_a_quantile_is_interpolated_in_its_bucket() -> None:
    buckets = [(0.1, 0.0), (0.2, 10.0), (float("inf"), 10.0)]
    assert quantile_ms(buckets, 0.5) == pytest.approx(150.0)
    assert quantile_ms(buckets, 1.0) == pytest.approx(200.0)
    assert quantile_ms([(0.1, 1.0), (float("inf"), 10.0)], 0.5) == pytest.approx(100.0)
    assert quantile_ms([(0.1, 0.0)], 0.5) is None
    assert quantile_ms([], 0.5) is None


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        (
            {},
            "drifted",
            "DRIFTED since 2026-11-26 12:00 UTC (digits-vae version 2, PSI 0.312, KS 0.2, p 1e-09, "
            "4 windows of 500 rows)",
        ),
        (
            {"drifted": False, "drifted_since": None, "psi": 0.01, "ks_p": 0.5, "windows": 1},
            "none",
            "none (digits-vae version 2, PSI 0.01, KS 0.2, p 0.5, 1 window of 500 rows)",
        ),
        (
            {"drifted": False, "watcher": None, "n_dropped": 1200},
            "none",
            "none (PSI 0.312, KS 0.2, p 1e-09, 1,200 rows not scored, 4 windows of 500 rows)",
        ),
        ({"windows": 0}, "waiting", "no window is full yet"),
    ],
)
def test_drift_is_said_in_words(changes: dict[str, Any], state: str, words: str) -> None:
    found = read_drift(page(DRIFT | changes))
    assert (found.state, found.words) == (state, words)


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (
            (404, b"nothing is watched: no release holds digits-vae@champion.\n"),
            "unknown",
            "nothing is watched: no release holds digits-vae@champion",
        ),
        (
            (404, b"no window is full yet: digits-vae version 1 has scored 7 of 500 rows.\n"),
            "waiting",
            "no window is full yet: digits-vae version 1 has scored 7 of 500 rows",
        ),
        ((404, b"nothing here; there are /metrics, /model\n"), "unknown", "not watched"),
        ((500, b""), "unknown", "not watched"),
    ],
)
def test_where_there_is_nothing_to_tell_the_servers_own_reason_is_said(
    answer: Page, state: str, words: str
) -> None:
    found = read_drift(answer)
    assert (found.state, found.words) == (state, words)
