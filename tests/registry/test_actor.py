"""Who the actor is, asked of real servers: with accounts, without any, and of PostgreSQL."""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import json
import os
import secrets
import shutil
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mlops.data import Dataset
from mlops.mlflow_store import open_store_client
from mlops.settings import QUIET, Settings
from registry import approve, promote
from registry.actor import find_actor, in_words
from registry.alias import open_registry
from registry.history import main as history
from registry.ledger import Actor, Ledger, open_ledger, os_user
from registry.signing import ensure_signing_key
from tests.conftest import Tracking
from tests.database_server import in_database
from tests.e2e.serving import free_port
from tests.registry import test_ledger
from tests.registry.sides import NAME, Sides, probe_sides, settings_for
from tests.server_process import running

ADMIN = ("admin", "a-password-of-the-admin")
ADA, BOB, EVE = "ada", "bob", "eve"
NOBODY = Actor(os_user(), "operating system")
START_S = 180.0

postgresql = test_ledger.postgresql


@dataclass(frozen=True)
class Accounts:
    """An MLflow server with the accounts ada, bob and eve."""

    url: str

    def post(self, path: str, **content: str) -> None:
        reply = requests.post(f"{self.url}/api/{path}", json=content, auth=ADMIN, timeout=60)
        assert reply.status_code == 200, reply.text

    def let_edit(self, user: str, what: str, kind: str = "registered_model") -> None:
        self.post(
            "3.0/mlflow/users/permissions/grant",
            username=user,
            resource_type=kind,
            resource_id=what,
            permission="EDIT",
        )


def password_of(user: str) -> str:
    return f"a-password-of-{user}"


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Accounts]:
    folder = tmp_path_factory.mktemp("accounts")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
        f"admin_username = {ADMIN[0]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    env = {
        **os.environ,
        **QUIET,
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with running(command, env, folder / "log", f"http://127.0.0.1:{port}", START_S) as url:
        found = Accounts(url)
        for user in (ADA, BOB, EVE):
            found.post("2.0/mlflow/users/create", username=user, password=password_of(user))
        yield found


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the credentials of an account to MLflow's clients, as its users do."""

    def log_in(user: str, password: str | None = None) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password or password_of(user))

    return log_in


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as opened:
        yield opened


def actor_at(url: str | None, ledger: Ledger) -> Actor:
    settings = Settings.from_env({} if url is None else {"MLFLOW_TRACKING_URI": url})
    return find_actor(settings, ledger)


def test_the_login_with_the_right_password_is_the_actor(
    accounts: Accounts, ledger: Ledger, login: Callable[..., None]
) -> None:
    login(ADA)
    found = actor_at(accounts.url, ledger)
    assert found == Actor(ADA, "tracking server")
    assert in_words(found) == "ada (login of the tracking server)"
    assert actor_at(accounts.url + "/", ledger) == found
    login(BOB)
    assert actor_at(accounts.url, ledger) == Actor(BOB, "tracking server")


def test_a_wrong_password_and_none_are_no_login(
    accounts: Accounts, ledger: Ledger, login: Callable[..., None]
) -> None:
    assert actor_at(accounts.url, ledger) == NOBODY
    login(ADA, "not-her-password")
    assert actor_at(accounts.url, ledger) == NOBODY
    login("nobody-knows-her")
    assert actor_at(accounts.url, ledger) == NOBODY


def test_a_name_in_the_environment_proves_nothing_to_a_server_without_accounts(
    tracking: Tracking, ledger: Ledger, login: Callable[..., None]
) -> None:
    login(ADA)
    assert actor_at(tracking.url, ledger) == NOBODY
    assert actor_at(None, ledger) == NOBODY
    assert in_words(NOBODY).endswith("(only the OS user; no server authenticated the name)")


def test_a_login_in_netrc_is_no_strangers(
    accounts: Accounts, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {ADA} password {password_of(ADA)}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert actor_at(accounts.url, ledger) == Actor(ADA, "tracking server")


@contextmanager
def answering(believes_anybody: bool, certificate: Path | None = None) -> Iterator[str]:
    """Runs a server that knows whose request it is, or only says so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("authorization", "")
            user = base64.b64decode(given.removeprefix("Basic ")).partition(b":")[0].decode()
            known = bool(user) or believes_anybody
            body = json.dumps({"user": {"username": user or "guest"}}) if known else "who are you?"
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_believes_anybody_proves_nothing(
    ledger: Ledger, login: Callable[..., None]
) -> None:
    login(ADA)
    with answering(believes_anybody=True) as url:
        assert actor_at(url, ledger) == NOBODY
    with answering(believes_anybody=False) as url:
        assert actor_at(url, ledger) == Actor(ADA, "tracking server")


def test_a_server_with_a_certificate_of_the_teams_own_is_asked_as_mlflow_asks_it(
    ledger: Ledger,
    login: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login(ADA)
    certificate = make_certificate(tmp_path)
    with answering(believes_anybody=False, certificate=certificate) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        assert actor_at(url, ledger) == Actor(ADA, "tracking server")


def make_certificate(folder: Path) -> Path:
    """Writes a key and its own certificate for 127.0.0.1 into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tracking")])
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_the_databases_login_counts_where_no_server_knows_one(
    postgresql: str, tracking: Tracking, accounts: Accounts, login: Callable[..., None]
) -> None:
    url = test_ledger.empty(postgresql)
    test_ledger.open_once(url)
    user = f"carl_{os.urandom(4).hex()}"
    test_ledger.execute(
        url,
        f"CREATE ROLE {user} LOGIN",
        f"GRANT SELECT, INSERT ON ledger_events TO {user}",
        f"GRANT SELECT ON ledger_version TO {user}",
    )
    carl = Actor(user, "database")
    with open_ledger(in_database(url, username=user)) as ledger:
        login(ADA, "not-her-password")
        assert actor_at(None, ledger) == carl
        assert actor_at(tracking.url, ledger) == carl
        assert actor_at(accounts.url, ledger) == carl
        assert in_words(carl) == f"{user} (login of the database)"
        login(ADA)
        assert actor_at(accounts.url, ledger) == Actor(ADA, "tracking server")


@pytest.fixture
def team(
    accounts: Accounts, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """The settings of a team whose server has accounts; its key is there, as a team mounts it."""
    embedded = settings_for(tmp_path / "home", dataset)
    ensure_signing_key(embedded)
    monkeypatch.setenv("MLOPS_HOME", str(embedded.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", accounts.url)
    return dataclasses.replace(embedded, tracking_uri=accounts.url)


@pytest.mark.parametrize("program", [promote, approve])
def test_a_wrong_password_ends_a_program_in_one_sentence(
    team: Settings,
    login: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    program: object,
) -> None:
    login(ADA, "not-her-password")
    args = [NAME] if program is promote else [NAME, "1"]
    assert program.main(args) == 1  # type: ignore[attr-defined]
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "did not accept the login" in line
    with open_ledger(team.ledger_url) as ledger:
        assert ledger.events() == []


def test_one_account_trains_another_proposes_and_a_third_approves(
    accounts: Accounts,
    team: Settings,
    dataset: Dataset,
    made_models: tuple[Path, dict[float, Path]],
    tmp_path: Path,
    login: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (team.home / "policy.toml").write_text("approvals = 2\n")
    login(ADA)
    sides = Sides(open_store_client(team), dataset, tmp_path, *made_models)
    number = sides.register(right=9.0, value=0.9)
    accounts.let_edit(BOB, f"{NAME}-candidates")

    login(BOB)
    with open_registry(team, probe=probe_sides) as registry:
        done = promote.promote(registry, NAME, number, propose=True)
        assert registry.catalog.find_aliases(NAME) == {}
    assert (done.decision, done.version) == ("proposed", 1)
    accounts.let_edit(EVE, NAME)
    assert approve.main([NAME, "1"]) == 3
    assert "bob proposed it" in capsys.readouterr().err

    login(EVE)  # who may move it, and not sign the move beside the release
    assert approve.main([NAME, "1"]) == 1
    assert "does not allow this login to do that" in capsys.readouterr().err
    releases = open_store_client(team).get_experiment_by_name(f"{NAME}-releases")
    for user in (ADA, EVE):
        accounts.let_edit(user, releases.experiment_id, "experiment")

    login(ADA)  # an account that may not move the alias
    assert approve.main([NAME, "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line

    login(EVE)  # who may move it, and not write to the candidates
    assert approve.main([NAME, "1"]) == 0
    said = capsys.readouterr()
    assert "proposed by bob (login of the tracking server)" in said.out
    assert "approved by eve (login of the tracking server)" in said.out
    assert f"{NAME}-candidates/1 was not marked as promoted" in said.err
    with open_registry(team, probe=probe_sides) as registry:
        assert registry.catalog.find_aliases(NAME) == {"champion": 1}
        events = registry.ledger.events(NAME)
        statement = registry.catalog.read_statement(registry.catalog.get_release(NAME, 1))
    assert {one.actor.known_by for one in events} == {"tracking server"}
    did = [(event.kind, event.actor.name) for event in events]
    assert did == [
        ("proposed", BOB),
        *(("approved", EVE), ("intent", EVE), ("abandoned", EVE)),
        *(("approved", ADA), ("intent", ADA), ("abandoned", ADA)),
        *(("approved", EVE), ("intent", EVE), ("done", EVE)),
    ]
    assert statement is not None
    assert statement[0]["actor"] == {"name": BOB, "known_by": "tracking server"}
    assert history([NAME, "--check"]) == 0
