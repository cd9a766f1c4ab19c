"""Promotions, approvals and rollbacks that are killed, and that meet: the alias and the ledger.

`PODIUM_TEST_SEEDS=20` has sixteen of them meet twenty times; `make faults-registry` does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from mlops.settings import Settings
from registry.alias import Registry
from registry.approve import approve
from registry.failpoints import PLACES
from registry.moves import open_intent
from registry.promote import promote
from registry.releases import fetch_release
from registry.rollback import rollback
from tests.registry.children import end, run, start
from tests.registry.sides import NAME

Register = Callable[..., int]
N_SEEDS = int(os.environ.get("PODIUM_TEST_SEEDS", "1"))
PROMOTING = [place for place in PLACES if place not in ("proposed", "approved")]


def assert_sound(registry: Registry) -> None:
    """The alias resolves to a release that verifies, or to none; the ledger is whole."""
    held = registry.catalog.find_alias(NAME, "champion")
    if held is not None:
        place = registry.settings.home / f"check-{len(list(registry.settings.home.iterdir()))}"
        place.mkdir()
        fetch_release(registry.catalog, held, place, registry.settings.public_keys)
    assert registry.ledger.check() == []


@pytest.mark.parametrize("place", PROMOTING)
def test_killed_at_any_step_the_same_command_completes_it(
    registry: Registry, settings: Settings, register: Register, place: str
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME)
    register(right=9.0, value=0.95)
    killed = run(settings.home, "promote", place, version=2)
    assert killed.exitcode == -signal.SIGKILL
    assert_sound(registry)
    held = registry.catalog.find_alias(NAME, "champion")
    assert held is not None
    moved = place in ("alias", "done", "noted")
    assert held.version == (2 if moved else 1)
    done = promote(registry, NAME, version=2)
    assert done.version == 2
    assert done.decision == ("unchanged" if moved else "promoted")
    assert_sound(registry)
    assert registry.catalog.find_aliases(NAME) == {"champion": 2}
    assert [one.version for one in registry.catalog.find_releases(NAME)] == [2, 1]
    events = registry.ledger.events(NAME)
    assert open_intent(events, "champion") is None
    moves = [event.body["to"] for event in events if event.kind == "done"]
    assert moves == [1, 2]
    assert promote(registry, NAME, version=2).decision == "unchanged"


@pytest.mark.parametrize("place", ["intent", "record", "alias", "done"])
def test_a_rollback_that_is_killed_is_completed_by_the_same_command(
    registry: Registry, settings: Settings, register: Register, place: str
) -> None:
    for value in (0.9, 0.95):
        register(right=9.0, value=value)
        promote(registry, NAME)
    assert run(settings.home, "rollback", place, to=1).exitcode == -signal.SIGKILL
    assert_sound(registry)
    assert rollback(registry, NAME, 1).version == 1
    assert registry.catalog.find_aliases(NAME) == {"champion": 1}
    kinds = [event.kind for event in registry.ledger.events(NAME)]
    assert kinds.count("rolled_back") == 1
    assert_sound(registry)


@pytest.mark.parametrize("place", ["proposed", "approved", "intent", "record", "alias", "done"])
def test_a_proposal_that_is_killed_is_completed_by_the_same_command(
    registry: Registry, settings: Settings, register: Register, place: str
) -> None:
    register(right=9.0, value=0.9)
    if place == "proposed":
        killed = run(settings.home, "promote", place, propose=True)
        assert killed.exitcode == -signal.SIGKILL
    assert promote(registry, NAME, version=1, propose=True).decision == "proposed"
    assert registry.catalog.find_aliases(NAME) == {}
    if place != "proposed":
        assert run(settings.home, "approve", place, version=1).exitcode == -signal.SIGKILL
    approve(registry, NAME, 1)
    assert registry.catalog.find_aliases(NAME) == {"champion": 1}
    kinds = [event.kind for event in registry.ledger.events(NAME)]
    assert kinds.count("done") == 1
    assert_sound(registry)


@pytest.mark.parametrize("seed", range(N_SEEDS))
def test_of_sixteen_promotions_at_once_one_wins_and_the_others_say_who_holds_it(
    registry: Registry, settings: Settings, register: Register, seed: int
) -> None:
    register(right=9.0, value=0.9)
    children = [start(settings.home, "promote") for _ in range(16)]
    ended = [end(*child) for child in children]
    decisions = [one.result["decision"] for one in ended if one.result is not None]
    assert decisions.count("promoted") == 1
    assert set(decisions) <= {"promoted", "unchanged"}  # one that came after the winner was done
    errors = [one.error for one in ended if one.error is not None]
    assert len(errors) + len(decisions) == 16
    assert {kind for kind, _ in errors} <= {"LeaseHeldError"}
    assert all("promote, pid" in said for _, said in errors)
    assert [event.kind for event in registry.ledger.events(NAME)] == ["intent", "done"]
    assert_sound(registry)
    assert registry.catalog.find_aliases(NAME) == {"champion": 1}
