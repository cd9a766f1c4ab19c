"""MLflow's model registry as a store: releases, candidates, their aliases, and served copies.

Its rows lie in the database of the runs, which `mlops.tracking_store` copies and upgrades.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlops.settings import Settings
from mlops.stores import Finding, Health, Item, Steps


@dataclass(frozen=True, slots=True)
class ReleaseStore:
    """What promotions made, and what sweeps registered for them."""

    settings: Settings
    name: str = "releases"
    rank: int = 0

    def check(self) -> Health:
        from registry.release_check import check_releases

        says, wrong = check_releases(self.settings)
        return Health(says, tuple(Finding(self.name, *one) for one in wrong))

    def hold(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backup_records(self, home: Path) -> Steps:
        """Copies nothing: the rows are in the database of the runs."""
        yield from ()

    def backup_files(self, home: Path) -> None:
        """Copies nothing: the bytes of releases are artifacts of runs."""

    def restore(self, home: Path) -> Steps:
        """Brings nothing, as there is no copy; copies that a server keeps are made anew."""
        yield from ()

    def writers(self) -> list[str]:
        """Returns nobody: who changes a model holds its lease, which is the ledger's to tell."""
        return []

    def upgrade(self) -> str:
        return "up to date, with the runs"

    def needs(self, gone: Set[tuple[str, str]] = frozenset()) -> set[tuple[str, str]]:
        from registry.release_retention import read_needs

        return read_needs(self.settings, gone)

    def clean(
        self, before: datetime, keep_best: int, needed: Set[tuple[str, str]], *, dry: bool
    ) -> list[Item]:
        from registry.release_retention import clean_candidates

        return clean_candidates(self.settings, before, needed, dry=dry)

    def find(self, dataset: str) -> list[Item]:
        from registry.release_removal import find_releases_of

        return find_releases_of(self.settings, dataset)

    def erase(self, dataset: str, replace: Mapping[str, int]) -> None:
        from registry.release_removal import erase_releases

        erase_releases(self.settings, dataset, replace)
