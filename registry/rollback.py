"""python -m registry.rollback NAME [--to VERSION]: puts an alias back to a release that verifies.

It takes seconds: no model is loaded. Without `--to` it is the release that was replaced when the
present one was promoted, so that two rollbacks go two promotions back.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mlops.errors import MlopsError, UsageError, choose
from mlops.program import answer, answer_json, run_program

if TYPE_CHECKING:
    from registry.alias import Registry
    from registry.catalog import Release
    from registry.ledger import Event
    from registry.releases import Verified


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a rollback did.

    Attributes:
        previous: The version that held the alias before; None if none did.
        version: The version that holds it now.
        moved: False where that version held it already.
        by_hand: True where somebody had moved it there without Podium, and this recorded it;
            `previous` is then what held it by the ledger.
    """

    name: str
    alias: str
    previous: int | None
    version: int
    moved: bool
    by_hand: bool = False


def rollback(
    registry: Registry, name: str, to: int | None = None, alias: str = "champion"
) -> Rollback:
    """Moves an alias back to an earlier release, and records it.

    Any number of moves may be made with one open registry.

    Args:
        registry: As `registry.alias.open_registry` gives it.
        to: The version to go back to; by default the one before the present holder.

    Raises:
        UnverifiedError: that release does not verify; the alias stays where it is.
        LeaseHeldError: another process is changing the model.
        UsageError: there is no such model, version or alias, or no key here to sign the move.
        RefusedError: that release was never promoted, and may not be without an approval.
        MlopsError: there is nothing to go back to.
    """
    from registry.alias import changing, check_alias, move_alias
    from registry.hook import run_after_move
    from registry.moves import present_holder
    from registry.releases import fetch_release
    from registry.signing import UnverifiedError, get_signing_key

    check_alias(alias)
    with changing(registry, name, "rollback"):
        events = registry.ledger.events(name)
        holder = registry.catalog.find_alias(name, alias)
        if holder is None:
            _check_known(registry, name, alias, events)
        if to is None:
            to = _find_previous(name, alias, holder, events)
        if to is None:
            raise MlopsError(
                f"{name} has no earlier holder of {alias} to go back to; say which version with "
                f"--to, or see python -m registry.history {name}."
            )
        release = registry.catalog.get_release(name, to)
        # A move by hand is no move: only where the ledger agrees is there nothing to do.
        if holder is not None and holder.version == to == present_holder(events, alias):
            return Rollback(name, alias, to, to, moved=False)
        _check_promoted(registry, release, alias, events)
        get_signing_key(registry.settings)
        with tempfile.TemporaryDirectory(prefix="podium-") as private:
            try:
                found = fetch_release(
                    registry.catalog, release, Path(private), registry.settings.public_keys
                )
                _check_statement(found, events)
            except UnverifiedError as err:
                raise UnverifiedError(
                    f"{name} version {to} does not verify: {err}. {alias} stays "
                    f"{'unset' if holder is None else f'version {holder.version}'}; choose another "
                    "with --to."
                ) from err
        evidence = {"statement_sha256": found.statement_sha256, "key": found.key}
        moved = move_alias(registry, release, alias, "rollback", evidence)
    run_after_move(registry, moved)
    by_hand = bool(moved.body.get("by_hand"))
    return Rollback(name, alias, moved.body["from"], to, moved=True, by_hand=by_hand)


def _find_previous(
    name: str, alias: str, holder: Release | None, events: list[Event]
) -> int | None:
    from registry.moves import present_holder, previous_holder

    recorded = present_holder(events, alias)
    if holder is not None and holder.version != recorded:
        by_ledger = "nothing" if recorded is None else f"version {recorded}"
        raise UsageError(
            f"{alias} of {name} was moved without Podium: it holds version {holder.version}, and "
            f"by the ledger {by_ledger}. Say which version it shall hold with --to."
        )
    return previous_holder(events, alias)


def _check_statement(found: Verified, events: list[Event]) -> None:
    """Refuses a version that was made and signed anew since it held an alias."""
    from registry.signing import UnverifiedError

    version = found.statement.version
    known = [
        event.body["statement_sha256"]
        for event in events
        if event.version == version and "statement_sha256" in event.body
    ]
    if known and known[-1] != found.statement_sha256:
        raise UnverifiedError("its statement is not the one that the ledger knows it by")


def _check_known(registry: Registry, name: str, alias: str, events: list[Event]) -> None:
    """Refuses a name of an alias that never was: to set it would hide a slip of the pen."""
    if not registry.catalog.find_releases(name):
        registry.catalog.get_release(name, 1)
    known = {event.body["alias"] for event in events if event.kind == "intent"}
    known |= registry.catalog.find_aliases(name).keys()
    if alias not in known:
        choices = choose(alias, sorted(known)) if known else "none was set yet."
        raise UsageError(f"{name} has no alias {alias!r}; {choices}")


def _check_promoted(registry: Registry, release: Release, alias: str, events: list[Event]) -> None:
    """Refuses a release that waits for an approval: a rollback is no way around it."""
    from registry.approve import RefusedError

    of_it = [event for event in events if event.version == release.version]
    waits = registry.policy.approvals > 1 or any(one.kind == "proposed" for one in of_it)
    if waits and not any(one.kind == "done" and one.body["alias"] == alias for one in of_it):
        raise RefusedError(
            f"{release.name} version {release.version} never was {alias}, and needs an approval "
            f"for that: python -m registry.approve {release.name} {release.version}"
        )


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    name: Annotated[str, tyro.conf.Positional]
    """The model, for example digits-classifier."""
    to: int | None = None
    """The version to go back to; by default the one before the present holder."""
    alias: str = "champion"
    """The alias to move."""
    policy: Path | None = None
    """Whose hook runs, as TOML; by default policy.toml in the home."""
    json: bool = False
    """Print what was done as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from registry.actor import in_words
    from registry.alias import open_registry

    if options.to is not None and options.to < 1:
        raise UsageError(f"--to is no version; expected 1 or more, got {options.to}.")
    with open_registry(policy=options.policy) as registry:
        done = rollback(registry, options.name, options.to, options.alias)
        who = in_words(registry.actor)
    if options.json:
        answer_json(_to_json(done))
    elif not done.moved:
        answer(f"{done.name}: unchanged; version {done.version} is {done.alias} already.")
    else:
        answer(f"{_in_words(done)}\nRecorded as done by {who}.")
    return 0


def _in_words(done: Rollback) -> str:
    was = "nothing" if done.previous is None else f"version {done.previous}"
    if done.by_hand:
        return (
            f"{done.name} version {done.version} stays {done.alias}: the alias was moved to it by "
            f"hand, in place of {was}; that is recorded and signed now."
        )
    return f"{done.name} version {done.version} is {done.alias} again, in place of {was}."


def _to_json(done: Rollback) -> dict[str, Any]:
    return {
        "decision": "rolled_back" if done.moved else "unchanged",
        "name": done.name,
        "alias": done.alias,
        "version": done.version,
        "previous": done.previous,
        "by_hand": done.by_hand,
    }


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.rollback",
        description="Put an alias back to an earlier release that verifies.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
