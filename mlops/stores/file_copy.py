"""Copies what is only ever added: objects of a store to a folder of a backup, and back.

A folder of objects becomes whole by its last file (a release by model.sig, a dataset by
dataset.json). A copy that has the last file and lacks another would be damage. A list is not of one
moment: it may pass a folder before a file comes and see the last file of it later. So objects are
listed twice: what the first list saw was there in whole before the second began.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlops.errors import MlopsError
from mlops.objects import N_AT_ONCE, Objects, upload_all
from mlops.stores.backup_record import WRITING, put_in_place

Wanted = Callable[[str], bool]


def _all(_: str) -> bool:
    return True


def copy_objects(
    objects: Objects, folder: Path, last: Sequence[str], wanted: Wanted = _all
) -> None:
    """Copies objects into a folder; those that are deleted meanwhile are left out.

    Args:
        last: The names of files that make a folder whole, in the order in which they are written.
        wanted: Tells whether a name is copied.

    Raises:
        MlopsError: they cannot be read, or the folder not be written.
    """

    def copy(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            objects.download(name, folder / name)

    with ThreadPoolExecutor(N_AT_ONCE) as threads:
        for _ in threads.map(copy, find_whole(objects, last, wanted)):
            pass


def find_whole(objects: Objects, last: Sequence[str], wanted: Wanted = _all) -> list[str]:
    """Returns the names of the objects, without last files that may have come before others."""
    first = {one.name for one in objects.list() if wanted(one.name)}
    late = [one.name for one in objects.list() if wanted(one.name) and one.name not in first]
    highest: dict[str, int] = {}
    for name in first:
        place, _, file = name.rpartition("/")
        if file in last:
            highest[place] = max(highest.get(place, -1), last.index(file))
    for name in late:
        place, _, file = name.rpartition("/")
        if file not in last or last.index(file) < highest.get(place, -1):
            first.add(name)
    return sorted(first)


def refuse_others(
    objects: Objects, sizes: Mapping[str, int], *, repeated: bool, what: str, setting: str
) -> None:
    """Refuses a place that holds anything; of a restore that is repeated, anything else.

    Args:
        sizes: What is to be restored there, by name.

    Raises:
        MlopsError: it does.
    """
    for one in objects.list():
        if not repeated or sizes.get(one.name) != one.size_bytes:
            raise MlopsError(
                f"{objects.url!r} holds {what} already, as {one.name!r}. A restore goes only where "
                f"nothing is: let {setting} name an empty place."
            )


def restore_objects(
    folder: Path, sizes: Mapping[str, int], objects: Objects, last: Sequence[str]
) -> None:
    """Brings files to a store, those that make a folder whole after all others.

    Killed on the way, it leaves no folder that looks whole; what is there is not written again.

    Raises:
        MlopsError: they cannot be written.
    """
    objects.delete_unfinished("")  # by one that was killed
    there = {one.name: one.size_bytes for one in objects.list()}
    left = [name for name, size in sizes.items() if there.get(name) != size]
    for rank in range(-1, len(last)):
        names = [name for name in left if _rank(name, last) == rank]
        upload_all(objects, ((folder / name, name) for name in names))


def _rank(name: str, last: Sequence[str]) -> int:
    file = name.rpartition("/")[2]
    return last.index(file) if file in last else -1


def copy_tree(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copies files of a folder, by their paths in it; those that vanish meanwhile are left out.

    Raises:
        MlopsError: one cannot be copied.
    """
    for name in names:
        place = target / name
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(source / name, place)
        except OSError as err:
            raise MlopsError(
                f"{str(source / name)!r} could not be copied to {str(place)!r}: "
                f"{err.strerror or err}."
            ) from err


def list_files(folder: Path) -> list[str]:
    """Returns the paths of all files in a folder, relative to it; [] where there is none.

    Folders that vanish meanwhile are left out, which pathlib's walk would end at. So are links:
    nothing here makes one, and what it leads to may be nobody's business.
    """
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in found if not path.is_symlink())


def put_files(
    home: Path,
    source: Path,
    target: Path,
    names: Iterable[str],
    change: Callable[[Path], None] = lambda _: None,
) -> None:
    """Copies files to a folder that is not there; killed on the way, it leaves none of that name.

    Args:
        home: That is restored.
        names: Paths in the source; without any no folder is made.
        change: What is done to the files before they are in their place.

    Raises:
        MlopsError: they cannot be copied.
    """
    beside = target.with_name(f"{target.name}{WRITING}")
    shutil.rmtree(beside, ignore_errors=True)
    copy_tree(source, beside, names)
    if beside.is_dir():
        change(beside)
        put_in_place(home, beside, target)
