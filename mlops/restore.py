"""python -m mlops.restore BACKUP: brings a backup to where the settings name.

That may be an embedded home or a team's databases and buckets, whatever the backup was made of. It
goes only where nothing is, and nobody may use the place until it is done.

Every digest is compared, and every store asked whether there is room, before anything is written.
Then the stores are filled one after another, what others refer to first: keys, datasets, artifacts
and runs, journals, studies, decisions. Each database appears whole or not at all. A restore that
was killed leaves `restoring.json` in the home, which the doctor tells of: the same command goes on
with the stores that are not done.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mlops.errors import MlopsError
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from mlops.stores.backup_record import BackupRecord, Restoring


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        aliases: Of releases, as NAME@ALIAS.
        left_out: What of the backup has no place under these settings, a sentence each.
    """

    folder: Path
    record: BackupRecord
    aliases: tuple[str, ...]
    left_out: tuple[str, ...]


def restore(settings: Settings, folder: Path) -> Restored:
    """Brings a backup to where the settings name.

    Raises:
        UsageError: the folder is no backup.
        MlopsError: it is damaged or of another version; there is something already; another backup
            was begun to be restored here; or a store cannot be written.
    """
    from mlops.machine_lock import machine_lock
    from mlops.stores.backup_record import check_files, read_record
    from mlops.stores.tracking_copy import read_aliases

    folder = folder.expanduser().absolute()
    record = read_record(folder)
    check_files(folder, record)
    with machine_lock(f"restore {settings.home}", wait_s=0.0) as held, _translated():
        if not held:
            raise MlopsError(f"another restore to {str(settings.home)!r} is going on.")
        _fill(settings, folder)
    return Restored(folder, record, tuple(read_aliases(folder)), tuple(_left_out(settings, record)))


def _fill(settings: Settings, folder: Path) -> None:
    from mlops.stores.backup_record import RESTORING, find_restoring, sync_folder
    from mlops.stores.store import get_stores

    progress = _find_progress(settings, folder)
    stores = [one for one in reversed(get_stores(settings)) if one.name not in progress.done]
    with contextlib.ExitStack() as closing:
        works = [closing.enter_context(contextlib.closing(one.restore(folder))) for one in stores]
        for work in works:
            next(work, None)
        progress.write(settings.home)
        for store, work in zip(stores, works, strict=True):
            # Killed between the two, the next try asks the store, which knows what it brought.
            for _ in work:
                pass
            progress = find_restoring(settings.home) or progress
            progress = replace(progress, done=(*progress.done, store.name))
            progress.write(settings.home)
    os.sync()
    (settings.home / RESTORING).unlink()
    sync_folder(settings.home)


def _find_progress(settings: Settings, folder: Path) -> Restoring:
    """Returns how far an earlier try came, if there was one."""
    from mlops.stores.backup_record import Restoring, find_restoring, hash_record

    begun, digest = find_restoring(settings.home), hash_record(folder)
    if begun is None:
        return Restoring(digest, str(folder))
    if begun.backup != digest:
        raise MlopsError(
            f"the restore of {begun.folder!r} to {str(settings.home)!r} was interrupted. Type "
            f"python -m mlops.restore {begun.folder} to complete it, or remove what it brought."
        )
    return begun


def _left_out(settings: Settings, record: BackupRecord) -> Iterator[str]:
    if "accounts.db" in record.schemas and settings.accounts_db_url is None:
        yield (
            "The accounts of MLflow are left out: MLOPS_ACCOUNTS_DB_URL, which names their "
            "database, is not set."
        )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        where = f": {err.filename!r}" if err.filename else ""
        raise MlopsError(
            f"the backup could not be restored: {err.strerror or err}{where}. Look at the free "
            "space and the rights there, and type the same command again."
        ) from err


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    backup: Annotated[Path, tyro.conf.Positional]
    """The folder that python -m mlops.backup made."""
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    settings = Settings.from_env()
    done = restore(settings, options.backup)
    for sentence in done.left_out:
        say(sentence)
    next_commands = [
        *(command_line("python", "-m", "registry.verify", alias) for alias in done.aliases),
        command_line("python", "-m", "mlops.doctor"),
    ]
    if options.json:
        answer_json(
            {
                "folder": str(done.folder),
                "created_at": done.record.created_at,
                "n_files": len(done.record.files),
                "aliases": list(done.aliases),
                "next": next_commands,
            }
        )
    else:
        answer(
            "\n".join(
                [
                    f"{done.folder} of {done.record.created_at} is restored: "
                    f"{len(done.record.files)} files, {done.record.size_bytes / 1e6:.1f} MB.",
                    "Look whether all of it verifies, and what is left to do:",
                    *(f"  {command}" for command in next_commands),
                ]
            )
        )
    return 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.restore",
        description="Bring a backup to where the settings name; only where nothing is.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
