"""Rows from a folder of pictures, one subfolder a class.

Pictures are PNG or JPEG files. All must be whole before any of them counts: what is wrong with how
many files is said at once. They are turned as their EXIF orientation says, and brought to one size
and one number of channels. `mlops.scoring.decode_picture` does it, at serving too, so a picture
file that is sent to a model becomes the row that it was here.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from mlops.errors import DataError, UsageError
from mlops.rows import Place, Rows, check_classes
from mlops.scoring import decode_picture
from mlops.sources.files import listed, safe_name

MAX_SIDE: Final = 128
"""Pixels of the longer side, where nothing else is asked for: a network that trains on a processor
has little use for more, and memory grows with the square."""
SUFFIXES: Final = (".png", ".jpg", ".jpeg")
FORMATS: Final = ("PNG", "JPEG")
CLUTTER: Final = ("thumbs.db", "desktop.ini")
"""What Windows leaves in folders; hidden files are passed over too."""
GREY_MODES: Final = ("1", "L", "LA", "I", "I;16")
PARTS: Final = ("train", "test")

_ORIENTATION: Final = 0x0112
_TURNED: Final = (5, 6, 7, 8)
"""The values of EXIF's orientation that swap height and width."""


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture's header: what it will be once it is turned upright."""

    height: int
    width: int
    is_grey: bool


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the folder: its class, and whether it is a test row."""

    path: Path
    label: str
    is_test: bool = False


def read_images(folder: Path, size: tuple[int, int] | None) -> Rows:
    """Reads a folder of pictures: `<class>/`, or `train/<class>/` and `test/<class>/`.

    Rows are sorted by class, then by file name; training rows come before test rows. They are grey,
    with one channel, if all pictures are; else they have the channels red, green and blue.

    Pictures of another size are resized without regard to their proportions.

    Args:
        folder: Holds one subfolder a class, whose name is the class.
        size: (height, width) in pixels. Else that of the pictures if all agree, or their median
            height and width, scaled so that the longer side has 128 pixels at most.

    Raises:
        DataError: The folder is laid out otherwise, or some file is no whole picture.
    """
    if size is not None and min(size) < 1:
        raise UsageError(f"--image-size must be 1 or more, got {size[0]} and {size[1]}.")
    where = repr(str(folder))
    files, bad = _list_files(folder, where)
    n_files = len(files) + len(bad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what else is odd in a file, Pillow can live with
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        found = list(zip(files, _read_headers(files, bad), strict=True))
        files = [file for file, picture in found if picture is not None]
        pictures = [picture for _, picture in found if picture is not None]
        if not files:
            _refuse_bad(bad, n_files, folder, where)
        height_width = size or _common_size(pictures)
        x = _read_pixels(files, pictures, height_width, bad)
    _refuse_bad(bad, n_files, folder, where)
    is_test = np.array([file.is_test for file in files])
    named = folder if folder.name else folder.resolve()  # "." has no name of its own
    return Rows(
        name=safe_name(named),
        source=named.name,
        where=where,
        x=x,
        labels=np.array([file.label for file in files]),
        is_test=is_test if is_test.any() else None,
        notes=_say_resized(pictures, height_width),
    )


def _list_files(folder: Path, where: str) -> tuple[list[_File], dict[Path, str]]:
    """Returns the files that should be pictures, in order, and those that cannot be any."""
    folders = _class_folders(folder, where)
    if sorted(folders) != sorted(PARTS) or not all(map(_has_folders, folders.values())):
        return _list_classes(folders, where)
    files: list[_File] = []
    bad: dict[Path, str] = {}
    for part in PARTS:
        found, more = _list_classes(
            _class_folders(folders[part], f"{where}: {part}"), f"{where}: {part}", part == "test"
        )
        files += found
        bad |= more
    known = {file.label for file in files if not file.is_test}
    new = sorted({file.label for file in files} - known)
    if new:
        raise DataError(
            f"{where}: test has classes that train lacks: {listed(new)}. Add pictures of them to "
            "train, or remove them."
        )
    return files, bad


def _class_folders(folder: Path, where: str) -> dict[str, Path]:
    """Returns the subfolders by name; there is nothing else in the folder."""
    entries = _entries(folder)
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    others = [entry.name for entry in entries if entry.name not in folders]
    pictures = [name for name in others if name.lower().endswith(SUFFIXES)]
    if not folders:
        found = f"{len(pictures)} pictures in the folder itself" if pictures else "none"
        raise DataError(f"{where} has no subfolders; expected one a class, got {found}.")
    if others:
        raise DataError(
            f"{where} has files beside its class folders: {len(others)}; the first: "
            f"{listed(others[:3])}. Move or remove them."
        )
    return folders


def _list_classes(
    folders: dict[str, Path], where: str, is_test: bool = False
) -> tuple[list[_File], dict[Path, str]]:
    entries = {name: _entries(folder) for name, folder in folders.items()}
    empty = [name for name, found in entries.items() if not found]
    if empty:
        raise DataError(
            f"{where} has empty class folders: {listed(empty)}. Add pictures or remove them."
        )
    nested = [name for name, found in entries.items() if all(e.is_dir() for e in found)]
    if nested:
        raise DataError(
            f"{where}: {nested[0]!r} holds folders and no pictures; expected <class>/, or just "
            "train/<class>/ and test/<class>/. Pictures for validation belong in train."
        )
    if not is_test:
        check_classes(np.array(list(folders)), Place(where, "the folder"))
    files: list[_File] = []
    bad: dict[Path, str] = {}
    for name, found in entries.items():
        for entry in found:
            if entry.is_dir():
                bad[entry] = "is a folder within a class"
            elif not entry.name.lower().endswith(SUFFIXES):
                bad[entry] = "is not named .png, .jpg or .jpeg"
            elif not entry.is_file():  # a link to nothing; a pipe, which would never end
                bad[entry] = "is no file"
            else:
                files.append(_File(entry, name, is_test))
    return files, bad


def _entries(folder: Path) -> list[Path]:
    """Returns what is in a folder, by code point, without what nobody put there as data."""
    try:
        entries = list(folder.iterdir())
    except OSError as err:
        raise DataError(f"{str(folder)!r} cannot be read: {err.strerror}.") from err
    return sorted(
        (e for e in entries if not e.name.startswith(".") and e.name.lower() not in CLUTTER),
        key=lambda entry: entry.name,
    )


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() for entry in _entries(folder))


def _read_headers(files: Sequence[_File], bad: dict[Path, str]) -> list[_Picture | None]:
    """Returns what each file says it is, None where it is no picture; `bad` then says why."""
    pictures: list[_Picture | None] = [None] * len(files)

    def read(i: int) -> None:
        try:
            pictures[i] = _read_header(files[i].path)
        except Exception:  # of a damaged file Pillow raises about any type
            bad[files[i].path] = _why(files[i].path)

    _in_threads(read, len(files))
    return pictures


def _read_header(path: Path) -> _Picture:
    with Image.open(path, formats=FORMATS) as image:
        turned = False
        with contextlib.suppress(Exception):  # as in decode_picture
            # Not image.getexif(): to look for EXIF data at its end, that decodes all of a PNG.
            turned = Image.Image.getexif(image).get(_ORIENTATION) in _TURNED
        width, height = image.size[::-1] if turned else image.size
        return _Picture(height, width, image.mode in GREY_MODES)


def _read_pixels(
    files: Sequence[_File],
    pictures: Sequence[_Picture],
    size: tuple[int, int],
    bad: dict[Path, str],
) -> np.ndarray:
    """Returns (n, *size, 1 or 3) uint8; what cannot be decoded goes to `bad`."""
    channels = 1 if all(picture.is_grey for picture in pictures) else 3
    x = np.empty((len(files), *size, channels), np.uint8)

    def read(i: int) -> None:
        try:
            x[i] = decode_picture(files[i].path.read_bytes(), (*size, channels))
        except (ValueError, OSError):
            bad[files[i].path] = _why(files[i].path)

    _in_threads(read, len(files))
    return x


def _why(path: Path) -> str:
    """Returns what is wrong with a file, in the words of the function that decides."""
    try:
        content = path.read_bytes()
        if not content:
            return "is empty"
        decode_picture(content, (1, 1, 3))
    except OSError as err:
        return f"cannot be read: {err.strerror}"
    except ValueError as err:
        return str(err)
    return "is a damaged PNG or JPEG file"


def _in_threads(work: Callable[[int], None], n: int) -> None:
    """Calls `work` with 0 to n - 1. Decoding lets go of Python's lock."""
    n_threads = min(os.cpu_count() or 1, 16)
    with ThreadPoolExecutor(n_threads) as pool:
        # One task a thread: a task a picture would hold more memory than small pictures.
        for done in [pool.submit(_each, work, range(k, n, n_threads)) for k in range(n_threads)]:
            done.result()


def _each(work: Callable[[int], None], indices: range) -> None:
    for i in indices:
        work(i)


def _refuse_bad(bad: dict[Path, str], n_files: int, folder: Path, where: str) -> None:
    if bad:
        first = ", ".join(
            f"{path.relative_to(folder).as_posix()!r} {bad[path]}" for path in sorted(bad)[:3]
        )
        raise DataError(
            f"{where} has files that are no whole PNG or JPEG pictures: {len(bad)} of {n_files}; "
            f"the first: {first}. Replace or remove them."
        )


def _common_size(pictures: Sequence[_Picture]) -> tuple[int, int]:
    """Returns the median height and width, which are those of all where all agree."""
    height = float(np.median([picture.height for picture in pictures]))
    width = float(np.median([picture.width for picture in pictures]))
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _say_resized(pictures: Sequence[_Picture], size: tuple[int, int]) -> tuple[str, ...]:
    resized = [picture for picture in pictures if (picture.height, picture.width) != size]
    if not resized:
        return ()
    heights = _span([picture.height for picture in resized])
    widths = _span([picture.width for picture in resized])
    return (
        f"{len(resized)} of {len(pictures)} pictures were resized to {size[0]}x{size[1]} pixels "
        f"(height x width); their heights were {heights}, their widths {widths}.",
    )


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"
