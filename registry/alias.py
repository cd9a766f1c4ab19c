"""Moves aliases: the only way an alias moves.

    lease -> settle what was interrupted -> intent in the ledger -> signed record beside the release
    -> the alias in MLflow -> its end

Killed between intent and end, the ledger holds an open intent, and the alias is the old one or the
new one. Whoever takes the lease next looks where the alias is and writes the end that is missing:
`done` or `rolled_back` where it moved, `abandoned` where it did not. A record of a move that never
was does no harm (`registry.alias_record`).
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlops.errors import MlopsError, UsageError
from mlops.mlflow_store import REFUSALS, open_store_client
from mlops.settings import Settings
from registry.actor import find_actor
from registry.alias_record import AliasRecord, Move, sign_record, write_record
from registry.catalog import CHAMPION, Catalog, Release
from registry.failpoints import failpoint
from registry.ledger import Actor, Event, Kind, Ledger, open_ledger
from registry.moves import open_intent, present_holder
from registry.policy import Policy, read_policy
from registry.probe import Probed, probe
from registry.signing import get_signing_key

Probe = Callable[..., Probed]
_ENDS: dict[str, Kind] = {"promote": "done", "rollback": "rolled_back"}
_REFUSALS = REFUSALS | {"PERMISSION_DENIED", "UNAUTHENTICATED"}
"""MLflow's error codes by which it is certain that nothing moved."""


@dataclass(frozen=True, slots=True)
class Registry:
    """An open registry.

    Attributes:
        catalog: The models.
        ledger: What happened to them.
        actor: Who is asking.
        policy: What is demanded of a candidate.
        probe: Asks models the test rows; in a child process, but for a test's own.
    """

    settings: Settings
    catalog: Catalog
    ledger: Ledger
    actor: Actor
    policy: Policy
    probe: Probe


@contextmanager
def open_registry(
    settings: Settings | None = None, policy: Path | None = None, probe: Probe = probe
) -> Iterator[Registry]:
    """Opens the registry, the ledger and the policy that the settings name.

    Args:
        settings: Where things live; by default as the environment says.
        policy: A TOML file; by default `policy.toml` of the home, or else the defaults.
        probe: What asks the models.

    Raises:
        UsageError: the policy has a key or a value that cannot be.
        MlopsError: the registry or the ledger does not answer.

    Example:
        >>> with open_registry() as registry:  # doctest: +SKIP
        ...     rollback(registry, "digits-classifier")
    """
    settings = settings or Settings.from_env()
    rules = _open_policy(settings, policy)
    catalog = Catalog(open_store_client(settings))
    with open_ledger(settings.ledger_url) as ledger:
        yield Registry(settings, catalog, ledger, find_actor(settings, ledger), rules, probe)


def _open_policy(settings: Settings, path: Path | None) -> Policy:
    """The policy of the home, or another one that asks for as many accounts at least."""
    own = settings.home / "policy.toml"
    at_home = read_policy(own) if os.path.lexists(own) else Policy.default()
    if path is None:
        return at_home
    other = read_policy(path)
    if other.approvals < at_home.approvals:
        raise UsageError(
            f"{path} asks for {other.approvals} account, and the policy of this home for "
            f"{at_home.approvals}; expected approvals = {at_home.approvals}."
        )
    return other


def check_alias(alias: str) -> str:
    """Returns the alias.

    Raises:
        UsageError: MLflow keeps the name for itself, or takes no such name.
    """
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UsageError(
            f"the alias {alias!r} is reserved by MLflow; expected another name, as {CHAMPION} or "
            "challenger."
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias):
        raise UsageError(
            f"{alias!r} is no name of an alias; expected letters, digits, - and _, at most 255."
        )
    return alias


@contextmanager
def changing(registry: Registry, name: str, what: Move | Literal["approve"]) -> Iterator[None]:
    """Holds the lease of a name, with what an interrupted move left behind settled.

    Raises:
        LeaseHeldError: another process holds it; says who.
    """
    holder = f"{registry.actor.name} ({what}, pid {os.getpid()} on {platform.node()})"
    with registry.ledger.lease(name, holder):
        failpoint("lease")
        settle(registry, name)
        yield


def settle(registry: Registry, name: str) -> None:
    """Writes the ends that interrupted moves of a name lack. Needs the lease."""
    events = registry.ledger.events(name)
    for alias in sorted({event.body["alias"] for event in events if event.kind == "intent"}):
        intent = open_intent(events, alias)
        if intent is None:
            continue
        holder = registry.catalog.find_alias(name, alias)
        moved = holder is not None and holder.version == intent.body["to"]
        _end(registry, intent, moved, late=True)


def move_alias(
    registry: Registry, release: Release, alias: str, move: Move, evidence: dict[str, Any]
) -> Event:
    """Moves an alias to a release, with the intent before and the end after it in the ledger.

    Needs the lease. The release must be verified by the caller.

    Args:
        evidence: What the intent holds besides: why this may move. "statement_sha256" is in it.

    Returns:
        The event that ended it.

    Raises:
        UsageError: there is no key here that could sign the move; nothing was written.
        MlopsError: a store did not do it.
    """
    get_signing_key(registry.settings)
    holder = registry.catalog.find_alias(release.name, alias)
    was = None if holder is None else holder.version
    body = {"alias": alias, "from": was, "to": release.version, "move": move, **evidence}
    if was == release.version:
        # It was moved there by hand. What the ledger held is what this replaces, for good.
        recorded = present_holder(registry.ledger.events(release.name), alias)
        body |= {"from": recorded, **({"by_hand": True} if recorded != was else {})}
    intent = registry.ledger.append("intent", release.name, release.version, registry.actor, body)
    failpoint("intent")
    try:
        _write_record(registry, release, intent)
    except MlopsError:
        _end(registry, intent, moved=False)
        raise
    failpoint("record")
    try:
        registry.catalog.move_alias(release, alias)
    except MlopsError as err:
        if getattr(err.__cause__, "error_code", None) in _REFUSALS:
            _end(registry, intent, moved=False)
        raise  # where the answer was lost it may still move: the next command looks
    failpoint("alias")
    end = _end(registry, intent, moved=True)
    failpoint("done")
    return end


def _write_record(registry: Registry, release: Release, intent: Event) -> None:
    record = AliasRecord(
        name=release.name,
        alias=intent.body["alias"],
        version=release.version,
        number=intent.seq,
        move=intent.body["move"],
        statement_sha256=intent.body["statement_sha256"],
        created_at=intent.created_at.isoformat(timespec="milliseconds"),
        previous=intent.body["from"],
    )
    signed = sign_record(record, registry.settings.signing_key)
    write_record(registry.catalog, release, record, signed)


def _end(registry: Registry, intent: Event, moved: bool, late: bool = False) -> Event:
    kind = _ENDS[intent.body["move"]] if moved else "abandoned"
    body = {key: intent.body[key] for key in ("alias", "from", "to")} | {"intent": intent.seq}
    if intent.body.get("by_hand"):
        body["by_hand"] = True
    if late:
        body["late"] = True
    return registry.ledger.append(kind, intent.name, intent.version, registry.actor, body)
