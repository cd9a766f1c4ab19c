"""The store that keeps datasets, for workers, promotion and reproduction, days later too."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlops.data import FORMAT, Dataset
from mlops.errors import DataError, MlopsError
from mlops.inputs import Categories, InputSpec
from mlops.machine_lock import machine_lock
from mlops.objects import FolderObjects, Object, Objects, open_objects
from mlops.settings import Settings

ARRAYS: Final = ("x.npy", "y.npy", "split.npy")
RECORD: Final = "dataset.json"
"""Written last: where it is, the arrays are."""
FILES: Final = frozenset({*ARRAYS, RECORD})
FINGERPRINT: Final = re.compile("[0-9a-f]{64}")
FETCH_S: Final = 900.0
"""How long a process waits for another one of this machine that fetches the same dataset."""


class DatasetStore:
    """Keeps datasets, each once, under its fingerprint: in a folder, or on S3 with copies there.

    A dataset is a folder of x.npy, y.npy, split.npy and, written last, dataset.json. It is written
    beside its place, synced and renamed: a reader sees all of it or nothing, and of two writers
    one wins. A crash leaves at most a folder `.writing-...`, which nothing reads.

    On S3 the same four objects stand under `<fingerprint>/`. A dataset is written to the folder
    first, then its arrays go to S3, then dataset.json: what a crash in between leaves is no dataset
    to any reader, and the next `put` uploads all of it again. Two writers write the same bytes.

    Attributes:
        folder: Where the datasets lie, or those of S3 that this machine used; it need not be there
            yet.
        url: Where they are kept, for people: the folder, or s3://bucket/prefix.
        remote: The objects on S3; None where the folder is all.
    """

    def __init__(self, folder: Path, remote: Objects | None = None) -> None:
        self.folder = folder
        self.url = str(folder) if remote is None else remote.url
        self.remote = remote

    def reach(self) -> None:
        """Asks S3 for nothing in particular, so that what is wrong with it shows now.

        Raises:
            MlopsError: It does not answer, has no such bucket, or refuses the login.
        """
        if self.remote is not None:
            next(self.remote.list(f"{'0' * 64}/"), None)

    def put(self, dataset: Dataset) -> None:
        """Stores the dataset; does nothing where its fingerprint is there, under whatever name.

        Raises:
            MlopsError: The store cannot be written.
            DataError: The copy in the folder, which S3 does not have, is damaged.
        """
        if not self._is_here(dataset.fingerprint):
            self._write(dataset)
        if self.remote is not None and not self._is_there(dataset.fingerprint):
            folder = self.folder / dataset.fingerprint
            damage = _find_damage(folder)
            if damage is not None:
                raise _damaged(folder, damage)
            for name in (*ARRAYS, RECORD):
                self.remote.upload(folder / name, f"{dataset.fingerprint}/{name}")

    def get(self, fingerprint: str) -> Dataset:
        """Returns the stored dataset, its x a read-only memory map; fetches it where it must.

        Raises:
            DataError: It is not there, or it is damaged.
            MlopsError: S3 does not answer, or the folder cannot be written.
        """
        if self.remote is not None and FINGERPRINT.fullmatch(fingerprint):
            self._fetch(fingerprint, self.remote)
        if not self._is_here(fingerprint):
            raise DataError(
                f"the dataset store {self.url!r} has no dataset {fingerprint!r}. Set "
                "MLOPS_DATASETS_URL to the store that the sweep used, or sweep the data again "
                "to store it."
            )
        return _read(self.folder / fingerprint)

    def has(self, fingerprint: str) -> bool:
        """Whether the whole dataset is stored, in the folder or on S3.

        Raises:
            MlopsError: It is not in the folder, and S3 does not answer.
        """
        return self._is_here(fingerprint) or self._is_there(fingerprint)

    def find_damage(self, fingerprint: str) -> str | None:
        """Returns what is wrong with a dataset's files in the folder, by their hashes; else None.

        It must be there. One that an older version wrote has no hashes, and nothing to compare.
        """
        return _find_damage(self.folder / fingerprint)

    def list(self) -> tuple[str, ...]:
        """Returns the fingerprints of all that is stored whole, in the folder or on S3.

        Raises:
            MlopsError: S3 does not answer.
        """
        found = {path.parent.name for path in self.folder.glob(f"*/{RECORD}")}
        if self.remote is not None:
            there = find_objects(self.remote)
            found |= {one for one, files in there.items() if set(files) >= FILES}
        return tuple(sorted(one for one in found if FINGERPRINT.fullmatch(one)))

    def remove(self, fingerprint: str) -> None:
        """Takes a dataset away wherever it is, and what was written of it; may be repeated.

        dataset.json goes first: what a crash leaves is a dataset to nobody.

        Raises:
            MlopsError: S3 does not answer, or something cannot be deleted.
        """
        if not FINGERPRINT.fullmatch(fingerprint):
            return
        if self.remote is not None:
            self.remote.delete([f"{fingerprint}/{RECORD}"])
            self.remote.delete([one.name for one in self.remote.list(f"{fingerprint}/")])
            self.remote.delete_unfinished(fingerprint)
        try:
            if (self.folder / fingerprint).exists():
                (self.folder / fingerprint).rename(self._beside(fingerprint))
            # Those of killed writers, and copies that the doctor had moved away.
            for begin in (f".writing-{fingerprint[:12]}-", fingerprint):
                for path in self.folder.glob(f"{begin}*"):
                    shutil.rmtree(path)
        except FileNotFoundError:  # another process removes it, too
            pass
        except OSError as err:
            raise MlopsError(
                f"the dataset {fingerprint!r} cannot be removed from {str(self.folder)!r}: "
                f"{err.strerror or err}. Check the rights there."
            ) from err

    def _is_here(self, fingerprint: str) -> bool:
        # The pattern also keeps a fingerprint such as "../x" from naming a folder elsewhere.
        if not FINGERPRINT.fullmatch(fingerprint):
            return False
        return (self.folder / fingerprint / RECORD).is_file()

    def _is_there(self, fingerprint: str) -> bool:
        if self.remote is None or not FINGERPRINT.fullmatch(fingerprint):
            return False
        there = find_objects(self.remote, f"{fingerprint}/")
        return set(there.get(fingerprint, ())) >= FILES

    def _beside(self, fingerprint: str) -> Path:
        return self.folder / f".writing-{fingerprint[:12]}-{uuid.uuid4().hex}"

    def _write(self, dataset: Dataset) -> None:
        record = {
            "format": FORMAT,
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "input": dataset.input.to_json(),
            "class_names": list(dataset.class_names),
            "categories": dataset.categories,
            "shape": list(dataset.x.shape),
            "split_seed": dataset.split_seed,
            "source": dataset.source,
        }
        beside = self._beside(dataset.fingerprint)
        try:
            beside.mkdir(parents=True)
            for name in ARRAYS:
                # In one order of bytes, so that all who write this fingerprint write the same.
                array = np.ascontiguousarray(getattr(dataset, name.removesuffix(".npy")))
                np.save(beside / name, array, allow_pickle=False)
            record["sha256"] = {name: _sha256(beside / name) for name in ARRAYS}
            (beside / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            self._put_in_place(beside, dataset.fingerprint)
        except OSError as err:
            self._check_won(dataset.fingerprint, err)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _fetch(self, fingerprint: str, remote: Objects) -> None:
        """Copies a dataset from S3 to the folder, if it is there and not here."""
        if self._is_here(fingerprint):
            return
        beside = self._beside(fingerprint)
        with machine_lock(f"fetch {self.folder / fingerprint}", wait_s=FETCH_S):
            if self._is_here(fingerprint):  # by the one that held the lock
                return
            try:
                if not self._is_there(fingerprint):
                    return
                for name in (RECORD, *ARRAYS):
                    remote.download(f"{fingerprint}/{name}", beside / name)
                damage = _find_damage(beside)
                if damage is not None:
                    raise self._damaged_there(fingerprint, damage)
                self._put_in_place(beside, fingerprint)
            except FileNotFoundError as err:
                raise self._damaged_there(fingerprint, str(err)) from err
            except OSError as err:
                self._check_won(fingerprint, err)
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    def _put_in_place(self, beside: Path, fingerprint: str) -> None:
        for name in (*ARRAYS, RECORD):
            _sync(beside / name)
        _sync(beside)
        beside.rename(self.folder / fingerprint)
        _sync(self.folder)

    def _check_won(self, fingerprint: str, err: OSError) -> None:
        """Raises that the folder cannot be written, unless another process wrote what was to be."""
        if not self._is_here(fingerprint):
            raise MlopsError(
                f"the dataset store {str(self.folder)!r} cannot be written: "
                f"{err.strerror or err}. Check its rights and free space."
            ) from err

    def _damaged_there(self, fingerprint: str, cause: str) -> DataError:
        return DataError(
            f"the dataset {fingerprint!r} came damaged from {self.url} ({' '.join(cause.split())})."
            " Try again; if it stays so, delete the objects of that name, and sweep the data "
            "again to store it."
        )


def open_dataset_store(settings: Settings) -> DatasetStore:
    """Returns the store that the settings name; makes nothing and asks nobody.

    Raises:
        UsageError: They name neither a folder nor a bucket.
    """
    return open_datasets(settings.datasets_url, settings.datasets_folder)


def open_datasets(url: str, copies: Path) -> DatasetStore:
    """Returns the store at a URL; as `open_dataset_store` does, for who has no settings.

    Args:
        url: A path, file:///path, or s3://bucket/prefix.
        copies: The folder for copies of what is on S3.

    Raises:
        UsageError: It is neither a folder nor a bucket.
    """
    objects = open_objects(url, "MLOPS_DATASETS_URL")
    if isinstance(objects, FolderObjects):
        return DatasetStore(objects.root)
    return DatasetStore(copies, objects)


def find_objects(remote: Objects, prefix: str = "") -> dict[str, dict[str, Object]]:
    """Returns the objects of each dataset by their file names, by fingerprint; whole or not."""
    found: dict[str, dict[str, Object]] = {}
    for one in remote.list(prefix):
        fingerprint, _, name = one.name.partition("/")
        if FINGERPRINT.fullmatch(fingerprint):
            found.setdefault(fingerprint, {})[name] = one
    return found


def _read(folder: Path) -> Dataset:
    """Returns the dataset in a folder that is called by its fingerprint."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format; expected {FORMAT}, got {record['format']!r}")
        dataset = Dataset(
            name=record["name"],
            fingerprint=record["fingerprint"],
            input=InputSpec.from_json(record["input"]),
            class_names=tuple(record["class_names"]),
            x=np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False),
            y=np.load(folder / "y.npy", allow_pickle=False),
            split=np.load(folder / "split.npy", allow_pickle=False),
            split_seed=record["split_seed"],
            source=record["source"],
            categories=_categories(record["categories"]),
        )
        shape = tuple(record["shape"])
        n, *_ = shape
    except (DataError, OSError, EOFError, ValueError, KeyError, TypeError) as err:
        raise _damaged(folder, f"{type(err).__name__}: {err}") from err
    for what, got, wanted in (
        ("fingerprint", dataset.fingerprint, folder.name),
        ("shape of x", dataset.x.shape, shape),
        ("dtype of x", str(dataset.x.dtype), dataset.input.dtype),
        ("shape of y", dataset.y.shape, (n,)),
        ("dtype of y", str(dataset.y.dtype), "int64"),
        ("shape of split", dataset.split.shape, (n,)),
        ("dtype of split", str(dataset.split.dtype), "uint8"),
    ):
        if got != wanted:
            raise _damaged(folder, f"{what}; expected {wanted}, got {got}")
    return dataset


def _categories(value: Any) -> Categories | None:
    if value is None:
        return None
    return tuple(None if names is None else tuple(names) for names in value)


def _find_damage(folder: Path) -> str | None:
    """Returns what is wrong with the files of a dataset by their hashes, before it is passed on."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        expected = record.get("sha256", {})  # not there in what older versions wrote
        for name in ARRAYS:
            got = _sha256(folder / name)
            if expected.get(name, got) != got:
                return f"SHA-256 of {name}; expected {expected[name]}, got {got}"
    except (OSError, ValueError, AttributeError) as err:
        return f"{type(err).__name__}: {err}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(folder: Path, cause: str) -> DataError:
    cause = " ".join(cause.split())
    return DataError(
        f"the stored dataset {str(folder)!r} is damaged, or of another version of Podium "
        f"({cause}). Move it away, and sweep the data again to store it."
    )


def _sync(path: Path) -> None:
    if sys.platform == "win32":  # which cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
