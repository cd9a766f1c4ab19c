"""Finds runs on an MLflow server by their keys, in as few requests as it takes.

A search is MLflow's slowest request (65 ms of its server, others 10 to 20): so nothing is looked up
that is known, and many creations are looked up at once. Raises what the client raises.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlops.journal import Record
from mlops.tracking import RUN_KEY

PAGE = 1000
N_KNOWN = 5_000

T = TypeVar("T")


class Recent(dict[str, T]):
    """What is known of runs, by key: of the last `N_KNOWN`; an older one is looked up again."""

    def __setitem__(self, key: str, value: T) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > N_KNOWN:
            del self[next(iter(self))]


@dataclass(slots=True)
class RunLookup:
    """Looks up runs, deleted ones too: where several have one key, the one to write to is first."""

    client: Any
    _experiments: list[str] = field(default_factory=list)

    def find(self, key: str) -> list[str]:
        """Returns the ids of the runs with a key."""
        condition = f"tags.`{RUN_KEY}` = '{key}'"
        found = self._search(self._experiments, condition)
        if not found:
            known = set(self._experiments)
            self._experiments = self._list_experiments()
            found = self._search([one for one in self._experiments if one not in known], condition)
        return _in_order(found)

    def find_created(self, experiment: str, creations: Sequence[Record]) -> dict[str, list[str]]:
        """Returns the ids of the runs that creations have made in an experiment, by key."""
        # A run begins at the time of its record, so one search for the time finds them all.
        times = [record.fields["at_ms"] for record in creations]
        condition = (
            f"attributes.start_time >= {min(times)} and attributes.start_time <= {max(times)}"
        )
        runs: defaultdict[str, list[Any]] = defaultdict(list)
        for run in self._search([experiment], condition):
            runs[run.data.tags.get(RUN_KEY, "")].append(run)
        return {key: _in_order(found) for key, found in runs.items()}

    def _search(self, experiments: list[str], condition: str) -> list[Any]:
        from mlflow.entities import ViewType

        found: list[Any] = []
        token = None
        while experiments:
            page = self.client.search_runs(
                experiments, condition, ViewType.ALL, max_results=PAGE, page_token=token
            )
            found += page
            token = page.token
            if not token:
                break
        return found

    def _list_experiments(self) -> list[str]:
        from mlflow.entities import ViewType

        found: list[str] = []
        token = None
        while True:
            page = self.client.search_experiments(view_type=ViewType.ALL, page_token=token)
            found += [experiment.experiment_id for experiment in page]
            token = page.token
            if not token:
                return found


def _in_order(runs: Iterable[Any]) -> list[str]:
    # A deleted run comes after a living one, but is found: its records are then refused.
    order = sorted(
        runs,
        key=lambda run: (
            run.info.lifecycle_stage != "active",
            -len(run.data.params) - len(run.data.metrics) - len(run.data.tags),
            run.info.run_id,
        ),
    )
    return [str(run.info.run_id) for run in order]
