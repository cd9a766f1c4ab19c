"""A team's stack, end to end: sweep, promote and serve through TLS and tokens, and its faults.

The services are those of docker-compose.yml, as processes (tests/e2e/stack.py). The tests use one
stack and run in their order: those that break something come last, and mend it.
"""

from __future__ import annotations

import base64
import json
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psycopg
import pytest

from mlops.client import PredictionError, predict
from tests.e2e.stack import Stack, stack_in

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

MODEL = "digits-classifier"
CLUSTER = "tcp://scheduler:8786"
ROWS = np.zeros((2, 8, 8, 1), np.float32)
MARKER = "zanzibar-4e1d90c7"
SWEEP = ("python", "-m", "experiments.sweep", "--cluster", CLUSTER, "--architectures", "dnn")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack as `docker compose up` leaves it: nothing is promoted, the replicas wait."""
    with ExitStack() as end:
        # Not in pytest's folder, which is closed to PostgreSQL's user.
        folder = Path(end.enter_context(TemporaryDirectory(prefix="podium-stack-")))
        folder.chmod(0o755)
        (folder / "data").mkdir()
        settings = {"MODEL": MODEL, "DATA_FOLDER": str(folder / "data"), "SCORING_RATE": "100000"}
        stack = end.enter_context(stack_in(folder, **settings))
        stack.once("secrets")
        stack.start_postgres()
        stack.start("seaweedfs")
        stack.start("s3")
        stack.wait("postgres", 5432, None)
        stack.wait("s3", 8405, "/health")
        stack.once("databases")
        start_programs(stack)
        yield stack


def start_programs(stack: Stack) -> None:
    """Starts all that stands on PostgreSQL and the object store, in the order of the file."""
    stack.start("mlflow")
    stack.start("scheduler")
    stack.wait("scheduler", 8787, "/health")
    for number in (1, 2):
        stack.start("worker", f"worker-{number}")
    stack.wait("mlflow", 5000, "/health")
    stack.once("accounts")
    stack.start("serving-1")
    stack.start("serving-2")
    stack.start("door")
    stack.wait("door", 8404, "/health")


def end_programs(stack: Stack) -> None:
    for name in ("door", "serving-2", "serving-1", "worker-2", "worker-1", "scheduler", "mlflow"):
        stack.end(name)


@pytest.fixture(scope="module")
def swept(stack: Stack) -> str:
    """What a trainer's sweep printed."""
    done = stack.type("trainer", *SWEEP, "--trials", "3", "--epochs", "5")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def promoted(stack: Stack, swept: str) -> int:
    """The version of the first release, which both replicas answer with."""
    done = promote(stack)
    assert done.returncode == 0, done.stdout + done.stderr
    version = champion(stack)
    wait_served(stack, version)
    return version


def promote(stack: Stack, *options: str) -> subprocess.CompletedProcess[str]:
    return stack.type("promoter", "python", "-m", "registry.promote", MODEL, *options)


def champion(stack: Stack) -> int:
    done = stack.type("promoter", "python", "-m", "registry.verify", MODEL, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout.splitlines()[-1])["version"])


def token(stack: Stack, name: str = "clients/token") -> str:
    return (stack.secrets / name).read_text().strip()


def bearer(stack: Stack, name: str = "clients/token") -> dict[str, str]:
    return {"Authorization": f"Bearer {token(stack, name)}"}


def ask(stack: Stack, **options: Any) -> Any:
    """Asks through the door as a client of the team does."""
    authority = stack.secrets / "public" / "ca.pem"
    options = {"headers": bearer(stack), "cafile": authority} | options
    return predict(stack.scoring, ROWS, **options)


def send(
    stack: Stack,
    url: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> tuple[int, str]:
    """Returns status and text of what the door answers."""
    context = ssl.create_default_context(cafile=stack.secrets / "public" / "ca.pem")
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()


def api(stack: Stack, account: str, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Asks MLflow through the door, as an account."""
    folder = "mlflow/admin_password" if account == "admin" else f"accounts/{account}"
    login = base64.b64encode(f"{account}:{token(stack, folder)}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    content = None if body is None else json.dumps(body).encode()
    return send(stack, f"{stack.ui}/api/2.0/mlflow/{path}", content, headers, method)


def wait_served(stack: Stack, version: int) -> None:
    """Waits until both replicas answer with a version, and the door has noticed."""
    body = json.dumps({"inputs": ROWS[:1].tolist()}).encode()

    def served_by(replica: str) -> bool:
        url = f"http://127.0.0.1:{stack.port(replica, 5001)}/invocations"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            return bool(json.load(reply)["model_version"] == version)

    for replica in ("serving-1", "serving-2"):
        stack.wait_for(
            lambda replica=replica: served_by(replica),  # type: ignore[misc]
            f"version {version} at {replica}",
            180,
            replica,
        )

    def is_answered() -> bool:
        with suppress(PredictionError):
            return len(ask(stack)) == len(ROWS)
        return False

    stack.wait_for(is_answered, "an answer of the door", 30, "door")


@contextmanager
def load(stack: Stack, n_clients: int = 4) -> Iterator[Counter[str]]:
    """Asks all the time while the block runs; counts answers and what else came."""
    seen: Counter[str] = Counter()
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                ask(stack, retries=0)
                seen["answers"] += 1
            except PredictionError as err:
                seen[str(err)] += 1
            time.sleep(0.01)

    threads = [threading.Thread(target=client) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_team_sweeps_promotes_and_asks_through_tls_and_a_token(
    stack: Stack, promoted: int
) -> None:
    assert "waiting for digits-classifier@champion: " in stack.log("serving-1").read_text()

    answer = ask(stack)

    assert answer.shape == (2, 10)
    assert np.allclose(answer.sum(axis=1), 1, atol=1e-5)


def test_the_history_tells_the_account_that_mlflow_authenticated(
    stack: Stack, promoted: int
) -> None:
    done = stack.type("promoter", "python", "-m", "registry.history", MODEL, "--json")

    (end,) = [
        one for one in json.loads(done.stdout.splitlines()[-1])["events"] if one["kind"] == "done"
    ]
    assert (end["actor"]["name"], end["actor"]["known_by"]) == ("promoter", "tracking server")
    assert end["login"] == "promoter"  # of PostgreSQL


def test_the_status_tells_of_both_replicas(stack: Stack, promoted: int) -> None:
    done = stack.type("promoter", "python", "-m", "registry.status", "--json")

    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["notes"], found["sound"]) == (0, [], True)
    (model,) = [one for one in found["models"] if one["name"] == MODEL]
    (champion,) = [one for one in model["aliases"] if one["alias"] == "champion"]
    assert (champion["version"], champion["actor"]["name"]) == (promoted, "promoter")
    assert [one["faults"] for one in champion["replicas"]] == [[], []]


def test_a_trainer_moves_no_alias_and_alters_no_release(stack: Stack, promoted: int) -> None:
    status, text = api(
        stack, "trainer", "GET", f"registered-models/alias?name={MODEL}&alias=champion"
    )
    assert status == 200
    run = json.loads(text)["model_version"]["run_id"]
    experiment = json.loads(api(stack, "trainer", "GET", f"runs/get?run_id={run}")[1])["run"][
        "info"
    ]
    place = f"{stack.ui}/api/2.0/mlflow-artifacts/artifacts/{experiment['experiment_id']}/{run}"
    login = base64.b64encode(f"trainer:{token(stack, 'accounts/trainer')}".encode()).decode()
    headers = {"Authorization": f"Basic {login}"}
    alias = {"name": MODEL, "alias": "champion", "version": "1"}
    paths = (f"{place}/artifacts/release/release.json", f"{place}/artifacts/release/evil.py")

    refused = {
        "alias moved": api(stack, "trainer", "POST", "registered-models/alias", alias)[0],
        "alias taken": api(stack, "trainer", "DELETE", "registered-models/alias", alias)[0],
        "altered": send(stack, paths[0], b"{}", headers, "PUT")[0],
        "added": send(stack, paths[1], b"evil", headers, "PUT")[0],
        "deleted": send(stack, paths[0], None, headers, "DELETE")[0],
        "version deleted": api(
            stack, "trainer", "DELETE", "model-versions/delete", {"name": MODEL, "version": "1"}
        )[0],
        "name squatted": api(
            stack, "trainer", "POST", "registered-models/create", {"name": "next"}
        )[0],
        "home squatted": api(
            stack, "trainer", "POST", "experiments/create", {"name": "next-releases"}
        )[0],
    }

    assert refused == dict.fromkeys(refused, 403)
    assert champion(stack) == promoted  # it verifies


def test_a_trainer_who_types_promote_is_told_no(stack: Stack, promoted: int) -> None:
    done = stack.type("trainer", "python", "-m", "registry.promote", MODEL, "--version", "1")

    assert done.returncode == 2  # there is no key to sign with
    assert len(done.stderr.strip().splitlines()[-1]) < 400
    assert "Traceback" not in done.stderr
    assert champion(stack) == promoted


def test_the_ledger_takes_nothing_back(stack: Stack, promoted: int) -> None:
    password = next(
        line.split(":")[4]
        for line in (stack.secrets / "promoter" / "pgpass").read_text().splitlines()
        if ":promoter:" in line
    )
    place = f"host=127.0.0.1 port={stack.port('postgres', 5432)} dbname=ledger user=promoter"
    for statement in (
        "UPDATE ledger_events SET name = 'x'",
        "DELETE FROM ledger_events",
        "TRUNCATE ledger_events",
        "DROP TABLE ledger_events",
        "INSERT INTO ledger_version VALUES ('x')",
        "CREATE TABLE mine (a int)",
    ):
        with (
            psycopg.connect(place, password=password) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)


@pytest.mark.parametrize(
    ("name", "changes", "status", "code"),
    [
        ("no token", {"Authorization": ""}, 401, "unauthorized"),
        ("a wrong token", {"Authorization": "Bearer x"}, 401, "unauthorized"),
        ("no content type", {"Content-Type": ""}, 415, "unsupported_media_type"),
        ("a wrong content type", {"Content-Type": "text/html"}, 415, "unsupported_media_type"),
    ],
)
def test_the_door_refuses(
    stack: Stack, promoted: int, name: str, changes: dict[str, str], status: int, code: str
) -> None:
    headers = bearer(stack) | {"Content-Type": "application/json"} | changes
    body = json.dumps({"inputs": ROWS.tolist()}).encode()

    answered, text = send(stack, f"{stack.scoring}/invocations", body, headers, "POST")

    assert answered == status, (name, text)
    error = json.loads(text)
    assert set(error) == {"code", "message", "field"}


def test_the_door_refuses_a_token_of_another_role_and_bodies_that_are_too_much(
    stack: Stack, promoted: int
) -> None:
    url = f"{stack.scoring}/invocations"
    json_type = {"Content-Type": "application/json"}
    small = json.dumps({"inputs": ROWS.tolist()}).encode()
    large = b'{"inputs": [' + b"0," * 1_000_000 + b"0]}"
    deep = b"[" * 100_000

    statuses = (
        send(stack, url, small, bearer(stack, "door/metrics") | json_type)[0],
        send(stack, url, large, bearer(stack) | json_type)[0],
        send(stack, url, deep, bearer(stack) | json_type)[0],
        send(stack, url, small, bearer(stack) | json_type)[0],
    )

    assert statuses == (403, 413, 400, 200)


def test_what_was_tried_on_mlflow_through_the_door(stack: Stack, promoted: int) -> None:
    login = base64.b64encode(f"trainer:{token(stack, 'accounts/trainer')}".encode()).decode()
    basic = {"Authorization": f"Basic {login}"}
    artifacts = f"{stack.ui}/api/2.0/mlflow-artifacts/artifacts"
    located = {"name": "mine", "artifact_location": "file:///etc"}
    hook = {
        "name": "spy",
        "url": "https://169.254.169.254/",
        "events": [{"entity": "REGISTERED_MODEL", "action": "CREATED"}],
    }

    refused = {
        "no login": send(stack, f"{stack.ui}/api/2.0/mlflow/experiments/search?max_results=1")[0],
        "a foreign host": send(stack, f"{stack.ui}/", None, basic | {"Host": "evil.example"})[0],
        "etc": api(stack, "trainer", "POST", "experiments/create", located)[0],
        "a traversal": send(stack, f"{artifacts}/0/..%2f..%2fetc/passwd", None, basic)[0],
        "a webhook": api(stack, "trainer", "POST", "webhooks", hook)[0],
    }

    assert refused["no login"] == 401
    assert all(400 <= status < 500 for status in refused.values()), refused


def test_an_erasure_takes_the_bytes_of_a_dataset_out_of_every_place(
    stack: Stack, promoted: int
) -> None:
    (stack.folder / "data" / "visits.csv").write_text(marked_table())
    data = ("--dataset", "/data/visits.csv", "--label", "town", "--study", "visits")
    swept = stack.type("trainer", *SWEEP, *data, "--trials", "2", "--epochs", "20")
    assert swept.returncode == 0, swept.stderr
    words = ("python", "-m", "registry.promote", "visits-classifier")
    released = stack.type("promoter", *words)
    assert released.returncode == 0, released.stdout + released.stderr
    records = (stack.volume("home") / "datasets").glob("*/dataset.json")
    (fingerprint,) = [path.parent.name for path in records if MARKER in path.read_text()]
    assert find_marker(stack, MARKER)
    assert find_marker(stack, fingerprint)

    erase = ("python", "-m", "mlops.erase", "--dataset", fingerprint, "--yes")
    held = stack.type("admin", *erase)
    assert held.returncode == 3, held.stdout + held.stderr
    done = stack.type("admin", *erase, "--replace", "visits-classifier@champion=none")
    assert done.returncode == 0, done.stdout + done.stderr

    # The object store takes the bytes of deleted files out a moment later.
    stack.wait_for(lambda: find_after_vacuum(stack, MARKER) == [], "an erasure of all bytes")
    left = find_marker(stack, fingerprint)
    # Its own log keeps the names that files once had.
    assert [path for path in left if "/volumes/seaweedfs/" not in path] == []
    tombstone = stack.type("promoter", "python", "-m", "registry.history", fingerprint, "--check")
    assert tombstone.returncode == 0, tombstone.stdout + tombstone.stderr
    assert champion(stack) == promoted


def marked_table() -> str:
    """A table of two towns that can be told apart; the name of one is the marker."""
    noise = np.random.default_rng(0).normal(size=(400, 3))
    lines = [
        f"{a + 3 * (row % 2):.6f},{b - 3 * (row % 2):.6f},{c:.6f},{('bergen', MARKER)[row % 2]}"
        for row, (a, b, c) in enumerate(noise)
    ]
    return "\n".join(["width,height,depth,town", *lines, ""])


def find_after_vacuum(stack: Stack, marker: str) -> list[str]:
    vacuum_object_store(stack)
    return find_marker(stack, marker)


def vacuum_object_store(stack: Stack) -> None:
    """Has SeaweedFS write its volumes anew, as docs/operations.md says."""
    port = stack.port("seaweedfs", 9333)
    url = f"http://127.0.0.1:{port}/vol/vacuum?garbageThreshold=0.000001"
    with urllib.request.urlopen(url, timeout=60) as reply:
        assert reply.status == 200


def find_marker(stack: Stack, marker: str) -> list[str]:
    """The files of all volumes and users that hold a marker; the ledger's and PostgreSQL's log not.

    The ledger stays whole: it names a dataset, and its classes in what gates said.
    """
    password = (stack.secrets / "postgres" / "password").read_text().strip()
    place = f"host=127.0.0.1 port={stack.port('postgres', 5432)} dbname=postgres user=postgres"
    with psycopg.connect(place, password=password, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        found = connection.execute("SELECT oid FROM pg_database WHERE datname = 'ledger'")
        (ledger,) = found.fetchone() or ()
    folders = [str(stack.folder / name) for name in ("volumes", "users", "tmp")]
    searched = subprocess.run(
        ["grep", "-rlaF", marker, *folders], capture_output=True, text=True, check=False
    )
    assert searched.returncode in (0, 1), searched.stderr
    skipped = ("/pg_wal/", f"/base/{ledger}/")
    return [one for one in searched.stdout.splitlines() if not any(it in one for it in skipped)]


def test_a_replica_that_is_killed_under_load_fails_no_request(stack: Stack, promoted: int) -> None:
    with load(stack) as seen:
        time.sleep(2)
        stack.end("serving-1", signal.SIGKILL)
        time.sleep(5)
        stack.start("serving-1")
        wait_served(stack, promoted)
        time.sleep(2)

    assert set(seen) == {"answers"}, seen
    assert seen["answers"] > 100


def test_a_release_is_followed_by_both_replicas_under_load(stack: Stack, promoted: int) -> None:
    with load(stack) as seen:
        done = promote(stack, "--version", "1", "--alias", "champion")
        version = champion(stack)
        wait_served(stack, version)
        back = stack.type(
            "promoter", "python", "-m", "registry.rollback", MODEL, "--to", str(promoted)
        )
        wait_served(stack, promoted)

    assert done.returncode in (0, 3), done.stderr
    assert back.returncode == 0 or version == promoted, back.stderr
    assert set(seen) == {"answers"}, seen


def test_a_backup_under_load_restores_to_a_home_in_which_every_release_verifies(
    stack: Stack, promoted: int, tmp_path: Path
) -> None:
    sweep = stack.spawn("trainer", *SWEEP, "--trials", "2", "--epochs", "2", "--study", "beside")
    with load(stack):
        done = stack.type("admin", "python", "-m", "mlops.backup", "/backups/one")
    assert done.returncode == 0, done.stderr
    assert sweep.wait(300) == 0, stack.tail("trainer-beside")

    home = {"MLOPS_HOME": str(tmp_path / "home")}
    restored = subprocess.run(
        [*("python", "-m", "mlops.restore"), str(stack.volume("backups") / "one")],
        env={**stack.env("serving-1"), **home, "MLFLOW_TRACKING_URI": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert restored.returncode == 0, restored.stderr
    verified = subprocess.run(
        ["python", "-m", "registry.verify", MODEL, "--json"],
        env={**stack.env("serving-1"), **home, "MLFLOW_TRACKING_URI": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout.splitlines()[-1])["version"] == promoted


def test_postgresql_that_restarts_during_a_sweep_costs_nothing(stack: Stack, promoted: int) -> None:
    sweep = (*SWEEP, "--trials", "4", "--epochs", "40", "--study", "restarted")
    process = stack.spawn("trainer", *sweep)
    stack.wait_for(lambda: trials(stack, "restarted") > 0, "a trial", 180, "trainer-restarted")
    stack.end("postgres", signal.SIGINT)
    time.sleep(2)
    stack.start_postgres()
    stack.wait("postgres", 5432, None)
    if process.wait(600) != 0:
        again = stack.type("trainer", *sweep)  # the same command goes on
        assert again.returncode == 0, again.stderr

    status = stack.type("trainer", "python", "-m", "experiments.status", "restarted", "--json")
    (study,) = json.loads(status.stdout.splitlines()[-1])["sweeps"][0]["studies"]
    assert study["n_finished"] == 4, status.stdout


def trials(stack: Stack, sweep: str) -> int:
    done = stack.type("trainer", "python", "-m", "experiments.status", sweep, "--json")
    if done.returncode:
        return 0
    return sum(
        study["n_finished"] + study["n_running"]
        for one in json.loads(done.stdout.splitlines()[-1])["sweeps"]
        for study in one["studies"]
    )


def test_postgresql_that_restarts_during_a_promotion_leaves_a_champion_that_verifies(
    stack: Stack, promoted: int
) -> None:
    words = ("python", "-m", "registry.promote", MODEL, "--version", "1")
    process = stack.spawn("promoter", *words)
    time.sleep(6)
    stack.end("postgres", signal.SIGINT)
    time.sleep(1)
    stack.start_postgres()
    stack.wait("postgres", 5432, None)
    if process.wait(300) not in (0, 3):
        again = stack.type("promoter", *words)
        assert again.returncode in (0, 3), again.stderr

    wait_served(stack, champion(stack))
    checked = stack.type("promoter", "python", "-m", "registry.history", MODEL, "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_an_object_store_that_is_down_stops_a_promotion_with_a_sentence(
    stack: Stack, promoted: int
) -> None:
    before = champion(stack)
    stack.end("seaweedfs")

    done = promote(stack, "--version", "1")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    stack.start("seaweedfs")
    stack.wait("s3", 8405, "/health")
    assert champion(stack) == before
    ask(stack)


def test_an_upgrade_waits_for_writers_and_new_passwords_go_everywhere(
    stack: Stack, promoted: int
) -> None:
    before = champion(stack)
    upgrade = ("python", "-m", "mlops.upgrade")
    refused = stack.type("admin", *upgrade)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "sessions of mlflow in the database mlflow" in refused.stderr

    end_programs(stack)
    done = stack.type("admin", *upgrade)
    assert done.returncode == 0, done.stdout + done.stderr
    old = {path: path.read_text() for path in stack.secrets.glob("*/pgpass")}
    certificate = (stack.secrets / "door" / "tls.pem").read_text()
    for path in (*old, stack.secrets / "door" / "tls.pem"):
        path.unlink()
    stack.once("secrets")
    stack.once("databases")
    start_programs(stack)
    wait_served(stack, before)

    ask(stack)
    assert champion(stack) == before
    assert (stack.secrets / "door" / "tls.pem").read_text() != certificate
    for path, text in old.items():
        assert path.read_text() != text
    user, password = next(iter(old[stack.secrets / "promoter" / "pgpass"].splitlines())).split(":")[
        -2:
    ]
    place = f"host=127.0.0.1 port={stack.port('postgres', 5432)} dbname=ledger user={user}"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(place, password=password)
