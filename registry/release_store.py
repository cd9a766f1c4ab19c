"""MLflow's model registry as a store: releases, candidates, their aliases, and served copies.

Its rows lie in the database of the runs, which `mlops.stores.tracking_store` copies and upgrades.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime

from mlops.settings import Settings
from mlops.stores.store import Finding, Health, Item, Store


@dataclass(frozen=True, slots=True)
class ReleaseStore(Store):
    """What promotions made, and what sweeps registered for them.

    It has nothing of its own to copy: its rows are in the database of the runs, its bytes are
    artifacts of runs. Who changes a model holds its lease, which is the ledger's to tell.
    """

    settings: Settings
    name: str = "releases"
    rank: int = 0

    def check(self) -> Health:
        from registry.release_check import check_releases

        says, wrong = check_releases(self.settings)
        return Health(says, tuple(Finding(self.name, *one) for one in wrong))

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
