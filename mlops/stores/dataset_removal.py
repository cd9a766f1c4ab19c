"""Stored datasets that nothing refers to, and what is stored of one."""

from __future__ import annotations

from collections.abc import Iterator, Set
from datetime import datetime
from pathlib import Path

from mlops.dataset_store import RECORD, DatasetStore, find_objects
from mlops.stores.store import Item
from mlops.stores.trash import size_of


def clean_datasets(
    store: DatasetStore, before: datetime, needed: Set[tuple[str, str]], *, dry: bool
) -> list[Item]:
    """Takes out what was stored before and nothing refers to any more."""
    found = []
    for fingerprint in store.list():
        if ("dataset", fingerprint) in needed or not _is_older(store, fingerprint, before):
            continue
        found += find_dataset(store, fingerprint)
        if not dry:
            store.remove(fingerprint)
    return found


def find_dataset(store: DatasetStore, fingerprint: str) -> list[Item]:
    """Returns what is stored of a dataset, in the folder or on S3, whole or not."""
    paths = list(_find_folders(store, fingerprint))
    size = sum(map(size_of, paths))
    there = list(store.remote.list(f"{fingerprint}/")) if store.remote is not None else []
    size += sum(one.size_bytes for one in there)
    if not paths and not there:
        return []
    return [Item("dataset", fingerprint, f"stored dataset {fingerprint}", size_bytes=size)]


def _find_folders(store: DatasetStore, fingerprint: str) -> Iterator[Path]:
    """The dataset, a copy that was moved away as damaged, and what killed writers left."""
    for pattern in (f"{fingerprint}*", f".writing-{fingerprint[:12]}-*"):
        yield from store.folder.glob(pattern)


def _is_older(store: DatasetStore, fingerprint: str, before: datetime) -> bool:
    times = [
        path.stat().st_mtime for path in (store.folder / fingerprint / RECORD,) if path.is_file()
    ]
    if store.remote is not None:
        files = find_objects(store.remote, f"{fingerprint}/").get(fingerprint, {})
        times += [one.changed_at.timestamp() for one in files.values()]
    return bool(times) and max(times) < before.timestamp()
