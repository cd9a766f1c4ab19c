"""The ledger's part of a backup: its events, as they were written, and the policy of the home.

In PostgreSQL triggers refuse events of another login than the session's, and so they would refuse
all that a restore brings. Its owner has them stand aside, in the one transaction of the copy
(`mlops.stores.database_copy`). What came is one chain all the same: each event holds the hash of
the one before it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mlops.stores.backup_record import WRITING, is_restored, put_in_place
from mlops.stores.database_copy import Restore, copy_in, copy_out
from mlops.stores.file_copy import copy_tree
from mlops.stores.schema_upgrade import Schema
from mlops.stores.store import Steps, in_step
from registry.ledger import MIGRATIONS, VERSION_TABLE, open_ledger

if TYPE_CHECKING:
    from mlops.settings import Settings

EVENTS = "ledger.db"
POLICY = "policy.toml"


def ledger_schema(settings: Settings) -> Schema:
    return Schema(
        what="decisions and moves",
        url=settings.ledger_url,
        setting="MLOPS_LEDGER_URL",
        revisions=MIGRATIONS / "versions",
        version_table=VERSION_TABLE,
        make=_make,
        migrate=_make,
    )


def _make(url: str) -> None:
    with open_ledger(url):
        pass


def back_up(settings: Settings, home: Path) -> Steps:
    """Copies the events and the policy.

    Raises:
        MlopsError: they cannot be read.
    """
    copy_tree(settings.home, home, [POLICY] if (settings.home / POLICY).is_file() else [])
    yield from copy_out(ledger_schema(settings), home / EVENTS)


def restore(settings: Settings, backup: Path) -> Steps:
    """Brings the events and the policy.

    Raises:
        MlopsError: there are some already, or the backup is of another version.
    """
    events = copy_in(backup / EVENTS, ledger_schema(settings), Restore.of(settings.home, backup))
    yield from in_step([events, _restore_policy(settings.home, backup)])


def _restore_policy(home: Path, backup: Path) -> Steps:
    if not (backup / POLICY).is_file() or is_restored(home, home / POLICY, "rules"):
        return
    yield
    beside = home / f"{POLICY}{WRITING}"
    shutil.copyfile(backup / POLICY, beside)
    put_in_place(home, beside, home / POLICY)
