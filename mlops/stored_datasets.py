"""The dataset store as a store of a home: whether each dataset in it is whole."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from mlops.dataset_store import DatasetStore, open_dataset_store
from mlops.errors import DataError
from mlops.settings import Settings
from mlops.stores import Finding, Health

WRITING_S = 3600.0
"""How long a dataset may take to be written."""


class StoredDatasets:
    """The folder of datasets.

    Raises:
        UsageError: the setting names no folder.
    """

    name = "datasets"

    def __init__(self, settings: Settings) -> None:
        self._store: DatasetStore = open_dataset_store(settings.datasets_url)

    def check(self) -> Health:
        """Opens each dataset, which compares shapes and types; the rows are not hashed again."""
        if not self._store.folder.is_dir():
            return Health("none yet")
        entries = sorted(self._store.folder.iterdir())
        stored = [path for path in entries if re.fullmatch("[0-9a-f]{64}", path.name)]
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
        return Health(f"{len(stored)} stored" if stored else "none yet", tuple(findings))

    def _wrong(self, path: Path) -> Iterator[tuple[str, str]]:
        try:
            self._store.get(path.name)
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
