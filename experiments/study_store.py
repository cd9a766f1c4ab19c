"""The studies as a store: their database, and what killed drivers left in it.

`experiments.pairs` compares trials with runs. Only studies that this home began are looked at: of
the others, journals and locks are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.database_check import Database, check_database, find_package
from mlops.stores.store import Finding, Health, Item, Steps, Store
from mlops.stores.tracking_store import check_backend

if TYPE_CHECKING:
    from experiments.overview import StudyStatus, SweepStatus


@dataclass(frozen=True, slots=True)
class StudyStore(Store):
    """Optuna's studies, where `MLOPS_STUDY_URL` names them."""

    settings: Settings
    name: str = "studies"
    rank: int = 2
    # What PostgreSQL's other logins may do than who owns the tables (mlops.team.databases).
    grants: ClassVar[Mapping[str, Mapping[str, str]]] = {"promoter": {"*": "SELECT"}}

    def check(self) -> Health:
        from experiments.pairs import find_unpaired
        from experiments.storage import has_storage
        from experiments.studies import home_of

        sweeps: list[SweepStatus] = []
        if has_storage(self.settings.study_url):
            unreadable = check_database(_database(self.settings.study_url))
            if unreadable:
                return Health("", tuple(unreadable))
            sweeps = self._read_sweeps()
        mine = [one for one in sweeps if one.home == home_of(self.settings)]
        wrong = [one for sweep in mine for one in self._wrong_sweep(sweep)]
        _, ready = check_backend(self.settings)  # what is wrong there, its own store tells
        if ready:
            # Without a study database, too: it may be lost, and the runs be there.
            wrong += find_unpaired(self.settings, sweeps)
        says = f"{len(sweeps)} sweep(s)" if sweeps else "none yet"
        compared = "" if ready or not mine else "; not compared with MLflow, which has no answer"
        return Health(says + compared, tuple(Finding(self.name, *one) for one in wrong))

    def hold(self) -> AbstractContextManager[None]:
        from experiments.study_copy import hold

        return hold(self.settings)

    def backup_records(self, home: Path) -> Steps:
        from experiments.study_copy import back_up_records

        return back_up_records(self.settings, home)

    def backup_files(self, home: Path) -> None:
        from experiments.study_copy import back_up_files

        back_up_files(self.settings, home)

    def restore(self, home: Path) -> Steps:
        from experiments.study_copy import restore

        return restore(self.settings, home)

    def writers(self) -> list[str]:
        from experiments.study_upgrade import find_study_writers

        return find_study_writers(self.settings)

    def upgrade(self) -> str:
        from experiments.study_upgrade import upgrade_studies

        return upgrade_studies(self.settings)

    def needs(self, gone: Set[tuple[str, str]] = frozenset()) -> set[tuple[str, str]]:
        from experiments.study_removal import DATASET
        from experiments.study_rows import read_studies

        there = [
            one
            for one in read_studies(self.settings.study_url)
            if ("study", one.name) not in gone and DATASET in one.attrs
        ]
        return {("dataset", one.attrs[DATASET]) for one in there}

    def clean(
        self, before: datetime, keep_best: int, needed: Set[tuple[str, str]], *, dry: bool
    ) -> list[Item]:
        from experiments.study_retention import clean_studies

        return clean_studies(self.settings, before, keep_best, needed, dry=dry)

    def find(self, dataset: str) -> list[Item]:
        from experiments.study_removal import find_studies_of

        return find_studies_of(self.settings, dataset)

    def erase(self, dataset: str, replace: Mapping[str, int]) -> None:
        from experiments.study_removal import erase_studies

        erase_studies(self.settings, dataset)

    def _read_sweeps(self) -> list[SweepStatus]:
        from experiments.overview import open_overview

        with open_overview(self.settings) as overview:
            return [] if overview is None else overview.read(overview.states())

    def _wrong_sweep(self, sweep: SweepStatus) -> Iterator[tuple[str, str]]:
        """What the study database alone tells of a sweep that no driver holds."""
        if sweep.state == "running":
            return
        n_running = sum(study.n_running for study in sweep.studies)
        if n_running and sweep.state == "interrupted":
            yield (
                f"the driver of {sweep.sweep_id!r} is gone and left {n_running} trial(s) RUNNING.",
                self._resume(sweep),
            )
        for study in sweep.studies:
            network = self._find_missing_network(sweep, study)
            if network is not None:
                yield (
                    f"the network of the best trial of {study.study!r} is gone, and no candidate "
                    f"was made of it; expected {str(network)!r}. A new sweep that tries the best "
                    "params first trains it again.",
                    self._begin_again(sweep),
                )

    def _find_missing_network(self, sweep: SweepStatus, study: StudyStatus) -> Path | None:
        if study.best is None or study.has_candidate:
            return None
        folder = self.settings.home / "sweeps" / sweep.sweep_id / study.architecture
        network = folder / f"{study.best.number:05d}.keras"
        return None if network.exists() else network

    def _resume(self, sweep: SweepStatus) -> str:
        from experiments.status import next_commands

        commands = next_commands(sweep, self.settings)
        return commands[0] if commands else "Type the command that began the sweep once more."

    def _begin_again(self, sweep: SweepStatus) -> str:
        from experiments.studies import CONFIG

        config = self.settings.home / "sweeps" / sweep.sweep_id / CONFIG
        options = ("--study", f"{sweep.sweep_id}-again", "--warm-start", sweep.sweep_id)
        if not config.exists():
            return f"Type the command that began the sweep, with {' '.join(options)}"
        return command_line("python", "-m", "experiments.sweep", "--config", str(config), *options)


def _database(url: str) -> Database:
    return Database(
        store="studies",
        what="studies",
        url=url,
        setting="MLOPS_STUDY_URL",
        revisions=find_package("optuna") / "storages" / "_rdb" / "alembic" / "versions",
        upgrade=command_line("python", "-m", "mlops.upgrade"),
    )
