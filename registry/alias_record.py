"""Alias records: each move of an alias, numbered and signed, beside the release it moved to.

A release's signature says what it is. It does not say that it is the one to answer now: an alias is
a row of MLflow's registry, and whoever can write there could put it back to any release that was
ever signed. So every move leaves in the run of its release

    moves/<alias>/<number>.json   the record: what moved where, in canonical JSON
    moves/<alias>/<number>.sig    the signature over those bytes, by a release's signing key

The number is that of the move's intent in the ledger, so it only rises. Record first, alias after:
a crash in between leaves a record of a move that never was, which no server is ever asked about.

`may_follow` is the rule of a server. Versions rise too: one that is newer than all that it accepted
is followed on its own signature. To an older one, or back to one that it left, it goes only with a
record that is newer than all that it accepted, and than all that lie beside any release of the
model (`find_later_move`): so a move that it slept through cannot be undone by an earlier one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from registry.signing import sign_bytes, verify_bytes

if TYPE_CHECKING:
    from registry.catalog import Catalog, Release

Move = Literal["promote", "rollback"]
RECORD_FORMAT: Final = 1
MOST_BYTES: Final = 1 << 16
"""A record takes about 400 bytes, and a name can be long."""
_MOST_TRIES: Final = 100


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """One move of an alias.

    Attributes:
        version: Of `name`: the release that the alias moved to.
        number: `seq` of the move's intent in the ledger; rises with every move.
        statement_sha256: Of that release's statement.
        created_at: ISO 8601, UTC.
        previous: The version that held the alias before; None if none did.
    """

    name: str
    alias: str
    version: int
    number: int
    move: Move
    statement_sha256: str
    created_at: str
    previous: int | None

    def to_bytes(self) -> bytes:
        """Returns canonical JSON: sorted keys, no spaces, ASCII. These bytes are signed."""
        value = {"format": RECORD_FORMAT, **asdict(self)}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> AliasRecord:
        """Reads what `to_bytes` gave.

        Raises:
            ValueError: it is anything else.
        """
        try:
            value = json.loads(content)
            written = value.pop("format")
            record = cls(**value) if written == RECORD_FORMAT else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
            raise ValueError("it is no alias record") from err
        if record is None:
            raise ValueError(f"it is not of the format that this Podium reads, {RECORD_FORMAT}")
        if not _is_sound(record) or record.to_bytes() != content:
            raise ValueError("it is no alias record")
        return record


def _is_sound(record: AliasRecord) -> bool:
    texts = (record.name, record.alias, record.statement_sha256, record.created_at)
    numbers = (record.version, record.number, record.previous or 0)
    return (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int and number >= 0 for number in numbers)
        and record.move in get_args(Move)
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server accepted so far for one alias; `Seen(0, 0)` is nothing.

    Attributes:
        version: The highest version of all that it accepted.
        number: The highest number of the records that it accepted; 0 for none.
        holder: The version that it accepted last; None stands for the highest.
    """

    version: int
    number: int
    holder: int | None = None

    def advance(self, version: int, record: AliasRecord | None) -> Seen:
        """Returns what is seen once a release is accepted.

        Args:
            version: Of the release.
            record: The newest record beside it, whether or not the rule needed one: so an earlier
                move that the server slept through cannot be played to it later.
        """
        number = self.number if record is None else max(self.number, record.number)
        return Seen(max(self.version, version), number, version)

    def to_json(self) -> dict[str, int]:
        """Returns plain values."""
        known = asdict(self) | {"holder": self.version if self.holder is None else self.holder}
        return dict(known)

    @classmethod
    def from_json(cls, value: Any) -> Seen:
        """Reads what `to_json` gave; one without `holder` too.

        Raises:
            ValueError: it is anything else.
        """
        names = [one.name for one in fields(cls)]
        if not isinstance(value, dict) or not {"version", "number"} <= value.keys() <= set(names):
            raise ValueError("it does not say what was seen")
        if not all(type(number) is int and number >= 0 for number in value.values()):
            raise ValueError("it does not say what was seen")
        return cls(**value)


def goes_back(seen: Seen | None, release_version: int) -> bool:
    """Tells whether a release is older than one that was accepted, or was left; pure."""
    if seen is None or release_version > seen.version:
        return False
    return release_version != (seen.version if seen.holder is None else seen.holder)


def may_follow(
    seen: Seen | None, release_version: int, statement_sha256: str, record: AliasRecord | None
) -> str | None:
    """Returns None where a server may answer with what its alias points at, else why not; pure.

    Args:
        seen: What the server accepted for this alias; None where that is nothing, and then what it
            finds is taken. Where it answers with a release now, first
            `seen.advance(its version, read_newest_record(...))`: the record of a later move beside
            that one makes an earlier record void.
        release_version: Of a release that verifies under its name and version.
        statement_sha256: Of that release's statement.
        record: The newest that verifies beside it, as `read_newest_record` gives it.
    """
    if seen is None or not goes_back(seen, release_version):
        return None
    what = (
        f"version {release_version} is older than version {seen.version}, which was answered with"
        if release_version < seen.version
        else f"version {release_version} was answered with before, and left"
    )
    if record is None:
        return f"{what}, and no signed record beside it says that the alias was moved back"
    if record.version != release_version or record.statement_sha256 != statement_sha256:
        return f"{what}, and the signed record {record.number} beside it is of another release"
    if record.number <= seen.number:
        return (
            f"{what}, and the signed record {record.number} beside it is of an earlier move than "
            f"record {seen.number}, which was followed"
        )
    return None


def sign_record(record: AliasRecord, private: Path) -> tuple[bytes, bytes]:
    """Returns the record's bytes and those of its signature.

    Raises:
        UsageError: the key cannot be used.
    """
    content = record.to_bytes()
    return content, sign_bytes(content, private)


def write_record(
    catalog: Catalog, release: Release, record: AliasRecord, signed: tuple[bytes, bytes]
) -> None:
    """Writes a signed record beside its release; killed in between it has no signature.

    Raises:
        MlopsError: it could not be written.
    """
    content, signature = signed
    catalog.write_move(release, record.alias, f"{record.number}.json", content)
    catalog.write_move(release, record.alias, f"{record.number}.sig", signature)


def read_newest_record(
    catalog: Catalog, release: Release, alias: str, keys: Sequence[Path]
) -> AliasRecord | None:
    """Returns the newest record of an alias's moves to a release; None where none verifies.

    What does not verify, or is of another model, alias or version, is passed over.

    Args:
        keys: Public keys; any of them will do.

    Raises:
        UsageError: a public key is missing.
        MlopsError: the registry does not answer, which says nothing of the records.
    """
    files = catalog.find_moves(release, alias, MOST_BYTES)
    for number in sorted(_numbers(files), reverse=True)[:_MOST_TRIES]:
        if f"{number}.json" not in files:
            continue
        content = catalog.read_move(release, alias, f"{number}.json")
        record = _verified(content, catalog.read_move(release, alias, f"{number}.sig"), keys)
        wanted = (release.name, alias, release.version, number)
        if record and (record.name, record.alias, record.version, record.number) == wanted:
            return record
    return None


def find_later_move(
    catalog: Catalog,
    releases: Iterable[Release],
    record: AliasRecord,
    keys: Sequence[Path],
    *,
    strict: bool,
) -> str | None:
    """Returns why a record is not, or may not be, of its alias's last move; None where it is.

    Args:
        releases: All of the model, each of which costs a listing.
        keys: Public keys; any of them will do.
        strict: Whether a signature with a higher number that does not verify stands for a move too:
            it may be one that was overwritten, to pass an earlier move for the last.

    Raises:
        UsageError: a public key is missing.
        MlopsError: the registry does not answer, which says nothing of the records.
    """
    for release in releases:
        # Large ones too: nothing is read of them, and they may lie where a record was.
        number = max(_numbers(catalog.find_moves(release, record.alias, sys.maxsize)), default=0)
        if number <= record.number:
            continue
        newest = read_newest_record(catalog, release, record.alias, keys)
        if newest is not None and newest.number > record.number:
            return f"record {newest.number} beside version {release.version} is of a later move"
        if strict:
            return (
                f"moves/{record.alias}/{number}.sig beside version {release.version} does not "
                "verify: it may have been overwritten to hide a later move. Move the alias again "
                "(python -m registry.rollback); remove that file first if its number is no move's"
            )
    return None


def _numbers(files: Iterable[str]) -> set[int]:
    """The numbers that have a signature."""
    return {int(name[:-4]) for name in files if name.endswith(".sig") and _is_number(name[:-4])}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text


def _verified(content: bytes, signature: bytes, keys: Sequence[Path]) -> AliasRecord | None:
    if not verify_bytes(content, signature, keys):
        return None
    try:
        return AliasRecord.from_bytes(content)
    except ValueError:
        return None
