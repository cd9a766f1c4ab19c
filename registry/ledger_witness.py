"""What the ledger is told of erasures, and of the version of its own tables."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from mlops.errors import MlopsError
from mlops.lease import try_lock
from mlops.settings import Settings
from mlops.stores.database_check import read_revisions
from mlops.stores.schema_upgrade import find_file, find_sessions, read_revision
from mlops.stores.store import Item
from registry.actor import find_actor
from registry.ledger import MIGRATIONS, VERSION_TABLE, Ledger, NoLedgerError, open_ledger
from registry.signing import ensure_signing_key, sign_bytes
from registry.tombstone import build_statement, count_words, find_begun, to_bytes


def find_pending(settings: Settings) -> list[str]:
    """Returns the datasets whose erasure was begun and not completed."""
    try:
        with open_ledger(settings.ledger_url, make=False) as ledger:
            return sorted(find_begun(ledger.events()))
    except NoLedgerError:
        return []


def begin_erasure(settings: Settings, dataset: str, items: Sequence[Item]) -> None:
    """Writes the begin of an erasure; looks first whether its tombstone can be signed."""
    ensure_signing_key(settings)
    found = dict(Counter(item.kind for item in items))
    releases = sorted(item.key for item in items if _is_release(item))
    body = {
        "dataset": dataset,
        "phase": "begun",
        "found": found,
        "releases": releases,
        "reason": f"erasure of dataset {dataset[:12]} begun: {count_words(found)}",
    }
    with open_ledger(settings.ledger_url) as ledger:
        ledger.append("erased", dataset, None, find_actor(settings, ledger), body)


def _is_release(item: Item) -> bool:
    return item.kind == "model version" and not item.key.rpartition("/")[0].endswith("-candidates")


def attest_erasure(settings: Settings, dataset: str, notes: Sequence[str]) -> str:
    """Writes the signed tombstone of an erasure; returns where it stands."""
    private = ensure_signing_key(settings)
    with open_ledger(settings.ledger_url) as ledger:
        begun = find_begun(ledger.events()).get(dataset)
        if begun is None:
            raise MlopsError(
                f"the ledger knows of no erasure of {dataset[:12]} that was begun; type the same "
                "command again."
            )
        actor = find_actor(settings, ledger)
        statement = build_statement(begun, actor, datetime.now(UTC), ledger.head(), notes)
        body = {
            "dataset": dataset,
            "phase": "done",
            "statement": statement,
            "signature": json.loads(sign_bytes(to_bytes(statement), private)),
            "reason": f"dataset {dataset[:12]} was erased: {count_words(statement['erased'])}",
        }
        event = ledger.append("erased", dataset, None, actor, body)
    return f"event {event.seq} of the ledger, signed with key {body['signature']['key']}"


def note_erased(ledger: Ledger, settings: Settings, name: str, version: int, dataset: str) -> None:
    """Writes that a release is erased, before it is, unless an earlier try wrote it."""
    known = [one for one in ledger.events(name) if one.kind == "erased" and one.version == version]
    if not known:
        body = {"dataset": dataset, "reason": f"its dataset {dataset[:12]} was erased"}
        ledger.append("erased", name, version, find_actor(settings, ledger), body)


def upgrade_ledger(settings: Settings) -> str:
    """Makes the ledger, or brings it up to date; returns what was done."""
    url = settings.ledger_url
    before = _read_revision(url)
    with open_ledger(url):
        pass
    _, newest = read_revisions(MIGRATIONS / "versions")
    if before is None:
        return f"made, schema {newest}"
    return "up to date" if before == newest else f"schema {before} -> {newest}"


def _read_revision(url: str) -> str | None:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return read_revision(url, VERSION_TABLE)
    except (SQLAlchemyError, ImportError, ValueError):  # opening it says what is wrong
        return None


def find_ledger_writers(settings: Settings) -> list[str]:
    """Returns who changes a model now, or is connected to the ledger's database."""
    file = find_file(settings.ledger_url)
    if file is None:
        return find_sessions(settings.ledger_url)
    found = []
    for path in sorted(file.resolve().parent.glob(f"{file.name}.*.lease")):
        fd = try_lock(path, create=False)
        if fd is None:
            found.append(path.read_text("utf-8", "replace") or "a promotion or rollback")
        else:
            os.close(fd)
    return found
