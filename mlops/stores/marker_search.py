"""Looks for what is left of a dataset's bytes: in files, in databases of a server, in S3.

Markers are its fingerprint, samples of its rows as they were stored, and the names of its classes
and categories. The first two must be nowhere. A name may be a common word, or another dataset's
too: where one stands is only told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops.dataset_store import RECORD, DatasetStore, open_dataset_store
from mlops.errors import MlopsError, first_line
from mlops.objects import FolderObjects, open_objects
from mlops.settings import Settings
from mlops.stores.byte_search import find_in_files
from mlops.stores.schema_upgrade import SIDE_FILES, find_file

if TYPE_CHECKING:
    import numpy as np

N_SAMPLES = 8
SAMPLE_BYTES = 64
LEAST_VALUES = 24
"""Different bytes that a sample has: a row of zeros is everybody's."""
LEAST_NAME = 6
"""Characters of a name that is looked for."""
SMALL_FILES = ("MLmodel", "release.json")
"""What is read of artifacts in S3: the files that name a dataset."""


@dataclass(frozen=True, slots=True)
class Markers:
    """What is looked for."""

    fingerprint: str
    rows: tuple[bytes, ...] = field(default=(), repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)


@dataclass(slots=True)
class Left:
    """What was found, and where was looked.

    Attributes:
        places: Where the fingerprint or rows stand, a sentence each.
        named: Where nothing but names stand.
        n_files: Files that were read.
        n_bytes: Their bytes.
        n_tables: Tables of servers that were asked.
    """

    places: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    n_files: int = 0
    n_bytes: int = 0
    n_tables: int = 0


def collect_markers(settings: Settings, fingerprint: str) -> Markers:
    """Returns a dataset's markers; of one that is gone already the fingerprint alone."""
    store = open_dataset_store(settings)
    names = _read_names(store, fingerprint)
    others = {
        name for other in store.list() if other != fingerprint for name in _read_names(store, other)
    }
    distinct = {name for name in names - others if len(name) >= LEAST_NAME}
    return Markers(fingerprint, tuple(_sample(store, fingerprint)), tuple(sorted(distinct)))


def _read_names(store: DatasetStore, fingerprint: str) -> set[str]:
    """Returns the names of a stored dataset's classes and categories."""
    path = store.folder / fingerprint / RECORD
    try:
        if path.is_file():
            content = path.read_bytes()
        elif store.remote is not None:
            content = store.remote.read(f"{fingerprint}/{RECORD}")
        else:
            return set()
        record: dict[str, Any] = json.loads(content)
        columns = record.get("categories") or ()
        return {*record["class_names"], *(name for column in columns for name in column or ())}
    except (OSError, ValueError, KeyError, TypeError):  # damaged: it goes all the same
        return set()


def _sample(store: DatasetStore, fingerprint: str) -> Iterator[bytes]:
    """Yields some rows of the copy that lies here, as many together as tell them from others."""
    import numpy as np

    path = store.folder / fingerprint / "x.npy"
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return
    if rows.size == 0:
        return
    n_rows = -(-SAMPLE_BYTES // (rows[0].nbytes or 1))
    for start in np.linspace(0, max(0, len(rows) - n_rows), N_SAMPLES).astype(int):
        sample = np.ascontiguousarray(rows[start : start + n_rows]).tobytes()[:4096]
        if len(sample) >= SAMPLE_BYTES and len(set(sample)) >= LEAST_VALUES:
            yield sample


def search(settings: Settings, markers: Markers) -> Left:
    """Looks for markers wherever Podium keeps something but in the ledger, which stays whole."""
    left = Left()
    roots = dict.fromkeys(_find_roots(settings))
    datasets = open_dataset_store(settings).folder
    for path, found in _search_files(_find_files(roots, _find_skipped(settings)), markers, left):
        _judge(path, found, markers, left, is_of_other=path.is_relative_to(datasets))
    for url in (settings.tracking_db_url, settings.accounts_db_url, settings.study_url):
        if url is not None and find_file(url) is None:
            _search_tables(url, markers, left)
    if settings.artifacts_url is not None and settings.artifacts_url.startswith("s3://"):
        _search_objects(settings.artifacts_url, markers, left)
    return left


def _find_roots(settings: Settings) -> Iterator[Path]:
    """Yields the folders to look in; one inside another is looked into once."""
    yield settings.home
    folders = [open_dataset_store(settings).folder]
    if settings.artifacts_url is not None:
        objects = open_objects(settings.artifacts_url, "MLOPS_ARTIFACTS_URL")
        folders += [objects.root] if isinstance(objects, FolderObjects) else []
    for url in (settings.tracking_db_url, settings.accounts_db_url, settings.study_url):
        file = None if url is None else find_file(url)
        folders += [] if file is None else [file.absolute()]
    yield from (one for one in folders if not one.is_relative_to(settings.home))


def _find_skipped(settings: Settings) -> set[Path]:
    file = find_file(settings.ledger_url)
    if file is None:
        return set()
    return {file.absolute().with_name(file.name + suffix) for suffix in SIDE_FILES}


def _find_files(roots: Iterable[Path], skipped: set[Path]) -> Iterator[Path]:
    for root in roots:
        for path in (root,) if root.is_file() else sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.absolute() not in skipped:
                yield path


def _search_files(
    paths: Iterable[Path], markers: Markers, left: Left
) -> Iterator[tuple[Path, frozenset[bytes]]]:
    forms = (
        form for one in markers.names for form in (one.encode(), json.dumps(one)[1:-1].encode())
    )
    wanted = {markers.fingerprint.encode(), *markers.rows, *forms}
    try:
        searched = find_in_files(paths, wanted)
    except OSError as err:
        where = repr(err.filename) if err.filename else "the home"
        raise MlopsError(f"{where} cannot be searched: {err.strerror or err}.") from err
    for path, (size, found) in searched.items():
        left.n_files += 1
        left.n_bytes += size
        yield path, found


def _judge(
    path: Path, found: frozenset[bytes], markers: Markers, left: Left, *, is_of_other: bool
) -> None:
    has_rows = not found.isdisjoint(markers.rows)
    if markers.fingerprint.encode() in found:
        left.places.append(f"{str(path)!r} holds its fingerprint")
    elif has_rows and not is_of_other:
        left.places.append(f"{str(path)!r} holds rows of it")
    elif has_rows:
        left.named.append(f"{str(path)!r}, which is of another dataset, holds some of its rows")
    elif found:
        left.named.append(f"{str(path)!r} holds names of its classes or categories")


def _search_tables(url: str, markers: Markers, left: Left) -> None:
    """Asks every column of text of a database on a server."""
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    from mlops.stores.database_check import open_to_read

    try:
        with open_to_read(url) as connection:
            inspector = sa.inspect(connection)
            for name in inspector.get_table_names():
                columns: list[sa.ColumnClause[Any]] = [
                    sa.column(one["name"])
                    for one in inspector.get_columns(name)
                    if isinstance(one["type"], (sa.String, sa.JSON))
                ]
                left.n_tables += 1
                if not columns:
                    continue
                found = sa.or_(
                    *(sa.cast(one, sa.Text).contains(markers.fingerprint) for one in columns)
                )
                query = sa.select(sa.func.count()).select_from(sa.table(name)).where(found)
                if connection.execute(query).scalar():
                    left.places.append(f"the table {name!r} of a database holds its fingerprint")
    except (SQLAlchemyError, ImportError) as err:
        raise MlopsError(
            f"a database cannot be searched: {first_line(getattr(err, 'orig', None) or err)}."
        ) from err


def _search_objects(url: str, markers: Markers, left: Left) -> None:
    objects = open_objects(url, "MLOPS_ARTIFACTS_URL")
    for one in objects.list():
        if one.name.rpartition("/")[2] not in SMALL_FILES:
            continue
        try:
            content = objects.read(one.name)
        except FileNotFoundError:
            continue
        left.n_files += 1
        left.n_bytes += len(content)
        if markers.fingerprint.encode() in content:
            left.places.append(f"the object {one.name!r} of {objects.url} holds its fingerprint")
