"""The journals' part of a backup: what was written and not delivered when the backup was made.

Of each journal the records go first, then the artifacts that they mention, and the note of what is
delivered last: an artifact that is delivered and gone by then is one that the note speaks of. A
record that was being written is a torn tail of the copy, and dropped as any other.

Nobody writes to a copy. So a restore names this machine in each journal as the writer's: its lock
is free, and `mlops.sync` delivers the journal and ends the runs that it left open.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from mlops.errors import MlopsError
from mlops.journal import build_header, find_journals, read_sent
from mlops.stores.backup_record import WRITING, is_restored
from mlops.stores.file_copy import copy_tree, list_files, put_files
from mlops.stores.store import Steps

FOLDER = "journal"


def back_up(home: Path, backup: Path) -> None:
    """Copies the journals of a home as they are now.

    Raises:
        MlopsError: they cannot be read.
    """
    for folder in sorted((home / FOLDER).glob("*")):
        # A folder or a journal that vanishes is delivered, all of it.
        with contextlib.suppress(FileNotFoundError):
            for path in find_journals(folder):
                with contextlib.suppress(FileNotFoundError):
                    _copy_journal(path, backup / FOLDER / folder.name)


def _copy_journal(path: Path, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        copy = target / path.name
        shutil.copyfile(path, copy)
        files = path.with_suffix(".files")
        copy_tree(files, target / files.name, list_files(files))
        sent = min(read_sent(path), copy.stat().st_size)
        if not path.exists():  # delivered, all of it: its note went after it
            copy.unlink()
            shutil.rmtree(target / files.name, ignore_errors=True)
        elif sent:
            copy.with_suffix(".sent").write_text(f"{sent}\n")
    except FileNotFoundError:
        raise
    except OSError as err:
        raise MlopsError(
            f"the journal {str(path)!r} could not be copied: {err.strerror or err}."
        ) from err


def restore(home: Path, backup: Path) -> Steps:
    """Brings journals to a home that has none.

    Raises:
        MlopsError: it has some.
    """
    source, target = backup / FOLDER, home / FOLDER
    if is_restored(home, target, "journals"):
        return
    yield

    def take_over(folder: Path) -> None:
        for path in folder.glob("*/*.journal"):
            _take_over(path)

    put_files(home, source, target, list_files(source), take_over)


def _take_over(path: Path) -> None:
    """Names this machine as the one whose process wrote a journal; a damaged name stays."""
    draft = path.with_suffix(f"{path.suffix}{WRITING}")
    with path.open("rb") as old, draft.open("wb") as new:
        first, header = old.readline(), build_header() + b"\n"
        if b'"open"' not in first:
            header = first
        new.write(header)
        shutil.copyfileobj(old, new)
    sent = read_sent(path)
    draft.replace(path)
    if sent:
        moved = sent + len(header) - len(first) if sent >= len(first) else 0
        path.with_suffix(".sent").write_text(f"{moved}\n")
