"""What a report says of datasets, from the copies that lie on this machine.

Nothing is fetched: a report is no reason to bring gigabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from experiments.config import SweepConfig
from experiments.reports.facts import DatasetFacts
from experiments.study_removal import DATASET
from mlops.data import PARTS, Dataset
from mlops.dataset_store import DatasetStore, open_dataset_store
from mlops.errors import MlopsError
from mlops.settings import Settings

ROWS_AT_ONCE: Final = 4096


def read_dataset(
    settings: Settings, attrs: Mapping[str, Any], config: SweepConfig | None
) -> DatasetFacts:
    """Returns what is known here of the dataset of a study with these user attributes."""
    fingerprint = attrs.get(DATASET)
    name = str(attrs.get("experiment") if config is None else config.dataset)
    dataset = find_dataset(settings, fingerprint)
    return DatasetFacts(name, fingerprint) if dataset is None else describe_dataset(dataset)


def find_dataset(settings: Settings, fingerprint: str | None) -> Dataset | None:
    """Returns a dataset that lies on this machine; None of any other, or of a damaged one."""
    try:
        store = DatasetStore(open_dataset_store(settings).folder)
        return store.get(fingerprint) if fingerprint and store.has(fingerprint) else None
    except MlopsError:
        return None


def describe_dataset(dataset: Dataset) -> DatasetFacts:
    """Returns what a report says of a dataset."""
    from experiments.preparation import rows_in_words

    return DatasetFacts(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        source=dataset.source,
        rows=rows_in_words(dataset),
        counts=dataset.counts(),
        class_names=dataset.class_names,
        class_counts=tuple(dataset.class_counts("train")),
    )


def have_same_rows(settings: Settings, fingerprints: Sequence[str | None]) -> bool | None:
    """Tells whether datasets have the same validation and test rows, in the same order.

    None where one of them does not lie on this machine. Rows that were added elsewhere move none
    of them (`mlops.data`).
    """
    found = [find_dataset(settings, one) for one in dict.fromkeys(fingerprints)]
    first, *others = found
    if first is None or None in others:
        return None
    return all(one is not None and _are_alike(first, one) for one in others)


def _are_alike(one: Dataset, other: Dataset) -> bool:
    import numpy as np

    if one.class_names != other.class_names or one.categories != other.categories:
        return False
    for code in (PARTS.index("val"), PARTS.index("test")):
        mine, theirs = (np.flatnonzero(it.split == code) for it in (one, other))
        if len(mine) != len(theirs) or one.x.shape[1:] != other.x.shape[1:]:
            return False
        if not np.array_equal(one.y[mine], other.y[theirs]):
            return False
        for start in range(0, len(mine), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            same = np.array_equal(one.x[mine[part]], other.x[theirs[part]], equal_nan=True)
            if not same:
                return False
    return True
