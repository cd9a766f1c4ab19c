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
`seaweedfs/s3.json` all aws, of a private key its public half. Where it is there and does not fit,
since the other was made anew, that is noted. Killed on the way, each file is there whole or not at
all, and the next run makes the rest.

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

from mlops.errors import MlopsError, first_line
from mlops.key_files import make_signing_key, public_pem, write_whole
from mlops.team.certificates import (
    certificate_of,
    is_of_another,
    make_authority,
    make_certificate,
)
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
WITH_LOGIN: Final = ("admin", "trainer", "promoter", "server")
"""Whose services log in to MLflow by a file."""
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


@dataclass(frozen=True, slots=True)
class Made:
    """What was made; no content of it.

    Attributes:
        names: Of the files, below the folder.
        notes: What does not fit together and what to do about it, some sentences each.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]


def make_secrets(folder: Path, hosts: Sequence[str] = ()) -> Made:
    """Makes what is missing, and compares what is there.

    Args:
        hosts: Names and addresses of the door, for its certificate.

    Raises:
        UsageError: a host is neither a name nor an address.
        MlopsError: the folder cannot be written, or a key that something follows from is none.
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
    return Made(tuple(box.made), tuple(box.notes))


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
    notes: list[str] = field(default_factory=list)

    def make(self, name: str, content: Callable[[], str | bytes]) -> bytes:
        """Returns what a file holds; makes it where it is missing."""
        path = self.folder / name
        if not path.exists():
            new = content()
            whole = new.encode() if isinstance(new, str) else new
            if write_whole(path, whole, 0o600, replace=False):
                self.made.append(name)
        return path.read_bytes()

    def follow(self, name: str, source: str, content: str) -> None:
        """Makes what follows from another file; notes where what is there does not."""
        if self.make(name, lambda: content).decode("utf-8", "replace").strip() != content.strip():
            self.notes.append(
                f"{name!r} does not fit {source!r}: one of them is older. Delete {name!r} and run "
                "this again."
            )


def new_password() -> str:
    """Returns 256 random bits, of letters, digits, - and _, which no file's syntax minds."""
    return secrets.token_urlsafe(32)


def _make_database_logins(box: _Box) -> None:
    admins = box.folder / "admin" / "pgpass"

    def of_superuser() -> str:
        known = read_passwords(admins) if admins.exists() else {}
        return known.get(SUPERUSER) or new_password()

    superuser = box.make("postgres/password", of_superuser).decode()

    def first() -> str:
        others = LOGINS["admin"][1:]
        return _pgpass({SUPERUSER: superuser} | {login: new_password() for login in others})

    box.make("admin/pgpass", first)
    known = read_passwords(admins)
    for service, logins in LOGINS.items():
        if service != "admin":
            mine = {login: known[login] for login in logins if login in known}
            box.follow(f"{service}/pgpass", "admin/pgpass", _pgpass(mine))


def _pgpass(passwords: Mapping[str, str]) -> str:
    return "".join(f"*:*:*:{login}:{password}\n" for login, password in passwords.items())


def _make_store_logins(box: _Box) -> None:
    source = "seaweedfs/s3.json"
    made = json.loads(box.make(source, lambda: json.dumps(_identities(), indent=2)))
    keys = {one["name"]: one["credentials"][0] for one in made["identities"]}
    for service in BUCKETS:
        box.follow(f"{service}/aws", source, _aws(keys[service]))


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
    for user in ("admin", *ROLES):
        source = "mlflow/admin_password" if user == "admin" else f"accounts/{user}"
        password = box.make(source, new_password).decode().strip()
        if user in WITH_LOGIN:
            box.follow(f"{user}/mlflow_credentials", source, _login(user, password))


def _login(user: str, password: str) -> str:
    return f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {password}\n"


def _make_keys(box: _Box, hosts: Sequence[str]) -> None:
    source = "promoter/signing.pem"
    signing = box.make(source, make_signing_key)
    half = _derived(box, source, public_pem, signing)
    box.make(f"{PUBLIC}/release.pem", lambda: half)
    # It may stand in another file: whoever changed the key keeps the public half of the one before.
    known = {file.read_bytes().strip() for file in (box.folder / PUBLIC).glob("*.pem")}
    if half.strip() not in known:
        box.notes.append(
            f"'{PUBLIC}/release.pem' does not fit {source!r}: what is signed now would not verify. "
            f"Put the key that was there back to {source!r}; or, since what it signed is still to "
            f"verify, rename its public half to '{PUBLIC}/release-1.pem', run this again, and name "
            "both in PUBLIC_KEYS."
        )
    source = "authority/ca.pem"
    authority = box.make(source, make_authority)
    certificate = _derived(box, source, certificate_of, authority)
    box.make(f"{PUBLIC}/ca.pem", lambda: certificate)

    def sign(authority: bytes) -> bytes:
        return make_certificate(authority, hosts)

    box.make("door/tls.pem", lambda: _derived(box, source, sign, authority))
    for name in (f"{PUBLIC}/ca.pem", "door/tls.pem"):
        if is_of_another((box.folder / name).read_bytes(), authority):
            box.notes.append(
                f"{name!r} is of another authority than {source!r}. Delete {name!r}, run this "
                f"again, reload the door, and give '{PUBLIC}/ca.pem' to the clients."
            )


def _derived(box: _Box, source: str, derive: Callable[[bytes], bytes], key: bytes) -> bytes:
    try:
        return derive(key)
    except ValueError as err:
        raise MlopsError(
            f"{str(box.folder / source)!r} holds no key that can be used; expected PEM, without a "
            f"password ({first_line(err)}). Put the right one there."
        ) from err


def _make_tokens(box: _Box) -> None:
    roles = {"clients/token": "score", "door/metrics": "metrics"}
    lines = {
        name: f"{hashlib.sha256(box.make(name, new_password)).hexdigest()} {role}\n"
        for name, role in roles.items()
    }
    tokens = "door/tokens.map"
    known = box.make(tokens, lambda: "".join(lines.values())).decode("utf-8", "replace")
    digests = {line.split()[0] for line in known.splitlines() if line.strip()}
    for name, line in lines.items():
        if line.split()[0] in digests:
            continue
        if name not in box.made:  # its line was removed, or a run was killed before it was added
            box.notes.append(
                f"{tokens!r} has no line for {name!r}, so that the door refuses it. To have "
                f"another that it takes, delete {name!r} and run this again."
            )
            continue
        known = known.rstrip("\n") + "\n" + line
        write_whole(box.folder / tokens, known.encode(), 0o600)
        box.notes.append(
            f"{tokens!r} has a line more, for the new {name!r}: reload the door. The one before "
            "is let in until its line is removed there."
        )
