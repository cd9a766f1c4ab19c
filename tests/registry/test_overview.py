"""What registry, ledger and replicas say of a model, put together; no store is opened."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from registry.catalog import CANDIDATE_TAG, Candidate, Registered, Release
from registry.events import Actor, Event, Kind
from registry.overview import (
    AliasStatus,
    Facts,
    ModelStatus,
    Score,
    build_overview,
    find_names,
    find_score,
)
from registry.replica import Answering, Drift, Replica
from registry.status_text import as_text, in_full

ADA, EVE = Actor("ada", "tracking server"), Actor("e\x1b[2Jve\u202e", "database")
START = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
NAME = "digits"
GATES = [
    {"name": "structure", "verdict": "pass", "passed": True, "measured": "allowed"},
    {
        "name": "better_than_chance",
        "verdict": "pass",
        "passed": True,
        "value": 0.98,
        "measured": "accuracy 0.9844 [0.9714, 0.9948]",
    },
    {"name": "robustness", "verdict": "warn", "passed": True, "measured": "noise"},
]


class Events(list[Event]):
    """A ledger's events, a minute apart."""

    def add(
        self,
        kind: Kind,
        version: int | None = None,
        actor: Actor = ADA,
        name: str = NAME,
        **body: Any,
    ) -> Event:
        when = START + timedelta(minutes=len(self))
        event = Event(len(self) + 1, kind, name, version, actor, when, body, "", "", "")
        self.append(event)
        return event

    def move(
        self, was: int | None, to: int, *, ended: bool = True, actor: Actor = ADA, **more: Any
    ) -> None:
        body = {"alias": more.pop("alias", "champion"), "from": was, "to": to}
        intent = self.add("intent", to, actor, **body, move="promote", **more)
        if ended:
            self.add("done", to, actor, **body, intent=intent.seq)


def registered(aliases: dict[str, int], n: int, candidates: Sequence[Candidate] = ()) -> Registered:
    """A model with releases 1 to n, each of the candidate of its number."""
    versions = range(n, 0, -1)
    return Registered(
        NAME,
        aliases,
        tuple(Release(NAME, one, "run", f"{NAME}-candidates/{one}") for one in versions),
        {one: {CANDIDATE_TAG: "c", "mlops.architecture": "cnn"} for one in versions},
        tuple(candidates),
    )


def candidate(version: int, decision: str | None = None) -> Candidate:
    return Candidate(NAME, version, "run", "cnn", "f", "val_accuracy", 0.9, decision)


def replica(version: int = 2, **changes: Any) -> Replica:
    found = {"champion": Answering("champion", version), "workers": 1, **changes}
    return Replica(f"http://h:{next(PORTS)}", "answers", name=NAME, alias="champion", **found)


PORTS = itertools.count(5002)


def one(
    model: Registered | None, events: Events | None, replicas: Sequence[Replica] = ()
) -> ModelStatus:
    models = None if model is None else {NAME: model}
    (found,) = build_overview(Facts(models, events, replicas), name=NAME).models
    return found


def test_who_holds_an_alias_since_when_and_by_whom() -> None:
    events = Events()
    events.move(None, 1)
    events.move(1, 2, gates=GATES)
    (champion,) = one(registered({"champion": 2}, 2), events).aliases
    assert (champion.alias, champion.version, champion.actor) == ("champion", 2, ADA)
    assert champion.since == START + timedelta(minutes=3)
    assert champion.architecture == "cnn"
    assert champion.score == Score("accuracy", 0.9844, "accuracy 0.9844 [0.9714, 0.9948]")


def test_champion_and_challenger_stand_before_other_aliases() -> None:
    events = Events()
    for alias in ("a", "challenger", "champion"):
        events.move(None, 1, alias=alias)
    aliases = one(registered(dict.fromkeys(("a", "challenger", "champion"), 1), 1), events).aliases
    assert [alias.alias for alias in aliases] == ["champion", "challenger", "a"]


def test_where_registry_and_ledger_disagree_neither_time_nor_actor_is_told() -> None:
    events = Events()
    events.move(None, 1)
    events.move(1, 2)
    found = one(registered({"champion": 1}, 2), events)
    assert (found.aliases[0].version, found.aliases[0].since) == (1, None)
    assert found.differences == (
        "the alias 'champion' holds version 1 in MLflow; by the ledger it holds version 2.",
    )


def test_an_alias_that_is_gone_is_shown_without_a_version() -> None:
    events = Events()
    events.move(None, 1)
    found = one(registered({}, 1), events)
    assert (found.aliases[0].alias, found.aliases[0].version) == ("champion", None)
    assert len(found.differences) == 1
    events.add("erased", 1)
    found = one(registered({}, 1), events)
    assert (found.aliases, found.differences) == ((AliasStatus(""),), ())


def test_a_move_that_goes_on_shows_both_ends() -> None:
    events = Events()
    events.move(None, 1)
    events.move(1, 2, ended=False, actor=EVE)
    before = one(registered({"champion": 1}, 2), events).aliases[0]
    assert (before.version, before.moving_to, before.actor) == (1, 2, ADA)
    assert before.since == START + timedelta(minutes=1)
    after = one(registered({"champion": 2}, 2), events).aliases[0]
    assert (after.version, after.moving_to, after.actor) == (2, 2, EVE)


def test_without_the_registry_aliases_are_as_the_ledger_has_them() -> None:
    events = Events()
    events.move(None, 1, gates=GATES)
    found = one(None, events)
    assert (found.aliases[0].version, found.aliases[0].architecture) == (1, None)
    assert found.differences == ()


def test_without_the_ledger_aliases_have_no_time_and_nothing_disagrees() -> None:
    model = registered({"champion": 2}, 2)
    model.tags[2]["mlops.gate.better_than_chance"] = "pass: accuracy 0.9 [0.8, 1]"  # type: ignore[index]
    found = one(model, None)
    assert (found.aliases[0].since, found.aliases[0].actor) == (None, None)
    assert found.aliases[0].score == Score("accuracy", 0.9, "accuracy 0.9 [0.8, 1]")
    assert (found.differences, found.decisions) == ((), ())


def test_a_score_is_read_of_no_other_gate_and_of_no_other_words() -> None:
    assert find_score([], 1, {"mlops.gate.better_than_chance": "pass: elbo -24.87 [-25, -24]"}) == (
        Score("elbo", -24.87, "elbo -24.87 [-25, -24]")
    )
    for words in ("pass: no value", "", "accuracy 0.9", "pass: a b 0.9", "pass: accuracy 1e5x"):
        found = find_score([], 1, {"mlops.gate.better_than_chance": words})
        assert found is None or found.metric == "accuracy", words
    assert find_score([], 1, {"mlops.gate.size": "pass: accuracy 0.9"}) is None


def test_candidates_wait_that_are_newer_than_the_champions_and_undecided() -> None:
    events = Events()
    events.move(None, 2)
    made = [candidate(5), candidate(4, "rejected"), candidate(3), candidate(2, "promoted")]
    found = one(registered({"champion": 2}, 2, [*made, candidate(1)]), events)
    assert [waiting.version for waiting in found.waiting] == [5, 3]
    assert len(found.candidates) == 5
    first = one(registered({}, 0, [candidate(1)]), Events())
    assert [waiting.version for waiting in first.waiting] == [1]


def test_a_proposal_waits_until_it_is_approved_or_lapses() -> None:
    events = Events()
    events.move(None, 1)
    proposed = events.add("proposed", 2, alias="champion", previous=1, champion=1)
    held = registered({"champion": 1}, 3)
    assert [(p.version, p.alias) for p in one(held, events).proposals] == [(2, "champion")]
    events.add("proposed", 3, alias="challenger", previous=None, champion=1)
    assert [p.version for p in one(held, events).proposals] == [2, 3]
    events.move(1, 2, proposal=proposed.seq)
    # The gates compared number 3 with version 1.
    assert one(registered({"champion": 2}, 3), events).proposals == ()


def test_a_proposal_whose_move_was_abandoned_waits_still() -> None:
    events = Events()
    events.move(None, 1)
    proposed = events.add("proposed", 2, alias="champion", previous=1, champion=1)
    events.move(1, 2, ended=False, proposal=proposed.seq)
    events.add("abandoned", 2, alias="champion", intent=events[-1].seq)
    assert len(one(registered({"champion": 1}, 2), events).proposals) == 1


def test_decisions_say_what_who_and_which_gate_newest_first() -> None:
    events = Events()
    failed = {"name": "quality", "verdict": "fail", "passed": False, "measured": "accuracy 0.5"}
    events.add("rejected", None, EVE, candidate="digits-candidates/4", gates=[*GATES, failed])
    events.move(None, 1, gates=GATES)
    events.add("hook", 1, succeeded=True, move=2)
    events.add("refused", 1, alias="champion", reason="refused by a server: it does not verify")
    refused, promoted, rejected = one(registered({"champion": 1}, 1), events).decisions
    assert (promoted.what, promoted.version) == ("promoted", 1)
    assert promoted.says == (
        "champion nothing -> 1, accuracy 0.9844 [0.9714, 0.9948], warned: robustness"
    )
    assert (rejected.what, rejected.actor) == ("rejected", EVE)
    assert rejected.says.startswith("candidate 4, failed: quality")
    assert refused.what == "refused by a server"


def test_replicas_are_healthy_that_answer_with_what_the_alias_holds() -> None:
    events = Events()
    events.move(None, 2)
    silent = Replica("http://h:1", "silent", "does not answer", NAME, "champion")
    replicas = [replica(2), replica(1), silent]
    (champion,) = one(registered({"champion": 2}, 2), events, replicas).aliases
    assert (champion.n_healthy, len(champion.replicas)) == (1, 3)


def test_a_server_that_compares_counts_for_both_aliases() -> None:
    events = Events()
    events.move(None, 1)
    events.move(None, 2, alias="challenger")
    both = replica(1, challenger=Answering("challenger", 2))
    model = registered({"champion": 1, "challenger": 2}, 2)
    champion, challenger = one(model, events, [both, replica(1)]).aliases
    assert (champion.n_healthy, challenger.n_healthy) == (2, 1)
    assert len(challenger.replicas) == 1


def test_the_worst_drift_of_all_replicas_counts() -> None:
    replicas = [
        replica(drift=Drift(state, "words"))  # type: ignore[arg-type]
        for state in ("none", "unknown", "drifted", "waiting")
    ]
    assert AliasStatus("champion", 2, replicas=tuple(replicas)).drift == "drifted"
    assert AliasStatus("champion", 2, replicas=tuple(replicas[:2])).drift == "none"
    assert AliasStatus("champion", 2).drift == "unknown"


def test_what_is_shown_are_models_that_were_decided_on() -> None:
    events = Events()
    events.add("rejected", name="tables")
    events.add("erased", name="f" * 64, dataset="f" * 64, phase="begun")
    models = {
        NAME: registered({"champion": 1}, 1),
        "fresh": Registered("fresh", {}, (), {}, (candidate(1),)),
        "foreign": Registered("foreign", {}, (Release("foreign", 1, "", ""),), {1: {}}, ()),
    }
    facts = Facts(models, events, [replica(), Replica("http://h:9", "silent", "hangs")])
    assert find_names(facts) == ([NAME, "tables"], ["fresh"])
    found = build_overview(facts)
    assert [model.name for model in found.models] == [NAME, "tables"]
    assert (found.unpromoted, [stray.url for stray in found.strays]) == (
        *(("fresh",), ["http://h:9"]),
    )


def test_replicas_of_models_that_are_not_known_here_are_strays_unless_one_was_asked_for() -> None:
    other = Replica("http://h:9", "answers", name="other", alias="champion")
    facts = Facts({NAME: registered({"champion": 1}, 1)}, Events(), [other])
    assert build_overview(facts).strays == (other,)
    assert build_overview(facts, name=NAME).strays == ()


# As text.


def crowded() -> Facts:
    events = Events()
    events.move(None, 1)
    events.move(1, 2, gates=GATES, actor=EVE)
    made = [candidate(4), candidate(3)]
    drifted = replica(2, drift=Drift("drifted", "DRIFTED (PSI 0.3)"))
    stray = Replica("http://h:9", "silent", "does not answer (connection refused)")
    model = registered({"champion": 2}, 2, made)
    return Facts({NAME: model}, events, [replica(1), drifted, stray])


def test_a_wide_table_has_a_line_an_alias() -> None:
    facts = crowded()
    lines = as_text(build_overview(facts), 200, ["A note."]).splitlines()
    assert [cell.strip() for cell in lines[0].split("  ") if cell] == [
        *("model", "alias", "version", "since (UTC)", "by"),
        *("network", "replicas", "drift", "waiting"),
    ]
    cells = [cell.strip() for cell in lines[1].split("  ") if cell]
    assert cells[:4] == ["digits", "champion", "2", "2026-11-26 12:03"]
    assert cells[4] == "e?[2Jve? (database login)"
    assert cells[5:] == ["cnn, accuracy 0.9844", "1/2", "DRIFTED", "2 candidates"]
    stale, drifted = facts.replicas[0].url, facts.replicas[1].url
    assert lines[3:] == [
        f"digits@champion: {stale} answers with version 1, and champion is 2.",
        f"digits@champion: the traffic of {drifted} DRIFTED (PSI 0.3).",
        "",
        "http://h:9 does not answer (connection refused).",
        "",
        "A note.",
    ]


def test_a_narrow_table_has_two_lines_an_alias_and_fits() -> None:
    lines = as_text(build_overview(crowded()), 80).splitlines()
    assert lines[0].split() == ["model", "alias", "version", "since", "(UTC)", "by"]
    assert lines[2] == (
        "  cnn, accuracy 0.9844; 1/2 replicas; drift DRIFTED; waiting: 2 candidates"
    )
    assert max(map(len, lines[:3])) <= 80


def test_nothing_that_anybody_wrote_steers_the_terminal() -> None:
    facts = crowded()
    for text in (
        as_text(build_overview(facts), None),
        in_full(build_overview(facts, name=NAME).models[0], []),
    ):
        assert all(char.isprintable() for line in text.split("\n") for char in line)


def test_one_model_in_full_says_all_of_it() -> None:
    facts = crowded()
    text = in_full(build_overview(facts, name=NAME).models[0], ["A note."])
    assert "champion: version 2, since 2026-11-26 12:03 UTC, by e?[2Jve? (database)" in text
    assert "cnn, accuracy 0.9844 [0.9714, 0.9948]" in text
    assert "no request since its start" in text
    assert "Newest candidates; 2 are newer than the champion's and undecided:" in text
    assert "2026-11-26 12:03:00  promoted  2        e?[2Jve? (database)" in text
    assert text.endswith("A note.")
