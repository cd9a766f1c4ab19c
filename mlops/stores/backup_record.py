"""backup.json: what a backup holds, and the digest of each file of it. Written last.

A folder without it is no backup. While a backup is written its folder has another name
(`TARGET.writing`); while one is restored, `restoring.json` in the home says how far that came.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError, UsageError
from mlops.objects import check_name

FORMAT = 1
RECORD = "backup.json"
RESTORING = "restoring.json"
WRITING = ".writing"
SIGNING_KEY = "keys/signing.pem"
PACKAGES = ("podium-mlops", "mlflow", "optuna")
SIDECARS = ("-wal", "-shm", "-journal")
"""What SQLite lays beside a database that somebody has open, or had when he was killed."""
N_THREADS = 4


@dataclass(frozen=True, slots=True)
class FileRecord:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BackupRecord:
    """What backup.json says.

    Attributes:
        place: The folder that the backup was written to, as what is in it names itself.
        host: The machine that wrote it.
        created_at: The moment that its records are of; ISO 8601, UTC.
        versions: Of the packages that wrote it.
        schemas: The revision of each database, by its file's name.
        stores: What each store says of its part.
        files: By path inside the backup; backup.json itself is not among them.
    """

    place: str
    host: str
    created_at: str
    versions: dict[str, str]
    schemas: dict[str, str]
    stores: dict[str, str]
    files: dict[str, FileRecord]

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.files.values())

    @property
    def has_signing_key(self) -> bool:
        return SIGNING_KEY in self.files

    @property
    def install(self) -> str:
        """The command that installs the versions that wrote it."""
        wanted = " ".join(f"{name}=={version}" for name, version in self.versions.items())
        return f"python -m pip install {wanted}"

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the size of each file in a folder of the backup, by its path inside that."""
        begin = f"{folder}/"
        return {
            name.removeprefix(begin): one.size_bytes
            for name, one in self.files.items()
            if name.startswith(begin)
        }

    def to_json(self) -> dict[str, Any]:
        counts = {"n_files": len(self.files), "size_bytes": self.size_bytes}
        return {"format": FORMAT, **counts, **asdict(self)}


def place_of(home: Path) -> Path:
    """Returns where a backup will lie, given the folder in which it is being written."""
    return home.with_name(home.name.removesuffix(WRITING))


def find_versions() -> dict[str, str]:
    """Returns the versions of the packages that are installed; a checkout may not be."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def host() -> str:
    return socket.gethostname()


def sync_files(folder: Path) -> dict[str, FileRecord]:
    """Returns a record of each file in a folder, and has the disk keep all of them for good.

    Raises:
        MlopsError: a file cannot be read, or not be kept.
    """
    files = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    with ThreadPoolExecutor(N_THREADS) as threads:
        records = threads.map(lambda path: _hash(path, sync=True), files.values())
        found = dict(zip(files, records, strict=True))
    for path in (folder, *(one for one in folder.rglob("*") if one.is_dir())):
        sync_folder(path)
    return found


def write_record(folder: Path, record: BackupRecord) -> None:
    """Writes backup.json, which makes a folder a backup."""
    with (folder / RECORD).open("w", encoding="utf-8") as file:
        json.dump(record.to_json(), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_record(folder: Path) -> BackupRecord:
    """Reads the backup.json of a backup; its files are not looked at.

    Raises:
        UsageError: the folder is no backup.
        MlopsError: it is damaged, or of another format.
    """
    path = folder / RECORD
    try:
        value = json.loads(path.read_bytes())
        found = value["format"]
        if found == FORMAT:
            files = {check_name(name): FileRecord(**one) for name, one in value["files"].items()}
            names = set(BackupRecord.__dataclass_fields__) - {"files"}
            return BackupRecord(**{name: value[name] for name in names}, files=files)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise UsageError(
            f"{str(folder)!r} is no backup: it has no {RECORD}, which is written last. Name the "
            "folder that python -m mlops.backup made."
        ) from err
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as err:
        raise MlopsError(
            f"the backup {str(folder)!r} is damaged: {RECORD} cannot be read "
            f"({type(err).__name__}). Use another backup."
        ) from err
    wrote = value.get("versions", {}).get("podium-mlops", "the version that wrote it")
    raise MlopsError(
        f"the backup {str(folder)!r} is of another format; expected {FORMAT}, got "
        f"{str(found)[:20]!r}. Restore it with Podium {str(wrote)[:30]}."
    )


def check_files(folder: Path, record: BackupRecord) -> None:
    """Compares each file of a backup with its digest.

    Raises:
        MlopsError: one is missing, or is not what was written.
    """
    with ThreadPoolExecutor(N_THREADS) as threads:
        found = threads.map(lambda name: _hash_listed(folder / name), record.files)
        wrong = [
            f"{name!r} {'is missing' if got is None else 'was changed'}"
            for (name, expected), got in zip(record.files.items(), found, strict=True)
            if got != expected
        ]
    wrong += [
        f"{name + end!r} was added, so somebody opened the database to write"
        for name in record.schemas
        for end in SIDECARS
        if (folder / (name + end)).exists()
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise MlopsError(
            f"the backup {str(folder)!r} is not as it was written: {wrong[0]}{more}. Nothing was "
            "restored. Use another backup."
        )


def _hash_listed(path: Path) -> FileRecord | None:
    if path.is_symlink() or not path.is_file():
        return None
    return _hash(path, sync=False)


def _hash(path: Path, *, sync: bool) -> FileRecord:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            if sync:
                os.fsync(file.fileno())
    except OSError as err:
        raise MlopsError(f"{str(path)!r} cannot be read: {err.strerror or err}.") from err
    return FileRecord(digest, size)


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Restoring:
    """How far a restore came. It stands in the home from before the first thing is written.

    Attributes:
        backup: The digest of its backup.json.
        folder: Where the backup lies.
        done: The stores that are restored.
        placed: What tells each file and folder that was given its name, or is about to be.
    """

    backup: str
    folder: str
    done: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()

    def write(self, home: Path) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = home / f"{RESTORING}{WRITING}"
        draft.write_text(json.dumps(asdict(self)) + "\n", "utf-8")
        draft.replace(home / RESTORING)


def find_restoring(home: Path) -> Restoring | None:
    """Returns the restore into a home that is going on or was interrupted."""
    try:
        value: Mapping[str, Any] = json.loads((home / RESTORING).read_text("utf-8"))
        done, placed = tuple(value["done"]), tuple(value["placed"])
        return Restoring(value["backup"], value["folder"], done, placed)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise MlopsError(
            f"{str(home / RESTORING)!r} cannot be read, which an interrupted restore left. Remove "
            "what it began to restore, and that file."
        ) from err


def put_in_place(home: Path, beside: Path, target: Path) -> None:
    """Gives what was written beside its place its name, as a part of the restore of a home.

    It is noted first, so that a restore that is killed between the two knows it for its own.

    Raises:
        MlopsError: the place is taken.
    """
    begun = find_restoring(home)
    if begun is not None:
        replace(begun, placed=(*begun.placed, _identity(beside))).write(home)
    try:
        beside.rename(target)
    except OSError as err:
        raise MlopsError(
            f"{str(target)!r} could not be made: {err.strerror or err}. Remove what is there."
        ) from err


def is_restored(home: Path, place: Path, what: str) -> bool:
    """Tells whether the restore that was interrupted brought what is in a place of the home.

    Raises:
        MlopsError: there is something else.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return False
    begun = find_restoring(home)
    if begun is not None and _identity(place) in begun.placed:
        return True
    raise MlopsError(
        f"there are {what} at {str(place)!r} already; expected nothing. Move that away, or name "
        "another place by the settings."
    )


def _identity(path: Path) -> str:
    """What a file or a folder keeps when it is renamed."""
    stat = path.stat()
    return f"{stat.st_dev}:{stat.st_ino}"


def hash_record(folder: Path) -> str:
    """Returns what tells a backup from any other: the digest of its backup.json."""
    return _hash(folder / RECORD, sync=False).sha256
