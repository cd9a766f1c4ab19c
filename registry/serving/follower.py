"""What an alias points at, judged: fetched, verified with this host's keys, and allowed to answer.

Asked every few seconds in a thread of the parent's. It changes nothing that answers: it tells what
it found, and the rollout does the rest. A registry that does not answer is no news, and changes
nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mlops.errors import MlopsError, UsageError
from registry.alias_record import (
    AliasRecord,
    Seen,
    find_later_move,
    goes_back,
    may_follow,
    read_newest_record,
)
from registry.catalog import Catalog, Release
from registry.interface import digest_rows
from registry.releases import Verified
from registry.serving.copies import Copies, TooLargeError
from registry.serving.state import ROLES, Role, StateFolder, read_json, write_json
from registry.signing import UnverifiedError

RETRY_S: Final = 30.0
"""How often a refused release is looked at again: its bytes or this host's keys may be mended."""
FIRST_TRY_S: Final = 60.0
LONGEST_TRY_S: Final = 3600.0
"""A release that could not be loaded is tried again after a minute, and then ever more seldom."""
SETTLE_S: Final = 3.0
"""A record is written a moment before its alias moves; so long that may look like a wrong alias."""
CHALLENGER_S: Final = 2.0
"""So long a look waits for the challenger's, which may download."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A release that may answer in a role.

    Attributes:
        folder: Its private copy.
        record: The newest alias record beside it; None where there is none, or none was read.
        task: "classifier" or "vae".
        takes: A digest of what rows it takes, as `registry.interface.digest_rows` gives it.
    """

    role: Role
    name: str
    version: int
    run_id: str
    folder: Path
    scoring_sha256: str
    statement_sha256: str
    record: AliasRecord | None = None
    task: str = ""
    takes: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A release that an alias points at and that may not answer.

    Attributes:
        sort: "unverified", "unrecorded", "too_large", "not_loaded" or "unfit".
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an alias was found, and when that is judged anew though it did not move.

    Attributes:
        at: Version and run; None where the alias points at nothing.
        is_good: Accepted, and not known to be one that cannot be loaded.
        told: The reason of the refusal that was told.
        failures: How often workers could not load it.
    """

    at: tuple[int, str] | None
    again: float = float("inf")
    is_good: bool = False
    told: str = ""
    failures: int = 0

    @property
    def version(self) -> int | None:
        return None if self.at is None else self.at[0]


class _Errand:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], News | None]) -> None:
        self._call = call
        self._news: News | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="look-beside", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._news = self._call()
        except BaseException as err:
            self._error = err

    def has_ended(self, wait_s: float) -> bool:
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def result(self) -> News | None:
        if self._error is not None:
            raise self._error
        return self._news


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
        """Needs the folder's lock."""
        self._catalog = catalog
        self._name = name
        self._aliases = dict(aliases)
        self._folder = folder
        self._keys = tuple(keys)
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = _read_seen(folder.path / "seen.json")
        self._kept = _read_kept(folder.path / "kept.json")
        self._places: dict[Role, _Place] = {}
        self._doubts: dict[Role, tuple[int, float]] = {}
        self._errand: _Errand | None = None
        self.reachable = True
        self._copies = Copies(catalog, name, folder.releases, self._keys)

    def alias(self, role: Role) -> str:
        return self._aliases[role]

    def look(self) -> list[News]:
        """Returns what is new since the last look; [] where the registry does not answer."""
        found: list[News] = []
        try:
            aliases = self._catalog.find_aliases(self._name)
            for role in self._roles:
                look = self._look_at if role == "champion" else self._look_beside
                news = look(role, aliases.get(self._aliases[role]))
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

    def _look_beside(self, role: Role, version: int | None) -> News | None:
        """Looks in another thread: a challenger's download holds up no news of the champion."""
        if self._errand is None:
            self._errand = _Errand(lambda: self._look_at(role, version))
        if not self._errand.has_ended(CHALLENGER_S):
            return None
        errand, self._errand = self._errand, None
        return errand.result()

    def _look_at(self, role: Role, version: int | None) -> News | None:
        place = self._places.get(role)
        if place is not None and place.version == version and self._clock() < place.again:
            self._doubts.pop(role, None)
            return None
        if version is None:
            self._places[role] = _Place(None)
            return Unset(role)
        release = self._catalog.find_alias(self._name, self._aliases[role])
        if release is None:
            return None  # it is gone since a moment ago: the next look says so
        at = (release.version, release.run_id)
        if place is None or place.at != at:
            place = _Place(at)
        elif place.is_good:  # nor was the registry made anew
            self._put(role, replace(place, again=self._clock() + RETRY_S))
            return None
        # Only after this: where the registry goes away in between, the next look begins anew.
        news = self._judge(role, release)
        if self._is_in_doubt(role, news):
            return None
        return self._settle(role, place, news)

    def _put(self, role: Role, place: _Place) -> None:
        with self._lock:
            self._places[role] = place

    def _is_in_doubt(self, role: Role, news: Accepted | Refusal) -> bool:
        """Tells whether a refusal may come from a look into the middle of a move."""
        if role not in self._places or isinstance(news, Accepted) or news.sort != "unrecorded":
            self._doubts.pop(role, None)
            return False
        version, since = self._doubts.get(role, (0, 0.0))
        if version != news.version:
            self._doubts[role] = (news.version, self._clock())
            return True
        return self._clock() < since + SETTLE_S

    def _settle(self, role: Role, place: _Place, news: Accepted | Refusal) -> News | None:
        again = self._clock() + RETRY_S
        if isinstance(news, Accepted):
            self._put(role, replace(place, again=again, is_good=True, told=""))
            return news
        self._put(role, replace(place, again=again, told=news.reason))
        return None if place.told == news.reason else news

    def not_loaded(self, accepted: Accepted) -> None:
        """Takes note that workers could not load a release: it is told again after a while."""
        with self._lock:
            place = self._places.get(accepted.role)
            if place is None or place.at != (accepted.version, accepted.run_id):
                return  # the alias has moved on
            pause = min(FIRST_TRY_S * 2 ** min(place.failures, 20), LONGEST_TRY_S)
            self._places[accepted.role] = replace(
                place,
                again=self._clock() + pause,
                is_good=False,
                failures=place.failures + 1,
            )

    # Whether a release may answer.

    def _judge(self, role: Role, release: Release) -> Accepted | Refusal:
        version, alias = release.version, self._aliases[role]
        try:
            found = self.fetch(release)
            self._catch_up(role)
            record = read_newest_record(self._catalog, release, alias, self._keys)
            reason = self._objection(role, version, found.statement_sha256, record)
        except (UnverifiedError, UsageError) as err:
            return Refusal(role, version, "unverified", f"does not verify: {err}")
        except TooLargeError as err:
            return Refusal(role, version, "too_large", f"is not fetched: {err}")
        if reason is not None:
            return Refusal(role, version, "unrecorded", f"may not be followed: {reason}")
        return _accepted(role, found, record)

    def _objection(
        self, role: Role, version: int, statement_sha256: str, record: AliasRecord | None
    ) -> str | None:
        with self._lock:
            seen = self._seen.get(role)
        reason = may_follow(seen, version, statement_sha256, record)
        strict = goes_back(seen, version)
        is_newer = seen is not None and version > seen.version
        if reason is not None or record is None or not (strict or is_newer):
            return reason
        # A newer one needs no record; but it may have been left while this server slept.
        releases = self._find_all(role)
        later = find_later_move(self._catalog, releases, record, self._keys, strict=strict)
        return later and f"its signed record is {record.number}, but {later}"

    def _find_all(self, role: Role) -> list[Release]:
        """All releases that may have a record, and what answers though it was deleted there."""
        releases = [one for one in self._catalog.find_releases(self._name) if one.is_ours]
        held = self._held(role)
        runs = {one.run_id for one in releases}
        return releases if held is None or held.run_id in runs else [held, *releases]

    def _held(self, role: Role) -> Release | None:
        with self._lock:
            kept = self._kept.get(role)
        return None if kept is None else Release(self._name, *kept, "")

    def _catch_up(self, role: Role) -> None:
        """Takes note of a later move to what answers, which makes earlier records void."""
        held = self._held(role)
        if held is not None:
            record = read_newest_record(self._catalog, held, self._aliases[role], self._keys)
            self._advance(role, held.version, record)

    def fetch(self, release: Release) -> Verified:
        """Returns a private, verified copy of a release, as `Copies.fetch` does."""
        return self._copies.fetch(release)

    # What answers.

    def find_kept(self) -> list[Accepted]:
        """Returns what was served before this start and verifies still, without the registry."""
        found = []
        for role in self._roles:
            held = self._held(role)
            with suppress(UsageError):
                copy = held and self._copies.find(held.version, held.run_id)
                if copy:
                    found.append(_accepted(role, copy, None))
        return found

    def still_verifies(self, held: Accepted) -> bool:
        """Tells whether what answers would verify with the keys that are here now."""
        return self._copies.verifies(held.folder, held.version, held.run_id)

    def hold(self, accepted: Accepted) -> None:
        """Takes note that all workers answer with a release."""
        with self._lock:
            self._kept[accepted.role] = (accepted.version, accepted.run_id)
            kept = {
                role: {"version": version, "run_id": run_id}
                for role, (version, run_id) in self._kept.items()
            }
            write_json(self._folder.path / "kept.json", kept)
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
        found.spec.task,
        digest_rows(found.spec.input),
    )


def _read_kept(path: Path) -> dict[Role, tuple[int, str]]:
    """What was served before; where it is damaged, nothing: `seen.json` keeps off the way back."""
    value = read_json(path)
    kept: dict[Role, tuple[int, str]] = {}
    for role in ROLES:
        with suppress(KeyError, TypeError, ValueError):
            kept[role] = (int(value[role]["version"]), str(value[role]["run_id"]))
    return kept


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
