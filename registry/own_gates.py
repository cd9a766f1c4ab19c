"""Gates that users write: a function from the evidence to an answer, named in the policy.

Example, `gates.py` beside the policy, which says `function = "gates:spread"`:
    >>> def spread(evidence):
    ...     worst = evidence.candidate.answers.max(axis=1).min()
    ...     return worst > 0.2, worst, 0.2
"""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mlops.errors import MlopsError, first_line
from registry.evidence import Evidence


class OwnAnswer(NamedTuple):
    """What a user's gate found; a plain tuple of three does as well.

    Attributes:
        passed: Whether the model meets it.
        measured: A number or a text; a number that is not finite never passes.
        limit: What it was compared with; None where it was with nothing.
    """

    passed: bool
    measured: float | int | str
    limit: float | int | str | None


def ask_own(function: str, evidence: Evidence) -> OwnAnswer:
    """Asks the function `module:name`; a module may lie in the folder of the command.

    Raises:
        MlopsError: It cannot be imported, raises anything, or returns something else.
    """
    module, _, name = function.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a user's module lies where the command was typed
        sys.path.insert(0, here)
    try:
        answer = getattr(importlib.import_module(module), name)(evidence)
    except Exception as err:
        raise MlopsError(f"{function} raised {type(err).__name__}: {first_line(err)}") from err
    except SystemExit as err:  # it is not to end a promotion as if that were done
        raise MlopsError(f"{function} called sys.exit") from err
    if not isinstance(answer, tuple) or len(answer) != 3:
        _refuse(function, answer, "(passed, measured, limit)")
    passed, measured, limit = (one.item() if isinstance(one, np.generic) else one for one in answer)
    if not isinstance(passed, bool):
        _refuse(function, answer, "True or False first")
    if not _is_value(measured) or not (limit is None or _is_value(limit)):
        _refuse(function, answer, "a number or a text as measured, and as limit")
    is_finite = isinstance(measured, str) or math.isfinite(measured)
    return OwnAnswer(passed and is_finite, measured, limit)


def _is_value(value: Any) -> bool:
    return isinstance(value, (float, int, str)) and not isinstance(value, bool)


def _refuse(function: str, answer: Any, expected: str) -> NoReturn:
    raise MlopsError(f"{function} returned {repr(answer)[:80]}; expected {expected}")
