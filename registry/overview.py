"""How the models stand: what the registry, the ledger and the replicas say, put together; pure.

The registry says which version an alias holds, the ledger since when and by whom, and a replica
what it answers with. Where they disagree, that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from registry.catalog import CANDIDATE_TAG, CHAMPION, Candidate, Registered
from registry.events import Actor, Event
from registry.history import compare_places, describe
from registry.moves import LATEST, Holding, holding_at
from registry.replica import Replica

CHALLENGER: Final = "challenger"
SCORE_GATES: Final = ("better_than_chance", "quality")
"""Gates whose value is the score on the test rows, so that one of them has it."""
DECISIONS: Final = {
    "done": "promoted",
    "rolled_back": "rolled back",
    "proposed": "proposed",
    "approved": "approved",
    "rejected": "rejected",
    "refused": "refused by a server",
    "abandoned": "abandoned",
    "erased": "erased",
}
"""The kinds of events that decide something, in words."""


@dataclass(frozen=True, slots=True)
class Score:
    """A measure of a release on the test rows, as its promotion found it.

    Attributes:
        measured: The value for people, with its interval.
    """

    metric: str
    value: float
    measured: str


@dataclass(frozen=True, slots=True)
class AliasStatus:
    """What holds an alias, and what answers for it.

    Attributes:
        alias: "" where the model has none.
        version: What holds it by the registry; by the ledger where the registry could not be read;
            None for nothing.
        since: When it was moved there, by the ledger; None where that is not known, or where the
            ledger holds another version to be there. So is `actor`, who moved it.
        moving_to: Where it is being moved now, or was when the mover was killed.
        verifies: "yes", "no: " and why; None where that was not asked.
        replicas: Those that serve it, or shall.
        n_healthy: How many of them answer with `version`, as they shall.
    """

    alias: str
    version: int | None = None
    since: datetime | None = None
    actor: Actor | None = None
    moving_to: int | None = None
    architecture: str | None = None
    score: Score | None = None
    verifies: str | None = None
    replicas: tuple[Replica, ...] = ()
    n_healthy: int = 0

    @property
    def drift(self) -> str:
        """The worst of what its replicas say of drift: see `registry.replica.Drift`."""
        found = {one.drift.state for one in self.replicas if one.state == "answers"}
        return next((one for one in ("drifted", "none", "waiting") if one in found), "unknown")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A release that was proposed for an alias, and may still be approved."""

    version: int
    alias: str
    created_at: datetime
    actor: Actor


@dataclass(frozen=True, slots=True)
class Decided:
    """Something that was decided about a model.

    Attributes:
        says: Which candidate, which gates failed, from where to where; plain words.
    """

    seq: int
    created_at: datetime
    what: str
    version: int | None
    actor: Actor
    says: str


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How a model stands.

    Attributes:
        aliases: Champion and challenger first; one without a name where there is none.
        waiting: Candidates that are newer than the champion's and undecided, newest first.
        candidates: The newest of all, newest first.
        decisions: The last, newest first.
        differences: A sentence for each difference between registry and ledger; none is good.
    """

    name: str
    aliases: tuple[AliasStatus, ...]
    waiting: tuple[Candidate, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    decisions: tuple[Decided, ...] = ()
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found.

    Attributes:
        models: Of the registry, by name; None where it could not be read.
        events: All of the ledger, oldest first; None where it could not be read.
        replicas: Of whatever models.
    """

    models: Mapping[str, Registered] | None
    events: Sequence[Event] | None
    replicas: Sequence[Replica] = ()


@dataclass(frozen=True, slots=True)
class Overview:
    """How all models stand, or the one that was asked for.

    Attributes:
        strays: Replicas of models that are not shown, or of which that is not known.
        unpromoted: Models that have candidates, and of which nothing was ever decided.
    """

    models: tuple[ModelStatus, ...] = ()
    strays: tuple[Replica, ...] = ()
    unpromoted: tuple[str, ...] = ()


def find_names(facts: Facts) -> tuple[list[str], list[str]]:
    """Returns the models that were decided on, and those that have candidates alone; by name.

    Models that somebody registered without Podium, of which the ledger knows nothing, are neither.
    """
    decided = {one.name for one in facts.events or () if not _is_of_dataset(one)}
    models = (facts.models or {}).values()
    decided |= {
        one.name for one in models if any(CANDIDATE_TAG in tags for tags in one.tags.values())
    }
    candidates = {one.name for one in models if one.candidates}
    return sorted(decided), sorted(candidates - decided)


def _is_of_dataset(event: Event) -> bool:
    """Tells whether an event is of an erasure as a whole: its name is a fingerprint then."""
    return event.kind == "erased" and event.body.get("dataset") == event.name


def build_overview(
    facts: Facts, *, name: str | None = None, n_decisions: int = 10, n_candidates: int = 5
) -> Overview:
    """Puts together what was found.

    Args:
        name: The one model to show; by default all that were decided on.
        n_decisions: The most decisions of a model; `n_candidates` of candidates.
    """
    decided, undecided = find_names(facts)
    shown = decided if name is None else [name]
    by_name: dict[str, list[Event]] = {}
    for event in facts.events or ():
        by_name.setdefault(event.name, []).append(event)
    models = tuple(
        _describe_model(
            one,
            None if facts.models is None else facts.models.get(one, Registered.empty(one)),
            None if facts.events is None else by_name.get(one, []),
            [replica for replica in facts.replicas if replica.name == one],
            n_decisions,
            n_candidates,
        )
        for one in shown
    )
    # Asked for one model, the replicas of others are no strays.
    strays = [
        one
        for one in facts.replicas
        if one.name is None or (name is None and one.name not in shown)
    ]
    return Overview(models, tuple(strays), tuple(undecided) if name is None else ())


def _describe_model(
    name: str,
    model: Registered | None,
    events: Sequence[Event] | None,
    replicas: Sequence[Replica],
    n_decisions: int,
    n_candidates: int,
) -> ModelStatus:
    held = _find_held(model, events or ())
    names = sorted(
        {*held, *(one.alias for one in replicas if one.alias)},
        key=lambda alias: (alias != CHAMPION, alias != CHALLENGER, alias),
    )
    aliases = [
        _describe_alias(alias, held.get(alias), model, events or (), replicas) for alias in names
    ]
    differences: list[str] = []
    if model is not None and events is not None:
        differences = compare_places(events, model.aliases, [one.version for one in model.releases])
    candidates = () if model is None else model.candidates
    return ModelStatus(
        name,
        tuple(aliases) or (AliasStatus(""),),
        _find_waiting(model, held.get(CHAMPION)),
        find_proposals(events or (), held),
        candidates[:n_candidates],
        tuple(_find_decisions(events or ())[: max(0, n_decisions)]),
        tuple(differences),
    )


def _find_held(model: Registered | None, events: Sequence[Event]) -> dict[str, int | None]:
    """What holds each alias: by the registry, or by the ledger where the registry is not read.

    An alias of the ledger's that is gone in the registry holds None, unless its release was erased.
    """
    known = {event.body["alias"] for event in events if event.kind in ("intent", "done")}
    erased = {event.version for event in events if event.kind == "erased"}
    recorded = {alias: holding_at(events, alias, LATEST).version for alias in known}
    standing = {alias: one for alias, one in recorded.items() if one not in (None, *erased)}
    if model is None:
        return dict(standing)
    return {**dict.fromkeys(standing), **model.aliases}


def _describe_alias(
    alias: str,
    version: int | None,
    model: Registered | None,
    events: Sequence[Event],
    replicas: Sequence[Replica],
) -> AliasStatus:
    holding = _find_holding(events, alias, version)
    moved = None if holding is None else holding.event
    tags: Mapping[str, str] = {}
    if model is not None and version is not None:
        tags = model.tags.get(version, {})
    own = [one for one in replicas if one.is_of(alias)]
    return AliasStatus(
        alias,
        version,
        None if holding is None else holding.since,
        None if moved is None else moved.actor,
        holding_at(events, alias, LATEST).moving_to,
        tags.get("mlops.architecture"),
        None if version is None else find_score(events, version, tags),
        None,
        tuple(own),
        sum(not one.faults(alias, version) for one in own),
    )


def _find_holding(events: Sequence[Event], alias: str, version: int | None) -> Holding | None:
    """The move that brought a version to its alias; None where the ledger knows of none."""
    holding = holding_at(events, alias, LATEST)
    if holding.moving_to is not None and holding.moving_to != version:
        # It has not moved yet, or never did: what counts is the move before.
        holding = holding_at([one for one in events if one is not holding.event], alias, LATEST)
    elif holding.moving_to is not None:
        return holding
    return holding if version is not None and holding.version == version else None


def find_score(events: Sequence[Event], version: int, tags: Mapping[str, str]) -> Score | None:
    """Returns what a release scored on the test rows, by the ledger, or else by its tags."""
    for event in reversed(events):
        if event.version == version and event.kind in ("intent", "proposed"):
            for gate in event.body.get("gates", ()):
                found = _read_score(gate.get("name"), gate.get("measured"))
                if found is not None:
                    return found
    for name in SCORE_GATES:
        found = _read_score(name, tags.get(f"mlops.gate.{name}", "").partition(": ")[2])
        if found is not None:
            return found
    return None


def _read_score(gate: Any, measured: Any) -> Score | None:
    """Reads a gate's words, as in "accuracy 0.9844 [0.9714, 0.9948]"."""
    if gate not in SCORE_GATES or not isinstance(measured, str):
        return None
    found = re.match(r"(\w{1,40}) (-?\d+(?:\.\d+)?)(?![\d.])", measured)
    return None if found is None else Score(found[1], float(found[2]), measured[:100])


def _find_waiting(model: Registered | None, champion: int | None) -> tuple[Candidate, ...]:
    if model is None:
        return ()
    number = next((_number(one.candidate) for one in model.releases if one.version == champion), 0)
    return tuple(one for one in model.candidates if one.decision is None and one.version > number)


def _number(reference: str) -> int:
    """The number of a candidate in what names it, as in digits-candidates/7; 0 for none."""
    number = reference.rpartition("/")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else 0


def find_proposals(events: Iterable[Event], held: Mapping[str, int | None]) -> tuple[Proposal, ...]:
    """Returns the proposals that may still be approved, oldest first.

    Args:
        events: The model's, oldest first.
        held: What its aliases hold. A proposal lapses when its alias, or the champion, is another
            than the gates compared with (`registry.approve`).
    """
    events = list(events)
    last = {one.version: one for one in events if one.kind == "proposed"}
    ended = {one.body["intent"] for one in events if one.kind == "done"}
    used = {one.body.get("proposal") for one in events if one.kind == "intent" and one.seq in ended}
    erased = {one.version for one in events if one.kind == "erased"}
    return tuple(
        Proposal(version, one.body["alias"], one.created_at, one.actor)
        for version, one in last.items()
        if version is not None
        and version not in erased
        and one.seq not in used
        and one.body.get("previous") == held.get(one.body["alias"])
        and one.body.get("champion") == held.get(CHAMPION)
    )


def _find_decisions(events: Sequence[Event]) -> list[Decided]:
    intents = {event.seq: event for event in events if event.kind == "intent"}
    return [
        Decided(
            event.seq,
            event.created_at,
            DECISIONS[event.kind],
            event.version,
            event.actor,
            _in_words(event, intents),
        )
        for event in reversed(events)
        if event.kind in DECISIONS
    ]


def _in_words(event: Event, intents: Mapping[int, Event]) -> str:
    """What an event says; of a promotion what its gates found, too, which stands in its intent."""
    intent = intents.get(event.body.get("intent", 0)) if event.kind == "done" else event
    gates = [] if intent is None else list(intent.body.get("gates", ()))
    scores = (_read_score(one.get("name"), one.get("measured")) for one in gates)
    score = next((one.measured for one in scores if one is not None), "")
    warned = ", ".join(str(one.get("name")) for one in gates if one.get("verdict") == "warn")
    says = (describe(event), score, f"warned: {warned}" if warned else "")
    return ", ".join(filter(None, says))
