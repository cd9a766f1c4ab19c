"""The store that keeps datasets, for workers, promotion and reproduction, days later too."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from mlops.data import FORMAT, Dataset
from mlops.errors import DataError, MlopsError, UsageError
from mlops.inputs import Categories, InputSpec


class DatasetStore:
    """Keeps datasets in a folder, each once, under its fingerprint.

    A dataset is a folder of x.npy, y.npy, split.npy and, written last, dataset.json. It is written
    beside its place, synced and renamed: a reader sees all of it or nothing, and of two writers
    one wins. A crash leaves at most a folder `.writing-...`, which nothing reads.

    Attributes:
        folder: Where the datasets lie; it need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, dataset: Dataset) -> None:
        """Stores the dataset; does nothing where its fingerprint is there, under whatever name.

        Raises:
            MlopsError: The store cannot be written.
        """
        if self.has(dataset.fingerprint):
            return
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
        writing = self.folder / f".writing-{dataset.fingerprint[:12]}-{uuid.uuid4().hex}"
        try:
            writing.mkdir(parents=True)
            for key in ("x", "y", "split"):
                with (writing / f"{key}.npy").open("wb") as file:
                    np.save(file, getattr(dataset, key), allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            with (writing / "dataset.json").open("w", encoding="utf-8") as text:
                json.dump(record, text, indent=1)
                text.flush()
                os.fsync(text.fileno())
            _sync_folder(writing)
            writing.rename(self.folder / dataset.fingerprint)
            _sync_folder(self.folder)
        except OSError as err:
            if not self.has(dataset.fingerprint):  # else another process won the race
                raise MlopsError(
                    f"the dataset store {str(self.folder)!r} cannot be written: "
                    f"{err.strerror or err}. Check its rights and free space."
                ) from err
        finally:
            shutil.rmtree(writing, ignore_errors=True)

    def get(self, fingerprint: str) -> Dataset:
        """Returns the stored dataset, its x a read-only memory map.

        Raises:
            DataError: It is not there, or it is damaged.
        """
        if not self.has(fingerprint):
            raise DataError(
                f"the dataset store {str(self.folder)!r} has no dataset {fingerprint!r}. Set "
                "MLOPS_DATASETS_URL to the store that the sweep used, or sweep the data again "
                "to store it."
            )
        folder = self.folder / fingerprint
        try:
            record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
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
            ("fingerprint", dataset.fingerprint, fingerprint),
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

    def has(self, fingerprint: str) -> bool:
        """Whether the whole dataset is stored here."""
        # The pattern also keeps a fingerprint such as "../x" from naming a folder elsewhere.
        if not re.fullmatch("[0-9a-f]{64}", fingerprint):
            return False
        return (self.folder / fingerprint / "dataset.json").is_file()


def open_dataset_store(url: str) -> DatasetStore:
    """Returns the store in a folder, given as a path or a file:// URL; creates nothing.

    Raises:
        UsageError: Another scheme, or a file.
    """
    parts = urllib.parse.urlsplit(url)
    if "://" not in url and url:
        folder = Path(url).expanduser()
    elif parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        folder = Path(urllib.parse.unquote(parts.path))
    else:  # the scheme only: the rest of a URL may hold a password
        raise UsageError(
            "this version keeps datasets in a folder; expected a path or file:///path, got "
            f"{parts.scheme or url!r}. Set MLOPS_DATASETS_URL to a folder."
        )
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"the dataset store {str(folder)!r} is a file; expected a folder. "
            "Set MLOPS_DATASETS_URL to a folder."
        )
    return DatasetStore(folder)


def _categories(value: Any) -> Categories | None:
    if value is None:
        return None
    return tuple(None if names is None else tuple(names) for names in value)


def _damaged(folder: Path, cause: str) -> DataError:
    cause = " ".join(cause.split())
    return DataError(
        f"the stored dataset {str(folder)!r} is damaged, or of another version of Podium "
        f"({cause}). Move it away, and sweep the data again to store it."
    )


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # which cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
