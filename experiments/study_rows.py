"""Studies and trials as rows of Optuna's tables: which there are, and their removal.

Optuna itself can delete a whole study, one object at a time, and no trial. The tables that hang on
a trial or a study are taken from Optuna's own models, so that none is forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models

from experiments.storage import has_storage
from mlops.errors import MlopsError, first_line
from mlops.stores.database_check import open_to_read
from mlops.stores.database_removal import open_to_remove

SETTING = "MLOPS_STUDY_URL"
N_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study, whole or not, with its user attributes."""

    study_id: int
    name: str
    attrs: dict[str, Any]

    @property
    def sweep(self) -> str | None:
        """The sweep that made it; None of a study that its maker did not complete."""
        return self.attrs.get("sweep")

    @property
    def is_done(self) -> bool:
        """Whether it was finished, and not asked for more since."""
        target = self.attrs.get("target")
        return target is not None and self.attrs.get("finished_target", 0) >= target


def read_studies(url: str) -> list[StudyRow]:
    """Returns all studies, oldest first; none where there is no database yet.

    Raises:
        MlopsError: it cannot be read.
    """
    if not has_storage(url):
        return []
    study, attr = models.StudyModel.__table__, models.StudyUserAttributeModel.__table__
    try:
        with open_to_read(url) as connection:
            if not sa.inspect(connection).has_table(study.name):
                return []
            found = {
                row[0]: StudyRow(row[0], row[1], {})
                for row in connection.execute(
                    sa.select(study.c.study_id, study.c.study_name).order_by(study.c.study_id)
                )
            }
            for study_id, key, value in connection.execute(
                sa.select(attr.c.study_id, attr.c.key, attr.c.value_json)
            ):
                if study_id in found:
                    found[study_id].attrs[key] = json.loads(value)
    except (sa.exc.SQLAlchemyError, ImportError) as err:
        raise MlopsError(
            f"the study database cannot be read: {first_line(getattr(err, 'orig', None) or err)}. "
            f"Look at {SETTING} and whether its server runs."
        ) from err
    return list(found.values())


def remove_trials(url: str, trial_ids: Iterable[int]) -> None:
    """Takes trials out with all that hangs on them, in one transaction.

    Raises:
        MlopsError: the database does not do it.
    """
    trials = models.TrialModel.__table__
    with open_to_remove(url, SETTING) as connection:
        for some in _in_parts(trial_ids):
            for table in _hanging_on("trial_id", trials):
                connection.execute(sa.delete(table).where(table.c.trial_id.in_(some)))
            connection.execute(sa.delete(trials).where(trials.c.trial_id.in_(some)))


def remove_studies(url: str, study_ids: Iterable[int]) -> None:
    """Takes studies out with all their trials, in one transaction; raises as `remove_trials`."""
    trials, studies = models.TrialModel.__table__, models.StudyModel.__table__
    with open_to_remove(url, SETTING) as connection:
        for some in _in_parts(study_ids):
            mine = sa.select(trials.c.trial_id).where(trials.c.study_id.in_(some))
            for table in _hanging_on("trial_id", trials):
                connection.execute(sa.delete(table).where(table.c.trial_id.in_(mine)))
            for table in (*_hanging_on("study_id", studies), studies):
                connection.execute(sa.delete(table).where(table.c.study_id.in_(some)))


def all_tables() -> list[str]:
    """Returns the names of Optuna's tables."""
    return [table.name for table in models.BaseModel.metadata.sorted_tables]


def _hanging_on(column: str, table: sa.Table) -> list[sa.Table]:
    """Returns the tables whose rows hang on a row of a table, those that hang on others first."""
    tables = reversed(models.BaseModel.metadata.sorted_tables)
    return [one for one in tables if column in one.c and one is not table]


def _in_parts(values: Iterable[int]) -> Iterator[list[int]]:
    left = list(values)
    for start in range(0, len(left), N_AT_ONCE):
        yield left[start : start + N_AT_ONCE]
