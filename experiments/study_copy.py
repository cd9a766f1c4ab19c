"""The studies' part of a backup: Optuna's rows, and what the sweeps of the home keep as files.

While moves are held nobody asks for a trial or tells one, so that each trial of the copy has the
run and the network that it had: a run is made after its trial, it ends and its network is saved
before the trial is told, and networks that were beaten go after that. Of the files only those of
sweeps that are under way can go meanwhile; they are copied in that time, the others later.

A study says which home began it, by host and folder. In a copy that is the copy's own folder, and
after a restore the new home, which so goes on with its sweeps as its own. Checkpoints are left out:
a trial that was under way begins again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from experiments.storage import has_storage
from experiments.studies import LOCK, home_of, is_locked
from experiments.study_upgrade import study_schema
from mlops.errors import MlopsError, first_line
from mlops.stores.backup_record import host, is_restored, place_of, read_record
from mlops.stores.database_copy import WAIT_S, Restore, copy_in, copy_out, open_engine
from mlops.stores.file_copy import copy_tree, list_files, put_files
from mlops.stores.store import Steps, in_step

if TYPE_CHECKING:
    from mlops.settings import Settings

STUDIES = "studies.db"
SWEEPS = "sweeps"
GIVEN = {"version_info": "1 = 0"}
"""What Optuna's tables hold when they are new."""


@contextlib.contextmanager
def hold(settings: Settings) -> Iterator[None]:
    """Keeps trials from being asked for and told while the block runs; who wants to, waits.

    Raises:
        MlopsError: the database cannot be locked.
    """
    if not has_storage(settings.study_url):
        yield
        return
    engine = open_engine(settings.study_url)
    with contextlib.ExitStack() as held:
        try:
            connection = held.enter_context(engine.connect())
            _lock(connection)
        except (sa.exc.SQLAlchemyError, ImportError) as err:
            said = first_line(getattr(err, "orig", None) or err)
            raise MlopsError(
                f"the studies could not be held still for the copy: {said}. A backup needs the "
                "settings of an administrator, whose login owns the tables: look at "
                "MLOPS_STUDY_URL, and type the same command again."
            ) from err
        yield
        connection.rollback()


def _lock(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    if not sa.inspect(connection).has_table("trials"):
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_S:.0f}s'")
    # In this order: Optuna writes to a trial's row before it writes to its attributes.
    for table in ("trials", "trial_user_attributes"):
        connection.exec_driver_sql(f"LOCK TABLE {table} IN SHARE MODE")


def back_up_records(settings: Settings, home: Path) -> Steps:
    """Copies the studies, and the files of the sweeps that are under way.

    Raises:
        MlopsError: they cannot be read.
    """
    old, new = home_of(settings), f"{host()}:{place_of(home)}"
    rows = copy_out(study_schema(settings), home / STUDIES, lambda made: _name_home(made, old, new))
    with contextlib.closing(rows):
        next(rows, None)
        source = settings.home / SWEEPS
        for folder in sorted(path for path in source.glob("*") if path.is_dir()):
            if is_locked(settings.home, folder.name):
                copy_tree(folder, home / SWEEPS / folder.name, _find_files(folder))
        yield
        yield from rows


def back_up_files(settings: Settings, home: Path) -> None:
    """Copies the files of the other sweeps.

    Raises:
        MlopsError: they cannot be read.
    """
    source = settings.home / SWEEPS
    for folder in sorted(path for path in source.glob("*") if path.is_dir()):
        target = home / SWEEPS / folder.name
        if not target.exists():
            copy_tree(folder, target, _find_files(folder))


def _find_files(folder: Path) -> list[str]:
    return [
        name
        for name in list_files(folder)
        if name != LOCK and ".checkpoint" not in name and not name.endswith("-draft")
    ]


def restore(settings: Settings, backup: Path) -> Steps:
    """Brings the studies and the files of their sweeps, as those of the home that is restored.

    Raises:
        MlopsError: there are some already, or the backup is of another version.
    """
    record = read_record(backup)
    old, new = f"{record.host}:{record.place}", home_of(settings)
    rows = copy_in(
        backup / STUDIES,
        study_schema(settings),
        Restore.of(settings.home, backup),
        GIVEN,
        lambda made: _name_home(made, old, new),
    )
    yield from in_step([rows, _restore_sweeps(settings.home, backup, record.sizes(SWEEPS))])


def _restore_sweeps(home: Path, backup: Path, names: Iterable[str]) -> Steps:
    if is_restored(home, home / SWEEPS, "sweeps"):
        return
    yield
    put_files(home, backup / SWEEPS, home / SWEEPS, names)


def _name_home(connection: sa.Connection, old: str, new: str) -> None:
    attributes = sa.table(
        "study_user_attributes", sa.column("key", sa.String), sa.column("value_json", sa.Text)
    )
    connection.execute(
        sa.update(attributes)
        .where(attributes.c.key == "home", attributes.c.value_json == json.dumps(old))
        .values(value_json=json.dumps(new))
    )
