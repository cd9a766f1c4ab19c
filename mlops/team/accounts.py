"""Roles, grants and accounts of MLflow's server, made over its own API by an admin.

Each step looks first and makes what is missing, so that all may be repeated, and is after a crash.
Grants on single experiments and models are made by the server (`mlops.team.grants`); here again on
all that are there: they may be older than the roles, or come from a backup.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mlops.errors import MlopsError, UsageError, choose, first_line
from mlops.key_files import write_whole
from mlops.team.roles import (
    READERS,
    RESOURCES,
    ROLES,
    Resource,
    RoleName,
    grants_of,
    is_deleted_by_maker,
)

EVERYTHING: Final = "*"
"""The key of a grant on all of a kind, never of one thing."""
WORKSPACE: Final = "default"
"""Where MLflow keeps roles that belong to no workspace of its own."""
TIMEOUT_S: Final = 20.0
LEAST_CHARACTERS: Final = 12

Grant = tuple[str, str]
"""A resource's type and its key."""


@dataclass(slots=True)
class Accounts:
    """The accounts of one server, as its admin sees them; `done` is what was changed, in words."""

    tracking_uri: str
    done: list[str] = field(default_factory=list)

    def make_roles(self) -> dict[str, dict[str, Any]]:
        """Returns the roles by name, as the server tells them; makes those that are missing."""
        for name in ROLES:
            if name not in self._roles():
                content = {"name": name, "workspace": WORKSPACE, "description": ROLES[name]}
                self._ask("POST", "3.0/mlflow/roles/create", content)
                self.done.append(f"role {name}")
        return self._roles()

    def grant(self) -> None:
        """Gives each role what it has by the names of all that is there, and takes what is more."""
        roles = self.make_roles()
        there = [one for one in self._resources() if one[1] != EVERYTHING]
        wanted: dict[RoleName, dict[Grant, str]] = {role: {} for role in ROLES}
        for reader in READERS:
            wanted[reader] = {(resource, EVERYTHING): "READ" for resource in RESOURCES}
        for resource, key, name in there:
            for role, permission in grants_of(resource, name).items():
                wanted[role][resource, key] = permission
        for role, grants in wanted.items():
            self._settle(roles[role], grants)
        kept: set[Grant] = {
            (what, key) for what, key, name in there if is_deleted_by_maker(what, name)
        }
        for user in self._ask("GET", "2.0/mlflow/users/list")["users"]:
            self._take_own(user["username"], kept)

    def set_role(self, name: str, role: str) -> None:
        """Leaves an account with one role of Podium's, and no rights of its own beside it.

        Raises:
            UsageError: there is no such role or account.
        """
        roles = self.make_roles()
        if role not in ROLES:
            raise UsageError(f"there is no role {role!r}; {choose(role, ROLES)}")
        if not self.has(name):
            raise UsageError(
                f"there is no account {name!r}; to make it, say where its password is to stand: "
                "--password-file FILE"
            )
        held = self._ask("GET", "2.0/mlflow/users/roles/list", {"username": name}, version=3)
        held_names = {one["name"] for one in held["roles"]}
        for other in held_names & ROLES.keys() - {role}:
            self._assign("unassign", name, roles[other]["id"])
            self._take_own(name, set())
            self.done.append(f"account {name} is no {other} any more")
        if role not in held_names:
            self._assign("assign", name, roles[role]["id"])
            self.done.append(f"account {name} is {role}")

    def has(self, name: str) -> bool:
        found = self._ask("GET", "2.0/mlflow/users/list")["users"]
        return name in {user["username"] for user in found}

    def make(self, name: str, password: str) -> None:
        """Makes an account, without a role."""
        self._ask("POST", "2.0/mlflow/users/create", {"username": name, "password": password})
        self.done.append(f"account {name}")

    def set_password(self, name: str, password: str) -> None:
        from mlflow.utils.credentials import read_mlflow_creds

        content = {"username": name, "password": password}
        own = read_mlflow_creds()
        if own.username == name:  # of whom MLflow wants to know the old one
            if own.password == password:
                return
            content["current_password"] = own.password
        self._ask("PATCH", "2.0/mlflow/users/update-password", content)
        self.done.append(f"password of {name}")

    def _assign(self, how: str, name: str, role_id: int) -> None:
        method = "POST" if how == "assign" else "DELETE"
        content = {"username": name, "role_id": role_id}
        self._ask(method, f"3.0/mlflow/roles/{how}", content)

    def _settle(self, role: Mapping[str, Any], wanted: Mapping[Grant, str]) -> None:
        found: set[Grant] = set()
        for one in role["permissions"]:
            grant = (one["resource_type"], one["resource_pattern"])
            if wanted.get(grant) == one["permission"]:
                found.add(grant)
            else:
                content = {"role_permission_id": one["id"]}
                self._ask("DELETE", "3.0/mlflow/roles/permissions/remove", content)
                self.done.append(f"{role['name']}: no {one['permission']} on {' '.join(grant)}")
        for grant in sorted(wanted.keys() - found):
            content = {
                "role_id": role["id"],
                "resource_type": grant[0],
                "resource_pattern": grant[1],
                "permission": wanted[grant],
            }
            self._ask("POST", "3.0/mlflow/roles/permissions/add", content)
            self.done.append(f"{role['name']}: {wanted[grant]} on {' '.join(grant)}")

    def _take_own(self, name: str, kept: set[Grant]) -> None:
        """Takes from an account the rights that are its own and not a role's, but those kept."""
        rows = self._ask("GET", "3.0/mlflow/users/permissions/list", {"username": name})
        for row in rows["permissions"]:
            grant = (row["resource_type"], row["resource_pattern"])
            if not row["role_name"].startswith("__user_") or grant in kept:
                continue
            content = {"username": name, "resource_type": grant[0], "resource_id": grant[1]}
            self._ask("POST", "3.0/mlflow/users/permissions/revoke", content)
            self.done.append(f"account {name}: no {row['permission']} on {' '.join(grant)}")

    def _roles(self) -> dict[str, dict[str, Any]]:
        found = self._ask("GET", "3.0/mlflow/roles/list", {"workspace": WORKSPACE})
        return {role["name"]: role for role in found["roles"]}

    def _resources(self) -> Iterator[tuple[Resource, str, str]]:
        """Yields type, key and name of every experiment and model; of deleted experiments, too."""
        experiments = {"max_results": 1000, "view_type": "ALL"}
        for one in self._pages("POST", "2.0/mlflow/experiments/search", "experiments", experiments):
            yield "experiment", one["experiment_id"], one["name"]
        models = {"max_results": 1000}
        path = "2.0/mlflow/registered-models/search"
        for one in self._pages("GET", path, "registered_models", models):
            yield "registered_model", one["name"], one["name"]

    def _pages(
        self, method: str, path: str, key: str, content: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        while True:
            page = self._ask(method, path, content)
            yield from page.get(key, [])
            if not page.get("next_page_token"):
                return
            content = content | {"page_token": page["next_page_token"]}

    def _ask(
        self, method: str, path: str, content: Mapping[str, Any] | None = None, version: int = 0
    ) -> Any:
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        path = f"/api/{path}"
        if version:
            path = path.replace("/api/2.0/", f"/api/{version}.0/")
        try:
            reply = http_request(
                get_default_host_creds(self.tracking_uri),
                path,
                method,
                timeout=TIMEOUT_S,
                max_retries=2,
                raise_on_status=False,
                **{"params" if method == "GET" else "json": content},
            )
            if reply.status_code == 401:
                raise MlopsError(
                    "the tracking server did not accept the admin's login; look at "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
                )
            return verify_rest_response(reply, path).json()
        except MlflowException as err:
            raise MlopsError(
                f"the tracking server did not do {method} {path}: {first_line(err)}"
            ) from err


def ensure_accounts(accounts: Accounts, passwords: Mapping[str, str]) -> None:
    """Makes the roles, their grants, and an account for each password, of the role called so."""
    accounts.grant()
    for name, password in passwords.items():
        if not accounts.has(name):
            accounts.make(name, password)
        accounts.set_role(name, name)


def ensure_account(
    accounts: Accounts, name: str, role: str | None, file: Path | None, *, rotate: bool
) -> None:
    """Makes an account, gives it a role, sets its password.

    Args:
        role: One of `ROLES`; None leaves what it has.
        file: Holds the password; where it is not there, one is made and written to it. None leaves
            the password as it is.
        rotate: Whether the account gets a new password, which is written to `file`.

    Raises:
        UsageError: there is no such role, or no account and no file.
    """
    if role is not None and role not in ROLES:
        raise UsageError(f"there is no role {role!r}; {choose(role, ROLES)}")
    if rotate and file is None:
        raise UsageError("a new password needs a place; expected --password-file FILE.")
    if file is not None and rotate:
        _rotate(accounts, name, file)
    elif file is not None:
        password = read_password(file)
        if accounts.has(name):
            accounts.set_password(name, password)
        else:
            accounts.make(name, password)
    if role is not None:
        accounts.set_role(name, role)


def _rotate(accounts: Accounts, name: str, file: Path) -> None:
    """Sets a new password and writes it to the file.

    It is beside the file before the server has it: killed in between, the next call takes the same.
    """
    beside = file.with_name(f"{file.name}.new")
    accounts.set_password(name, read_password(beside))
    beside.replace(file)


def read_password(file: Path) -> str:
    """Returns the password in a file; makes one, and the file, where there is none.

    Raises:
        UsageError: the file cannot be read, or holds no password that MLflow takes.
    """
    try:
        if not file.exists():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(file, secrets.token_urlsafe(24).encode(), 0o600, replace=False)
        password = file.read_text("utf-8").strip()
    except (OSError, ValueError) as err:
        raise UsageError(f"the password cannot be read from {str(file)!r}: {err}.") from err
    if len(password) < LEAST_CHARACTERS or "\n" in password:
        raise UsageError(
            f"{str(file)!r} holds no password; expected one line of {LEAST_CHARACTERS} characters "
            "at least."
        )
    return password
