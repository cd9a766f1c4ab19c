"""What can be told of releases in a moment: aliases against the ledger, and the runs they hold.

No bytes are read and no signature is verified: `registry.verify` and `registry.history --check` do.
Of a database behind MLflow the tables are read; a server is left to those two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.tracking_rows import RunRow, VersionRow, read_registry
from registry.events import Event
from registry.moves import find_misplaced

Wrong = tuple[str, str]
"""What is wrong, and what mends it."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an alias holds in MLflow, of a model that was promoted."""

    name: str
    alias: str
    version: VersionRow


def check_releases(settings: Settings) -> tuple[str, list[Wrong]]:
    """Returns a few words on the releases, and what is wrong with them."""
    if settings.tracking_db_url is None:
        return "kept by the tracking server; see registry.history --check", []
    before = _read_events(settings)
    versions, runs = read_registry(settings)
    releases = [one for one in versions if not one.is_candidate]
    if not releases:
        return "none yet", []
    held = [Held(one.name, alias, one) for one in releases for alias in one.aliases]
    wrong = list(find_without_run(held, runs, settings))
    # A move writes before and after it: with nothing written meanwhile, nothing was moving.
    if _read_events(settings) == before:
        wrong = [*find_moved_by_hand(held, before), *wrong]
    return f"{len(releases)} of {len({one.name for one in releases})} model(s)", wrong


def _read_events(settings: Settings) -> list[Event]:
    from registry.ledger import NoLedgerError, open_ledger

    try:
        with open_ledger(settings.ledger_url, make=False) as ledger:
            return ledger.events()
    except NoLedgerError:
        return []


def find_moved_by_hand(held: Sequence[Held], events: Sequence[Event]) -> Iterator[Wrong]:
    """Yields the aliases that hold something else than by the ledger; pure."""
    found = {(one.name, one.alias): one.version.version for one in held}
    moved = {one.name for one in events if one.kind == "intent"}
    for name in sorted(moved | {name for name, _ in found}):
        mine = [event for event in events if event.name == name]
        aliases = {alias: version for (of, alias), version in found.items() if of == name}
        for one in find_misplaced(mine, aliases):
            yield (
                f"{name}@{one.alias} was moved without Podium: it holds {_word(one.found)} in "
                f"MLflow, and by the ledger {_word(one.expected)}.",
                _put_back(name, one.alias, one.expected),
            )


def find_without_run(
    held: Sequence[Held], runs: Mapping[str, RunRow], settings: Settings
) -> Iterator[Wrong]:
    """Yields the aliases whose release's run is deleted, so that its bytes may go any time."""
    for one in held:
        run = runs.get(one.version.run_id)
        if run is None:
            yield (
                f"the run of {one.version.key}, which {one.name}@{one.alias} holds, is gone, and "
                "its bytes with it.",
                command_line("python", "-m", "registry.rollback", one.name, "--alias", one.alias),
            )
        elif run.deleted_ms is not None:
            yield (
                f"the run of {one.version.key}, which {one.name}@{one.alias} holds, is deleted; "
                "`mlflow gc` would take its bytes.",
                command_line(
                    *("mlflow", "runs", "restore", "--run-id", run.run_id),
                    env={"MLFLOW_TRACKING_URI": settings.direct_uri},
                ),
            )


def _put_back(name: str, alias: str, expected: int | None) -> str:
    if expected is None:
        return f"Promote a release to it, or delete the alias {alias} of {name} in MLflow."
    to = ("--to", str(expected), "--alias", alias)
    return command_line("python", "-m", "registry.rollback", name, *to)


def _word(version: int | None) -> str:
    return "nothing" if version is None else f"version {version}"
