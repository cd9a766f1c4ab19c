"""python -m mlops.init PART: makes what a team's stack needs once; each part may be repeated.

    secrets    passwords, keys and certificates, as files
    databases  databases and roles of PostgreSQL, the tables in them, and the buckets
    accounts   the roles of MLflow's server, their rights, and an account for each
    account    one more account, another role, or a new password

docker-compose.yml runs the first three, in this order, each time the stack is started.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from mlops.errors import UsageError, choose
from mlops.program import answer, answer_json, run_program, say

SECRETS: Final = Path("/run/secrets")
PROGRAM: Final = "python -m mlops.init"


@dataclass(frozen=True)
class Common:
    json: bool = False
    """Print what was made as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class SecretsOptions(Common):
    folder: Annotated[Path, tyro.conf.Positional] = SECRETS
    """Where they are made: a folder for each service."""
    host: tuple[str, ...] = ()
    """Names and addresses that clients reach the door by; by default those of DOOR_HOST."""


@dataclass(frozen=True)
class DatabasesOptions(Common):
    url: str = "postgresql://postgres@postgres/postgres"
    """The superuser's; the passwords stand in the file of PGPASSFILE."""


@dataclass(frozen=True)
class AccountsOptions(Common):
    secrets: Path = SECRETS
    """The folder that `secrets` made: the admin's login, and the passwords of the accounts."""


@dataclass(frozen=True)
class AccountOptions(Common):
    name: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """The account."""
    role: str | None = None
    """viewer, trainer, promoter or server; another that it had is taken from it."""
    password_file: Path | None = None
    """Holds its password; where the file is not there, it is made, with a new one."""
    rotate: bool = False
    """Give it a new password, and write that to the file."""
    secrets: Path = SECRETS
    """The folder that `secrets` made: the admin's login."""


def make_secrets(options: SecretsOptions) -> int:
    from mlops.team.certificates import why_renew
    from mlops.team.secrets import make_secrets

    said = options.host or re.split(r"[\s,]+", os.environ.get("DOOR_HOST", ""))
    hosts = [host for host in said if host]
    made = make_secrets(options.folder, hosts)
    for note in made.notes:
        say(note)
    tls = options.folder / "door" / "tls.pem"
    if why := why_renew(tls.read_bytes(), hosts):
        say(
            f"the door needs another certificate: {why}. If {str(tls)!r} is yours, put a new one "
            "there; else delete it and run this again. Then reload the door."
        )
    return _tell(options, made.names, f"in {str(options.folder)!r}")


def make_databases(options: DatabasesOptions) -> int:
    from mlops.team.databases import prepare

    return _tell(options, prepare(options.url, os.environ), "")


def make_accounts(options: AccountsOptions) -> int:
    from mlops.team.accounts import Accounts, ensure_accounts, read_password
    from mlops.team.roles import ROLES

    accounts = Accounts(_log_in(options.secrets))
    folder = options.secrets / "accounts"
    if not folder.is_dir():
        raise UsageError(
            f"there are no passwords of accounts at {str(folder)!r}. Run {PROGRAM} secrets "
            f"{options.secrets} first."
        )
    ensure_accounts(accounts, {role: read_password(folder / role) for role in ROLES})
    return _tell(options, accounts.done, "")


def make_account(options: AccountOptions) -> int:
    from mlops.team.accounts import Accounts, ensure_account

    if options.role is None and options.password_file is None:
        raise UsageError("nothing to do; expected --role ROLE or --password-file FILE.")
    accounts = Accounts(_log_in(options.secrets))
    file = options.password_file
    ensure_account(accounts, options.name, options.role, file, rotate=options.rotate)
    return _tell(options, accounts.done, "")


def _log_in(folder: Path) -> str:
    """Returns the server's address; takes the admin's login from the secrets, unless one is set."""
    from mlops.settings import Settings
    from mlops.team.secrets import read_login

    uri = Settings.from_env().tracking_uri
    if uri is None or not uri.startswith("http"):
        raise UsageError("accounts are a server's; set MLFLOW_TRACKING_URI to https://HOST:8443.")
    file = folder / "admin" / "mlflow_credentials"
    if not os.environ.get("MLFLOW_TRACKING_USERNAME") and file.is_file():
        user, password = read_login(file)
        os.environ.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
    return uri


def _tell(options: Common, made: Sequence[str], where: str) -> int:
    if options.json:
        answer_json({"made": list(made)})
    elif not made:
        answer("Everything is there.")
    else:
        answer(
            "\n".join([" ".join(filter(None, ("Made", where))) + ":", *map("  {}".format, made)])
        )
    return 0


PARTS: Final[Mapping[str, tuple[type[Any], Callable[[Any], int], str]]] = {
    "secrets": (SecretsOptions, make_secrets, "passwords, keys and certificates, as files"),
    "databases": (DatabasesOptions, make_databases, "databases, roles, tables and buckets"),
    "accounts": (AccountsOptions, make_accounts, "MLflow's roles, and an account for each"),
    "account": (AccountOptions, make_account, "one more account, another role, a new password"),
}


def main(args: list[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {what}" for name, (_, _, what) in PARTS.items()]
        answer("\n".join([f"usage: {PROGRAM} PART [options]", "", *lines, ""]))
        answer(f"{PROGRAM} PART --help tells a part's options.")
        sys.exit(0)  # as the help of any program ends
    if args[0] not in PARTS:
        say(f"{PROGRAM}: unknown part {args[0]!r}; {choose(args[0], PARTS)}")
        return 2
    options, run, what = PARTS[args[0]]
    return run_program(
        options,
        run,
        prog=f"{PROGRAM} {args[0]}",
        description=f"Make {what}; may be repeated.",
        args=args[1:],
    )


if __name__ == "__main__":
    sys.exit(main())
