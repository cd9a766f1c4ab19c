"""The dataset store as a store of a home: whether each dataset in it is whole."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Mapping, Set
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlops.dataset_store import (
    FILES,
    FINGERPRINT,
    RECORD,
    DatasetStore,
    find_objects,
    open_dataset_store,
)
from mlops.errors import DataError
from mlops.objects import Object
from mlops.settings import Settings
from mlops.stores.store import Finding, Health, Item, Steps, Store

WRITING_S = 3600.0
"""How long a dataset may take to be written."""


class StoredDatasets(Store):
    """The folder of datasets, and the bucket where there is one.

    A dataset is written beside its place, and never again: it has no writers and no records.

    Raises:
        UsageError: the setting names neither a folder nor a bucket.
    """

    name = "datasets"
    rank = 5

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: DatasetStore = open_dataset_store(settings)

    def check(self) -> Health:
        """Opens each dataset, which compares shapes and types; the rows are not hashed again.

        Of those on S3 only the names are listed.
        """
        entries = sorted(self._store.folder.iterdir()) if self._store.folder.is_dir() else []
        stored = [path for path in entries if FINGERPRINT.fullmatch(path.name)]
        findings = [Finding(self.name, *wrong) for path in stored for wrong in self._wrong(path)]
        left = [path for path in entries if _is_left(path)]
        if left:
            findings.append(
                Finding(
                    self.name,
                    f"{len(left)} dataset(s) were being written when their process was killed; "
                    "nothing reads what is left of them.",
                    shlex.join(["rm", "-r", *map(str, left)]),
                )
            )
        says = f"{len(stored)} stored" if stored else "none yet"
        if self._store.remote is not None:
            there = find_objects(self._store.remote)
            wrong = find_partial(there, datetime.now(UTC))
            findings += [
                Finding(self.name, one, "Sweep the data again to store it whole.") for one in wrong
            ]
            n_whole = sum(set(one) >= FILES for one in there.values())
            says = f"{n_whole} stored at {self._store.url}, {len(stored)} copied here"
        return Health(says, tuple(findings))

    def backup_files(self, home: Path) -> None:
        from mlops.stores.dataset_copy import back_up

        back_up(self._settings, home)

    def restore(self, home: Path) -> Steps:
        from mlops.stores.dataset_copy import restore

        return restore(self._settings, home)

    def clean(
        self, before: datetime, keep_best: int, needed: Set[tuple[str, str]], *, dry: bool
    ) -> list[Item]:
        from mlops.stores.dataset_removal import clean_datasets

        return clean_datasets(self._store, before, needed, dry=dry)

    def find(self, dataset: str) -> list[Item]:
        from mlops.stores.dataset_removal import find_dataset

        return find_dataset(self._store, dataset)

    def erase(self, dataset: str, replace: Mapping[str, int]) -> None:
        self._store.remove(dataset)

    def _wrong(self, path: Path) -> Iterator[tuple[str, str]]:
        try:
            DatasetStore(path.parent).get(path.name)  # not that of S3, which would be fetched
        except DataError as err:
            cause = re.search(r"\((.*)\)", str(err))
            wrong = f": {cause[1]}" if cause else "; its dataset.json is missing"
            yield (
                f"the stored dataset {str(path)!r} cannot be read{wrong}. Sweep the data again "
                "to store it anew, after this.",
                shlex.join(["mv", str(path), f"{path}.damaged"]),
            )


def _is_left(path: Path) -> bool:
    return path.name.startswith(".writing-") and time.time() - path.stat().st_mtime > WRITING_S


def find_partial(found: Mapping[str, Mapping[str, Object]], now: datetime) -> Iterator[str]:
    """Yields what is wrong with datasets on S3 of which there is a part only."""
    for fingerprint, files in found.items():
        missing = sorted(FILES - set(files))
        changed_at = max(one.changed_at for one in files.values())
        if missing and RECORD in files:
            yield f"the dataset {fingerprint!r} on S3 lacks {' and '.join(missing)}."
        elif missing and now - changed_at > timedelta(seconds=WRITING_S):
            yield (
                f"the dataset {fingerprint!r} was being stored on S3 when its process was killed; "
                "nothing reads what is there of it."
            )
