"""What `python -m mlops.init` makes: secrets as files, and databases in a real PostgreSQL."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from experiments.study_copy import hold
from mlops.errors import MlopsError
from mlops.init import main
from mlops.settings import Settings
from mlops.team.certificates import make_certificate
from mlops.team.databases import OWNERS, Server, make_databases, prepare
from mlops.team.secrets import SERVICES, read_passwords
from registry.ledger import Actor, open_ledger
from registry.signing import sign_bytes, verify_bytes
from tests.database_server import execute, serve_postgresql
from tests.object_store import open_object_store, use


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "secrets"
    assert main(["secrets", str(folder), "--host", "podium.example.org", "10.1.2.3"]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_service_has_a_folder_that_nobody_else_reads(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(SERVICES)
    for path in folder.rglob("*"):
        service = path.relative_to(folder).parts[0]
        readable = {"public": 0o044}.get(service, 0)
        readable |= 0o040 if service in ("postgres", "seaweedfs", "door", "grafana") else 0
        wanted = 0o600 | readable
        if path.is_dir():
            wanted |= 0o100 | readable >> 2
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_nothing_is_made_twice_and_what_was_opened_is_closed(folder: Path) -> None:
    before = contents(folder)
    (folder / "admin" / "pgpass").chmod(0o644)
    (folder / "promoter").chmod(0o755)
    assert main(["secrets", str(folder)]) == 0
    assert contents(folder) == before
    assert stat.S_IMODE((folder / "admin" / "pgpass").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "promoter").stat().st_mode) == 0o700


def test_no_secret_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["secrets", str(tmp_path / "s"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert "promoter/signing.pem" in json.loads(out)["made"]
    made = contents(tmp_path / "s")
    for name, content in made.items():
        for line in content.decode().splitlines():
            word = line.rpartition(":")[2].rpartition(" ")[2].strip('",')
            assert len(word) < 20 or word not in out + err, name


def test_all_passwords_are_long_and_differ(folder: Path) -> None:
    known = read_passwords(folder / "admin" / "pgpass")
    assert set(known) == {"postgres", "mlflow", "studies", "ledger", "promoter"}
    assert known["postgres"] == (folder / "postgres" / "password").read_text()
    words = [*known.values(), *(file.read_text() for file in (folder / "accounts").iterdir())]
    words += [(folder / "clients" / "token").read_text(), (folder / "door" / "metrics").read_text()]
    words += [(folder / "mlflow" / name).read_text() for name in ("admin_password", "flask_secret")]
    assert len(set(words)) == len(words) == 13
    assert min(map(len, words)) >= 40


def test_each_service_knows_its_own_passwords_only(folder: Path) -> None:
    known = read_passwords(folder / "admin" / "pgpass")
    for service, login in (("mlflow", "mlflow"), ("trainer", "studies"), ("promoter", "promoter")):
        assert read_passwords(folder / service / "pgpass") == {login: known[login]}
    for service in ("trainer", "promoter", "server"):
        found = ConfigParser()
        found.read(folder / service / "mlflow_credentials")
        assert found["mlflow"]["mlflow_tracking_username"] == service
        password = (folder / "accounts" / service).read_text()
        assert found["mlflow"]["mlflow_tracking_password"] == password


def test_a_file_that_follows_from_another_is_made_anew(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = contents(copy)
    derived = ("trainer/pgpass", "mlflow/aws", "public/release.pem", "public/ca.pem")
    derived += ("server/mlflow_credentials", "door/tokens.map")
    for name in derived:
        (copy / name).unlink()
    assert main(["secrets", str(copy)]) == 0
    assert contents(copy) == before
    # A certificate that has ended: another, of the same authority.
    (copy / "door" / "tls.pem").unlink()
    assert main(["secrets", str(copy)]) == 0
    assert contents(copy)["door/tls.pem"] != before["door/tls.pem"]
    shake_hands(copy, "localhost", copy / "public" / "ca.pem")


def test_runs_at_once_make_one_set(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlops.init", "secrets", str(tmp_path / "s"), "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = [json.loads(one.communicate(timeout=60)[0])["made"] for one in running]
    assert [one.returncode for one in running] == [0, 0, 0]
    assert sorted(name for names in made for name in names) == sorted(contents(tmp_path / "s"))
    known = read_passwords(tmp_path / "s" / "admin" / "pgpass")
    assert read_passwords(tmp_path / "s" / "trainer" / "pgpass") == {"studies": known["studies"]}


def test_the_door_knows_tokens_by_their_digests(folder: Path) -> None:
    lines = (folder / "door" / "tokens.map").read_text().splitlines()
    roles = dict(line.split() for line in lines)
    for file, role in (("clients/token", "score"), ("door/metrics", "metrics")):
        assert roles[hashlib.sha256((folder / file).read_bytes()).hexdigest()] == role


def test_the_release_key_signs_what_its_public_half_verifies(folder: Path) -> None:
    signature = sign_bytes(b"a release", folder / "promoter" / "signing.pem")
    assert verify_bytes(b"a release", signature, [folder / "public" / "release.pem"])
    assert b"PRIVATE" not in (folder / "public" / "release.pem").read_bytes()
    assert b"PRIVATE" not in (folder / "public" / "ca.pem").read_bytes()


@pytest.mark.parametrize(
    "host", ["podium.example.org", "10.1.2.3", "localhost", "127.0.0.1", "door"]
)
def test_the_door_is_trusted_by_each_of_its_names(folder: Path, host: str) -> None:
    shake_hands(folder, host, folder / "public" / "ca.pem")


def test_the_door_is_not_trusted_by_another_name_nor_without_its_authority(folder: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(folder, "evil.example.org", folder / "public" / "ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake_hands(folder, "localhost", None)


def shake_hands(folder: Path, host: str, trusted: Path | None) -> None:
    """Has a client of these names talk TLS with a server of the door's certificate, as strictly
    as the newest Python does.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "door" / "tls.pem")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    if trusted is not None:
        client.load_verify_locations(trusted)
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as talk:
                talk.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as talk:
            talk.send(b"x")
    finally:
        ours.close()
        thread.join(10)


def test_a_host_that_is_a_url_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["secrets", str(tmp_path / "s"), "--host", "https://podium.example.org"]) == 2
    assert "without https:// and port" in capsys.readouterr().err


def test_a_certificate_that_will_not_do_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert main(["secrets", str(copy), "--host", "10.1.2.3"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["secrets", str(copy), "--host", "new.example.org"]) == 0
    assert "it does not name new.example.org" in capsys.readouterr().err
    authority = (copy / "authority" / "ca.pem").read_bytes()
    soon = make_certificate(authority, ["localhost"], days=20)
    (copy / "door" / "tls.pem").write_bytes(soon)
    assert main(["secrets", str(copy)]) == 0
    assert "certificate: it ends on" in capsys.readouterr().err


def test_own_certificates_that_will_not_do_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tls = copy / "door" / "tls.pem"
    for content, words in (
        (make_own_certificate([]), "it names no host"),
        (b"no certificate", "holds no certificate in PEM"),
        (make_own_certificate(["*.example.org"]), ""),
        (make_own_certificate(["*.org"]), "it does not name podium.example.org"),
        (make_own_certificate(["*.podium.example.org"]), "it does not name podium.example.org"),
        (make_own_certificate(["PODIUM.example.org"]), ""),
    ):
        tls.write_bytes(content)
        assert main(["secrets", str(copy), "--host", "podium.example.org"]) == 0
        said = capsys.readouterr().err
        assert words in said and bool(words) == bool(said), said
        assert not words or f"If {str(tls)!r} is yours, put a new one there" in said
        assert tls.read_bytes() == content


def make_own_certificate(hosts: list[str]) -> bytes:
    """Returns a certificate of its own key and its key, as of somebody else's authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "podium.example.org")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now).not_valid_after(now + timedelta(days=90))
    if hosts:
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        built = built.add_extension(names, critical=False)
    return built.sign(key, hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    ) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    ("deleted", "words"),
    [
        ("promoter/signing.pem", "what is signed now would not verify"),
        ("authority/ca.pem", "'public/ca.pem' is of another authority than 'authority/ca.pem'"),
        ("authority/ca.pem", "'door/tls.pem' is of another authority than 'authority/ca.pem'"),
        ("admin/pgpass", "'trainer/pgpass' does not fit 'admin/pgpass'"),
        ("seaweedfs/s3.json", "'promoter/aws' does not fit 'seaweedfs/s3.json'"),
        ("accounts/server", "'server/mlflow_credentials' does not fit 'accounts/server'"),
    ],
)
def test_pairs_that_do_not_fit_are_told_until_the_rest_is_deleted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], deleted: str, words: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = contents(copy)
    (copy / deleted).unlink()
    assert main(["secrets", str(copy)]) == 0
    said = capsys.readouterr().err
    assert words in said
    assert {name for name, content in contents(copy).items() if content != before[name]} == {
        deleted
    }
    if deleted == "promoter/signing.pem":  # what the key before signed is still to verify
        (copy / "public" / "release.pem").rename(copy / "public" / "release-1.pem")
    for name in set(re.findall(r"Delete '([^']+)'", said)):
        (copy / name).unlink()
    capsys.readouterr()
    assert main(["secrets", str(copy)]) == 0
    assert main(["secrets", str(copy)]) == 0
    assert capsys.readouterr().err == ""
    signature = sign_bytes(b"a release", copy / "promoter" / "signing.pem")
    assert verify_bytes(b"a release", signature, [copy / "public" / "release.pem"])
    shake_hands(copy, "localhost", copy / "public" / "ca.pem")


def test_a_new_token_is_let_in_and_one_that_was_taken_back_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tokens, token = copy / "door" / "tokens.map", copy / "clients" / "token"
    before = tokens.read_text().rstrip("\n")  # as an editor may leave it
    tokens.write_text(before)
    token.unlink()
    assert main(["secrets", str(copy)]) == 0
    assert "The one before is let in until its line is removed" in capsys.readouterr().err
    line = f"{hashlib.sha256(token.read_bytes()).hexdigest()} score\n"
    assert tokens.read_text() == f"{before}\n{line}"
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o640
    assert main(["secrets", str(copy)]) == 0
    assert capsys.readouterr().err == ""
    tokens.write_text(before)
    assert main(["secrets", str(copy)]) == 0
    assert "has no line for 'clients/token'" in capsys.readouterr().err
    assert tokens.read_text() == before


def test_the_superusers_password_is_kept_where_another_file_knows_it(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = contents(copy)
    (copy / "postgres" / "password").unlink()
    assert main(["secrets", str(copy)]) == 0
    assert contents(copy) == before


@pytest.mark.parametrize("name", ["promoter/signing.pem", "authority/ca.pem"])
def test_a_key_that_is_none_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / name).write_text("no key")
    assert main(["secrets", str(copy)]) == 1
    assert f"{str(copy / name)!r} holds no key that can be used" in capsys.readouterr().err


def test_the_doors_names_come_from_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR_HOST", "podium.lan, 10.9.8.7")
    assert main(["secrets", str(tmp_path / "s")]) == 0
    for host in ("podium.lan", "10.9.8.7"):
        shake_hands(tmp_path / "s", host, tmp_path / "s" / "public" / "ca.pem")


def test_the_s3_logins_reach_their_bucket_and_no_other(folder: Path, tmp_path: Path) -> None:
    s3_json = (folder / "seaweedfs" / "s3.json").read_text()
    with open_object_store(tmp_path / "s3", s3_json=s3_json) as store:
        for bucket in ("artifacts", "datasets"):
            s3_client(store.url, folder / "admin" / "aws").create_bucket(Bucket=bucket)
        found = {
            (service, bucket, deed): try_store(store.url, folder / service / "aws", bucket, deed)
            for service in ("mlflow", "trainer", "promoter", "admin")
            for bucket in ("artifacts", "datasets")
            for deed in ("put", "list", "get", "delete")
        }
    may = {
        ("mlflow", "artifacts"): {"put", "list", "get", "delete"},
        ("trainer", "datasets"): {"put", "list", "get", "delete"},
        ("promoter", "datasets"): {"list", "get"},
        ("admin", "artifacts"): {"put", "list", "get", "delete"},
        ("admin", "datasets"): {"put", "list", "get", "delete"},
    }
    assert {
        (service, bucket, deed): deed in may.get((service, bucket), set())
        for service, bucket, deed in found
    } == found


def s3_client(url: str, aws: Path) -> Any:
    import boto3

    login = ConfigParser()
    login.read(aws)
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **login["default"])


def try_store(url: str, aws: Path, bucket: str, deed: str) -> bool:
    from botocore.exceptions import ClientError

    client = s3_client(url, aws)
    try:
        if deed == "put":
            client.put_object(Bucket=bucket, Key="one", Body=b"1")
        elif deed == "list":
            client.list_objects_v2(Bucket=bucket)
        elif deed == "get":
            client.get_object(Bucket=bucket, Key="one")
        else:
            client.delete_object(Bucket=bucket, Key="one")
    except ClientError as err:
        return err.response["Error"]["Code"] == "NoSuchKey"  # asked for, and only not there
    return True


# Databases.


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server that takes passwords only, over TCP; its superuser's URL, over its socket."""
    with serve_postgresql() as url:
        yield url


@pytest.fixture(scope="module")
def databases(
    postgresql: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server with all that `init databases` makes, run twice; buckets in a SeaweedFS."""
    with (
        open_object_store(tmp_path_factory.mktemp("s3")) as store,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        use(monkeypatch, store.env())
        monkeypatch.setenv("PGPASSFILE", str(folder / "admin" / "pgpass"))
        done = prepare(postgresql, os.environ)
        assert {f"database {name}" for name in OWNERS} <= set(done)
        assert {"bucket artifacts", "bucket datasets", "login promoter"} <= set(done)
        assert {one.partition(":")[0] for one in done} >= {"tracking", "studies", "ledger"}
        assert prepare(postgresql, os.environ) == []
        yield Server.of(postgresql)


def refused(server: Server, login: str, database: str, statement: str) -> str:
    with pytest.raises(sa.exc.DBAPIError) as caught:
        execute(server.url(login, database), statement)
    return str(caught.value.orig)


def test_the_promoter_adds_to_the_ledger_and_changes_nothing_in_it(databases: Server) -> None:
    url = databases.url("promoter", "ledger")
    with open_ledger(url) as ledger:
        event = ledger.append("hook", "digits", None, Actor("ada", "tracking server"), {})
        assert ledger.events() == [event]
        assert ledger.login() == "promoter"
        with ledger.lease("digits", "ada"):
            pass
    for statement in (
        "UPDATE ledger_events SET body = '{}'",
        "DELETE FROM ledger_events",
        "TRUNCATE ledger_events",
        "DROP TABLE ledger_events",
        "ALTER TABLE ledger_events DISABLE TRIGGER ALL",
        "UPDATE ledger_version SET version_num = 'x'",
        "CREATE TABLE mine (x int)",
        "CREATE TEMP TABLE ledger_events (x int)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "COPY ledger_events TO PROGRAM 'true'",
        "SET ROLE ledger",
        "SELECT lo_creat(-1)",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_import('/etc/hostname')",
    ):
        said = refused(databases, "promoter", "ledger", statement)
        assert "permission denied" in said or "must be owner" in said, statement


def test_the_promoter_reads_studies_and_those_to_come(databases: Server) -> None:
    execute(databases.url("studies", "studies"), "CREATE TABLE later (x int)")
    for table in ("studies", "trials", "later"):
        assert execute(databases.url("promoter", "studies"), f"SELECT count(*) FROM {table}") == 0
    assert "denied" in refused(databases, "promoter", "studies", "DELETE FROM trials")


def test_nobody_connects_to_what_is_not_his(databases: Server) -> None:
    logins = ("mlflow", "studies", "ledger", "promoter")
    guests = {("promoter", "ledger"), ("promoter", "studies")}
    for database in (*OWNERS, "postgres", "template1"):
        for login in logins:
            if OWNERS.get(database) == login or (login, database) in guests:
                assert execute(databases.url(login, database), "SELECT 1") == 1
            else:
                assert "denied" in refused(databases, login, database, "SELECT 1")


def test_no_login_takes_the_connections_of_the_others(databases: Server) -> None:
    engine = sa.create_engine(databases.url("promoter", "ledger"), poolclass=sa.NullPool)
    n_connections = int(execute(databases.url("ledger", "ledger"), "SHOW max_connections"))
    with contextlib.ExitStack() as held:
        with pytest.raises(sa.exc.OperationalError, match="too many connections for role"):
            for _ in range(n_connections):
                held.enter_context(engine.connect())
        for login, database in (("mlflow", "mlflow"), ("studies", "studies"), ("ledger", "ledger")):
            assert execute(databases.url(login, database), "SELECT 1") == 1


def test_a_backup_by_another_login_says_whose_settings_it_needs(
    databases: Server, tmp_path: Path
) -> None:
    env = {"MLOPS_HOME": str(tmp_path), "MLOPS_STUDY_URL": databases.url("promoter", "studies")}
    with (
        pytest.raises(MlopsError, match=r"denied.*A backup needs the settings of an administrator"),
        hold(Settings.from_env(env)),
    ):
        pass


def test_owners_own_their_tables_and_nothing_more(databases: Server, postgresql: str) -> None:
    for database, owner in OWNERS.items():
        query = (
            "SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname = 'public'"
        )
        assert execute(databases.url(owner, database), query) == owner
    rights = "rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
    logins = "rolname IN ('mlflow', 'studies', 'ledger', 'promoter')"
    assert execute(postgresql, f"SELECT count(*) FROM pg_roles WHERE {logins}") == 4
    assert execute(postgresql, f"SELECT count(*) FROM pg_roles WHERE {logins} AND ({rights})") == 0


def test_the_passwords_of_the_file_are_those_that_the_server_takes(
    databases: Server, postgresql: str, folder: Path, tmp_path: Path
) -> None:
    import psycopg

    config = Path(execute(postgresql, "SHOW hba_file"))
    trusting = config.read_text()
    known = read_passwords(folder / "admin" / "pgpass")
    place = {
        name: databases.parameters[name]
        for name in ("host", "port")
        if name in databases.parameters
    }
    try:
        with config.open("r+") as file:  # it keeps its owner
            file.write(
                f"local all {','.join(known.keys() - {'postgres'})} scram-sha-256\n{trusting}"
            )
        execute(postgresql, "SELECT pg_reload_conf()")
        for login, password in known.items():
            if login != "postgres":
                database = {"mlflow": "mlflow", "studies": "studies"}.get(login, "ledger")
                psycopg.connect(user=login, password=password, dbname=database, **place).close()
                with pytest.raises(psycopg.OperationalError, match="password"):
                    psycopg.connect(user=login, password="wrong", dbname=database, **place)
        # Another file of passwords, and the same command: the server takes the new ones.
        (tmp_path / "s" / "postgres").mkdir(parents=True)
        shutil.copy(folder / "postgres" / "password", tmp_path / "s" / "postgres")
        assert main(["secrets", str(tmp_path / "s")]) == 0
        new = tmp_path / "s" / "admin" / "pgpass"
        assert make_databases(databases, read_passwords(new)) == []
        password = read_passwords(new)["promoter"]
        psycopg.connect(user="promoter", password=password, dbname="ledger", **place).close()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(user="promoter", password=known["promoter"], dbname="ledger", **place)
        assert make_databases(databases, known) == []
    finally:
        config.write_text(trusting)
        execute(postgresql, "SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--url", "mysql://root@db/mysql"], 2, "none of PostgreSQL's"),
        (["--url", "postgresql://postgres@127.0.0.1:1/postgres"], 1, "PostgreSQL did not make"),
    ],
)
def test_what_is_wrong_with_the_superusers_url_is_said(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(folder / "admin" / "pgpass"))
    assert main(["databases", *args]) == code
    assert words in capsys.readouterr().err


def test_databases_without_a_file_of_passwords_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("PGPASSFILE", raising=False)
    assert main(["databases"]) == 2
    assert "set PGPASSFILE" in capsys.readouterr().err
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    assert main(["databases", "--url", "postgresql://postgres@127.0.0.1:1/postgres"]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_the_parts_are_told(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(part in out for part in ("secrets", "databases", "accounts", "account"))


def test_a_part_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["secret"]) == 2
    assert "did you mean 'secrets'?" in capsys.readouterr().err


def test_accounts_need_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))
    assert main(["accounts", "--secrets", str(tmp_path)]) == 2
    assert "set MLFLOW_TRACKING_URI" in capsys.readouterr().err
