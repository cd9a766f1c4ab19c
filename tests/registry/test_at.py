"""What held the alias then: random promotions and rollbacks, killed at random, beside a model.

`PODIUM_TEST_SEEDS=20` plays twenty times fifty of them; `make faults-registry` does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlops.data import Dataset
from mlops.mlflow_store import open_store_client
from registry.alias import Registry, open_registry
from registry.history import compare
from registry.moves import holding_at
from tests.registry.children import WORKS, run
from tests.registry.sides import NAME, Sides, probe_sides, settings_for

N_SEEDS = int(os.environ.get("PODIUM_TEST_SEEDS", "1"))
N_STEPS = 50 if N_SEEDS > 1 else 20
MOVED = ("alias", "done", "noted")


@dataclass(frozen=True, slots=True)
class Rest:
    """A while in which nothing moved.

    Attributes:
        holder: The candidate whose release held the alias, by the model.
        is_open: Whether the move before it was killed between its intent and its end.
    """

    start: datetime
    end: datetime
    holder: int | None
    is_open: bool


@dataclass
class World:
    """A registry in a home of its own, and the model: who holds the alias, and who did before."""

    sides: Sides
    registry: Registry
    n_candidates: int = 0
    holder: int | None = None
    replaced: dict[int, int | None] = field(default_factory=dict)
    is_open: bool = False
    rests: list[Rest] = field(default_factory=list)
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def play(self, work: str, place: str | None, **asked: Any) -> bool:
        """Has it done here, or in a child that is killed at a place; tells whether it was."""
        self.rests.append(Rest(self.since, datetime.now(UTC), self.holder, self.is_open))
        if place is None:
            WORKS[work](self.registry, NAME, **asked)  # type: ignore[operator]
            return False
        ended = run(self.registry.settings.home, work, place, **asked)
        assert ended.error is None, ended.error
        return ended.exitcode != 0

    def note(self, to: int, was_killed: bool, place: str | None, is_promotion: bool) -> None:
        """Moves the model as a process that ended so, having come by its failpoint, must."""
        if was_killed and place == "lease":
            pass  # a lease that was got has settled nothing yet
        else:
            self.is_open = was_killed and place in ("intent", "alias")
        if not was_killed or place in MOVED:
            if to != self.holder and is_promotion:
                self.replaced[to] = self.holder
            self.holder = to
        self.since = datetime.now(UTC)


class Moves(RuleBasedStateMachine):
    make_world: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.world: World = type(self).make_world()

    def teardown(self) -> None:
        check_all(self.world)

    @rule(place=st.sampled_from((None, "measured", "upload", "described", "intent", *MOVED)))
    def promote_a_new_one(self, place: str | None) -> None:
        world = self.world
        world.n_candidates += 1
        number = world.sides.register(right=9.0, value=0.5 + world.n_candidates / 1000)
        was_killed = world.play("promote", place, version=number)
        world.note(number, was_killed, place, is_promotion=True)

    @precondition(lambda self: self.world.n_candidates > 1)
    @rule(
        data=st.data(), place=st.sampled_from((None, None, "lease", "measured", "intent", *MOVED))
    )
    def promote_an_old_one(self, data: st.DataObject, place: str | None) -> None:
        world = self.world
        number = data.draw(st.integers(1, world.n_candidates))
        was_killed = world.play("promote", place, version=number)
        world.note(number, was_killed, place, is_promotion=True)

    @precondition(lambda self: self.world.replaced.get(self.world.holder) is not None)
    @rule(place=st.sampled_from((None, None, "lease", "intent", "alias", "done")))
    def roll_back(self, place: str | None) -> None:
        world = self.world
        to = world.replaced[world.holder]  # type: ignore[index]
        assert to is not None
        was_killed = world.play("rollback", place)
        world.note(to, was_killed, place, is_promotion=False)

    @invariant()
    def mlflow_agrees(self) -> None:
        client = self.world.sides.client
        model = client.search_registered_models(f"name = '{NAME}'")
        aliases = model[0].aliases if model else {}
        found = None
        if "champion" in aliases:
            version = client.get_model_version(NAME, aliases["champion"])
            found = int(version.tags["mlops.candidate"].rsplit("/", 1)[1])
        assert found == self.world.holder


def check_all(world: World) -> None:
    """Asks the history about every rest, and has the ledger compared with MLflow."""
    world.rests.append(Rest(world.since, datetime.now(UTC), world.holder, world.is_open))
    registry = world.registry
    events = registry.ledger.events(NAME)
    releases = registry.catalog.find_releases(NAME)
    candidates = {one.version: int(one.candidate.rsplit("/", 1)[1]) for one in releases}
    n_sure = 0
    for rest in world.rests:
        when = rest.start + (rest.end - rest.start) / 2
        holding = holding_at(events, "champion", when)
        answers = [holding.version]
        if holding.moving_to is not None:
            assert rest.is_open, "it says that it is moving where nothing was interrupted"
            answers.append(holding.moving_to)
        else:
            n_sure += 1
        named = [None if one is None else candidates[one] for one in answers]
        assert rest.holder in named, (when, rest, holding)
    assert n_sure > 0
    assert registry.ledger.check() == []
    heads = {event.hash for event in registry.ledger.events()}
    statements = {one.version: registry.catalog.read_statement(one) for one in releases}
    aliases = registry.catalog.find_aliases(NAME)
    differences = compare(events, heads, aliases, statements)
    # Only what a kill leaves behind, and the next command mends.
    assert all(
        "has no end" in one or "no event of the ledger names it" in one for one in differences
    ), differences


@pytest.fixture
def machine(
    dataset: Dataset,
    mlflow_database: Path,
    made_models: tuple[Path, dict[float, Path]],
) -> Iterator[type[Moves]]:
    worlds = contextlib.ExitStack()
    place, made = made_models

    def make_world() -> World:
        folder = Path(worlds.enter_context(tempfile.TemporaryDirectory(prefix="podium-moves-")))
        home = folder / "home"
        home.mkdir()
        shutil.copy(mlflow_database, home / "mlflow.db")
        found = settings_for(home, dataset)
        sides = Sides(open_store_client(found), dataset, folder, place, made)
        return World(sides, worlds.enter_context(open_registry(found, probe=probe_sides)))

    with worlds:
        yield type("Played", (Moves,), {"make_world": staticmethod(make_world)})


def test_history_answers_who_held_the_alias(machine: type[Moves]) -> None:
    case = machine.TestCase
    case.settings = settings_of(
        max_examples=N_SEEDS,
        stateful_step_count=N_STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").runTest()
