"""Replicas that are killed behind the door, under load: small ones in turn, and a real one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlops.mlflow_store import open_store_client
from registry.alias import open_registry
from registry.promote import promote
from tests.e2e.door import GOOD, JSON, Door, open_door, open_replica, read_reply
from tests.e2e.serving import free_port
from tests.registry.sides import NAME, Sides, make_dataset, probe_sides, settings_for
from tests.serving.served import Served, start

pytestmark = pytest.mark.system


class Load:
    """Threads that ask one after another, each over one connection, as long as the block runs."""

    def __init__(self, door: Door, n: int = 6, body: str = GOOD) -> None:
        self.seen: Counter[str] = Counter()
        self._ask = (door, body)
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(n)]

    def _run(self) -> None:
        door, body = self._ask
        connection = door.connect()
        while not self._done.is_set():
            try:
                connection.request("POST", "/invocations", body, {**door.bearer, **JSON})
                reply = read_reply(connection)
                wrong = "" if reply.status == 200 else f" {reply.body!r}"
                self.seen[f"{reply.status}{wrong}"] += 1
            except (OSError, http.client.HTTPException) as err:
                self.seen[repr(err)] += 1
                connection.close()
        connection.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def await_more(self, n: int = 100) -> None:
        wanted, deadline = self.seen["200"] + n, time.monotonic() + 60
        while self.seen["200"] < wanted:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.01)


def test_no_request_fails_when_replicas_are_killed_in_turn(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    with (
        contextlib.ExitStack() as until_exit,
        open_door(
            tmp_path,
            SERVING_1_ADDRESS=f"127.0.0.1:{ports[0]}",
            SERVING_2_ADDRESS=f"127.0.0.1:{ports[1]}",
            SCORING_RATE="100000",
        ) as door,
    ):
        replicas = [until_exit.enter_context(open_replica(port)) for port in ports]
        door.await_up("serving-1", "serving-2")
        with Load(door) as load:
            for turn in range(6):
                load.await_more()
                replicas[turn % 2].kill()
                load.await_more()
                replicas[turn % 2] = until_exit.enter_context(open_replica(ports[turn % 2]))
                door.await_up(f"serving-{turn % 2 + 1}")
        assert load.seen.keys() == {"200"}, load.seen
        for replica in replicas:
            replica.kill()
        door.await_that(503)
        reply = door.score(GOOD)
        assert (reply.status, reply.json["code"]) == (503, "unavailable")
        assert door.ask("GET", "/health").json["code"] == "unavailable"
        until_exit.enter_context(open_replica(ports[0]))
        door.await_that(200)
        assert door.score(GOOD).status == 200


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Path:
    """An embedded home with a release."""
    folder = tmp_path_factory.mktemp("released")
    for name in ("home", "models"):
        (folder / name).mkdir()
    shutil.copy(mlflow_database, folder / "home" / "mlflow.db")
    dataset = make_dataset(folder)
    settings = settings_for(folder / "home", dataset)
    sides = Sides(open_store_client(settings), dataset, folder, folder / "models", {})
    with open_registry(settings, probe=probe_sides) as registry:
        done = promote(registry, NAME, version=sides.register(9.0, 0.9))
        assert done.decision == "promoted", done
    return folder / "home"


def test_a_real_server_scores_behind_the_door_and_dies_under_load(
    home: Path, tmp_path: Path
) -> None:
    """The other replica is a small one, which takes over."""
    port = free_port()
    with (
        open_replica(port),
        start(home, tmp_path / "serve.log") as real,
        open_door(
            tmp_path,
            SERVING_1_ADDRESS=f"127.0.0.1:{real.port}",
            SERVING_2_ADDRESS=f"127.0.0.1:{port}",
            SCORING_RATE="100000",
        ) as door,
    ):
        door.await_up("serving-1", "serving-2")
        replies = [door.score(GOOD) for _ in range(4)]
        scored = [one.json["predictions"] for one in replies if "port" not in one.json]
        assert len(scored) == 2 and scored[0][0][1] > 0.9
        # What the door lets through and a server refuses comes back in the same form.
        for body, content_type, code in (
            ('{"inputs": [[1.0]], "x": [[[[1]]]]}', "application/json", "unknown_key"),
            ("a,b\n1\n1,2,3,4\n", "text/csv", "bad_csv"),
            ("PAR1", "application/vnd.apache.parquet", "bad_parquet"),
        ):
            refused = [door.score(body, {"content-type": content_type}) for _ in range(2)]
            (found,) = [one for one in refused if one.status != 200]
            assert (found.status, found.json["code"]) == (400, code)
            assert found.json.keys() == {"code", "message", "field"}
        with Load(door) as load:
            load.await_more()
            kill(real)
            load.await_more(300)
        assert load.seen.keys() == {"200"}, load.seen


def kill(replica: Served) -> None:
    """Kills all processes of a server at once, as when its container is killed."""
    group = json.loads(replica.folder.group.read_bytes())["group"]
    replica.process.kill()
    os.killpg(group, signal.SIGKILL)
