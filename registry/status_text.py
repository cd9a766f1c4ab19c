"""How the models stand, as text for people: a table that fits its width, and one model in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from mlops.program import command_line
from registry.catalog import Candidate
from registry.events import Actor
from registry.overview import AliasStatus, Decided, ModelStatus, Overview
from registry.replica import Replica

NONE: Final = "-"
DRIFT: Final = {"none": "none", "drifted": "DRIFTED", "waiting": "not yet", "unknown": NONE}
HEADING: Final = (
    *("model", "alias", "version", "since (UTC)", "by"),
    *("network", "replicas", "drift", "waiting"),
)
KNOWN_BY: Final = {
    "tracking server": "MLflow login",
    "database": "database login",
    "operating system": "OS user",
}
N_SHORT: Final = 5
"""Columns that stay on the first line where a table is too wide for one line an alias."""
MOST_NAME: Final = 40
MOST_CELL: Final = 60


def as_text(overview: Overview, width: int | None, notes: Sequence[str] = ()) -> str:
    """Returns the table of all models, and under it what disagrees and what is amiss.

    Args:
        width: Columns of the terminal; None where lines may be of any length.
        notes: Sentences on what could not be read.
    """
    lines = _table(overview.models, width) if overview.models else []
    wrong = [*_differences(overview.models), *_faults(overview.models)]
    strays = [f"{one.url} {_stray(one)}." for one in overview.strays]
    for part in (wrong, strays, list(notes), _unpromoted(overview)):
        if part:
            lines += ["", *part] if lines else part
    return "\n".join(map(harmless, lines))


def _table(models: Iterable[ModelStatus], width: int | None) -> list[str]:
    rows = [_row(model, alias) for model in models for alias in model.aliases]
    table = [HEADING, *rows]
    lines = _aligned(table)
    if width is None or max(map(len, lines)) <= width:
        return lines
    heads = _aligned([row[:N_SHORT] for row in table])
    found = [heads[0]]
    for head, row in zip(heads[1:], rows, strict=True):
        found += [head, f"  {_rest(row)}"]
    return found


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(model: ModelStatus, alias: AliasStatus) -> tuple[str, ...]:
    # What waits is the model's: it stands beside the first of its aliases.
    is_first = alias is model.aliases[0]
    return tuple(
        harmless(cell)
        for cell in (
            _short(model.name, MOST_NAME),
            alias.alias or "no alias",
            _version(alias),
            _when(alias.since),
            NONE if alias.actor is None else _who(alias.actor),
            _network(alias) or NONE,
            _replicas(alias),
            DRIFT[alias.drift],
            (_waiting(model) or NONE) if is_first else NONE,
        )
    )


def _rest(row: Sequence[str]) -> str:
    """What does not fit beside the rest, in words."""
    network, replicas, drift, waiting = row[N_SHORT:]
    says = [
        network if network != NONE else "",
        f"{replicas} replicas" if replicas != NONE else "no replica known",
        f"drift {drift}" if drift != NONE else "",
        f"waiting: {waiting}" if waiting != NONE else "",
    ]
    return "; ".join(filter(None, says))


def _version(alias: AliasStatus) -> str:
    version = NONE if alias.version is None else str(alias.version)
    moving = alias.moving_to is not None and alias.moving_to != alias.version
    return f"{version} -> {alias.moving_to}?" if moving else version


def _network(alias: AliasStatus) -> str:
    score = "" if alias.score is None else f"{alias.score.metric} {alias.score.value:.4f}"
    verifies = {None: "", "yes": "verifies"}.get(alias.verifies, "DOES NOT VERIFY")
    architecture = _short(alias.architecture or "", MOST_NAME)
    return ", ".join(filter(None, (architecture, score, verifies)))


def _replicas(alias: AliasStatus) -> str:
    return f"{alias.n_healthy}/{len(alias.replicas)}" if alias.replicas else NONE


def _waiting(model: ModelStatus) -> str:
    says = [
        _count(len(model.proposals), "proposal"),
        _count(len(model.waiting), "candidate"),
    ]
    return ", ".join(filter(None, says))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n > 1 else ''}" if n else ""


def _differences(models: Iterable[ModelStatus]) -> Iterator[str]:
    for model in models:
        for difference in model.differences:
            yield f"{_short(model.name, MOST_NAME)}: {difference}"


def _faults(models: Iterable[ModelStatus]) -> Iterator[str]:
    for model in models:
        for alias in model.aliases:
            where = f"{_short(model.name, MOST_NAME)}@{alias.alias}"
            if alias.verifies not in (None, "yes"):
                yield f"{where}: version {alias.version} does not verify: {alias.verifies}."
            for one in alias.replicas:
                faults = one.faults(alias.alias, alias.version)
                if faults:
                    yield f"{where}: {one.url} {', and '.join(faults)}."
                elif one.drift.state == "drifted":
                    yield f"{where}: the traffic of {one.url} {one.drift.words}."


def _stray(one: Replica) -> str:
    if one.state != "answers" or one.champion is None:
        return one.reason
    return f"serves {one.name}@{one.alias}, version {one.champion.version}, which is not known here"


def _unpromoted(overview: Overview) -> list[str]:
    if not overview.unpromoted:
        return []
    commands = [
        "  " + command_line("python", "-m", "registry.promote", name)
        for name in overview.unpromoted[:10]
    ]
    more = len(overview.unpromoted) - len(commands)
    tail = [f"  and {more} more"] if more else []
    return ["Candidates of these models wait for a first promotion:", *commands, *tail]


# One model in full.


def in_full(model: ModelStatus, notes: Sequence[str], strays: Sequence[Replica] = ()) -> str:
    """Returns all that is known of a model."""
    lines = [model.name]
    for alias in model.aliases:
        lines += _alias_lines(alias)
    if model.differences:
        lines += ["", "Registry and ledger disagree:", *(f"  {one}" for one in model.differences)]
    if model.proposals:
        lines += ["", "Waits for approval:"]
        for one in model.proposals:
            command = command_line("python", "-m", "registry.approve", model.name, str(one.version))
            lines += [
                f"  version {one.version} as {one.alias}, proposed {_when(one.created_at)} by "
                f"{_actor(one.actor)}",
                f"    {command}",
            ]
    if model.candidates:
        lines += ["", _heading_of_candidates(model)]
        lines += [f"  {line}" for line in _aligned(_candidate_rows(model.candidates))]
    if model.decisions:
        lines += ["", "Last decisions:"]
        lines += [f"  {line}" for line in _aligned(_decision_rows(model.decisions))]
    if strays:
        lines += ["", *(f"{one.url} {_stray(one)}." for one in strays)]
    if notes:
        lines += ["", *notes]
    return "\n".join(map(harmless, lines))


def _alias_lines(alias: AliasStatus) -> Iterator[str]:
    if not alias.alias:
        yield "  no alias: nothing of it was promoted, or its alias was taken away"
        return
    held = "no version" if alias.version is None else f"version {alias.version}"
    says = [f"  {alias.alias}: {held}"]
    if alias.since is not None and alias.actor is not None:
        says.append(f"since {_when(alias.since)} UTC, by {_actor(alias.actor)}")
    if alias.moving_to is not None:
        says.append(f"being moved to version {alias.moving_to}, or its mover was killed")
    yield ", ".join(says)
    measured = None if alias.score is None else alias.score.measured
    if alias.architecture or measured:
        architecture = _short(alias.architecture or "", MOST_NAME)
        yield "    " + ", ".join(filter(None, (architecture, measured)))
    if alias.verifies is not None:
        yield f"    verifies: {alias.verifies}"
    if not alias.replicas and alias.version is not None:
        yield "    no replica known: none runs from this home, and none that was named serves it"
    for one in alias.replicas:
        yield from _replica_lines(one, alias)


def _replica_lines(one: Replica, alias: AliasStatus) -> Iterator[str]:
    faults = one.faults(alias.alias, alias.version)
    yield f"    {one.url} {', and '.join(faults) if faults else 'is healthy'}"
    found = one.answering(alias.alias)
    if one.state != "answers":
        return
    if found is not None:
        since = "" if found.since is None else f" since {_when(found.since)} UTC"
        of = "" if one.workers_wanted is None else f" of {one.workers_wanted}"
        yield f"      version {found.version}{since}; {one.workers}{of} worker(s)"
    yield f"      {_traffic(one)}"
    if one.refused:
        why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in one.refused.items())
        yield f"      refused releases: {why}"
    if one.n_restarts:
        yield f"      its server was started again {_times(one.n_restarts)}"
    yield f"      drift: {one.drift.words}"


def _traffic(one: Replica) -> str:
    traffic = one.traffic
    if traffic.failed_share is None:
        return "no request since its start"
    says = [f"{traffic.n_requests:,} requests", f"{100 * traffic.failed_share:.2g} % failed"]
    if traffic.n_bad_input:
        says.append(f"{traffic.n_bad_input:,} with wrong input")
    if traffic.p50_ms is not None and traffic.p95_ms is not None:
        says.append(f"p50 {traffic.p50_ms:.1f} ms, p95 {traffic.p95_ms:.1f} ms")
    return ", ".join(says)


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _heading_of_candidates(model: ModelStatus) -> str:
    n = len(model.waiting)
    newer = "none is" if not n else f"{n} {'is' if n == 1 else 'are'}"
    return f"Newest candidates; {newer} newer than the champion's and undecided:"


def _candidate_rows(candidates: Iterable[Candidate]) -> list[tuple[str, ...]]:
    rows = [("candidate", "made (UTC)", "architecture", "validation", "decision")]
    for one in candidates:
        value = f"{_short(one.objective, MOST_NAME)} {one.value:.4f}" if one.objective else NONE
        decision = _short(one.decision or "undecided", MOST_CELL)
        cells = (str(one.version), _when(one.created_at), one.architecture, value, decision)
        rows.append(tuple(map(harmless, cells)))  # type: ignore[arg-type]
    return list(rows)


def _decision_rows(decisions: Iterable[Decided]) -> list[tuple[str, ...]]:
    rows = []
    for one in decisions:
        version = NONE if one.version is None else str(one.version)
        when = f"{one.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        cells = (when, one.what, version, _actor(one.actor), _short(one.says, 200))
        rows.append(tuple(map(harmless, cells)))
    return [("time (UTC)", "decision", "version", "by", "what"), *rows]


def _who(actor: Actor) -> str:
    """An actor in few letters."""
    return f"{_short(actor.name, MOST_NAME)} ({KNOWN_BY[actor.known_by]})"


def _actor(actor: Actor) -> str:
    return f"{_short(actor.name, MOST_NAME)} ({actor.known_by})"


def _when(when: datetime | None) -> str:
    return NONE if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def harmless(text: str) -> str:
    """Returns text that steers no terminal: names, tags and pages are anybody's."""
    return "".join(char if char.isprintable() else "?" for char in text)
