"""reference.json: what a VAE's scores of its own test rows looked like, inside its signed release.

Scores alone, in nats: no row, and no part of one. A watcher compares live scores with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from mlops.errors import refuse_model
from registry.drift import Reference, build_reference, reference_from_json, reference_to_json

REFERENCE: Final = "reference.json"
FORMAT: Final = 1
_MAX_BYTES: Final = 1 << 18
_SCORE: Final = "anomaly_score"


def write_reference(folder: Path, scores: npt.ArrayLike) -> Path:
    """Writes reference.json into a model folder and returns its path.

    Args:
        scores: (n,) anomaly scores of the stored test rows, in nats.
    """
    path = folder / REFERENCE
    said = {"format": FORMAT, "score": _SCORE, **reference_to_json(build_reference(scores))}
    path.write_text(json.dumps(said, allow_nan=False) + "\n", encoding="ascii")
    return path


def read_reference(folder: Path) -> Reference | None:
    """Reads what `write_reference` wrote; None where a release is from before it.

    Raises:
        StructureError: it is anything else.
    """
    path = folder / REFERENCE
    try:
        if not path.exists():
            return None
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        value: Any = json.loads(path.read_text(encoding="ascii"))
        if (value.pop("format"), value.pop("score")) != (FORMAT, _SCORE):
            raise ValueError("another format")
        return reference_from_json(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        refuse_model(REFERENCE, f"holds no reference of scores ({type(err).__name__})", err)
