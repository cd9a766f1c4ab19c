"""Bytes by name, in a folder or in S3: what datasets and artifacts are kept in.

A name is relative to the root, with "/" between its parts. An object is written whole or not at
all, and the last writer wins. Nothing is cached: what one process wrote, the next one reads.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from mlops.errors import MlopsError, UsageError

N_AT_ONCE = 16
"""How many objects `upload_all` and `download_all` move at a time."""
UNFINISHED = ".unfinished-"
"""How the names of files begin that are being written."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Object:
    """What a list says of an object.

    Attributes:
        changed_at: When it was written, by the clock of the store; aware.
    """

    name: str
    size_bytes: int
    changed_at: datetime


class Objects(Protocol):
    """Bytes by name; several threads may use them at once.

    Every method may raise MlopsError: the store does not answer, refuses the login, is full. One
    sentence says which, and what to do. A store that is silent is waited for a few minutes at most.
    """

    @property
    def url(self) -> str:
        """Where they are, for people: a path or s3://bucket/prefix, without a password."""
        ...

    def list(self, prefix: str = "") -> Iterator[Object]:
        """Yields the objects whose names begin with `prefix`, by name.

        A folder that is not there has none; a bucket that is not there is an error.
        """
        ...

    def read(self, name: str) -> bytes:
        """Returns an object's bytes.

        Raises:
            FileNotFoundError: it is not there.
        """
        ...

    def download(self, name: str, path: Path) -> None:
        """Writes an object to a file, whole or not at all; makes the folders above it.

        The file is not synced: a power cut may take it back.

        Raises:
            FileNotFoundError: it is not there.
        """
        ...

    def upload(self, path: Path, name: str) -> None:
        """Makes an object of a file, whole or not at all; replaces one of that name."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Takes objects away; those that are missing are no error."""
        ...

    def delete_unfinished(self, folder: str) -> None:
        """Takes away what killed uploads left in a folder and below; those under way fail."""
        ...


def open_objects(url: str, setting: str = "the URL") -> Objects:
    """Returns the objects of a folder or of a part of a bucket; makes nothing and asks nobody.

    Args:
        url: A path, file:///path, or s3://bucket/prefix.
        setting: What names it, for the error.

    Raises:
        UsageError: Another scheme, no bucket, a login within the URL, or a file.

    Example:
        >>> open_objects("s3://datasets/team").url
        's3://datasets/team'
    """
    scheme, found, rest = url.partition("://")
    if url and not found:
        return _open_folder(Path(url), setting)
    if scheme == "file" and rest.startswith(("/", "localhost/")):
        return _open_folder(Path(urllib.parse.unquote(rest[rest.index("/") :])), setting)
    if scheme == "s3":
        from mlops.s3_objects import S3Objects

        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):  # what was given may hold a password
            raise UsageError(
                f"{setting} names no bucket; expected s3://bucket/prefix, without a server, login "
                "or password in it. Name the server by AWS_ENDPOINT_URL, and the file that holds "
                "the login by AWS_SHARED_CREDENTIALS_FILE."
            )
        return S3Objects(bucket, check_name(prefix.strip("/")) if prefix.strip("/") else "")
    raise UsageError(  # the scheme only: the rest of a URL may hold a password
        f"{setting} is neither a folder nor a bucket; expected a path, file:///path or "
        f"s3://bucket/prefix, got {scheme + found if found else url!r}. "
        f"Let {setting} name one of these."
    )


def _open_folder(folder: Path, setting: str) -> FolderObjects:
    folder = folder.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{setting} names the file {str(folder)!r}; expected a folder. Let {setting} name one."
        )
    return FolderObjects(folder)


def check_name(name: str) -> str:
    """Returns the name of an object as it was given.

    Raises:
        UsageError: It could lead out of its root, or no file can be called so.
    """
    if {"", ".", ".."} & set(name.split("/")) or any(ord(letter) < 32 for letter in name):
        raise UsageError(
            "this is no name of an object; expected parts with '/' between them, none of them "
            f"empty, '.' or '..', got {name[:200]!r}."
        )
    return name


def upload_all(objects: Objects, files: Iterable[tuple[Path, str]]) -> None:
    """Uploads files under names, several at a time; an error ends it, with some of them done."""
    _move_all(objects.upload, files)


def download_all(objects: Objects, files: Iterable[tuple[str, Path]]) -> None:
    """Downloads names to files, several at a time; an error ends it, with some of them done."""
    _move_all(objects.download, files)


def _move_all(move: Callable[[A, B], None], files: Iterable[tuple[A, B]]) -> None:
    with ThreadPoolExecutor(N_AT_ONCE) as threads:
        moving = [threads.submit(move, *file) for file in files]
        try:
            for one in moving:
                one.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yields a path to write to, in the same folder; it is renamed to `path` at the block's end.

    A process that is killed in the block leaves a file whose name begins with `UNFINISHED`.

    Raises:
        MlopsError: The file cannot be written.
    """
    beside = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except FileNotFoundError:  # what is to be written is not there
        raise
    except OSError as err:
        if err.errno is None:  # an error of the network, which some of its classes are
            raise
        raise MlopsError(
            f"{str(path)!r} cannot be written: {err.strerror or err}. "
            "Check the rights on its folder, and the free space."
        ) from err
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


class FolderObjects:
    """The files of a folder.

    Links to files count as files; one to a folder is an error, since a copy without what is in it
    would look whole. The last object of a folder takes the folder with it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def list(self, prefix: str = "") -> Iterator[Object]:
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_name(folder)
        found = _walk(self.root / folder, f"{folder}/" if folder else "")
        return (one for one in found if one.name.startswith(prefix))

    def read(self, name: str) -> bytes:
        with self._reading(name) as path:
            return path.read_bytes()

    def download(self, name: str, path: Path) -> None:
        with self._reading(name) as source, written_beside(path) as beside:
            shutil.copyfile(source, beside)

    def upload(self, path: Path, name: str) -> None:
        with written_beside(self.root / check_name(name)) as beside:
            shutil.copyfile(path, beside)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.root / check_name(name)
            if path.is_file() or path.is_symlink():
                self._unlink(path)

    def delete_unfinished(self, folder: str) -> None:
        top = self.root / check_name(folder) if folder else self.root
        for path in sorted(top.rglob(f"{UNFINISHED}*")):
            self._unlink(path)

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            raise MlopsError(
                f"{str(path)!r} cannot be deleted: {err.strerror or err}. Check the rights on "
                "its folder."
            ) from err
        with suppress(OSError):  # until one is not empty
            for parent in path.relative_to(self.root).parents[:-1]:
                (self.root / parent).rmdir()

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self.root / check_name(name)
        if not path.is_file():
            raise FileNotFoundError(f"{self.url} has no object {name!r}")
        try:
            yield path
        except PermissionError as err:
            raise MlopsError(
                f"{str(path)!r} cannot be read: {err.strerror}. Check its rights."
            ) from err


def _walk(folder: Path, begin: str) -> Iterator[Object]:
    """Yields the objects in a folder, by name; those that vanish meanwhile are left out."""
    try:
        with os.scandir(folder) as entries:
            found = [one for one in entries if not one.name.startswith(UNFINISHED)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as err:
        raise MlopsError(
            f"{str(folder)!r} cannot be read: {err.strerror}. Check its rights."
        ) from err
    # With the "/" behind folders this is the order of the whole names, "a-b" before "a/b".
    for one in sorted(found, key=lambda entry: entry.name + "/" * entry.is_dir()):
        if one.is_dir(follow_symlinks=False):
            yield from _walk(folder / one.name, f"{begin}{one.name}/")
        elif one.is_dir():
            raise MlopsError(
                f"{one.path!r} is a link to a folder, which is not followed; expected files and "
                "folders. Put the folder itself in its place."
            )
        elif one.is_file():
            with suppress(FileNotFoundError):
                seen = one.stat()
                changed_at = datetime.fromtimestamp(seen.st_mtime, UTC)
                yield Object(f"{begin}{one.name}", seen.st_size, changed_at)
