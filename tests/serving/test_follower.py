"""What an alias points at is followed where it verifies and may be followed, and else refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from mlops.mlflow_store import open_client
from registry.alias import Registry
from registry.catalog import RELEASE_PATH, Catalog
from registry.rollback import rollback
from registry.serving.follower import RETRY_S, Accepted, Follower, Refusal, Unset
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


def test_what_the_alias_points_at_is_fetched_verified_and_told_once(world: World) -> None:
    follower = world.follower()
    found = accept(follower)
    assert (found.version, found.folder) == (3, world.folder.release(3))
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
    found = refusal(follower)
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
        assert not world.folder.release(3).exists()
    world.now[0] += RETRY_S + 1
    assert accept(follower).version == 3


def test_a_private_copy_that_was_altered_is_fetched_anew(world: World) -> None:
    accept(world.follower())
    (world.folder.release(3) / "requirements.txt").write_text("")
    found = accept(world.follower())
    assert (found.folder / "requirements.txt").read_text()


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
    accept(world.follower())
    (world.folder.release(3) / "golden.json").write_text("{}")
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
