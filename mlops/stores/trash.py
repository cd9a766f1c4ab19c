"""Folders that an erasure takes away: first out of their place at once, then file by file.

What a kill leaves lies in `<home>/erasing/<fingerprint>/`, where nothing reads it and the same
command finds it again, though what told whose it was may be gone by then.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from mlops.errors import MlopsError


def throw_away(path: Path, home: Path, dataset: str) -> None:
    """Removes a folder of a home; one that is not there is no error.

    Raises:
        MlopsError: it cannot be removed.
    """
    folder = _folder(home, dataset)
    place = folder / secrets.token_hex(8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(place)
        shutil.rmtree(place)
    except FileNotFoundError:
        return
    except OSError as err:
        raise MlopsError(
            f"{str(path)!r} cannot be removed: {err.strerror or err}. Check the rights on it and "
            "on the folder around it."
        ) from err


def find_trash(home: Path, dataset: str) -> list[Path]:
    """Returns what a killed erasure left of a dataset."""
    return sorted(_folder(home, dataset).glob("*"))


def empty_trash(home: Path, dataset: str) -> None:
    """Removes what a killed erasure left, and the folder for it."""
    shutil.rmtree(_folder(home, dataset), ignore_errors=True)
    erasing = home / "erasing"
    if erasing.is_dir() and not any(erasing.iterdir()):
        erasing.rmdir()


def _folder(home: Path, dataset: str) -> Path:
    return home / "erasing" / dataset


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder; 0 of what is not there."""
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
