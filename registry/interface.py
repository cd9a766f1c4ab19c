"""What a model's clients send and get, and whether another model could take its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from mlops.inputs import InputSpec
from mlops.packaging import ModelSpec


def same_interface(spec: ModelSpec, champion: ModelSpec) -> bool:
    """Tells whether the champion's clients can use the other model: what they send and get.

    Categories of a column may differ, since each model takes those it does not know; a value that
    the champion lets clients leave out may be left out still; sequences may be longer.
    """
    one, other = spec.input, champion.input
    if (spec.task, spec.class_names) != (champion.task, champion.class_names):
        return False
    if (one.kind, one.dtype, one.ragged) != (other.kind, other.dtype, other.ragged):
        return False
    if one.ragged:
        return one.shape[1] == other.shape[1] and one.shape[0] >= other.shape[0]
    if one.columns is None or other.columns is None:
        return one.columns == other.columns and one.shape == other.shape
    sorts = {column.name: (column.categories is None, column.missing) for column in one.columns}
    return len(sorts) == len(other.columns) and all(
        column.name in sorts
        and sorts[column.name][0] == (column.categories is None)
        and (column.missing == "refused" or sorts[column.name][1] != "refused")
        for column in other.columns
    )


def digest_rows(spec: InputSpec) -> str:
    """Returns the SHA-256 of what rows a model takes; of two with the same one, any row will do.

    Kind, shape, dtype, and names, categories and gaps of the columns: not what training rows
    looked like, which differs from dataset to dataset.
    """
    columns = [(one.name, one.categories, one.missing) for one in spec.columns or ()]
    said = [spec.kind, spec.shape, spec.dtype, spec.ragged, spec.columns is not None, columns]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def describe_interface(spec: ModelSpec) -> str:
    """Returns what a client sees of a model, in one line for people; short, whatever the model."""
    rows = "x".join(str(size) for size in spec.input.shape)
    named = ""
    if spec.input.columns is not None:
        rows = str(len(spec.input.columns))
        columns = [
            f"{column.name} ({'number' if column.categories is None else 'category'}"
            f"{'' if column.missing == 'refused' else ', may be missing'})"
            for column in spec.input.columns
        ]
        named = f" of {_listed(columns, 400)}"
    answers = "anomaly scores"
    if spec.task == "classifier":
        answers = f"{len(spec.class_names)} classes ({_listed(spec.class_names, 80)})"
    ragged = " of any length" if spec.input.ragged else ""
    return f"{spec.input.kind} {rows} {spec.input.dtype}{ragged}{named} -> {answers}"


def _listed(names: Sequence[str], most: int) -> str:
    """The names, or the first of them and digits of all: lists that differ never look the same."""
    # They come from a model that may be a stranger's: nothing in them is to move a cursor.
    shown = "".join(one if one.isprintable() else "?" for one in ", ".join(names))
    if len(shown) <= most:
        return shown
    digest = hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:8]
    return f"{shown[:most]}..., {digest}"
