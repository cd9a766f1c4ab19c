"""python -m mlops.backup TARGET: copies all that is kept here to a folder, while it is used.

TARGET is laid out as an embedded home, whatever the settings name, and `MLOPS_HOME=TARGET python -m
mlops.doctor` opens it. It is written beside its place, as TARGET.writing; backup.json, with the
digest of every file, is the last file, and a rename the last step. Killed before that, it leaves
TARGET.writing, which nothing takes for a backup and which the same command makes anew.

Why the parts fit together. Moves are held (seconds) while the records of each store are copied:
decisions, studies, journals, MLflow's rows, in this order. Of PostgreSQL a snapshot is opened in
that time, and copied after it. Files follow.

- Decisions and MLflow: a move of an alias is an intent in the ledger, a signed record beside the
  release, the alias in MLflow, an end in the ledger. Nothing is appended to the ledger while it is
  held, so the copy of a move has neither intent nor alias, or both and its end, or an open intent
  with the alias here or there; that is what a killed promotion leaves, too, and the next command
  settles it.
- Studies and runs: nobody asks for a trial or tells one while they are held. So each run in the
  copy has its trial, and each finished trial its run, in MLflow or in a journal: a run is made
  after its trial, and has ended in a journal before its trial is told.
- Studies and their networks: the best trial's is saved before the trial is told, and what it has
  beaten goes after that (`experiments.study_copy`).
- Journals and MLflow: journals come first, so what is delivered meanwhile is in both copies, and
  is known when it is delivered again. A journal that was removed before was delivered before.
- Rows and artifacts: artifacts are only ever added, and rows are copied first, so what rows speak
  of as whole is there. Files that come later are of runs that were not at their end, or of none;
  of a folder that was being uploaded the file that makes it whole is left out
  (`mlops.stores.file_copy`).
- Datasets and keys: both are there before a run or a release refers to them, and are copied last.
- What `mlops.clean` or `mlops.erase` take out meanwhile may be in the copy. An erasure does not
  reach into backups.

Left out: the server's and the scoring servers' folders, leases, locks, logs, checkpoints of trials
that are under way, and what writers left unfinished.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mlops.errors import MlopsError, UsageError, first_line, without_passwords
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from mlops.stores.backup_record import BackupRecord
    from mlops.stores.store import Store

FOLDERS = ("artifacts", "datasets", "journal", "sweeps", "keys")
"""What is read of a home; a backup cannot lie in it."""
NEW_HOME = {"MLOPS_HOME": "NEW-HOME"}
VERSION_TABLES = {
    "mlflow.db": "alembic_version",
    "accounts.db": "alembic_version_auth",
    "studies.db": "alembic_version",
    "ledger.db": "ledger_version",
}
"""Where the revision of each database of a backup stands."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made.

    Attributes:
        held_s: How long moves were held.
        n_elsewhere: Experiments whose artifacts lie in places of their own, which are not in it.
    """

    folder: Path
    record: BackupRecord
    held_s: float
    n_elsewhere: int


def back_up(settings: Settings, target: Path, *, private_keys: bool = True) -> Backup:
    """Copies all that is kept to a folder that is not there, or is empty.

    Args:
        settings: Where all of it is.
        target: Gets mode 700.
        private_keys: Whether the key that signs is copied, too.

    Raises:
        UsageError: the folder has something in it, or lies in what is copied.
        MlopsError: a store cannot be read, or the folder not be written.
    """
    from mlops.machine_lock import machine_lock
    from mlops.stores.backup_record import WRITING

    target = target.expanduser().absolute()
    _check_target(settings, target)
    if not private_keys:
        settings = replace(settings, signing_key=target / "left-out")
    writing = target.with_name(f"{target.name}{WRITING}")
    with machine_lock(f"backup {target}", wait_s=0.0) as held, _translated(target):
        if not held:
            raise MlopsError(f"another backup to {str(target)!r} is being written.")
        shutil.rmtree(writing, ignore_errors=True)  # of one that was killed
        writing.mkdir(mode=0o700, parents=True)
        try:
            backup = _write(settings, writing, target)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
    return backup


def _check_target(settings: Settings, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            f"{str(target)!r} is there already; expected a folder that is not there, or is empty. "
            "Name another."
        )
    places = [settings.home / name for name in FOLDERS]
    places += [
        Path(url).absolute() for url in (settings.artifacts_url, settings.datasets_url) if url
    ]
    for place in places:
        if place in (target, *target.parents):
            raise UsageError(
                f"{str(target)!r} lies in {str(place)!r}, which is copied. Name a folder "
                "elsewhere, best on another disk."
            )


def _write(settings: Settings, writing: Path, target: Path) -> Backup:
    from mlops.stores.backup_record import sync_folder, write_record
    from mlops.stores.store import get_stores, in_step
    from mlops.stores.tracking_copy import count_elsewhere

    stores = get_stores(settings)
    with contextlib.closing(in_step([one.backup_records(writing) for one in stores])) as records:
        with contextlib.ExitStack() as held:
            for store in stores:
                held.enter_context(store.hold())
            began, created_at = time.monotonic(), datetime.now(UTC)
            next(records)
        held_s = time.monotonic() - began
        next(records, None)
    for store in stores:
        store.backup_files(writing)
    record = _describe(writing, target, created_at)
    write_record(writing, record)
    writing.rename(target)
    sync_folder(target.parent)
    return Backup(target, record, held_s, count_elsewhere(target))


def _describe(writing: Path, target: Path, created_at: datetime) -> BackupRecord:
    """Looks at the copy as at any home, and at each file of it."""
    from mlops.stores import backup_record
    from mlops.stores.store import get_stores

    schemas = {name: _read_schema(writing / name) for name in VERSION_TABLES}
    copy = Settings.from_env({"MLOPS_HOME": str(writing)})
    says = {store.name: _ask(store) for store in get_stores(copy)}
    return backup_record.BackupRecord(
        place=str(target),
        host=backup_record.host(),
        created_at=created_at.isoformat(timespec="milliseconds"),
        versions=backup_record.find_versions(),
        schemas={name: found for name, found in schemas.items() if found is not None},
        stores=says,
        files=backup_record.sync_files(writing),
    )


def _ask(store: Store) -> str:
    try:
        return store.check().says
    except Exception as err:  # what is wrong with it was so before it was copied
        return f"cannot be looked at: {first_line(err)}"


def _read_schema(file: Path) -> str | None:
    from mlops.stores.database_copy import find_damage
    from mlops.stores.schema_upgrade import read_revision

    if not file.is_file():
        return None
    damage = find_damage(file)
    if damage is not None:
        raise MlopsError(
            f"the copy of {file.name} is damaged, and so is what it was copied from: {damage}. "
            "What to do says: python -m mlops.doctor"
        )
    return read_revision(f"sqlite:///{file}", VERSION_TABLES[file.name])


@contextlib.contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise MlopsError(
            f"the backup {str(target)!r} could not be written: {err.strerror or err}"
            f"{f': {err.filename!r}' if err.filename else ''}. Nothing of it is left; look at the "
            "free space and the rights there. A place that is mounted needs a folder in it."
        ) from err


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    target: Annotated[Path, tyro.conf.Positional]
    """The folder to make; it is not there, or is empty."""
    no_keys: bool = False
    """Leave out the private key that signs releases."""
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    settings = Settings.from_env()
    with _hushed():
        made = back_up(settings, options.target, private_keys=not options.no_keys)
    record = made.record
    if record.has_signing_key:
        say(
            f"WARNING: {str(made.folder)!r} holds the private key that signs releases. Who can "
            "read it can sign in your name: keep it as you keep the key, or make the backup with "
            "--no-keys."
        )
    if made.n_elsewhere:
        say(
            f"{made.n_elsewhere} experiment(s) keep their artifacts in places of their own, which "
            "are not in the backup."
        )
    if options.json:
        fields = {key: value for key, value in record.to_json().items() if key != "files"}
        answer_json({**fields, "folder": str(made.folder), "held_s": round(made.held_s, 3)})
    else:
        answer(_in_words(made))
    return 0


def _in_words(made: Backup) -> str:
    record = made.record
    lines = [f"  {name}: {without_passwords(says)}" for name, says in record.stores.items()]
    return "\n".join(
        [
            f"{made.folder}: {len(record.files)} files, {record.size_bytes / 1e6:.1f} MB, as of "
            f"{record.created_at}. Moves waited for {made.held_s:.1f} s.",
            *lines,
            *_restoring(made.folder),
        ]
    )


def _restoring(folder: Path) -> list[str]:
    """Returns how it is restored: to a folder, and where the settings name more, to such places."""
    words = ("python", "-m", "mlops.restore", str(folder))
    typed = "  " + command_line(*words, env=NEW_HOME)
    if not any(os.environ.get(name) for name in SETTINGS if name not in NEW_HOME):
        return ["To restore it to a new folder:", typed]
    return [
        "To restore it to a new folder, where no other setting of Podium's is set:",
        "  " + " ".join([*(f"{name}={to}" for name, to in NEW_HOME.items()), shlex.join(words)]),
        "To restore it to databases and buckets, let new ones take the place of these:",
        typed,
    ]


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps to itself what the parts log and warn of while they make the tables of the copy."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.backup",
        description="Copy all that is kept here to a folder, while it is used.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
