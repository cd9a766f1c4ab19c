"""How a trial ended, kept in its study until its driver has told it.

Between the end of a training and the moment its driver hears of it the worker, its host or the
driver may die. The study database outlives them all: whoever drives the sweep finds the result
there, and a network that was trained to its end is not trained again.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict
from typing import Any

from experiments.tasks import TrialResult

ATTRIBUTE = "podium:result"

_log = logging.getLogger(__name__)


def keep_result(storage: Any, trial_id: int, result: TrialResult) -> None:
    """Writes a result beside its trial. Raises nothing: the driver is likely to hear of it anyhow.

    Args:
        storage: Of Optuna.
    """
    import optuna

    try:
        # A trial that was given up is told already.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            storage.set_trial_system_attr(trial_id, ATTRIBUTE, asdict(result))
    except Exception as err:
        _log.warning("the result of a trial could not be kept in its study: %s", err)


def find_result(trial: Any) -> TrialResult | None:
    """Returns how a trial of a study (Optuna's `FrozenTrial`) ended; None if it did not."""
    kept = trial.system_attrs.get(ATTRIBUTE)
    try:
        return None if kept is None else TrialResult(**kept)
    except TypeError:  # another version of Podium wrote it
        return None
