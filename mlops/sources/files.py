"""Files: opened, named and quoted in messages, the same way for every source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mlops.errors import DataError


def open_file(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as err:
        raise DataError(f"there is no file {str(path)!r}.") from err
    except IsADirectoryError as err:
        raise DataError(f"{str(path)!r} is a folder; expected a file.") from err
    except OSError as err:
        raise DataError(f"{str(path)!r} cannot be read: {err.strerror}.") from err


def safe_name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-.") or "dataset"


def one_line(cause: object) -> str:
    return " ".join(str(cause).split())[:300].rstrip(".")


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(repr(name) for name in names[:20]) or "nothing") + more


def check_start(file: IO[bytes], magic: bytes, where: str, what: str, save: str) -> None:
    """Refuses a file that does not begin as its kind does; leaves it at its beginning.

    Args:
        file: Open for reading, at its beginning.
        magic: The first bytes of such a file.
        where: What messages call the file.
        what: What it should be, as "an .npz archive".
        save: How to save such a file.

    Raises:
        DataError: It is empty, or begins otherwise.
    """
    start = file.read(len(magic))
    file.seek(0)
    if not start:
        raise DataError(f"{where} is empty; expected {what}. Save it with {save}.")
    if start != magic:
        raise DataError(f"{where} is not {what}. Save it with {save}.")
