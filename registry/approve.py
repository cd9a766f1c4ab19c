"""python -m registry.approve NAME VERSION: completes a promotion that waits for approval."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mlops.errors import MlopsError, UsageError
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from registry.alias import Registry
    from registry.catalog import Release
    from registry.ledger import Actor, Event


@dataclass(frozen=True, slots=True)
class Approval:
    """What an approval did.

    Attributes:
        proposer: Who proposed the release.
        moved: False where the alias was moved by an approval before.
    """

    name: str
    version: int
    alias: str
    proposer: Actor
    moved: bool


def approve(registry: Registry, name: str, version: int) -> Approval:
    """Gives a proposed release the alias that it was proposed for, and records who approved.

    The release must still verify, and the alias must still be where it was when the gates compared.
    Where the policy of either account asks for two, the approving account is another one, known by
    the same authority.

    Raises:
        LeaseHeldError: another process is changing the model.
        UsageError: the version was not proposed, or there is no key here to sign the move.
        RefusedError: the account may not approve it, or it must be proposed again.
        UnverifiedError: it is no longer what was signed.
    """
    from registry.alias import changing, move_alias
    from registry.failpoints import failpoint
    from registry.hook import run_after_move
    from registry.moves import present_holder
    from registry.releases import fetch_release
    from registry.signing import get_signing_key

    release = registry.catalog.get_release(name, version)
    with (
        changing(registry, name, "approve"),
        tempfile.TemporaryDirectory(prefix="podium-") as own,
    ):
        events = registry.ledger.events(name)
        proposal = _find_proposal(events, name, version)
        alias = proposal.body["alias"]
        holder = registry.catalog.find_alias(name, alias)
        is_recorded = present_holder(events, alias) == version
        if holder is not None and holder.version == version and is_recorded:
            # Also what a crash between the alias and the note left behind.
            _note(registry, release)
            return Approval(name, version, alias, proposal.actor, moved=False)
        _check_account(registry, proposal)
        get_signing_key(registry.settings)
        champion = registry.catalog.find_alias(name, "champion")
        _check_waits(events, proposal, release, {"previous": holder, "champion": champion})
        verified = fetch_release(
            registry.catalog, release, Path(own), registry.settings.public_keys
        )
        if verified.statement_sha256 != proposal.body["statement_sha256"]:
            raise RefusedError(
                f"{name} version {version} is not what was proposed: it was made and signed anew "
                "since. Propose it again."
            )
        approval = registry.ledger.append(
            "approved", name, version, registry.actor, {"alias": alias, "proposal": proposal.seq}
        )
        failpoint("approved")
        evidence = {
            "candidate": verified.statement.candidate,
            "proposal": proposal.seq,
            "approval": approval.seq,
            "statement_sha256": verified.statement_sha256,
            "key": verified.key,
        }
        moved = move_alias(registry, release, alias, "promote", evidence)
        _note(registry, release)
    run_after_move(registry, moved)
    return Approval(name, version, alias, proposal.actor, moved=True)


class RefusedError(MlopsError):
    """What was asked is not allowed as things are; exit code 3."""

    exit_code = 3


def _word(version: int | None) -> str:
    return "nothing" if version is None else f"version {version}"


def _find_proposal(events: list[Event], name: str, version: int) -> Event:
    proposals = [one for one in events if one.kind == "proposed"]
    for one in reversed(proposals):
        if one.version == version:
            return one
    waiting = ", ".join(sorted({str(one.version) for one in proposals}))
    known = f"proposed were {waiting}" if waiting else "none was"
    raise UsageError(f"{name} version {version} was not proposed; {known}.")


def _check_waits(
    events: list[Event], proposal: Event, release: Release, now: dict[str, Release | None]
) -> None:
    """Refuses a proposal that was used, or whose comparison is of an earlier day.

    Args:
        now: Who holds the alias ("previous"), and who is champion.
    """
    name, version, alias = release.name, release.version, proposal.body["alias"]
    other = () if alias == "champion" else ("--alias", alias)
    candidate = release.candidate.rpartition("/")[2]
    again = "Propose it again: " + command_line(
        *("python", "-m", "registry.promote", name, "--version", candidate, *other, "--propose")
    )
    ended = {event.body["intent"] for event in events if event.kind == "done"}
    used = [event for event in events if event.body.get("proposal") == proposal.seq]
    if any(event.kind == "intent" and event.seq in ended for event in used):
        raise RefusedError(
            f"{name} version {version} was approved before, and is {alias} no more. {again}"
        )
    for key, what in (("previous", alias), ("champion", "champion")):
        was, holder = proposal.body[key], now[key]
        held = None if holder is None else holder.version
        if held != was:
            raise RefusedError(
                f"{name} version {version} was proposed when {what} was {_word(was)}, and it is "
                f"{_word(held)} now. {again}"
            )


def _note(registry: Registry, release: Release) -> None:
    """Notes it on the candidate, whose model may be one that this account may not write to."""
    try:
        for candidate in registry.catalog.find_candidates(release.name):
            if candidate.reference == release.candidate:
                registry.catalog.note_decision(candidate, "promoted", release)
    except MlopsError as err:
        say(f"{release.candidate} was not marked as promoted: {err}")


def _check_account(registry: Registry, proposal: Event) -> None:
    if max(proposal.body["approvals"], registry.policy.approvals) < 2:
        return
    actor, proposer = registry.actor, proposal.actor
    if actor == proposer:
        raise RefusedError(
            f"{actor.name} proposed it, and the policy asks for two accounts; another must "
            "approve it."
        )
    if actor.known_by != proposer.known_by:
        raise RefusedError(
            f"{proposer.name} is a login of the {proposer.known_by} and {actor.name} one of the "
            f"{actor.known_by}: they may be one person. Approve it with a login of the "
            f"{proposer.known_by}."
        )


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    name: Annotated[str, tyro.conf.Positional]
    """The model, for example digits-classifier."""
    version: Annotated[int, tyro.conf.Positional]
    """The release that was proposed."""
    policy: Path | None = None
    """What is demanded, as TOML; by default policy.toml in the home, else built-in limits."""
    json: bool = False
    """Print what was done as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from registry.actor import in_words
    from registry.alias import open_registry
    from registry.promote import serve_lines

    settings = Settings.from_env()
    with open_registry(settings, options.policy) as registry:
        done = approve(registry, options.name, options.version)
        who = in_words(registry.actor)
    if options.json:
        decision = "promoted" if done.moved else "unchanged"
        fields = {"name": done.name, "version": done.version, "alias": done.alias}
        answer_json({"decision": decision, **fields, "proposed_by": done.proposer.name})
    elif not done.moved:
        answer(f"{done.name}: unchanged; version {done.version} is {done.alias} already.")
    else:
        answer(
            f"{done.name} version {done.version} is {done.alias}: proposed by "
            f"{in_words(done.proposer)}, approved by {who}.\n"
            + "\n".join(serve_lines(done.name, done.alias, settings))
        )
    return 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.approve",
        description="Complete a promotion that waits for approval.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
