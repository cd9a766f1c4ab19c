"""What the ledger's moves say, against a model of the alias kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from registry.events import Actor, Event, Kind
from registry.moves import (
    Holding,
    Misplaced,
    count_decisions,
    find_misplaced,
    holding_at,
    open_intent,
    present_holder,
    previous_holder,
)

START = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def event(seq: int, kind: Kind, minute: float, /, **body: Any) -> Event:
    return Event(
        seq, kind, "m", body.get("to"), Actor("ada", "database"), at(minute), body, "a", ""
    )


def moves(*versions: int | tuple[str, int]) -> list[Event]:
    """The events of promotions (a version) and rollbacks ("back", version), two minutes each."""
    events: list[Event] = []
    now: int | None = None
    for each in versions:
        back, to = each if isinstance(each, tuple) else ("", each)
        seq = len(events) + 1
        body = {"alias": "champion", "from": now, "to": to}
        move = "rollback" if back else "promote"
        events.append(event(seq, "intent", seq, **body, move=move))
        end: Kind = "rolled_back" if back else "done"
        events.append(event(seq + 1, end, seq + 1, **body, intent=seq))
        now = to
    return events


def held(holding: Holding) -> tuple[int | None, int | None]:
    return holding.version, holding.moving_to


def test_a_move_is_neither_here_nor_there_between_its_two_events() -> None:
    events = moves(1, 2)
    answers = [held(holding_at(events, "champion", at(minute))) for minute in (0, 1, 2, 3, 3.5, 4)]
    assert answers == [(None, None), (None, 1), (1, None), (1, 2), (1, 2), (2, None)]
    found = holding_at(events, "champion", at(99))
    assert (found.since, found.event) == (at(4), events[3])
    assert holding_at(events, "challenger", at(99)) == Holding()


def test_an_abandoned_move_never_began() -> None:
    body = {"alias": "champion", "from": 1, "to": 2}
    began = [*moves(1), event(3, "intent", 3, **body, move="promote")]
    assert held(holding_at(began, "champion", at(4))) == (1, 2)
    assert open_intent(began, "champion") == began[-1]
    assert open_intent(began, "challenger") is None
    ended = [*began, event(4, "abandoned", 9, alias="champion", intent=3)]
    assert held(holding_at(ended, "champion", at(4))) == (1, None)
    assert holding_at(ended, "champion", at(9)).since == at(2)
    assert open_intent(ended, "champion") is None


def test_a_version_that_is_promoted_again_holds_it_all_the_time() -> None:
    events = moves(1, 2, 2)
    assert held(holding_at(events, "champion", at(5))) == (2, None)
    assert holding_at(events, "champion", at(9)).since == at(4)
    assert previous_holder(events, "champion") == 1
    assert open_intent(events[:-1], "champion") == events[-2]


def recorded(kind: Kind, was: int | None, to: int, before: list[Event]) -> list[Event]:
    """A move's two events; `was` may be what the ledger does not know of."""
    seq = len(before) + 1
    body = {"alias": "champion", "from": was, "to": to}
    move = "promote" if kind == "done" else "rollback"
    intent = event(seq, "intent", seq, **body, move=move)
    return [*before, intent, event(seq + 1, kind, seq + 1, **body, intent=seq)]


@pytest.mark.parametrize("was", [1, 2])  # as earlier versions wrote it, and as it is written now
def test_a_move_by_hand_that_was_recorded_counts_from_then_on(was: int) -> None:
    events = recorded("rolled_back", was, 1, moves(1, 2))
    assert [held(holding_at(events, "champion", at(minute))) for minute in (4, 5, 6)] == [
        (2, None),
        (2, 1),
        (1, None),
    ]
    assert present_holder(events, "champion") == 1
    assert previous_holder(events, "champion") is None  # 1 replaced none when it was promoted
    again = recorded("done", 2 if was == 2 else 1, 1, moves(1, 2))
    assert previous_holder(again, "champion") == 2


def test_an_alias_that_is_elsewhere_is_found_and_one_that_is_being_moved_is_not() -> None:
    events = moves(1, 2)
    assert find_misplaced(events, {"champion": 2}) == []
    assert find_misplaced(events, {"champion": 1}) == [Misplaced("champion", 1, 2)]
    assert find_misplaced(events, {}) == [Misplaced("champion", None, 2)]
    assert find_misplaced(events, {"champion": 2, "staging": 1}) == [Misplaced("staging", 1, None)]
    moving = recorded("done", 2, 3, events)[:-1]
    assert [find_misplaced(moving, {"champion": version}) for version in (2, 3)] == [[], []]
    assert find_misplaced(moving, {"champion": 1}) == [Misplaced("champion", 1, 2)]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ((), None),
        ((1,), None),
        ((1, 2, 3), 2),
        ((1, 2, 3, ("back", 2)), 1),
        ((1, 2, 3, ("back", 2), ("back", 1)), None),
        ((1, 2, 3, ("back", 1)), None),
        ((1, 2, ("back", 1), 3), 1),
        ((1, 2, 1), 2),
        ((1, 2, 3, 2), 3),
    ],
)
def test_a_rollback_goes_to_what_the_holder_replaced(
    made: tuple[int | tuple[str, int], ...], expected: int | None
) -> None:
    assert previous_holder(moves(*made), "champion") == expected


@given(st.lists(st.booleans(), max_size=30))
def test_promotions_of_new_versions_and_rollbacks_are_a_stack(promotions: list[bool]) -> None:
    stack: list[int] = []
    made: list[int | tuple[str, int]] = []
    for number, promotes in enumerate(promotions):
        if promotes:
            stack.append(number)
            made.append(number)
        elif len(stack) > 1:
            stack.pop()
            made.append(("back", stack[-1]))
        expected = stack[-2] if len(stack) > 1 else None
        assert previous_holder(moves(*made), "champion") == expected


def test_decisions_are_counted_over_all_models_by_the_rows_they_were_made_on() -> None:
    body = {"alias": "champion", "from": None, "to": 1}
    events = [
        event(1, "rejected", 1, dataset="d"),
        event(2, "proposed", 2, dataset="d"),
        event(3, "intent", 3, **body, move="promote", dataset="d"),
        event(4, "intent", 4, **body, move="rollback", dataset="d"),
        event(5, "done", 5, **body, intent=3, dataset="d"),
        event(6, "rejected", 6, dataset="other"),
        event(7, "refused", 7),
    ]
    assert count_decisions(events, "d") == 3
    assert count_decisions(events, "other") == 1
    assert count_decisions([], "d") == 0


class Commands(RuleBasedStateMachine):
    """Promotions and rollbacks, each killed anywhere, on an alias whose every second is known."""

    @initialize()
    def begin(self) -> None:
        self.events: list[Event] = []
        self.seconds: list[int | None] = [None]  # who holds the alias in each second
        self.replaced: dict[int, int | None] = {}
        self.n_releases = 0

    def tick(self, holder: int | None) -> None:
        self.seconds.append(holder)

    def write(self, kind: Kind, **body: Any) -> int:
        seq, now = len(self.events) + 1, (len(self.seconds) - 1) / 60
        self.events.append(event(seq, kind, now, alias="champion", **body))
        return seq

    def settle(self) -> None:
        """What every command does first, once it has the lease."""
        intent = open_intent(self.events, "champion")
        if intent is None:
            return
        if self.seconds[-1] == intent.body["to"]:
            self.end(intent, late=True)
        else:
            self.write("abandoned", intent=intent.seq)

    def end(self, intent: Event, **more: Any) -> None:
        body = {key: intent.body[key] for key in ("from", "to")}
        promotes = intent.body["move"] == "promote"
        self.write("done" if promotes else "rolled_back", **body, intent=intent.seq, **more)
        if promotes and body["from"] != body["to"]:
            self.replaced[body["to"]] = body["from"]

    def move(self, to: int, move: str, killed_at: int) -> None:
        steps: list[Callable[[], Any]] = [
            lambda: self.write("intent", **{"from": self.seconds[-1]}, to=to, move=move),
            lambda: self.tick(self.seconds[-1]),
            lambda: self.tick(to),
            lambda: self.tick(to),
            lambda: self.end(self.events[-1]),
        ]
        self.tick(self.seconds[-1])
        self.settle()
        self.tick(self.seconds[-1])
        for step in steps[:killed_at]:
            step()

    @rule(again=st.none() | st.integers(1, 5), killed_at=st.integers(0, 5))
    def promote(self, again: int | None, killed_at: int) -> None:
        if again is None or again > self.n_releases:
            self.n_releases += 1
            again = self.n_releases
        self.move(again, "promote", killed_at)

    @precondition(lambda self: self.seconds[-1] is not None)
    @rule(killed_at=st.integers(0, 5))
    def roll_back(self, killed_at: int) -> None:
        self.settle()
        holder = self.seconds[-1]
        assert holder is not None
        target = previous_holder(self.events, "champion")
        assert target == self.replaced[holder]
        if target is not None:
            self.move(target, "rollback", killed_at)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.tick(self.seconds[-1])

    @invariant()
    def every_second_is_answered_truly(self) -> None:
        for second, holder in enumerate(self.seconds):
            found = holding_at(self.events, "champion", at((second + 0.5) / 60))
            if found.moving_to is None:
                assert found.version == holder
            else:
                assert holder in (found.version, found.moving_to)
                assert found.event is not None and found.event.kind == "intent"

    @invariant()
    def at_rest_it_is_said_for_certain(self) -> None:
        if open_intent(self.events, "champion") is None:
            assert held(holding_at(self.events, "champion", at(1e6))) == (self.seconds[-1], None)


TestCommands = Commands.TestCase
TestCommands.settings = settings(max_examples=30, deadline=None)
