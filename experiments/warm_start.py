"""Warm starts: the best params of an earlier study are tried first."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from experiments.architectures import Description, Params
from experiments.goals import goals_of_study
from experiments.space import fits
from experiments.studies import find_studies

N_WARM_TRIALS = 5
"""Trials of an earlier study that are tried first."""


def find_warm_params(
    storage: optuna.storages.RDBStorage, wanted: str, description: Description
) -> list[Params]:
    """Returns the params of an earlier study's best trials that lie inside the space, best first.

    A param that the earlier study did not search has its baseline's value; one that is not searched
    any more is left out. A trial that did not keep what was required of it is none of the best.

    Args:
        wanted: Name of a study or of a sweep.
        description: Of the architecture; only a study of the same one counts.
    """
    space = description.distributions()
    found: list[Params] = []
    for record in find_studies(storage):
        if wanted not in (record.name, record.sweep) or (
            record.architecture_path != description.path
        ):
            continue
        study = optuna.load_study(study_name=record.name, storage=storage)
        goals = goals_of_study(study.user_attrs)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        kept = [trial for trial in complete if goals.are_met(goals.metrics_of(trial))]
        for trial in sorted(kept, key=lambda one: -goals.quality_of(one)):
            params = {name: trial.params.get(name, description.baseline[name]) for name in space}
            if fits(space, params) and params not in found:
                found.append(params)
    return found[:N_WARM_TRIALS]
