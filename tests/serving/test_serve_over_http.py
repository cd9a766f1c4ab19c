"""The server as people run it: real processes, real HTTP, aliases that move under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from registry.alias import Registry, open_registry
from registry.golden import Golden
from registry.probe import Answered
from registry.promote import promote
from registry.reference import REFERENCE
from registry.replayed import read_replay
from registry.replicas import Asked, find_addresses
from registry.rollback import rollback
from registry.status import look
from tests.registry.sides import NAME, Sides, probe_sides
from tests.registry.vaes import VAE_NAME, probe_vaes, register_vae
from tests.serving.bodies import BODIES
from tests.serving.conftest import promote_next
from tests.serving.served import ROW, Clients, Served, group_is_gone, start

GOOD = {"inputs": [[1.0, 0.5]]}
MARK = 71234567.25
WINDOW = 50


@pytest.fixture(scope="module")
def served(
    registry: Registry, sides: Sides, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    promote_vae(registry, sides, log.parent / "vae")
    options = ("--workers", "2", "--interval-s", "0.3", "--shadow", "--challenger", "30%")
    options += ("--max-rows", "100")
    options += ("--watch", "auto", "--watch-window", str(WINDOW), "--watch-rows-s", "1000")
    secret = {"MLFLOW_TRACKING_PASSWORD": "swordfish"}
    with start(registry.settings.home, log, *options, env=secret) as found:
        yield found


@pytest.fixture(autouse=True)
def champion_is_3(registry: Registry, served: Served) -> None:
    """Each test begins with version 3 in all workers."""
    if served.process.poll() is None:
        rollback(registry, NAME, to=3)
        served.await_that(lambda: served.all_answer(3))


def test_it_says_what_it_serves_and_a_line_that_asks_it(served: Served) -> None:
    said = "".join(served.said)
    assert f"{NAME}@champion, version 3, answers at {served.url}/invocations (2 workers)." in said
    (line,) = [one for one in served.said if one.startswith("Ask it: ")]
    done = subprocess.run(line.removeprefix("Ask it: "), shell=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["model_version"] == 3


def test_a_page_says_which_probability_belongs_to_which_class(served: Served) -> None:
    (line,) = [one for one in served.said if one.endswith("/model\n")]
    assert line.endswith(f":{served.metrics_port}/model\n")
    assert any(one.endswith(f":{served.metrics_port}/shadow\n") for one in served.said)
    told = json.loads(served.get("/model"))
    assert (told["name"], told["version"], told["workers"]) == (NAME, 3, 2)
    assert (told["input"]["kind"], told["input"]["shape"]) == ("table", [2])
    assert len(told["class_names"]) == 2
    assert told["challenger"] is None


def test_the_status_finds_the_server_by_its_home(served: Served, registry: Registry) -> None:
    assert served.post(GOOD)[0] == 200
    seen = look(registry.settings, NAME)
    (model,) = seen.overview.models
    (champion,) = [one for one in model.aliases if one.alias == "champion"]
    (found,) = champion.replicas
    assert (seen.is_sound, found.faults("champion", 3)) == (True, ())
    assert found.url == f"http://127.0.0.1:{served.metrics_port}"
    assert (found.workers, found.workers_wanted, champion.n_healthy) == (2, 2, 1)
    assert (found.follows, found.verifies, found.n_restarts) == (True, True, 0)
    assert found.traffic.n_requests > 0
    assert found.traffic.p50_ms is not None and found.traffic.p95_ms is not None
    assert 0 < found.traffic.p50_ms <= found.traffic.p95_ms


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        {"instances": [[1.0, 0.5]]},
        {"inputs": [ROW]},
        {"dataframe_split": {"data": [[1.0, 0.5]]}},
        {"dataframe_records": [{"a": 1.0, "b": 0.5}]},
    ],
)
def test_each_form_is_answered(served: Served, body: dict[str, Any]) -> None:
    status, text = served.post(body)
    assert status == 200, text
    (row,) = json.loads(text)["predictions"]
    assert row[1] > 0.9


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"inputs": [1.0, 0.5]}, "wrong_shape"),
        ({"inputs": [[1.0, 0.5, MARK]]}, "wrong_shape"),
        ({"inputs": [[1.0, 0.5], [MARK]]}, "ragged"),
        ({"inputs": []}, "empty"),
        ({"inputs": [[1.0, "x71234567.25"]]}, "not_a_number"),
        ({"inputs": [[1.0, True]]}, "not_a_number"),
        ({"inputs": [[1.0, None]]}, "not_a_number"),
        ({"inputs": [[1.0, 1e39]]}, "out_of_range"),
        (b'{"inputs": [[1.0, NaN]]}', "bad_json"),
        (b'{"inputs": [[1.0, Infinity]]}', "bad_json"),
        (b'{"inputs": [[71234567.25,', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        ({"inputs": [[1.0, 0.5]], "instances": [[MARK, 0.5]]}, "ambiguous_input"),
        ({"inputs": [[1.0, 0.5]], "x71234567.25": 1}, "unknown_key"),
        ({"inputs": [[1.0, 0.5]], "params": {"temperature": MARK}}, "unknown_key"),
        ({}, "missing_key"),
        ({"inputs": ["!71234567.25"]}, "not_base64"),
        ({"inputs": [[1.0, 0.5]] * 101}, "too_many_rows"),
    ],
)
def test_what_a_caller_did_wrong_is_named_and_not_repeated(
    served: Served, body: Any, code: str
) -> None:
    status, text = served.post(body)
    assert status == 400, text
    said = json.loads(text)
    assert set(said) == {"code", "message", "field"}
    assert said["code"] == code, said
    assert "71234567" not in text


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=BODIES)
def test_whatever_json_holds_it_is_answered_or_refused(
    served: Served, body: dict[str, Any]
) -> None:
    status, text = served.post(body)
    assert status in (200, 400), text
    assert "Traceback" not in text
    wanted = {"predictions", "model_version"} if status == 200 else {"code", "message", "field"}
    assert set(json.loads(text)) == wanted


@pytest.mark.parametrize(
    "name",
    [
        "podium_requests_total",
        "podium_request_seconds_bucket",
        "podium_batch_rows_bucket",
        "podium_queue_depth",
        "podium_model_version",
        "podium_model_loaded_timestamp_seconds",
        "podium_model_load_seconds",
        "podium_release_verifies",
        "podium_refused_releases_total",
        "podium_registry_reachable",
        "podium_workers",
        "podium_server_restarts_total",
        "podium_challenger_fallbacks_total",
        "podium_shadow_seconds_bucket",
        "podium_drift_psi",
        "podium_drift_ks_p",
        "podium_drift_windows_total",
        "podium_drift_shifted_windows_total",
        "podium_drift_rows_total",
        "podium_drift_dropped_total",
        "podium_drifted",
    ],
)
def test_each_metric_is_there_but_once(served: Served, name: str) -> None:
    served.post(GOOD)
    lines = [line for line in served.get("/metrics").splitlines() if line.startswith(name)]
    assert lines
    assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines)


def test_a_content_type_that_is_not_known_is_answered_with_415(served: Served) -> None:
    status, text = served.post(b"a", "text/plain")
    assert (status, json.loads(text)["code"]) == (415, "unsupported_media_type")


def test_the_processes_that_load_models_hold_no_credentials(served: Served) -> None:
    assert b"swordfish" in Path(f"/proc/{served.process.pid}/environ").read_bytes()
    for pid in served.folder.read_reports():
        assert b"swordfish" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_rollback_and_a_promotion_under_load_fail_no_request(
    served: Served, registry: Registry, sides: Sides
) -> None:
    with Clients(served.port) as clients:
        for version in (1, 2, 3):
            rollback(registry, NAME, to=version)
            served.await_that(lambda version=version: served.all_answer(version))  # type: ignore[misc]
            since = time.monotonic()
            time.sleep(0.3)
            assert clients.versions_since(since) == {version}
        newest = promote_next(registry, sides, 10.5)
        served.await_that(lambda: served.all_answer(newest))
        assert served.metric('podium_model_version{role="champion"}') == newest
    assert clients.wrong == []
    assert len(clients.answers) > 100
    ok = served.metric(f'podium_requests_total{{result="ok",version="{newest}"}}')
    assert ok >= len([one for one in clients.answers if one[1] == newest]) > 0


def test_a_release_that_answers_otherwise_than_it_did_is_refused_by_all(
    served: Served, registry: Registry, sides: Sides
) -> None:
    # Signed and whole, but its golden answers are another model's.
    def probe_wrongly(*args: Any, **kwargs: Any) -> Any:
        probed = probe_sides(*args, **kwargs)
        answered = [_with_other_golden(one) for one in probed.answers]
        return replace(probed, answers=tuple(answered))

    before = served.metric('podium_refused_releases_total{reason="not_loaded"}')
    with open_registry(registry.settings, probe=probe_wrongly) as wrong, Clients(served.port) as on:
        number = sides.register(11.0, 0.9)
        assert promote(wrong, NAME, version=number).decision == "promoted"
        metric = 'podium_refused_releases_total{reason="not_loaded"}'
        served.await_that(lambda: served.metric(metric) == before + 1)
        refused = registry.catalog.find_aliases(NAME)["champion"]
    assert (on.wrong, {version for _, version in on.answers}) == ([], {3})
    assert f"REFUSED as champion: version {refused}" in served.log.read_text()
    served.await_that(
        lambda: any(
            event.kind == "refused" and event.version == refused
            for event in registry.ledger.events(NAME)
        )
    )


def _with_other_golden(answered: Any) -> Any:
    assert isinstance(answered, Answered)
    golden = answered.golden
    return replace(answered, golden=Golden(golden.requests, golden.answers[:, ::-1]))


def test_an_alias_that_was_moved_back_by_hand_is_not_followed(
    served: Served, registry: Registry
) -> None:
    before = served.metric('podium_refused_releases_total{reason="unrecorded"}')
    registry.catalog._client.set_registered_model_alias(NAME, "champion", "1")
    metric = 'podium_refused_releases_total{reason="unrecorded"}'
    served.await_that(lambda: served.metric(metric) == before + 1)
    assert served.all_answer(3)


def test_a_worker_that_is_killed_is_replaced_and_the_other_answers(served: Served) -> None:
    victim = next(iter(served.folder.read_reports()))
    with Clients(served.port) as clients:
        time.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        served.await_that(lambda: not served.all_answer(3))
        served.await_that(lambda: served.all_answer(3), timeout_s=60)
        time.sleep(0.2)
    assert victim not in served.folder.read_reports()
    # Its connections broke once each, in the middle of a request or before the next.
    assert len(clients.wrong) <= 2 * clients.n
    assert served.metric("podium_workers") == 2


def test_a_challenger_answers_its_share_and_scores_the_rest_in_the_shadow(
    served: Served, registry: Registry, sides: Sides, tmp_path: Path
) -> None:
    challenger = promote_next(registry, sides, 12.0, alias="challenger")
    served.await_that(
        lambda: all(one.challenger == challenger for one in served.folder.read_reports().values())
    )
    with Clients(served.port) as clients:
        served.await_that(lambda: len(clients.answers) > 300)
    share = sum(version == challenger for _, version in clients.answers) / len(clients.answers)
    assert 0.2 < share < 0.4
    assert clients.wrong == []
    served.await_that(lambda: json.loads(served.get("/shadow"))["requests"] > 100)
    report = json.loads(served.get("/shadow"))
    assert report["champion"]["version"] == 3
    assert report["challenger"]["version"] == challenger
    assert report["agreed"] == report["requests"]
    assert 0 < report["p50_ms"] <= report["p95_ms"] < 1000
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert read_replay(tmp_path / "report.json").agreement == 1.0
    assert served.metric('podium_shadow_requests_total{result="agreed"}') >= report["requests"]
    registry.catalog._client.delete_registered_model_alias(NAME, "challenger")
    served.await_that(
        lambda: all(one.challenger is None for one in served.folder.read_reports().values())
    )
    served.await_that(lambda: served.folder.report.is_file())
    left = read_replay(served.folder.report)
    assert (left.challenger.version, left.n_requests >= report["requests"]) == (challenger, True)
    with pytest.raises(urllib.error.HTTPError) as nothing:
        served.get("/shadow")
    with nothing.value as error:
        assert b"no release holds the alias challenger" in error.read()


def promote_vae(registry: Registry, sides: Sides, place: Path) -> None:
    version = register_vae(sides.client, sides.dataset, place)
    done = promote(replace(registry, probe=probe_vaes), VAE_NAME, version=version)
    assert done.decision == "promoted", done


def drift(served: Served) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(served.get("/drift"))
        return found
    except urllib.error.HTTPError as nothing:
        with nothing as error:
            return {"windows": 0, "why": error.read().decode()}


def send_rows(served: Served, n_windows: int, shift: float, seed: int) -> dict[str, Any]:
    """Sends rows as those of the dataset, moved by `shift`; returns the page when all are seen."""
    wanted = drift(served)["windows"] + n_windows
    random = np.random.default_rng(seed)
    for rows in random.normal(size=(2 * n_windows, WINDOW // 2, 2)) + shift:
        assert served.post({"inputs": rows.tolist()})[0] == 200
    served.await_that(lambda: drift(served)["windows"] >= wanted)
    return drift(served)


def test_the_same_rows_are_not_flagged_and_others_are_until_they_end(
    served: Served, registry: Registry, sides: Sides, tmp_path: Path
) -> None:
    registry.catalog._client.delete_registered_model_alias(VAE_NAME, "champion")
    served.await_that(lambda: "no release holds" in drift(served).get("why", ""))
    promote_vae(registry, sides, tmp_path / "second")  # what was sent before counts no more
    anew = f"no window is full yet: {VAE_NAME} version 2 has scored 0 of {WINDOW} rows"
    served.await_that(lambda: drift(served).get("why", "").startswith(anew))
    assert served.metric('podium_model_version{role="watcher"}') == 2
    before = served.metric("podium_drift_shifted_windows_total")

    found = send_rows(served, 5, shift=0.0, seed=1)
    assert (found["watcher"], found["watcher_version"], found["drifted"]) == (VAE_NAME, 2, False)
    assert (found["window_rows"], found["n_rows"], found["n_dropped"]) == (WINDOW, 5 * WINDOW, 0)
    assert (found["alpha"], found["drifted_since"]) == (0.001, None)
    assert found["ks_p"] > found["alpha"]
    assert served.metric("podium_drift_shifted_windows_total") == before

    found = send_rows(served, 3, shift=2.0, seed=2)
    assert (found["drifted"], found["ks_p"] < 0.001, found["psi"] > 0.2) == (True, True, True)
    assert found["drifted_since"].endswith("+00:00")
    assert served.metric("podium_drifted") == 1
    assert served.metric("podium_drift_shifted_windows_total") == before + 3
    assert "DRIFT: the rows that are answered are not like" in served.log.read_text()

    assert not send_rows(served, 4, shift=0.0, seed=3)["drifted"]
    assert "has ended" in served.log.read_text()
    for copy in served.folder.releases.glob("[0-9]*"):
        name = json.loads((copy / "release.json").read_text())["name"]
        assert (copy / REFERENCE).exists() == (name == VAE_NAME)


def test_told_to_end_it_answers_what_it_has_and_nothing_is_left(
    served: Served, registry: Registry
) -> None:
    group = os.getpgid(next(iter(served.folder.read_reports())))
    replies: list[tuple[int, str]] = []

    def ask() -> None:
        body = {"inputs": [[1.0, 0.5]] * 60, "params": {"explain": True}}
        replies.append(served.post(body))

    slow = threading.Thread(target=ask)
    slow.start()
    time.sleep(0.15)
    assert served.stop() == 0
    slow.join()
    assert [status for status, _ in replies] == [200]
    assert group_is_gone(group)
    assert find_addresses(registry.settings.home, []) == []


def test_without_the_registry_the_kept_release_is_served_until_the_parent_is_gone(
    served: Served, registry: Registry, tmp_path: Path
) -> None:
    gone = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    home = registry.settings.home
    served.process.wait(60)
    with start(home, tmp_path / "log", "--json", port=served.port, env=gone) as again:
        assert json.loads(again.said[0])["version"] == 3
        assert again.post(GOOD)[0] == 200
        assert "THE REGISTRY DOES NOT ANSWER" in again.log.read_text()
        assert again.metric("podium_registry_reachable") == 0
        # The only worker is uvicorn itself: the parent starts all of it again.
        (victim,) = again.folder.read_reports()
        os.kill(victim, signal.SIGKILL)
        again.await_that(lambda: victim not in again.folder.read_reports())
        again.await_that(lambda: again.all_answer(3, n=1), timeout_s=120)
        assert again.metric("podium_server_restarts_total") == 1
        group = os.getpgid(next(iter(again.folder.read_reports())))
        again.process.kill()
        again.process.wait()
        os.killpg(group, signal.SIGSTOP)  # it hears of nothing, and has the port
        (killed,) = Asked(find_addresses(home, [])).wait()
        assert (killed.state, killed.name) == ("killed", NAME)
    with start(home, tmp_path / "log", "--json", port=served.port, env=gone) as again:
        assert group_is_gone(group)
        assert "left behind by a killed one was ended" in again.log.read_text()
        assert again.post(GOOD)[0] == 200
        group = os.getpgid(next(iter(again.folder.read_reports())))
        again.process.kill()
        again.process.wait()
        deadline = time.monotonic() + 20
        while not group_is_gone(group):
            assert time.monotonic() < deadline
            time.sleep(0.1)
