"""Every secret of a team's stack, as files: one folder a service, made once, never overwritten.

    postgres/password            of the superuser
    seaweedfs/s3.json            the logins of the S3 store, with their rights a bucket
    mlflow/ admin/ trainer/ promoter/    pgpass (PGPASSFILE), aws (AWS_SHARED_CREDENTIALS_FILE)
    mlflow/                      flask_secret, admin_password
    admin/ trainer/ promoter/ server/    mlflow_credentials (~/.mlflow/credentials)
    promoter/signing.pem         the key that signs releases; public/release.pem, its public half
    authority/ca.pem             key and certificate that sign the door's; public/ca.pem, to trust
    door/tls.pem                 the door's certificate and key; door/tokens.map, who may ask it
    door/metrics                 the token of /metrics; clients/token, that of scoring
    grafana/admin_password       of Grafana's own login
    accounts/                    a password for each account

What follows from another file is made anew where it is missing: of `admin/pgpass` the others, of
`seaweedfs/s3.json` all aws, of a private key its public half. Killed on the way, each file is there
whole or not at all, and the next run makes the rest.

Files are for their owner alone (600, folders 700); what services of other users read is for the
group, too (640, 750), so that they join it and nothing need be given away by root; `public` is for
all. Each service is to be given its own folder and no other.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mlops.errors import MlopsError
from mlops.key_files import make_signing_key, public_pem, write_whole
from mlops.team.certificates import certificate_of, make_authority, make_certificate
from mlops.team.roles import ROLES

PUBLIC: Final = "public"
SERVICES: Final = (
    "postgres",
    "seaweedfs",
    "mlflow",
    "admin",
    *("trainer", "promoter", "server"),
    "door",
    "grafana",
    PUBLIC,
    *("accounts", "clients", "authority"),
)
"""The folders."""
FOR_GROUP: Final = ("postgres", "seaweedfs", "door", "grafana")
"""What services read that run as other users, of images that are not ours."""
INSIDE: Final = ("localhost", "127.0.0.1", "::1", "door")
"""What the door is reached by besides: from its own machine, and from another container."""

SUPERUSER: Final = "postgres"
LOGINS: Final[Mapping[str, tuple[str, ...]]] = {
    "admin": (SUPERUSER, "mlflow", "studies", "ledger", "promoter"),
    "mlflow": ("mlflow",),
    "trainer": ("studies",),
    "promoter": ("promoter",),
}
"""Whose PostgreSQL passwords each service knows."""
READ: Final = ("Read", "List")
WRITE: Final = (*READ, "Write", "Tagging")
BUCKETS: Final[Mapping[str, tuple[str, ...]]] = {
    "admin": ("Admin", *WRITE),
    "mlflow": tuple(f"{right}:artifacts" for right in WRITE),
    "trainer": tuple(f"{right}:datasets" for right in WRITE),
    "promoter": tuple(f"{right}:datasets" for right in READ),
}
"""What each login of the S3 store may do: everywhere, or in one bucket."""


def make_secrets(folder: Path, hosts: Sequence[str] = ()) -> list[str]:
    """Makes what is missing; returns the names of what it made, and no content.

    Args:
        hosts: Names and addresses of the door, for its certificate.

    Raises:
        UsageError: a host is neither a name nor an address.
        MlopsError: the folder cannot be written.
    """
    box = _Box(folder)
    try:
        for service in SERVICES:
            (folder / service).mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_database_logins(box)
        _make_store_logins(box)
        _make_accounts(box)
        _make_keys(box, tuple(dict.fromkeys((*hosts, *INSIDE))))
        _make_tokens(box)
        for service in SERVICES:
            _protect(folder / service)
    except OSError as err:
        raise MlopsError(
            f"the secrets cannot be written to {str(folder)!r}: {err.strerror or err}. Run this as "
            "the user whom the folder belongs to."
        ) from err
    return box.made


def _protect(folder: Path) -> None:
    """Sets who may read a service's folder; whoever copied it may have opened it to all."""
    mode = {PUBLIC: 0o644}.get(folder.name, 0o640 if folder.name in FOR_GROUP else 0o600)
    for path in folder.iterdir():
        path.chmod(mode)
    folder.chmod(mode | mode >> 2 & 0o111)  # who may read files may look into their folder


def read_passwords(pgpass: Path) -> dict[str, str]:
    """Returns the password of each login that a pgpass file of ours names.

    Raises:
        MlopsError: the file cannot be read, or is not of that form.
    """
    try:
        lines = pgpass.read_text("utf-8").splitlines()
        return dict(line.split(":")[3:5] for line in lines if line)
    except (OSError, ValueError) as err:
        raise MlopsError(
            f"the passwords of PostgreSQL cannot be read; expected lines *:*:*:login:password in "
            f"{str(pgpass)!r}. Name the admin's file by PGPASSFILE."
        ) from err


def read_login(file: Path) -> tuple[str, str]:
    """Returns user and password of a file of MLflow's credentials.

    Raises:
        MlopsError: the file cannot be read, or holds none.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text("utf-8"))
        login = parser["mlflow"]
        return login["mlflow_tracking_username"], login["mlflow_tracking_password"]
    except (OSError, ValueError, KeyError, configparser.Error) as err:
        raise MlopsError(
            f"{str(file)!r} holds no login of MLflow's: {type(err).__name__}. Delete it and run "
            "python -m mlops.init secrets again."
        ) from err


@dataclass(slots=True)
class _Box:
    folder: Path
    made: list[str] = field(default_factory=list)

    def make(self, name: str, content: Callable[[], str | bytes]) -> bytes:
        """Returns what a file holds; makes it where it is missing."""
        path = self.folder / name
        if not path.exists():
            new = content()
            whole = new.encode() if isinstance(new, str) else new
            if write_whole(path, whole, 0o600, replace=False):
                self.made.append(name)
        return path.read_bytes()


def new_password() -> str:
    """Returns 256 random bits, of letters, digits, - and _, which no file's syntax minds."""
    return secrets.token_urlsafe(32)


def _make_database_logins(box: _Box) -> None:
    superuser = box.make("postgres/password", new_password).decode()

    def first() -> str:
        others = LOGINS["admin"][1:]
        return _pgpass({SUPERUSER: superuser} | {login: new_password() for login in others})

    box.make("admin/pgpass", first)
    known = read_passwords(box.folder / "admin" / "pgpass")
    for service, logins in LOGINS.items():
        mine = {login: known[login] for login in logins if login in known}
        box.make(f"{service}/pgpass", lambda mine=mine: _pgpass(mine))  # type: ignore[misc]


def _pgpass(passwords: Mapping[str, str]) -> str:
    return "".join(f"*:*:*:{login}:{password}\n" for login, password in passwords.items())


def _make_store_logins(box: _Box) -> None:
    made = json.loads(box.make("seaweedfs/s3.json", lambda: json.dumps(_identities(), indent=2)))
    keys = {one["name"]: one["credentials"][0] for one in made["identities"]}
    for service in BUCKETS:
        box.make(f"{service}/aws", lambda mine=keys[service]: _aws(mine))  # type: ignore[misc]


def _identities() -> dict[str, Any]:
    return {
        "identities": [
            {
                "name": service,
                "credentials": [{"accessKey": secrets.token_hex(10), "secretKey": new_password()}],
                "actions": list(rights),
            }
            for service, rights in BUCKETS.items()
        ]
    }


def _aws(key: Mapping[str, str]) -> str:
    return (
        "[default]\n"
        f"aws_access_key_id = {key['accessKey']}\n"
        f"aws_secret_access_key = {key['secretKey']}\n"
    )


def _make_accounts(box: _Box) -> None:
    box.make("grafana/admin_password", new_password)
    box.make("mlflow/flask_secret", new_password)
    passwords = {"admin": box.make("mlflow/admin_password", new_password)}
    for role in ROLES:
        passwords[role] = box.make(f"accounts/{role}", new_password)
    for service in ("admin", "trainer", "promoter", "server"):
        login = (service, passwords[service].decode())
        box.make(f"{service}/mlflow_credentials", lambda login=login: _login(*login))  # type: ignore[misc]


def _login(user: str, password: str) -> str:
    return f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {password}\n"


def _make_keys(box: _Box, hosts: Sequence[str]) -> None:
    signing = box.make("promoter/signing.pem", make_signing_key)
    box.make(f"{PUBLIC}/release.pem", lambda: public_pem(signing))
    authority = box.make("authority/ca.pem", make_authority)
    box.make(f"{PUBLIC}/ca.pem", lambda: certificate_of(authority))
    box.make("door/tls.pem", lambda: make_certificate(authority, hosts))


def _make_tokens(box: _Box) -> None:
    tokens = {
        "score": box.make("clients/token", new_password),
        "metrics": box.make("door/metrics", new_password),
    }
    lines = [f"{hashlib.sha256(token).hexdigest()} {role}\n" for role, token in tokens.items()]
    box.make("door/tokens.map", lambda: "".join(lines))
