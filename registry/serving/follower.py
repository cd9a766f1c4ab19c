"""What an alias points at, judged: fetched, verified with this host's keys, and allowed to answer.

Asked every few seconds in a thread of the parent's. It changes nothing that answers: it tells what
it found, and the rollout does the rest. A registry that does not answer is no news, and changes
nothing.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mlops.errors import MlopsError, UsageError
from registry.alias_record import AliasRecord, Seen, may_follow, read_newest_record
from registry.catalog import Catalog, Release
from registry.releases import Verified, check_release, fetch_release
from registry.serving.state import ROLES, Role, StateFolder, read_json, write_json
from registry.signing import UnverifiedError

RETRY_S: Final = 30.0
"""How often a refused release is looked at again: its bytes or this host's keys may be mended."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A release that may answer in a role.

    Attributes:
        folder: Its private copy.
        record: The newest alias record beside it; None where there is none, or none was read.
    """

    role: Role
    name: str
    version: int
    run_id: str
    folder: Path
    scoring_sha256: str
    statement_sha256: str
    record: AliasRecord | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A release that an alias points at and that may not answer.

    Attributes:
        sort: "unverified", "unrecorded" or "not_loaded".
        reason: Goes on from "version 8".
    """

    role: Role
    version: int
    sort: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unset:
    """An alias that points at nothing."""

    role: Role


News = Accepted | Refusal | Unset


class Follower:
    """Follows the aliases of one model. `look` is for one thread; the rest for any."""

    def __init__(
        self,
        catalog: Catalog,
        name: str,
        aliases: Mapping[Role, str],
        folder: StateFolder,
        keys: Sequence[Path],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._name = name
        self._aliases = dict(aliases)
        self._folder = folder
        self._keys = tuple(keys)
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = _read_seen(folder.path / "seen.json")
        self._held: dict[Role, Accepted] = {}
        self._at: dict[Role, int | None] = {}
        self._again: dict[Role, float] = {}
        self._told: dict[Role, tuple[int, str]] = {}
        self.reachable = True

    def alias(self, role: Role) -> str:
        return self._aliases[role]

    def look(self) -> list[News]:
        """Returns what is new since the last look; [] where the registry does not answer."""
        found: list[News] = []
        try:
            aliases = self._catalog.find_aliases(self._name)
            for role in self._roles:
                news = self._look_at(role, aliases.get(self._aliases[role]))
                if news is not None:
                    found.append(news)
        except UsageError:
            raise
        except MlopsError:
            self.reachable = False
        else:
            self.reachable = True
        return found

    @property
    def _roles(self) -> list[Role]:
        return [role for role in ROLES if role in self._aliases]

    def _look_at(self, role: Role, version: int | None) -> News | None:
        if role in self._at and self._at[role] == version:
            if version is None or self._clock() < self._again.get(role, float("inf")):
                return None
        else:
            self._told.pop(role, None)
        if version is None:
            self._at[role] = None
            return Unset(role)
        release = self._catalog.find_alias(self._name, self._aliases[role])
        if release is None:
            return None  # it is gone since a moment ago: the next look says so
        news = self._judge(role, release)
        # Only now: where the registry went away in between, the next look begins anew.
        self._at[role] = release.version
        self._again.pop(role, None)
        if isinstance(news, Refusal):
            self._again[role] = self._clock() + RETRY_S
            if self._told.get(role) == (news.version, news.reason):
                return None
            self._told[role] = (news.version, news.reason)
        return news

    def _judge(self, role: Role, release: Release) -> Accepted | Refusal:
        version, alias = release.version, self._aliases[role]
        try:
            found = self.fetch(release)
            self._catch_up(role)
            record = read_newest_record(self._catalog, release, alias, self._keys)
        except (UnverifiedError, UsageError) as err:
            return Refusal(role, version, "unverified", f"does not verify: {err}")
        with self._lock:
            seen = self._seen.get(role)
        reason = may_follow(seen, version, found.statement_sha256, record)
        if reason is not None:
            return Refusal(role, version, "unrecorded", f"may not be followed: {reason}")
        return _accepted(role, found, record)

    def _catch_up(self, role: Role) -> None:
        """Takes note of a later move to what answers, which makes earlier records void."""
        with self._lock:
            held = self._held.get(role)
        if held is None:
            return
        release = Release(held.name, held.version, held.run_id, "")
        try:
            record = read_newest_record(self._catalog, release, self._aliases[role], self._keys)
        except MlopsError:
            return  # its run may be deleted
        self._advance(role, held.version, record)

    def fetch(self, release: Release) -> Verified:
        """Returns a private, verified copy of a release; the one that is here, where it verifies.

        Raises:
            UnverifiedError: it is not what was signed.
            UsageError: a public key is missing.
            MlopsError: it cannot be read now.
        """
        place = self._folder.release(release.version)
        if place.is_dir():
            try:
                found = self._check(release.version, release.run_id)
                os.utime(place)  # what was used last is kept longest
                return found
            except UnverifiedError:
                shutil.rmtree(place)
        partial = place.with_name(f".{release.version}.new")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        try:
            found = fetch_release(self._catalog, release, partial, self._keys)
            found.folder.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return replace(found, folder=place)

    def _check(self, version: int, run_id: str) -> Verified:
        place = self._folder.release(version)
        return check_release(place, self._name, version, run_id, self._keys)

    def find_kept(self) -> list[Accepted]:
        """Returns what was served before this start and verifies still, without the registry."""
        kept = read_json(self._folder.path / "kept.json")
        found = []
        for role in self._roles:
            try:
                one = kept[role]
                found.append(_accepted(role, self._check(one["version"], one["run_id"]), None))
            except (MlopsError, OSError, KeyError, TypeError):
                continue
        return found

    def still_verifies(self, held: Accepted) -> bool:
        """Tells whether what answers would verify with the keys that are here now."""
        try:
            self._check(held.version, held.run_id)
        except (MlopsError, OSError):
            return False
        return True

    def hold(self, accepted: Accepted) -> None:
        """Takes note that all workers answer with a release."""
        with self._lock:
            self._held[accepted.role] = accepted
            held = {
                role: {"version": one.version, "run_id": one.run_id}
                for role, one in self._held.items()
            }
            write_json(self._folder.path / "kept.json", held)
        self._advance(accepted.role, accepted.version, accepted.record)

    def _advance(self, role: Role, version: int, record: AliasRecord | None) -> None:
        with self._lock:
            self._seen[role] = self._seen.get(role, Seen(0, 0)).advance(version, record)
            value = {one: seen.to_json() for one, seen in self._seen.items()}
            write_json(self._folder.path / "seen.json", value)


def _accepted(role: Role, found: Verified, record: AliasRecord | None) -> Accepted:
    said = found.statement
    return Accepted(
        role,
        said.name,
        said.version,
        said.run_id,
        found.folder,
        found.scoring_sha256,
        found.statement_sha256,
        record,
    )


def _read_seen(path: Path) -> dict[Role, Seen]:
    """Raises MlopsError where the file was damaged: to forget it would open the way back."""
    if not path.exists():
        return {}
    value: Any = read_json(path)
    try:
        return {role: Seen.from_json(value[role]) for role in ROLES if role in value}
    except (ValueError, TypeError) as err:
        raise MlopsError(
            f"{str(path)!r} does not say what was served before, and an older release could pass "
            "for a newer one; move it away to begin anew."
        ) from err
