"""Private copies of releases, verified with this host's keys.

A copy lies in `<version>-<first 12 hex digits of its statement's SHA-256>`. None is changed or
removed here: one that does not verify any more may be what answers. A new one gets another folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mlops.errors import MlopsError
from registry.catalog import Catalog, Release
from registry.releases import Verified, check_release, fetch_release
from registry.signing import UnverifiedError
from registry.sizes import MOST_FILES, judge_size


class TooLargeError(MlopsError):
    """A release that is not downloaded."""


class Copies:
    """The copies of one model's releases in a folder. Any thread may ask."""

    def __init__(self, catalog: Catalog, name: str, folder: Path, keys: Sequence[Path]) -> None:
        """Removes what a download left that was killed; no other process may use the folder."""
        self._catalog = catalog
        self._name = name
        self._folder = folder
        self._keys = tuple(keys)
        self._lock = threading.Lock()
        for left in folder.glob(".*.new"):
            shutil.rmtree(left, ignore_errors=True)

    def fetch(self, release: Release) -> Verified:
        """Returns a verified copy of a release; one that is here, where it verifies.

        Raises:
            UnverifiedError: it is not what was signed.
            UsageError: a public key is missing.
            TooLargeError: it is larger than may be, or than the disk has room for.
            MlopsError: it cannot be read or written now.
        """
        try:
            found = self.find(release.version, release.run_id)
            if found is None:
                return self._download(release)
            os.utime(found.folder)  # what was used last is kept longest
        except OSError as err:
            raise MlopsError(f"a release could not be copied: {err}") from err
        return found

    def find(self, version: int, run_id: str) -> Verified | None:
        """Returns a copy that is here and verifies, without the registry.

        Raises:
            UsageError: a public key is missing.
        """
        for place in self._places(version):
            try:
                return check_release(place, self._name, version, run_id, self._keys)
            except (UnverifiedError, OSError):
                continue
        return None

    def verifies(self, place: Path, version: int, run_id: str) -> bool:
        """Tells whether a copy would verify with the keys that are here now."""
        try:
            check_release(place, self._name, version, run_id, self._keys)
        except (MlopsError, OSError):
            return False
        return True

    def _places(self, version: int) -> Iterator[Path]:
        for place in sorted(self._folder.glob(f"{version}*")):
            if place.name.partition("-")[0] == str(version) and place.is_dir():
                yield place

    def _download(self, release: Release) -> Verified:
        if release.is_ours:  # else it is refused before it is downloaded
            self._check_size(release)
        name = f".{release.version}."
        partial = Path(tempfile.mkdtemp(".new", prefix=name, dir=self._folder))
        try:
            found = fetch_release(self._catalog, release, partial, self._keys)
            with self._lock:
                place = self._free_place(release.version, found.statement_sha256)
                found.folder.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return replace(found, folder=place)

    def _check_size(self, release: Release) -> None:
        size, files = self._catalog.find_size(release, MOST_FILES)
        reason = judge_size(size, files, shutil.disk_usage(self._folder).free)
        if reason is not None:
            raise TooLargeError(reason)

    def _free_place(self, version: int, statement_sha256: str) -> Path:
        name = f"{version}-{statement_sha256[:12]}"
        place, number = self._folder / name, 1
        while place.exists():  # it was altered, and may be what answers
            number += 1
            place = self._folder / f"{name}-{number}"
        return place
