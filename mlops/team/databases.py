"""A team's databases, their logins, the tables in them, and the buckets: over the superuser's URL.

One database for each store, owned by a login of its own; nobody else may connect. What other logins
may do with a store's tables, the store says itself (`Shared`). Everything is looked at first or may
be done twice, so that a crash needs nothing but the same command.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable
from urllib.parse import quote

from mlops.errors import MlopsError, UsageError, first_line
from mlops.settings import Settings
from mlops.stores.store import Store, get_stores
from mlops.team.secrets import LOGINS, SUPERUSER, read_passwords

if TYPE_CHECKING:
    import psycopg

OWNERS: Final[Mapping[str, str]] = {
    "mlflow": "mlflow",
    "accounts": "mlflow",
    "studies": "studies",
    "ledger": "ledger",
}
"""The login that owns each database, with all its tables."""
SETTINGS: Final[Mapping[str, str]] = {
    "MLOPS_TRACKING_DB_URL": "mlflow",
    "MLOPS_ACCOUNTS_DB_URL": "accounts",
    "MLOPS_STUDY_URL": "studies",
    "MLOPS_LEDGER_URL": "ledger",
}
PLACES: Final[Mapping[str, str]] = {
    "MLOPS_DATASETS_URL": "s3://datasets",
    "MLOPS_ARTIFACTS_URL": "s3://artifacts",
}
LOGIN_RIGHTS: Final = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
SHARES: Final[Mapping[str, float]] = {
    "mlflow": 0.45,
    "studies": 0.35,
    "promoter": 0.1,
    "ledger": 0.05,
}
"""How much of the server's connections each login may hold, so that none keeps the others out."""
LARGE_OBJECTS: Final = (
    "lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea), lo_import(text), "
    "lo_import(text, oid)"
)
"""What makes large objects: they belong to no table, and PostgreSQL lets everybody make them."""
CONNECT_S: Final = 10


@runtime_checkable
class Shared(Protocol):
    """A store with tables that other logins use than who owns them.

    Its database is called as the store is.
    """

    @property
    def grants(self) -> Mapping[str, Mapping[str, str]]:
        """Privileges by table, by login; the table `*` stands for all, those to come too."""
        ...


def prepare(url: str, env: Mapping[str, str]) -> list[str]:
    """Makes all that is missing; returns what it made, in words.

    Args:
        url: PostgreSQL's, of a superuser, without a password.
        env: PGPASSFILE names the file of the passwords; the settings of the stores are derived from
            `url` where they are not set.

    Raises:
        UsageError: there is no file of passwords, or the URL is none.
        MlopsError: PostgreSQL or the object store does not answer, or does not let the login.
    """
    if not env.get("PGPASSFILE"):
        raise UsageError("there are no passwords; set PGPASSFILE to the admin's pgpass.")
    server = Server.of(url)
    done = make_databases(server, read_passwords(Path(env["PGPASSFILE"])))
    with tempfile.TemporaryDirectory(prefix="podium-") as home:
        settings = find_settings(server, env, home)
        done += make_buckets(settings)
        stores = get_stores(settings)
        done += make_tables(stores)
    grant(server, [store for store in stores if isinstance(store, Shared)])
    return done


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL server and its superuser, as libpq's parameters."""

    parameters: Mapping[str, str]

    @classmethod
    def of(cls, url: str) -> Server:
        """Reads a URL; `postgresql+psycopg://` is taken, too.

        Raises:
            UsageError: it is none of PostgreSQL's.
        """
        import psycopg

        scheme, _, rest = url.partition("://")
        try:
            if scheme.partition("+")[0] not in ("postgresql", "postgres"):
                raise UsageError
            found = psycopg.conninfo.conninfo_to_dict(f"postgresql://{rest}")
        except (UsageError, psycopg.Error) as err:
            raise UsageError(
                "the URL of the superuser is none of PostgreSQL's; expected "
                "postgresql://postgres@HOST/postgres."
            ) from err
        return cls({name: str(value) for name, value in found.items()})

    def url(self, login: str, database: str) -> str:
        """Returns SQLAlchemy's URL of a database, for a login, without a password."""
        places = "&".join(
            f"{name}={quote(self.parameters[name], safe='')}"
            for name in ("host", "port")
            if name in self.parameters
        )
        return f"postgresql+psycopg://{login}@/{database}?{places}"

    @contextmanager
    def connected(self, database: str = SUPERUSER) -> Iterator[psycopg.Connection[Any]]:
        """Gives a connection of the superuser's, each statement of which is for good."""
        import psycopg

        parameters: dict[str, Any] = {"connect_timeout": CONNECT_S, **self.parameters}
        place = psycopg.conninfo.make_conninfo(**parameters | {"dbname": database})
        try:
            with psycopg.connect(place, autocommit=True) as connection:
                yield connection
        except psycopg.Error as err:
            raise MlopsError(
                f"PostgreSQL did not make the team's databases: {first_line(err)}. Look at --url "
                "and at the file of PGPASSFILE; then type the same command again."
            ) from err


def make_databases(server: Server, passwords: Mapping[str, str]) -> list[str]:
    """Makes logins and databases; sets the passwords and limits, which may be new ones.

    Args:
        passwords: By login.
    """
    from psycopg.sql import SQL, Identifier, Literal

    done = []
    with server.connected() as connection:
        (n_connections,) = connection.execute(
            "SELECT current_setting('max_connections')::int"
        ).fetchone() or (0,)
        for login in LOGINS["admin"]:
            if login == SUPERUSER:
                continue
            found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [login])
            is_there = found.fetchone() is not None
            # Never the password itself: a server may log statements.
            verifier = connection.pgconn.encrypt_password(
                passwords[login].encode(), login.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(
                SQL("{} ROLE {} {} CONNECTION LIMIT {} PASSWORD {}").format(
                    SQL("ALTER" if is_there else "CREATE"),
                    Identifier(login),
                    SQL(LOGIN_RIGHTS),
                    Literal(max(1, int(SHARES[login] * n_connections))),
                    Literal(verifier),
                )
            )
            done += [] if is_there else [f"login {login}"]
        for database, owner in OWNERS.items():
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
            if found.fetchone() is None:
                made = SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0")
                connection.execute(made.format(Identifier(database), Identifier(owner)))
                done.append(f"database {database}")
        for database in (SUPERUSER, "template1", *OWNERS):
            closed = SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(Identifier(database))
            connection.execute(closed)
    for database in OWNERS:
        with server.connected(database) as connection:
            connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            connection.execute(f"REVOKE EXECUTE ON FUNCTION {LARGE_OBJECTS} FROM PUBLIC")
    return done


def find_settings(server: Server, env: Mapping[str, str], home: str) -> Settings:
    """Returns the settings of an admin of this server; what `env` says goes before."""
    derived = {name: server.url(OWNERS[database], database) for name, database in SETTINGS.items()}
    said = {name: value for name, value in env.items() if value}
    merged = dict(PLACES) | derived | said | {"MLOPS_HOME": home}
    # Without a tracking server the settings would be those of an embedded home.
    return Settings.from_env({"MLFLOW_TRACKING_URI": merged["MLOPS_TRACKING_DB_URL"]} | merged)


def make_buckets(settings: Settings) -> list[str]:
    done = []
    for url in (settings.artifacts_url, settings.datasets_url):
        if url is not None and url.startswith("s3://"):
            from mlops.s3_objects import make_bucket

            bucket = url.removeprefix("s3://").partition("/")[0]
            done += [f"bucket {bucket}"] if make_bucket(bucket) else []
    return done


def make_tables(stores: Sequence[Store]) -> list[str]:
    """Makes each store's tables, or brings them up to date; leaves alone what is in use.

    A stack that was started again is in use, and its tables are there. Those of an older version
    are brought up to date while it is down, by `python -m mlops.upgrade`.
    """
    done = []
    for store in stores:
        if not store.writers():
            what = store.upgrade()
            done += [f"{store.name}: {what}"] if "made" in what or "->" in what else []
    return done


def grant(server: Server, stores: Sequence[Shared]) -> None:
    """Gives other logins exactly what the stores say."""
    for store in stores:
        name = str(getattr(store, "name", ""))
        with server.connected(name) as connection, connection.transaction():
            for login, tables in store.grants.items():
                _grant_to(connection, name, login, tables)


def _grant_to(
    connection: psycopg.Connection[Any], database: str, login: str, tables: Mapping[str, str]
) -> None:
    from psycopg.sql import SQL, Identifier

    to = Identifier(login)
    for statement in (
        SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(to),
        SQL("GRANT CONNECT ON DATABASE {} TO {}").format(Identifier(database), to),
        SQL("GRANT USAGE ON SCHEMA public TO {}").format(to),
    ):
        connection.execute(statement)
    for table, privileges in tables.items():
        what = SQL(privileges)  # a store's own words
        if table != "*":
            on = SQL("GRANT {} ON public.{} TO {}")
            connection.execute(on.format(what, Identifier(table), to))
            continue
        connection.execute(SQL("GRANT {} ON ALL TABLES IN SCHEMA public TO {}").format(what, to))
        later = SQL(
            "ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA public GRANT {} ON TABLES TO {}"
        )
        connection.execute(later.format(Identifier(OWNERS[database]), what, to))
