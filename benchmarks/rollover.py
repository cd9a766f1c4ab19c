"""Alias moves under load, and faults, as clients see them: `python -m benchmarks.rollover`.

Four signed releases of one CNN, which answer differently, stand in a registry behind an MLflow
server. `registry.serve` with two workers follows the alias, and eight clients ask it all the time.
The alias is moved by `registry.rollback`, many times in one process: a hundred moves one a second,
then moves with time between them, then as many as it takes for 200 swaps, with the memory of the
workers; then faults.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.models import baseline_cnn, coloured_pictures, package, register
from benchmarks.served import BASE64, NAME, Server, body_of, live_server, running
from benchmarks.tables import print_aim, print_heading, print_rows
from mlops.settings import Settings, quiet
from tests.e2e.serving import free_port

if TYPE_CHECKING:
    from registry.alias import Registry
    from registry.serving.state import StateFolder

COMMAND = "python -m benchmarks.rollover"
N_RELEASES = 4
N_CLIENTS = 8
INTERVAL_S = 0.5
PAUSE_S = 0.02
"""Between two requests of a client: the machine has to do something else, too."""


class Asked(NamedTuple):
    """One request: when it was sent and answered (monotonic seconds), its status, who answered."""

    began: float
    ended: float
    status: int
    version: int | None


@dataclass(slots=True)
class Watched:
    """What was seen while a block ran.

    Attributes:
        asked: By the clients, in the order of their ends.
        agreed: When all workers said that they answer with a version, and with which.
    """

    asked: list[Asked] = field(default_factory=list)
    agreed: list[tuple[float, int]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(one.status != 200 for one in self.asked)

    def count_stale(self) -> int:
        """Counts answers of an old version after all workers had agreed on another.

        Only of requests that were sent after they agreed, and answered before they agreed on the
        next. An answer of the next is not old: a worker answers with it before it says so.
        """
        stale = 0
        for (at, version), (until, following) in pairwise([*self.agreed, (math.inf, 0)]):
            stale += sum(
                one.version not in (version, following)
                for one in self.asked
                if one.status == 200 and at < one.began and one.ended < until
            )
        return stale


def main() -> None:
    parser = argparse.ArgumentParser(COMMAND, description=__doc__)
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--gone-s", type=float, default=60.0, help="how long the registry is away")
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    quiet()
    if asked.ask:
        _ask_for_ever(int(asked.ask[0]), Path(asked.ask[1]), Path(asked.ask[2]))
        return
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        settings = _prepare(place)
        with _tracking_server(settings, place) as tracking:
            stage = _Stage(place, tracking)
            with stage.serving():
                _print_moves(stage, asked.moves)
                _print_swaps(stage, asked.swaps)
                _print_faults(stage, asked.gone_s)


def _prepare(place: Path) -> Settings:
    """Promotes networks that differ by the steepness of their answers; the labels are the same."""
    from registry.alias import open_registry
    from registry.promote import promote

    dataset = coloured_pictures(place)
    network = baseline_cnn(dataset)
    last = [layer for layer in network.layers if layer.weights][-1]
    weights = last.get_weights()
    folders = []
    for number in range(N_RELEASES):
        last.set_weights([one * (1 - 0.02 * number) for one in weights])
        folders.append(place / f"candidate{number}")
        package(network, dataset, "cnn", folders[-1])
    settings = Settings.from_env({"MLOPS_HOME": str(place / "home")})
    settings.home.mkdir()
    register(settings, NAME, dataset, folders)
    with open_registry(settings) as registry:
        for version in range(1, N_RELEASES + 1):
            done = promote(registry, NAME, version)
            if done.decision != "promoted":
                raise SystemExit(f"candidate {version} was not promoted: {done.reason}")
    return settings


@dataclass(slots=True)
class _Tracking:
    """The MLflow server, which can be killed and started again at the same port."""

    settings: Settings
    place: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.settings.mlflow_db_uri]
        command += ["--default-artifact-root", str(self.settings.artifact_root)]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.place / "tracking.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            if time.monotonic() > deadline:
                raise SystemExit("the MLflow server does not answer")
            time.sleep(0.2)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def _tracking_server(settings: Settings, place: Path) -> Iterator[_Tracking]:
    tracking = _Tracking(settings, place, free_port())
    tracking.start()
    try:
        yield tracking
    finally:
        tracking.kill()


class _Stage:
    """The server, its clients, and the registry that is moved."""

    def __init__(self, place: Path, tracking: _Tracking) -> None:
        from registry.serving.state import StateFolder

        self.place = place
        self.tracking = tracking
        self.home = tracking.settings.home
        self.env = {"MLOPS_HOME": str(self.home), "MLFLOW_TRACKING_URI": tracking.url}
        self.settings = Settings.from_env(self.env)
        self.port = free_port()
        more = ("--interval-s", str(INTERVAL_S))
        self.server: Server = live_server(self.settings, self.port, free_port(), 2, *more)
        self.server.env.update(self.env)
        self.state: StateFolder = StateFolder.of(self.home, NAME, "champion", self.port)

    @contextmanager
    def serving(self) -> Iterator[None]:
        with running("registry.serve", self.server, self.place):
            yield

    def workers(self) -> list[int]:
        return [pid for pid, one in self.state.read_reports().items() if one.serving]

    def agreed(self) -> int | None:
        """Returns the version that all workers answer with."""
        reports = [one for one in self.state.read_reports().values() if one.serving]
        versions = {one.champion for one in reports}
        return versions.pop() if len(reports) == 2 and len(versions) == 1 else None

    @contextmanager
    def watched(self) -> Iterator[Watched]:
        """Has clients ask while the block runs."""
        seen, body, log = Watched(), self.place / "body", self.place / "asked"
        body.write_bytes(body_of(BASE64, 1))
        log.unlink(missing_ok=True)
        words = ["--ask", str(self.port), str(body), str(log)]
        clients = subprocess.Popen([sys.executable, "-m", "benchmarks.rollover", *words])
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(seen, stop))
        watcher.start()
        time.sleep(2)
        try:
            yield seen
        finally:
            time.sleep(1)
            stop.set()
            watcher.join()
            clients.send_signal(signal.SIGTERM)
            clients.wait()
        seen.asked += [Asked(*one) for one in json.loads(log.read_text())]

    def _watch(self, seen: Watched, stop: threading.Event) -> None:
        before = None
        while not stop.is_set():
            now = self.agreed()
            if now != before:
                if now is not None:
                    seen.agreed.append((time.monotonic(), now))
                before = now
            time.sleep(0.01)

    def wait_for(self, what: Callable[[], bool], timeout_s: float = 120) -> float:
        """Returns after how many seconds it is so."""
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > timeout_s:
                raise SystemExit("what was waited for did not happen")
            time.sleep(0.02)
        return time.monotonic() - began


def _ask_for_ever(port: int, body: Path, log: Path) -> None:
    """Has clients ask until SIGTERM, then writes what each request saw."""
    content, stop, seen = body.read_bytes(), threading.Event(), list[Asked]()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not stop.is_set():
            began, status, version = time.monotonic(), 0, None
            try:
                head = {"content-type": "application/json"}
                connection.request("POST", "/invocations", content, head)
                answer = connection.getresponse()
                status, said = answer.status, answer.read()
                version = json.loads(said).get("model_version") if status == 200 else None
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
            seen.append(Asked(began, time.monotonic(), status, version))
            time.sleep(PAUSE_S)

    threads = [threading.Thread(target=ask) for _ in range(N_CLIENTS)]
    for one in threads:
        one.start()
    stop.wait()
    for one in threads:
        one.join()
    log.write_text(json.dumps(sorted(seen, key=lambda one: one.ended)))


def _print_moves(stage: _Stage, n: int) -> None:
    from registry.alias import open_registry

    with open_registry(stage.settings) as registry:
        with stage.watched() as quick:
            at_quick = _move(stage, registry, n, every_s=1.0)
        stage.wait_for(lambda: stage.agreed() == at_quick[-1][1])
        with stage.watched() as calm:
            at_calm = _move(stage, registry, max(3, n // 5), every_s=None)
    data = (
        f"baseline CNN on uint8 32x32x3, {N_RELEASES} releases in a registry over HTTP, 2 workers, "
        f"{N_CLIENTS} clients, the registry looked at every {INTERVAL_S} s; n = 1 of each row"
    )
    print_heading("Alias moves under load", data, COMMAND)
    print_rows(
        (
            *("moves", "requests", "failed", "rounds of load and swap", "stale answers"),
            *("alias to last worker, s: p50", "max"),
        ),
        [
            _row_of_moves(f"{n}, one a second", quick, at_quick),
            _row_of_moves(f"{len(at_calm)}, each after the last was there", calm, at_calm),
        ],
    )
    print_aim("failed requests", quick.failed + calm.failed, 0)
    print_aim("rounds of load and swap among the quick moves", len(quick.agreed) - 1, least=30)
    print_aim("answers of an old version", quick.count_stale() + calm.count_stale(), 0)


def _move(
    stage: _Stage, registry: Registry, n: int, every_s: float | None
) -> list[tuple[float, int]]:
    """Moves the alias round the releases; returns when, and where to."""
    from registry.rollback import rollback

    moved = []
    now = registry.catalog.find_alias(NAME, "champion")
    assert now is not None
    version = now.version
    for _ in range(n):
        began = time.monotonic()
        version = version % N_RELEASES + 1
        rollback(registry, NAME, to=version)
        moved.append((time.monotonic(), version))
        if every_s is None:
            wanted = version
            stage.wait_for(lambda wanted=wanted: stage.agreed() == wanted)  # type: ignore[misc]
        else:
            time.sleep(max(0.0, every_s - (time.monotonic() - began)))
    return moved


def _row_of_moves(what: str, seen: Watched, moved: Sequence[tuple[float, int]]) -> list[object]:
    took = []
    for at, version in seen.agreed[1:]:
        last = max((when for when, to in moved if to == version and when < at), default=None)
        if last is not None:
            took.append(at - last)
    p50 = statistics.median(took) if took else None
    return [
        *(what, len(seen.asked), seen.failed, len(seen.agreed) - 1, seen.count_stale()),
        *(p50, max(took, default=None)),
    ]


def _print_swaps(stage: _Stage, n: int) -> None:
    """Prints the memory of the workers over many swaps."""
    import psutil

    from registry.alias import open_registry

    def memory() -> float:
        return float(max(psutil.Process(pid).memory_info().rss for pid in stage.workers())) / 1e6

    rows: list[list[object]] = []
    marks = sorted({0, n // 20, n // 10, n // 4, n // 2, 3 * n // 4, n})
    done = 0
    with open_registry(stage.settings) as registry, stage.watched() as seen:
        for mark in marks:
            _move(stage, registry, mark - done, every_s=None)
            done = mark
            rows.append([mark, memory()])
    print_heading("Memory over swaps", f"as above; {n} swaps, each waited for; n = 1", COMMAND)
    print_rows(("swaps", "MB of the larger worker"), rows)
    print(f"- Requests meanwhile: {len(seen.asked)}, failed {seen.failed}.")
    first, last = rows[len(rows) // 2][1], rows[-1][1]
    assert isinstance(first, float) and isinstance(last, float)
    print(f"- From swap {rows[len(rows) // 2][0]} to {n}: {last - first:+.1f} MB.\n")


def _print_faults(stage: _Stage, gone_s: float) -> None:
    faults = (
        ("a worker killed with SIGKILL", _kill_a_worker),
        ("an altered release, the alias set to it by hand", _poison),
        ("an older release, the alias set to it by hand", _set_back),
        (f"the MLflow server killed for {gone_s:g} s", lambda one: _lose_registry(one, gone_s)),
        ("the public key taken away, the alias moved", _lose_key),
    )
    rows: list[list[object]] = []
    for what, harm in faults:
        with stage.watched() as seen:
            told = harm(stage)
        answers: Counter[str] = Counter()
        for one in seen.asked:
            answers["no answer" if one.status == 0 else str(one.status)] += 1
        versions = sorted({str(one.version) for one in seen.asked if one.status == 200})
        others = ", ".join(f"{n} {how}" for how, n in answers.items() if how != "200") or "none"
        rows.append([what, answers["200"], others, ", ".join(versions), told])
    print_heading("Faults under load", "as above; n = 1 of each", COMMAND)
    print_rows(("fault", "answered with 200", "otherwise", "versions that answered", "then"), rows)


def _kill_a_worker(stage: _Stage) -> str:
    victim = stage.workers()[0]
    os.kill(victim, signal.SIGKILL)
    took = stage.wait_for(lambda: victim not in stage.workers() and len(stage.workers()) == 2)
    return f"another worker answered after {took:.1f} s"


def _client(stage: _Stage) -> Any:
    from mlops.mlflow_store import open_store_client

    return open_store_client(stage.settings)


def _refused(stage: _Stage) -> int:
    from registry.ledger import open_ledger

    with open_ledger(stage.settings.ledger_url) as ledger:
        return sum(one.kind == "refused" for one in ledger.events(NAME))


def _other(stage: _Stage, step: int = 1) -> int:
    now = stage.agreed()
    assert now is not None
    return (now + step - 1) % N_RELEASES + 1


def _poison(stage: _Stage) -> str:
    """Alters a release's bytes where they are stored, and points the alias at it."""
    client, present = _client(stage), stage.agreed()
    version = client.get_model_version(NAME, str(_other(stage)))
    folder = next(stage.home.glob(f"artifacts/*/{version.run_id}/artifacts/release"))
    network, kept = folder / "data" / "model.keras", stage.place / "kept"
    shutil.copy(network, kept)
    # What was fetched once, and verified, is not fetched again.
    for copy in stage.state.releases.glob(f"{version.version}-*"):
        shutil.rmtree(copy)
    before = _refused(stage)
    content = bytearray(network.read_bytes())
    content[len(content) // 2] ^= 1
    network.write_bytes(content)
    client.set_registered_model_alias(NAME, "champion", version.version)
    took = stage.wait_for(lambda: _refused(stage) > before)
    shutil.copy(kept, network)
    client.set_registered_model_alias(NAME, "champion", str(present))
    time.sleep(3)
    return f"refused after {took:.1f} s, and recorded in the ledger"


def _set_back(stage: _Stage) -> str:
    """Points the alias at a good release, without a record of that move."""
    from registry.alias import open_registry
    from registry.rollback import rollback

    with open_registry(stage.settings) as registry:
        rollback(registry, NAME, to=N_RELEASES)
        stage.wait_for(lambda: stage.agreed() == N_RELEASES)
        before = _refused(stage)
        _client(stage).set_registered_model_alias(NAME, "champion", "1")
        took = stage.wait_for(lambda: _refused(stage) > before)
        rollback(registry, NAME, to=N_RELEASES)
    time.sleep(3)
    return f"refused after {took:.1f} s, and recorded in the ledger"


def _lose_registry(stage: _Stage, seconds: float) -> str:
    from registry.alias import open_registry
    from registry.rollback import rollback

    stage.tracking.kill()
    time.sleep(seconds)
    stage.tracking.start()
    with open_registry(stage.settings) as registry:
        wanted = _other(stage)
        rollback(registry, NAME, to=wanted)
    took = stage.wait_for(lambda: stage.agreed() == wanted)
    return f"a move after its return was followed in {took:.1f} s"


def _lose_key(stage: _Stage) -> str:
    from registry.alias import open_registry
    from registry.rollback import rollback

    wanted, before = _other(stage), _refused(stage)
    (public,) = stage.settings.public_keys
    away = stage.place / "public.pem"
    shutil.copy(public, away)
    # Who moves the alias has the key; the host that serves has not.
    mover = Settings.from_env({**stage.env, "MLOPS_PUBLIC_KEYS": str(away)})
    with open_registry(mover) as registry:
        public.unlink()
        rollback(registry, NAME, to=wanted)
    took = stage.wait_for(lambda: _refused(stage) > before)
    shutil.copy(away, public)
    back = stage.wait_for(lambda: stage.agreed() == wanted)
    return f"refused after {took:.1f} s; with the key back followed after {back:.1f} s"


if __name__ == "__main__":
    main()
