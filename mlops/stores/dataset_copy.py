"""The datasets' part of a backup. A dataset never changes, and dataset.json makes it whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlops.dataset_store import FILES, FINGERPRINT, RECORD
from mlops.objects import Objects, open_objects
from mlops.stores.backup_record import find_restoring, read_record
from mlops.stores.file_copy import copy_objects, refuse_others, restore_objects
from mlops.stores.store import Steps

if TYPE_CHECKING:
    from mlops.settings import Settings

FOLDER = "datasets"


def back_up(settings: Settings, home: Path) -> None:
    """Copies all datasets that are whole.

    Raises:
        MlopsError: they cannot be read.
    """
    copy_objects(_open_objects(settings), home / FOLDER, (RECORD,), _is_of_dataset)


def restore(settings: Settings, backup: Path) -> Steps:
    """Brings the datasets.

    Raises:
        MlopsError: there are some already.
    """
    objects, sizes = _open_objects(settings), read_record(backup).sizes(FOLDER)
    refuse_others(
        objects,
        sizes,
        repeated=find_restoring(settings.home) is not None,
        what="datasets",
        setting="MLOPS_DATASETS_URL",
    )
    yield
    restore_objects(backup / FOLDER, sizes, objects, (RECORD,))


def _open_objects(settings: Settings) -> Objects:
    return open_objects(settings.datasets_url, "MLOPS_DATASETS_URL")


def _is_of_dataset(name: str) -> bool:
    fingerprint, _, file = name.partition("/")
    return bool(FINGERPRINT.fullmatch(fingerprint)) and file in FILES
