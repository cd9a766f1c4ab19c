"""What releases and aliases need, and which candidates nobody needs any more.

A release needs its own run, the candidate whose bytes it holds, the run that made that, the runs
above it, its study and its dataset. So does whatever an alias holds, of a `*-candidates` model too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from datetime import datetime

from mlops.settings import Settings
from mlops.stores.store import Item
from mlops.stores.tracking_removal import measure_runs, remove_runs, remove_versions
from mlops.stores.tracking_rows import (
    FINGERPRINT,
    PARENT,
    SOURCE_RUN,
    RunRow,
    VersionRow,
    read_registry,
)
from mlops.tracked_runs import STUDY
from mlops.tracking import CANDIDATES
from registry.catalog import CANDIDATE_TAG

Key = tuple[str, str]
"""Kind and key, as in `mlops.stores.store`."""


def find_needs(
    versions: Iterable[VersionRow], runs: Mapping[str, RunRow], gone: Set[Key] = frozenset()
) -> set[Key]:
    """Returns what must stay because of releases and aliases; pure.

    Args:
        versions: All model versions.
        runs: All runs, by id.
        gone: What counts as taken out already.
    """
    there = {one.key: one for one in versions if ("model version", one.key) not in gone}
    needed: set[Key] = set()
    left = [one.key for one in there.values() if one.aliases or not one.is_candidate]
    while left:
        key = left.pop()
        if ("model version", key) in needed:
            continue
        needed.add(("model version", key))
        one = there.get(key)
        if one is not None:
            needed |= set(_needs_of_version(one)) | set(_needs_of_run(one.run_id, runs))
            if CANDIDATE_TAG in one.tags:
                left.append(one.tags[CANDIDATE_TAG])
    return needed


def _needs_of_version(version: VersionRow) -> Iterator[Key]:
    if FINGERPRINT in version.tags:
        yield "dataset", version.tags[FINGERPRINT]


def _needs_of_run(run_id: str, runs: Mapping[str, RunRow]) -> Iterator[Key]:
    """A run, those above it, the run whose network it holds, their study and dataset."""
    seen: set[str] = set()
    left = [run_id]
    while left:
        run = runs.get(left.pop())
        if run is None or run.run_id in seen:
            continue
        seen.add(run.run_id)
        yield "run", run.run_id
        if run.dataset is not None:
            yield "dataset", run.dataset
        if STUDY in run.tags:
            yield "study", run.tags[STUDY]
        left += [run.tags[tag] for tag in (PARENT, SOURCE_RUN) if tag in run.tags]


def read_needs(settings: Settings, gone: Set[Key] = frozenset()) -> set[Key]:
    """Returns what releases and aliases need, as MLflow's database stands."""
    versions, runs = read_registry(settings)
    return find_needs(versions, runs, gone)


def clean_candidates(
    settings: Settings, before: datetime, needed: Set[Key], *, dry: bool
) -> list[Item]:
    """Takes out old candidates that are of no study, with their runs; nobody needs them.

    A candidate of a study goes with its trial (`experiments.study_retention`), or stays with it.
    """
    versions, runs = read_registry(settings)
    old = [
        one
        for one in versions
        if one.is_candidate
        and one.created_ms < before.timestamp() * 1000
        and ("model version", one.key) not in needed
        and not (one.run_id in runs and STUDY in runs[one.run_id].tags)
    ]
    if not dry:
        gone = remove_candidates(settings, old)
        old = [one for one in old if one.key in gone]
    kept = {one.run_id for one in versions} - {one.run_id for one in old}
    alone = [
        runs[run_id]
        for run_id in dict.fromkeys(one.run_id for one in old)
        if run_id in runs and run_id not in kept and ("run", run_id) not in needed
    ]
    sizes = measure_runs(settings, alone)
    if not dry:
        remove_runs(settings, alone)
    return [
        *(Item("model version", one.key, f"candidate {one.key}") for one in old),
        *(Item("run", one.run_id, one.name, None, sizes[one.run_id]) for one in alone),
    ]


def remove_candidates(settings: Settings, versions: Iterable[VersionRow]) -> set[str]:
    """Takes candidates out that nobody needs at this moment; returns the keys of those.

    Under the lease of their model, so that none is promoted meanwhile. Of a model that is being
    changed just now all stay, until the next time.
    """
    by_name: dict[str, list[VersionRow]] = {}
    for one in versions:
        by_name.setdefault(one.name, []).append(one)
    gone: set[str] = set()
    for name, some in by_name.items():
        with _try_lease(settings, name.removesuffix(CANDIDATES)) as held:
            if held:
                needed = read_needs(settings)
                free = [one for one in some if ("model version", one.key) not in needed]
                remove_versions(settings, free)
                gone |= {one.key for one in free}
    return gone


@contextmanager
def _try_lease(settings: Settings, name: str) -> Iterator[bool]:
    """Holds a model's lease while the block runs, and says whether it does."""
    from registry.ledger import LeaseHeldError, NoLedgerError, open_ledger, os_user

    holder = f"{os_user()} (clean, pid {os.getpid()} on {platform.node()})"
    try:
        with open_ledger(settings.ledger_url, make=False) as ledger, ledger.lease(name, holder):
            yield True
    except NoLedgerError:  # nothing was ever promoted here
        yield True
    except LeaseHeldError:
        yield False
