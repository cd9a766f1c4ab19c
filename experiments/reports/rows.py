"""Trials as rows of Optuna's tables: what a report needs of them, in a few queries a sweep.

Optuna's own reading loads all that belongs to each trial, one object at a time. Nothing is written.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState

from experiments.goals import METRICS
from experiments.kept_result import ATTRIBUTE
from experiments.standing import GPU_S
from mlops.errors import UsageError, first_line
from mlops.stores.database_check import open_to_read

BEST_EPOCH, REASON, RETRY_OF = "best_epoch", "reason", "retry_of"
_ATTRS: Final = (BEST_EPOCH, REASON, RETRY_OF, GPU_S, METRICS)


@dataclass(slots=True)
class TrialRow:
    """A trial.

    Attributes:
        values: By the index of the objective.
        params: As the architecture took them.
        attrs: Those user attributes that a report looks at.
        n_epochs, reported: Of a pruned trial how many epochs it reported, and the best of them.
    """

    trial_id: int
    number: int
    state: TrialState
    began: datetime | None
    ended: datetime | None
    values: dict[int, float] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    n_epochs: int = 0
    reported: float | None = None

    @property
    def seconds(self) -> float:
        """Wall seconds that it took; 0 while it runs."""
        if self.began is None or self.ended is None:
            return 0.0
        return max((self.ended - self.began).total_seconds(), 0.0)


class TrialReader:
    """Reads trials through one connection. Make it with `read_rows`."""

    def __init__(self, connection: sa.Connection, study_ids: Sequence[int]) -> None:
        self._connection = connection
        self._wanted = models.TrialModel.__table__.c.study_id.in_(study_ids)
        self._distributions: dict[str, BaseDistribution] = {}

    def read(self) -> dict[int, list[TrialRow]]:
        """Returns the trials of each study, in the order of their numbers."""
        trial = models.TrialModel.__table__.c
        query = (
            sa.select(
                trial.study_id,
                trial.trial_id,
                trial.number,
                trial.state,
                trial.datetime_start,
                trial.datetime_complete,
            )
            .where(self._wanted)
            .order_by(trial.trial_id)
        )
        studies: dict[int, list[TrialRow]] = defaultdict(list)
        rows: dict[int, TrialRow] = {}
        for study_id, trial_id, number, state, began, ended in self._connection.execute(query):
            rows[trial_id] = TrialRow(trial_id, number, state, _aware(began), _aware(ended))
            studies[study_id].append(rows[trial_id])
        self._add_values(rows)
        self._add_params(rows)
        self._add_attrs(rows)
        self._add_reports(rows)
        return studies

    def read_kept(self, trial_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Returns what workers kept of how trials ended, by trial; of few trials at a time."""
        attr = models.TrialSystemAttributeModel.__table__.c
        query = sa.select(attr.trial_id, attr.value_json).where(
            attr.trial_id.in_(list(trial_ids)), attr.key == ATTRIBUTE
        )
        return {row[0]: json.loads(row[1]) for row in self._connection.execute(query)}

    def _add_values(self, rows: dict[int, TrialRow]) -> None:
        value = models.TrialValueModel.__table__.c
        for trial_id, objective, number in self._of(value, value.objective, value.value):
            if trial_id in rows and number is not None:
                rows[trial_id].values[objective] = number

    def _add_params(self, rows: dict[int, TrialRow]) -> None:
        param = models.TrialParamModel.__table__.c
        found = self._of(param, param.param_name, param.param_value, param.distribution_json)
        for trial_id, name, value, text in found:
            if trial_id in rows:
                distribution = self._distribution(text)
                rows[trial_id].params[name] = distribution.to_external_repr(value)
                rows[trial_id].distributions[name] = distribution

    def _distribution(self, text: str) -> BaseDistribution:
        if text not in self._distributions:
            self._distributions[text] = json_to_distribution(text)
        return self._distributions[text]

    def _add_attrs(self, rows: dict[int, TrialRow]) -> None:
        attr = models.TrialUserAttributeModel.__table__.c
        for trial_id, key, text in self._of(attr, attr.key, attr.value_json, attr.key.in_(_ATTRS)):
            if trial_id in rows:
                rows[trial_id].attrs[key] = json.loads(text)

    def _add_reports(self, rows: dict[int, TrialRow]) -> None:
        trial = models.TrialModel.__table__.c
        report = models.TrialIntermediateValueModel.__table__.c
        query = (
            sa.select(report.trial_id, sa.func.count(), sa.func.max(report.intermediate_value))
            .join_from(report.trial_id.table, trial.trial_id.table)
            .where(self._wanted, trial.state == TrialState.PRUNED)
            .group_by(report.trial_id)
        )
        for trial_id, n_epochs, best in self._connection.execute(query):
            if trial_id in rows:
                rows[trial_id].n_epochs, rows[trial_id].reported = n_epochs, best

    def _of(self, table: Any, *wanted: Any) -> Iterator[Any]:
        """Yields columns of the rows that hang on the trials; a last one may be a condition."""
        trial = models.TrialModel.__table__.c
        columns = [one for one in wanted if isinstance(one, sa.Column)]
        conditions = [one for one in wanted if not isinstance(one, sa.Column)]
        query = (
            sa.select(table.trial_id, *columns)
            .join_from(table.trial_id.table, trial.trial_id.table)
            .where(self._wanted, *conditions)
            .order_by(table[next(iter(table.trial_id.table.primary_key)).name])
        )
        yield from self._connection.execute(query)


def read_rows(
    url: str, study_ids: Sequence[int], metrics_of: Any
) -> tuple[dict[int, list[TrialRow]], dict[int, dict[str, Any]]]:
    """Returns the trials of studies, and what workers kept of those that are looked at closer.

    Args:
        metrics_of: Takes the trials and returns the ids of those to look at closer.

    Raises:
        UsageError: the database cannot be read.
    """
    try:
        with open_to_read(url) as connection:
            reader = TrialReader(connection, study_ids)
            rows = reader.read()
            return rows, reader.read_kept(metrics_of(rows))
    except (sa.exc.SQLAlchemyError, ImportError) as err:
        raise UsageError(
            f"the study database cannot be read: {first_line(getattr(err, 'orig', None) or err)}. "
            "Look at MLOPS_STUDY_URL and whether its server runs."
        ) from err


def _aware(time: datetime | None) -> datetime | None:
    """Optuna's tables hold UTC, without saying so."""
    return None if time is None else time.replace(tzinfo=UTC)
