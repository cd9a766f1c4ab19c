"""python -m mlops.clean: what is old, not among the best, and needed by nobody, is taken out.

    trials of finished sweeps, each as a whole: its run with the artifacts, its candidates, its rows
    files of finished sweeps, workers' logs, leftovers of delivered journals
    runs that were deleted in MLflow; candidates that no sweep here made and no release came from
    stored datasets that no run, study, journal or release refers to any more

What a release or an alias needs stays, whatever its age: its run, its candidate, the run that made
that and the runs above it, its study's best, its dataset. So does anything of a sweep that is not
finished, and every release. It is for real: nothing here can be undone but from a backup.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlops.errors import UsageError
from mlops.program import answer, answer_json, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from mlops.stores.store import Item, Store

UNITS = {"d": "days", "h": "hours", "m": "minutes"}
N_SHOWN = 10
"""Things of one kind that are listed; `--json` lists all."""


def clean(settings: Settings, before: datetime, keep_best: int, *, dry: bool) -> list[Item]:
    """Takes out what all stores have that is old and that none of them needs.

    Args:
        settings: Where things live.
        before: Aware; what ended later stays.
        keep_best: Trials of each study that stay whatever their age.
        dry: Only tell.

    Returns:
        What was, or would be, taken out.

    Raises:
        MlopsError: a store does not answer; what is gone by then stays gone.
    """
    from mlops.stores.store import get_stores

    stores = get_stores(settings)
    taken: list[Item] = []
    for store in stores:
        needed = find_needed(stores, {(item.kind, item.key) for item in taken})
        taken += store.clean(before, keep_best, needed, dry=dry)
    return taken


def find_needed(
    stores: Iterable[Store], gone: Set[tuple[str, str]] = frozenset()
) -> set[tuple[str, str]]:
    """Returns what must stay because some store refers to it.

    Args:
        stores: All of them.
        gone: What counts as taken out already.
    """
    return {one for store in stores for one in store.needs(gone)}


def read_age(text: str) -> timedelta:
    """Reads an age as people type it: "90d", "12h", "30m".

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(\d{1,6})([dhm])", text)
    if found is None:
        raise UsageError(f"--older-than is no age; expected 90d, 12h or 30m, got {text!r}.")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def as_text(items: Iterable[Item], *, dry: bool) -> str:
    """Returns what is, or would be, taken out, by kind, with its bytes."""
    by_kind: dict[str, list[Item]] = {}
    for item in items:
        by_kind.setdefault(item.kind, []).append(item)
    if not by_kind:
        return "Nothing is old enough, and needed by nobody."
    lines = []
    for kind, some in sorted(by_kind.items()):
        lines.append(f"{kind}: {len(some)}, {shown_bytes(sum(one.size_bytes for one in some))}")
        lines += [f"  {one.label}" for one in some[:N_SHOWN]]
        lines += [f"  and {len(some) - N_SHOWN} more"] if len(some) > N_SHOWN else []
    total = shown_bytes(sum(one.size_bytes for some in by_kind.values() for one in some))
    n_items = sum(map(len, by_kind.values()))
    end = "would be taken out" if dry else "taken out"
    return "\n".join([*lines, "", f"{n_items} things, {total} of files, {end}."])


def shown_bytes(n: int) -> str:
    """Returns a number of bytes for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} bytes"


def to_json(items: Iterable[Item]) -> list[dict[str, Any]]:
    return [
        {"kind": one.kind, "key": one.key, "label": one.label, "size_bytes": one.size_bytes}
        for one in items
    ]


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    older_than: str
    """Take out what ended longer ago than this: 90d, 12h, 30m."""
    keep_best: int = 5
    """Trials of each study that stay, whatever their age."""
    dry_run: bool = False
    """Show what would be taken out; take out nothing."""
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    age = read_age(options.older_than)
    if options.keep_best < 0:
        raise UsageError(f"--keep-best is no number of trials; got {options.keep_best}.")
    settings = Settings.from_env()
    items = clean(settings, datetime.now(UTC) - age, options.keep_best, dry=options.dry_run)
    if options.json:
        size = sum(one.size_bytes for one in items)
        answer_json({"dry_run": options.dry_run, "size_bytes": size, "items": to_json(items)})
        return 0
    answer(as_text(items, dry=options.dry_run))
    if options.dry_run and items:
        say("Without --dry-run it is done, and only a backup brings it back.")
    return 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.clean",
        description="Take out what is old, not among the best, and needed by no release.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
