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

from mlops.errors import MlopsError, UsageError
from mlops.program import answer, answer_json, run_program

if TYPE_CHECKING:
    from registry.alias import Registry


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a rollback did.

    Attributes:
        previous: The version that held the alias before; None if none did.
        version: The version that holds it now.
        moved: False where that version held it already.
    """

    name: str
    alias: str
    previous: int | None
    version: int
    moved: bool


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
        MlopsError: there is no such version, or nothing to go back to.
    """
    from registry.alias import changing, check_alias, move_alias
    from registry.moves import previous_holder
    from registry.releases import fetch_release
    from registry.signing import UnverifiedError

    check_alias(alias)
    with changing(registry, name, "rollback"):
        holder = registry.catalog.find_alias(name, alias)
        if to is None:
            to = previous_holder(registry.ledger.events(name), alias)
        if to is None:
            registry.catalog.get_release(name, 1 if holder is None else holder.version)
            raise MlopsError(
                f"{name} has no earlier holder of {alias} to go back to; say which version with "
                f"--to, or see python -m registry.history {name}."
            )
        release = registry.catalog.get_release(name, to)
        if holder is not None and holder.version == to:
            return Rollback(name, alias, to, to, moved=False)
        with tempfile.TemporaryDirectory(prefix="podium-") as private:
            try:
                found = fetch_release(
                    registry.catalog, release, Path(private), registry.settings.public_keys
                )
            except UnverifiedError as err:
                raise UnverifiedError(
                    f"{name} version {to} does not verify: {err}. {alias} stays "
                    f"{'unset' if holder is None else f'version {holder.version}'}; choose another "
                    "with --to."
                ) from err
        evidence = {"statement_sha256": found.statement_sha256, "key": found.key}
        move_alias(registry, release, alias, "rollback", evidence)
    return Rollback(name, alias, None if holder is None else holder.version, to, moved=True)


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    name: Annotated[str, tyro.conf.Positional]
    """The model, for example digits-classifier."""
    to: int | None = None
    """The version to go back to; by default the one before the present holder."""
    alias: str = "champion"
    """The alias to move."""
    json: bool = False
    """Print what was done as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from registry.actor import in_words
    from registry.alias import open_registry

    if options.to is not None and options.to < 1:
        raise UsageError(f"--to is no version; expected 1 or more, got {options.to}.")
    with open_registry() as registry:
        done = rollback(registry, options.name, options.to, options.alias)
        who = in_words(registry.actor)
    if options.json:
        answer_json(_to_json(done))
    elif not done.moved:
        answer(f"{done.name}: unchanged; version {done.version} is {done.alias} already.")
    else:
        was = "nothing" if done.previous is None else f"version {done.previous}"
        answer(
            f"{done.name} version {done.version} is {done.alias} again, in place of {was}.\n"
            f"Recorded as done by {who}."
        )
    return 0


def _to_json(done: Rollback) -> dict[str, Any]:
    return {
        "decision": "rolled_back" if done.moved else "unchanged",
        "name": done.name,
        "alias": done.alias,
        "version": done.version,
        "previous": done.previous,
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
