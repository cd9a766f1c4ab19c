"""Alias records: what is signed, who is believed, and where a server may follow."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from mlops.errors import MlopsError, UsageError
from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from registry.alias import Registry, open_registry
from registry.alias_record import (
    MOST_BYTES,
    AliasRecord,
    Seen,
    find_later_move,
    goes_back,
    may_follow,
    read_newest_record,
    sign_record,
    write_record,
)
from registry.approve import approve
from registry.catalog import Catalog, Release
from registry.moves import open_intent
from registry.promote import promote
from registry.rollback import rollback
from registry.signing import ensure_signing_key, sign_bytes, verify_bytes
from tests.registry.children import run
from tests.registry.sides import NAME, probe_sides

Register = Callable[..., int]
SHA = "a" * 64
RECORD = AliasRecord(
    name=NAME,
    alias="champion",
    version=8,
    number=30,
    move="rollback",
    statement_sha256=SHA,
    created_at="2026-01-02T03:04:05.678+00:00",
    previous=9,
)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public half."""
    own = Settings.from_env({"MLOPS_HOME": str(tmp_path / "own")})
    return ensure_signing_key(own), own.public_keys[0]


def newest(registry: Registry, version: int, alias: str = "champion") -> AliasRecord | None:
    release = registry.catalog.get_release(NAME, version)
    return read_newest_record(registry.catalog, release, alias, registry.settings.public_keys)


def promote_two(registry: Registry, register: Register) -> None:
    for value in (0.9, 0.95):
        number = register(right=9.0, value=value)
        assert promote(registry, NAME, version=number).decision == "promoted"


# What a record is.


def test_a_record_is_canonical_json_and_reads_back() -> None:
    content = RECORD.to_bytes()
    assert AliasRecord.from_bytes(content) == RECORD
    assert json.loads(content) == {"format": 1, **asdict(RECORD)}
    assert content.startswith(b'{"alias":"champion","created_at":')
    first = replace(RECORD, previous=None, name="modèle")
    assert AliasRecord.from_bytes(first.to_bytes()) == first


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        RECORD.to_bytes() + b" ",
        RECORD.to_bytes().replace(b'"format":1', b'"format":2'),
        RECORD.to_bytes().replace(b'"version":8', b'"version":true'),
        RECORD.to_bytes().replace(b'"version":8', b'"version":8.0'),
        RECORD.to_bytes().replace(b'"version":8', b'"version":-8'),
        RECORD.to_bytes().replace(b'"version":8', b'"version":"8"'),
        RECORD.to_bytes().replace(b'"rollback"', b'"approve"'),
        RECORD.to_bytes().replace(b'"rollback"', b'["rollback"]'),
        RECORD.to_bytes().replace(b'"number":30,', b""),
        RECORD.to_bytes().replace(b'"number":30', b'"number":30,"more":1'),
        RECORD.to_bytes().replace(b'"number":30', b'"number":30,"number":30'),
    ],
)
def test_what_is_no_record_is_not_read_as_one(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"no alias record|not of the format"):
        AliasRecord.from_bytes(content)


def test_a_signature_holds_for_those_bytes_and_that_key_alone(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    other = Settings.from_env({"MLOPS_HOME": str(tmp_path / "other")})
    ensure_signing_key(other)
    content, signature = sign_record(RECORD, private)
    assert verify_bytes(content, signature, [public])
    assert verify_bytes(content, signature, [*other.public_keys, public])
    assert not verify_bytes(content, signature, other.public_keys)
    assert not verify_bytes(content, signature, [])
    assert not verify_bytes(replace(RECORD, version=7).to_bytes(), signature, [public])
    named = json.loads(signature)
    for spoiled in (
        {**named, "key": "0" * 16},
        {**named, "key": ["0"]},
        {**named, "signature": "bm8="},
        {**named, "signature": "*"},
        {**named, "signature": 7},
        {"key": named["key"]},
        [],
    ):
        assert not verify_bytes(content, json.dumps(spoiled).encode(), [public])
    assert not verify_bytes(content, b"\xff", [public])
    assert not verify_bytes(content, b"[" * 100_000, [public])


# The rule.


@pytest.mark.parametrize(
    ("seen", "version", "record", "why"),
    [
        (None, 3, None, None),
        (Seen(0, 0), 3, None, None),
        (Seen(8, 20), 9, None, None),
        (Seen(8, 20), 8, None, None),
        (Seen(9, 20), 8, None, "older than version 9.*no signed record"),
        (Seen(9, 20), 8, RECORD, None),
        (Seen(9, 20), 8, replace(RECORD, move="promote"), None),
        (Seen(9, 30), 8, RECORD, "record 30 beside it is of an earlier move than record 30"),
        (Seen(9, 31), 8, RECORD, "record 30 beside it is of an earlier move than record 31"),
        (Seen(9, 20), 8, replace(RECORD, statement_sha256="b" * 64), "of another release"),
        (Seen(9, 20), 7, RECORD, "of another release"),
        # It answers with 8 since a rollback: 9 was left, and comes back by a move alone.
        (Seen(9, 30, 8), 8, None, None),
        (Seen(9, 30, 8), 9, None, "version 9 was answered with before, and left"),
        (Seen(9, 30, 8), 9, replace(RECORD, version=9, number=31), None),
        (Seen(9, 30, 8), 9, replace(RECORD, version=9, number=29), "of an earlier move"),
        (Seen(9, 30, 8), 10, None, None),
    ],
)
def test_where_a_server_may_follow(
    seen: Seen | None, version: int, record: AliasRecord | None, why: str | None
) -> None:
    said = may_follow(seen, version, SHA, record)
    if why is None:
        assert said is None
    else:
        assert goes_back(seen, version)
        assert said is not None and re.search(why, said), said


def test_what_was_seen_only_rises_and_reads_back() -> None:
    seen = Seen(0, 0).advance(9, None)
    assert seen == Seen(9, 0, 9)
    assert seen.advance(8, RECORD) == Seen(9, 30, 8)
    assert seen.advance(8, RECORD).advance(10, replace(RECORD, version=10, number=12)) == Seen(
        10, 30, 10
    )
    for one in (seen, Seen(9, 30, 8)):
        assert Seen.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert Seen(4, 5).to_json() == {"version": 4, "number": 5, "holder": 4}
    assert Seen.from_json({"version": 4, "number": 5}) == Seen(4, 5)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"version": 1},
        {"version": 1, "number": True},
        {"version": 1, "number": -1},
        {"version": "1", "number": 1},
        {"version": 1, "number": 1, "other": 1},
    ],
)
def test_what_says_nothing_of_what_was_seen_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="does not say what was seen"):
        Seen.from_json(value)


moves = st.lists(st.integers(1, 5), min_size=1, max_size=12)


@given(moves, st.data())
def test_a_server_follows_every_move_and_no_replay(versions: list[int], data: Any) -> None:
    """It polls at any times; between them a thief puts an older version and its true record there.

    The model: moves 1, 2, 3, ... with their records, read as a server reads them.
    """
    records = [
        replace(RECORD, version=version, number=number)
        for number, version in enumerate(versions, start=1)
    ]

    def beside(version: int, until: int) -> AliasRecord | None:
        found = [one for one in records[:until] if one.version == version]
        return found[-1] if found else None

    seen: Seen | None = None
    for done in range(1, len(records) + 1):
        if done < len(records) and data.draw(st.booleans()):
            continue  # this one is slept through
        holder = records[done - 1].version
        if seen is not None:
            assert seen.holder is not None
            seen = seen.advance(seen.holder, beside(seen.holder, done))
        assert may_follow(seen, holder, SHA, beside(holder, done)) is None
        seen = (seen or Seen(0, 0)).advance(holder, beside(holder, done))
        assert (seen.holder, seen.number) == (holder, done)
        for stolen in records[:done]:
            if stolen.version != holder:
                newer = stolen.version > seen.version
                assert (may_follow(seen, stolen.version, SHA, stolen) is None) == newer


# In a registry.


def test_every_move_leaves_a_record_that_verifies(registry: Registry, register: Register) -> None:
    promote_two(registry, register)
    rollback(registry, NAME)
    intents = [one for one in registry.ledger.events(NAME) if one.kind == "intent"]
    assert [one.body["to"] for one in intents] == [1, 2, 1]
    for version, intent, move, previous in (
        (2, intents[1], "promote", 1),
        (1, intents[2], "rollback", 2),
    ):
        found = newest(registry, version)
        assert found is not None
        assert (found.name, found.alias, found.version) == (NAME, "champion", version)
        assert (found.number, found.move, found.previous) == (intent.seq, move, previous)
        assert found.statement_sha256 == intent.body["statement_sha256"]
        assert found.created_at == intent.created_at.isoformat(timespec="milliseconds")
    assert newest(registry, 1, "challenger") is None


def test_an_approval_leaves_a_record_too(registry: Registry, register: Register) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME, propose=True)
    assert newest(registry, 1) is None
    approve(registry, NAME, 1)
    found = newest(registry, 1)
    assert found is not None and (found.move, found.previous) == ("promote", None)


def test_a_challenger_that_is_older_than_the_champion_is_followed_when_it_is_promoted(
    registry: Registry, register: Register
) -> None:
    register(right=9.0, value=0.9)
    register(right=9.0, value=0.95)
    promote(registry, NAME, version=1, alias="challenger")
    promote(registry, NAME, version=2)
    champion = newest(registry, 2)
    seen = Seen(0, 0).advance(2, champion)
    of_challenger = newest(registry, 1, "challenger")
    assert of_challenger is not None and newest(registry, 1) is None
    done = promote(registry, NAME, version=1)
    assert (done.decision, done.version) == ("promoted", 1)
    assert registry.catalog.find_aliases(NAME) == {"champion": 1, "challenger": 1}
    found = newest(registry, 1)
    assert found is not None and found.move == "promote"
    assert may_follow(seen, 1, found.statement_sha256, found) is None
    assert may_follow(seen, 1, found.statement_sha256, None) is not None


def test_a_stranger_s_records_are_passed_over(
    registry: Registry, register: Register, keys: tuple[Path, Path]
) -> None:
    promote_two(registry, register)
    rollback(registry, NAME)
    catalog, settings = registry.catalog, registry.settings
    release, other = catalog.get_release(NAME, 1), catalog.get_release(NAME, 2)
    true, of_other = newest(registry, 1), newest(registry, 2)
    assert true is not None and of_other is not None
    later = replace(true, number=true.number + 10)
    write_record(catalog, release, later, sign_record(later, keys[0]))  # a key of their own
    copies = sign_record(true, settings.signing_key)  # a true one under a higher number
    write_record(catalog, release, replace(true, number=true.number + 11), copies)
    moved = sign_record(of_other, settings.signing_key)  # a true one of another release
    write_record(catalog, release, replace(true, number=of_other.number), moved)
    elsewhere = replace(later, alias="challenger")
    signed = sign_record(elsewhere, settings.signing_key)  # a true one of another alias
    write_record(catalog, release, later, signed)
    for name, content in (
        ("999.sig", sign_bytes(b"{}", settings.signing_key)),
        ("999.json", b"{}"),
        ("1000.json", b"{}"),
        ("0999.sig", b""),
        ("\N{SUPERSCRIPT TWO}.sig", b""),
        ("x.sig", b""),
        ("1001.sig", b" " * (MOST_BYTES + 1)),
        ("1001.json", b" " * (MOST_BYTES + 1)),
    ):
        catalog.write_move(release, "champion", name, content)
    assert newest(registry, 1) == true
    assert read_newest_record(catalog, other, "champion", [keys[1]]) is None
    with pytest.raises(MlopsError, match="the model registry did not do it"):
        read_newest_record(catalog, release, "../../..", settings.public_keys)


def later(registry: Registry, record: AliasRecord, strict: bool = True) -> str | None:
    releases = registry.catalog.find_releases(NAME)
    keys = registry.settings.public_keys
    return find_later_move(registry.catalog, releases, record, keys, strict=strict)


def test_of_all_records_of_an_alias_only_the_last_has_no_later_one(
    registry: Registry, register: Register
) -> None:
    promote_two(registry, register)
    rollback(registry, NAME)
    first, last = newest(registry, 2), newest(registry, 1)
    assert first is not None and last is not None
    assert later(registry, last) is None
    for strict in (True, False):
        said = later(registry, first, strict)
        assert said == f"record {last.number} beside version 1 is of a later move"


@pytest.mark.parametrize(
    ("file", "content"),
    [("999.sig", b"{}"), ("999.sig", b" " * (MOST_BYTES + 1)), ("999.sig", b"")],
)
def test_a_later_signature_that_does_not_verify_may_hide_a_move(
    registry: Registry, register: Register, file: str, content: bytes
) -> None:
    promote_two(registry, register)
    last = newest(registry, 2)
    assert last is not None
    elder = registry.catalog.get_release(NAME, 1)
    # A crash leaves a record without its signature, and others may leave what they like.
    for harmless in ("998.json", "0999.sig", "x.sig"):
        registry.catalog.write_move(elder, "champion", harmless, b"{}")
    registry.catalog.write_move(elder, "challenger", file, content)
    assert later(registry, last) is None
    registry.catalog.write_move(elder, "champion", file, content)
    assert "champion/999.sig beside version 1 does not verify" in str(later(registry, last))
    assert later(registry, last, strict=False) is None


def test_where_a_registry_does_not_answer_no_record_is_the_last(registry: Registry) -> None:
    release = Release(NAME, 1, "f" * 32, f"{NAME}-candidates/1")
    with pytest.raises(MlopsError, match="Connection refused"):
        find_later_move(Catalog(Silent()), [release], RECORD, [], strict=False)
    assert find_later_move(registry.catalog, [release], RECORD, [], strict=True) is None


class Silent:
    """A client of a server that does not answer."""

    def get_run(self, run_id: str) -> Any:
        raise MlflowException("API request to /artifacts/list failed: Connection refused")


def test_a_registry_that_does_not_answer_is_not_one_without_records(registry: Registry) -> None:
    keys = registry.settings.public_keys
    release = Release(NAME, 1, "f" * 32, f"{NAME}-candidates/1")
    with pytest.raises(MlopsError, match="Connection refused"):
        read_newest_record(Catalog(Silent()), release, "champion", keys)
    assert read_newest_record(registry.catalog, release, "champion", keys) is None


# Killed, refused.


def test_killed_between_record_and_alias_nothing_moved_and_the_record_does_no_harm(
    registry: Registry, settings: Settings, register: Register
) -> None:
    promote_two(registry, register)
    seen = Seen(0, 0).advance(2, newest(registry, 2))
    assert run(settings.home, "rollback", "record", to=1).exitcode == -signal.SIGKILL
    assert registry.catalog.find_aliases(NAME) == {"champion": 2}
    left = newest(registry, 1)
    assert left is not None
    rollback(registry, NAME, to=1)
    rollback(registry, NAME, to=2)
    seen = seen.advance(2, newest(registry, 2))
    assert may_follow(seen, 1, left.statement_sha256, left) is not None
    assert open_intent(registry.ledger.events(NAME), "champion") is None


class FullStore(Catalog):
    """Takes no alias record."""

    def write_move(self, release: Release, alias: str, file: str, content: bytes) -> None:
        raise MlopsError("a model's files could not be read or written: No space left on device")


def test_where_the_record_cannot_be_written_the_alias_stays(
    registry: Registry, register: Register
) -> None:
    promote_two(registry, register)
    full = replace(registry, catalog=FullStore(open_store_client(registry.settings)))
    with pytest.raises(MlopsError, match="No space left"):
        rollback(full, NAME)
    assert registry.catalog.find_aliases(NAME) == {"champion": 2}
    assert [one.kind for one in registry.ledger.events(NAME)][-2:] == ["intent", "abandoned"]


@pytest.mark.parametrize("work", ["rollback", "approve"])
def test_without_a_signing_key_nothing_is_written(
    settings: Settings, register: Register, work: str
) -> None:
    with open_registry(settings, probe=probe_sides) as registry:
        promote_two(registry, register)
        number = register(right=9.0, value=0.99)
        promote(registry, NAME, version=number, propose=True)
    without = replace(settings, signing_key=settings.home / "no" / "signing.pem")
    with open_registry(without, probe=probe_sides) as registry:
        before = registry.ledger.events(NAME)
        with pytest.raises(UsageError, match=r"no signing key at .*who moves an alias signs"):
            rollback(registry, NAME) if work == "rollback" else approve(registry, NAME, 3)
        assert registry.ledger.events(NAME) == before
        assert registry.catalog.find_aliases(NAME) == {"champion": 2}
        assert newest(registry, 3 if work == "approve" else 1) == (
            None if work == "approve" else newest(registry, 1)
        )


def test_a_key_that_nobody_here_trusts_moves_no_alias(
    registry: Registry, register: Register, keys: tuple[Path, Path]
) -> None:
    promote_two(registry, register)
    stranger = replace(registry, settings=replace(registry.settings, signing_key=keys[0]))
    before = registry.ledger.events(NAME)
    with pytest.raises(UsageError, match="none of MLOPS_PUBLIC_KEYS"):
        rollback(stranger, NAME)
    assert registry.ledger.events(NAME) == before
