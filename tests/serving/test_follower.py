"""What an alias points at is followed where it verifies and may be followed, and else refused."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from mlops.mlflow_store import open_client
from registry import sizes
from registry.alias import Registry
from registry.alias_record import MOST_BYTES, AliasRecord, read_newest_record
from registry.catalog import MOVES_PATH, RELEASE_PATH, Catalog, Release
from registry.rollback import rollback
from registry.serving.follower import (
    FIRST_TRY_S,
    RETRY_S,
    SETTLE_S,
    Accepted,
    Follower,
    Refusal,
    Unset,
)
from registry.serving.state import Role, StateFolder
from tests.registry.sides import NAME

ALIASES: dict[Role, str] = {"champion": "champion"}


@dataclass
class World:
    """A follower of the shared home, with a folder and a clock of its own."""

    registry: Registry
    folder: StateFolder
    now: list[float] = field(default_factory=lambda: [0.0])

    def follower(self, catalog: Catalog | None = None, keys: Any = None) -> Follower:
        return Follower(
            catalog or self.registry.catalog,
            NAME,
            ALIASES,
            self.folder,
            self.registry.settings.public_keys if keys is None else keys,
            clock=lambda: self.now[0],
        )

    def by_hand(self, version: int) -> None:
        """Moves the alias as whoever can write in MLflow's registry can."""
        client = self.registry.catalog._client
        client.set_registered_model_alias(NAME, "champion", str(version))


@pytest.fixture
def world(registry: Registry, tmp_path: Path) -> World:
    rollback(registry, NAME, to=3)
    folder = StateFolder(tmp_path / "state")
    folder.create()
    folder.clean()
    return World(registry, folder)


def accept(follower: Follower) -> Accepted:
    (news,) = follower.look()
    assert isinstance(news, Accepted), news
    follower.hold(news)
    return news


def refusal(follower: Follower) -> Refusal:
    (news,) = follower.look()
    assert isinstance(news, Refusal), news
    return news


def late_refusal(world: World, follower: Follower) -> Refusal:
    """What stays refused after the moment that a move takes."""
    assert follower.look() == []
    world.now[0] += SETTLE_S
    return refusal(follower)


def private(world: World, version: int) -> list[Path]:
    return sorted(world.folder.releases.glob(f"{version}-*"))


def test_what_the_alias_points_at_is_fetched_verified_and_told_once(world: World) -> None:
    follower = world.follower()
    found = accept(follower)
    assert found.version == 3
    assert [found.folder] == private(world, 3)
    assert found.folder.name == f"3-{found.statement_sha256[:12]}"
    assert (found.folder / "model.sig").is_file()
    assert follower.look() == []


def test_a_rollback_and_the_way_back_are_followed(world: World) -> None:
    follower = world.follower()
    accept(follower)
    for version in (1, 2, 1, 3):
        rollback(world.registry, NAME, to=version)
        assert accept(follower).version == version


def test_an_alias_moved_back_by_hand_is_not_followed(world: World) -> None:
    follower = world.follower()
    accept(follower)
    rollback(world.registry, NAME, to=2)
    accept(follower)
    rollback(world.registry, NAME, to=3)
    accept(follower)
    # Beside version 2 lies a record that was followed before.
    world.by_hand(2)
    found = late_refusal(world, follower)
    assert (found.version, found.sort) == (2, "unrecorded")
    world.by_hand(3)
    assert accept(follower).version == 3


def test_what_was_followed_is_remembered_over_a_restart(world: World) -> None:
    accept(world.follower())
    world.by_hand(1)
    assert refusal(world.follower()).sort == "unrecorded"


def test_a_memory_that_was_damaged_is_no_memory_of_nothing(world: World) -> None:
    accept(world.follower())
    (world.folder.path / "seen.json").write_text("{")
    with pytest.raises(MlopsError, match="does not say what was served before"):
        world.follower()


@contextmanager
def changed(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(change(content))
    try:
        yield
    finally:
        path.write_bytes(content)


def stored(world: World, version: int) -> Path:
    run = world.registry.catalog.get_release(NAME, version).run_id
    (found,) = world.registry.settings.artifact_root.rglob(f"{run}/artifacts/{RELEASE_PATH}")
    return found


def test_a_release_that_was_altered_is_refused_once_and_followed_when_it_is_mended(
    world: World,
) -> None:
    follower = world.follower()
    with changed(stored(world, 3) / "requirements.txt", lambda old: old + b"# more\n"):
        found = refusal(follower)
        assert (found.sort, found.version) == ("unverified", 3)
        assert "requirements.txt" in found.reason
        assert follower.look() == []
        world.now[0] += RETRY_S + 1
        assert follower.look() == []
        assert list(world.folder.releases.iterdir()) == []
    world.now[0] += RETRY_S + 1
    assert accept(follower).version == 3


def test_a_private_copy_that_was_altered_is_fetched_anew(world: World) -> None:
    altered = accept(world.follower()).folder
    (altered / "requirements.txt").write_text("")
    found = accept(world.follower())
    assert (found.folder / "requirements.txt").read_text()
    assert private(world, 3) == [altered, found.folder]
    assert accept(world.follower()).folder == found.folder


def test_a_registry_that_does_not_answer_is_no_news(world: World) -> None:
    accept(world.follower())
    gone = Catalog(open_client("http://127.0.0.1:9"))
    follower = world.follower(gone)
    assert follower.look() == []
    assert not follower.reachable
    (kept,) = follower.find_kept()
    assert kept.version == 3


class Away(Catalog):
    """A catalog whose registry goes away and comes back."""

    is_away = False

    def find_aliases(self, name: str) -> dict[str, int]:
        if self.is_away:
            raise MlopsError("the model registry did not do it")
        return super().find_aliases(name)


def test_what_moved_while_the_registry_was_gone_is_followed_when_it_is_back(world: World) -> None:
    catalog = Away(world.registry.catalog._client)
    follower = world.follower(catalog)
    accept(follower)
    catalog.is_away = True
    rollback(world.registry, NAME, to=2)
    rollback(world.registry, NAME, to=1)
    assert follower.look() == []
    assert not follower.reachable
    catalog.is_away = False
    assert accept(follower).version == 1
    assert follower.reachable


def test_a_kept_copy_that_does_not_verify_is_not_served(world: World) -> None:
    held = accept(world.follower())
    (held.folder / "golden.json").write_text("{}")
    assert world.follower().find_kept() == []


def test_with_its_key_removed_nothing_new_is_followed_and_what_answers_is_told_of(
    world: World, tmp_path: Path
) -> None:
    key = tmp_path / "public.pem"
    shutil.copy(world.registry.settings.public_keys[0], key)
    follower = world.follower(keys=[key])
    held = accept(follower)
    assert follower.still_verifies(held)
    other = tmp_path / "other"
    _make_public(other)
    shutil.copy(other, key)
    assert not follower.still_verifies(held)
    rollback(world.registry, NAME, to=2)
    assert refusal(follower).sort == "unverified"
    assert follower.find_kept() == []
    key.unlink()
    rollback(world.registry, NAME, to=1)
    assert "no public key" in refusal(follower).reason


def _make_public(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path.write_bytes(pem)


def test_an_alias_that_is_deleted_is_told_once(world: World) -> None:
    follower = world.follower()
    accept(follower)
    world.registry.catalog._client.delete_registered_model_alias(NAME, "champion")
    assert follower.look() == [Unset("champion")]
    assert follower.look() == []


# Moves that were slept through, played again.


def test_a_move_that_a_stopped_server_slept_through_is_not_played_to_it_when_it_starts(
    world: World,
) -> None:
    accept(world.follower())
    for version in (2, 3):
        rollback(world.registry, NAME, to=version)
    world.by_hand(2)
    found = refusal(world.follower())
    assert (found.version, found.sort) == (2, "unrecorded")
    assert "is of an earlier move than record" in found.reason


def test_a_move_that_a_running_server_slept_through_is_not_played_to_it(world: World) -> None:
    follower = world.follower()
    rollback(world.registry, NAME, to=2)
    accept(follower)
    for version in (1, 3, 1, 3):  # nothing of it lies beside version 2
        rollback(world.registry, NAME, to=version)
    world.by_hand(1)
    found = late_refusal(world, follower)
    assert (found.version, found.sort) == (1, "unrecorded")
    assert "beside version 3 is of a later move" in found.reason
    world.by_hand(3)
    assert accept(follower).version == 3


def test_a_newer_release_that_was_left_meanwhile_is_not_followed(world: World) -> None:
    rollback(world.registry, NAME, to=2)
    accept(world.follower())
    for version in (3, 2):
        rollback(world.registry, NAME, to=version)
    world.by_hand(3)
    found = refusal(world.follower())
    assert (found.version, found.sort) == (3, "unrecorded")
    assert "beside version 2 is of a later move" in found.reason


def test_junk_keeps_no_server_from_a_newer_release(world: World) -> None:
    rollback(world.registry, NAME, to=2)
    accept(world.follower())
    rollback(world.registry, NAME, to=3)
    catalog = world.registry.catalog
    release = catalog.get_release(NAME, 1)
    catalog.write_move(release, "champion", "99999.sig", b"junk")
    try:
        assert accept(world.follower()).version == 3
        rollback(world.registry, NAME, to=2)
        assert "99999.sig beside version 1 does not" in refusal(world.follower()).reason
    finally:
        (stored(world, 1).parent / MOVES_PATH / "champion" / "99999.sig").unlink()


def newest(world: World, version: int) -> AliasRecord:
    catalog = world.registry.catalog
    release = catalog.get_release(NAME, version)
    found = read_newest_record(catalog, release, "champion", world.registry.settings.public_keys)
    assert found is not None
    return found


@pytest.mark.parametrize("file", ["json", "sig"])
@pytest.mark.parametrize("junk", [b"junk", b" " * (MOST_BYTES + 1)])
def test_a_record_that_was_overwritten_opens_no_way_back(
    world: World, file: str, junk: bytes
) -> None:
    accept(world.follower())
    for version in (2, 3):
        rollback(world.registry, NAME, to=version)
    number = newest(world, 3).number
    moves = stored(world, 3).parent / MOVES_PATH / "champion"
    with changed(moves / f"{number}.{file}", lambda _: junk):
        world.by_hand(2)
        found = refusal(world.follower())
        assert (found.version, found.sort) == (2, "unrecorded")
        assert f"moves/champion/{number}.sig beside version 3 does not verify" in found.reason
        # A move that was made has a higher number.
        rollback(world.registry, NAME, to=3)
        rollback(world.registry, NAME, to=1)
        assert accept(world.follower()).version == 1


class Unlisted(Catalog):
    """A catalog that cannot say which releases there are."""

    is_silent = True

    def find_releases(self, name: str) -> list[Release]:
        if self.is_silent:
            raise MlopsError("the model registry did not do it")
        return super().find_releases(name)


def test_where_not_all_records_can_be_read_a_server_waits(world: World) -> None:
    accept(world.follower())
    rollback(world.registry, NAME, to=2)
    catalog = Unlisted(world.registry.catalog._client)
    follower = world.follower(catalog)
    assert follower.look() == []
    assert not follower.reachable
    catalog.is_silent = False
    assert accept(follower).version == 2


class Between(Catalog):
    """Has a move half done when it is asked for the releases: recorded, and the alias not there."""

    registry: Registry
    move: list[int]

    def find_releases(self, name: str) -> list[Release]:
        if self.move:
            rollback(self.registry, NAME, to=self.move.pop())
            self._client.set_registered_model_alias(NAME, "champion", "2")
        return super().find_releases(name)


def test_a_look_into_the_middle_of_a_move_refuses_nothing(world: World) -> None:
    catalog = Between(world.registry.catalog._client)
    catalog.registry, catalog.move = world.registry, []
    follower = world.follower(catalog)
    accept(follower)
    rollback(world.registry, NAME, to=2)
    catalog.move = [1]
    assert follower.look() == []
    assert follower.reachable
    world.by_hand(1)  # the move comes to its end
    assert accept(follower).version == 1


# Copies.


def test_the_folder_of_what_answers_stays_when_its_key_is_gone(
    world: World, tmp_path: Path
) -> None:
    key = tmp_path / "public.pem"
    shutil.copy(world.registry.settings.public_keys[0], key)
    follower = world.follower(keys=[key])
    held = accept(follower)
    _make_public(tmp_path / "other")
    shutil.copy(tmp_path / "other", key)
    rollback(world.registry, NAME, to=2)
    assert refusal(follower).sort == "unverified"
    rollback(world.registry, NAME, to=3)
    assert refusal(follower).sort == "unverified"
    assert (held.folder / "model.sig").is_file()


class Anew(Catalog):
    """A catalog whose registry may be made anew, with the same versions of other runs."""

    is_anew = False

    def find_alias(self, name: str, alias: str) -> Release | None:
        found = super().find_alias(name, alias)
        assert found is not None
        run = "e" * 32
        anew = Release(name, found.version, run, found.candidate, f"runs:/{run}/{RELEASE_PATH}")
        return anew if self.is_anew else found


def test_the_same_version_of_another_run_is_another_release(world: World) -> None:
    catalog = Anew(world.registry.catalog._client)
    follower = world.follower(catalog)
    accept(follower)
    world.now[0] += RETRY_S + 1
    assert follower.look() == []
    catalog.is_anew = True
    world.now[0] += RETRY_S + 1
    assert "its bytes are gone" in refusal(follower).reason


class Large(Catalog):
    """A catalog that lists a release as larger than it is."""

    size = (0, 0)

    def find_size(self, release: Release, most_files: int) -> tuple[int, int]:
        true = super().find_size(release, most_files)
        assert true[0] > 1000 and 5 < true[1] < 30
        return self.size


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((sizes.MOST_BYTES + 1, 9), "bytes; at most"),
        ((9, sizes.MOST_FILES + 1), "more than 1,000 files"),
    ],
)
def test_a_release_that_is_too_large_is_not_downloaded(
    world: World, size: tuple[int, int], why: str
) -> None:
    catalog = Large(world.registry.catalog._client)
    catalog.size = size
    follower = world.follower(catalog)
    found = refusal(follower)
    assert found.sort == "too_large" and why in found.reason
    assert list(world.folder.releases.iterdir()) == []
    catalog.size = (9, 9)
    world.now[0] += RETRY_S + 1
    assert accept(follower).version == 3


def test_a_release_that_the_disk_has_no_room_for_is_not_downloaded() -> None:
    free = 10 * sizes.SPARE_BYTES
    assert sizes.judge_size(free - sizes.SPARE_BYTES, 9, free) is None
    said = sizes.judge_size(free - sizes.SPARE_BYTES + 1, 9, free)
    assert said is not None and "no room" in said
    assert "no room" in str(sizes.judge_size(0, 9, 0))


def test_a_listing_without_end_is_not_read_to_its_end(world: World) -> None:
    release = world.registry.catalog.get_release(NAME, 3)
    size, files = world.registry.catalog.find_size(release, 1000)
    assert size == sum(one.stat().st_size for one in stored(world, 3).rglob("*") if one.is_file())
    assert world.registry.catalog.find_size(release, 0)[1] < files
    assert world.registry.catalog.find_size(Release(NAME, 3, "e" * 32, ""), 9) == (0, 0)


def test_what_a_killed_download_left_is_removed(world: World) -> None:
    (world.folder.releases / ".3.abc.new").mkdir()
    world.follower()
    assert list(world.folder.releases.iterdir()) == []


# Tried again.


def test_what_could_not_be_loaded_is_told_again_ever_more_seldom(world: World) -> None:
    follower = world.follower()
    (found,) = follower.look()
    assert isinstance(found, Accepted)
    for pause in (FIRST_TRY_S, 2 * FIRST_TRY_S):
        follower.not_loaded(found)
        world.now[0] += pause - 1
        assert follower.look() == []
        world.now[0] += 1
        assert follower.look() == [found]
    follower.not_loaded(found)
    rollback(world.registry, NAME, to=2)
    moved = accept(follower)
    follower.not_loaded(found)  # it is wanted no more
    world.now[0] += 100 * FIRST_TRY_S
    assert (moved.version, follower.look()) == (2, [])


class Slow(Catalog):
    """A catalog that gives version 1 when it is told to."""

    go: threading.Event

    def download(self, version: Any, folder: Path) -> Path:
        if version.version == 1:
            assert self.go.wait(30)
        return super().download(version, folder)


def test_a_challenger_that_takes_long_to_come_holds_up_no_champion(world: World) -> None:
    client = world.registry.catalog._client
    client.set_registered_model_alias(NAME, "challenger", "1")
    catalog = Slow(client)
    catalog.go = threading.Event()
    both: dict[Role, str] = {"champion": "champion", "challenger": "challenger"}
    keys = world.registry.settings.public_keys
    follower = Follower(catalog, NAME, both, world.folder, keys)
    try:
        assert accept(follower).version == 3
        rollback(world.registry, NAME, to=2)
        assert accept(follower).version == 2
        catalog.go.set()
        found = accept(follower)
        assert (found.role, found.version) == ("challenger", 1)
    finally:
        catalog.go.set()
        client.delete_registered_model_alias(NAME, "challenger")
