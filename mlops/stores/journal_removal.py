"""Which journals speak of a dataset, and what is left of journals that are delivered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlops.drain import hold_folder
from mlops.errors import MlopsError
from mlops.journal import Record, find_journals, find_writer, is_closed, read_lines
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.journal_state import QUIET_S, find_folders, is_delivered_now
from mlops.stores.store import Item
from mlops.stores.tracking_rows import FINGERPRINT, PARENT, read_lineage
from mlops.stores.trash import empty_trash, find_trash, size_of, throw_away
from mlops.tracked_runs import SWEEP
from mlops.tracking import RUN_KEY


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a folder of journals speaks of.

    Attributes:
        datasets: Fingerprint of each run that is created there, by key; None where it says none.
        keys: Of all runs that are spoken of.
        sweeps: Of the runs that are created there, by key.
    """

    datasets: dict[str, str | None]
    keys: set[str]
    sweeps: dict[str, str]


def read_spoken(folder: Path) -> Spoken:
    """Reads all journals of a folder, what is delivered of them too."""
    found = Spoken({}, set(), {})
    parents: dict[str, str] = {}
    for path in find_journals(folder):
        for record in read_lines(path):
            if record is None or not record.run:
                continue
            found.keys.add(record.run)
            if record.kind == "create":
                tags = record.fields.get("tags", {})
                found.datasets[record.run] = _find_dataset(record)
                if SWEEP in tags:
                    found.sweeps[record.run] = tags[SWEEP]
                if PARENT in tags:
                    parents[record.run] = tags[PARENT]
    for key, parent in parents.items():
        if found.datasets[key] is None:
            found.datasets[key] = found.datasets.get(parent)
    return found


def _find_dataset(record: Record) -> str | None:
    dataset = record.fields.get("dataset") or {}
    found = dataset.get("fingerprint") or record.fields.get("tags", {}).get(FINGERPRINT)
    return None if found is None else str(found)


def find_datasets(home: Path) -> set[str]:
    """Returns the fingerprints of all datasets that journals of a home speak of."""
    return {
        dataset
        for folder in find_folders(home)
        for dataset in read_spoken(folder).datasets.values()
        if dataset is not None
    }


def find_sweeps(home: Path, dataset: str) -> set[str]:
    """Returns the sweeps that by the journals of a home were made with a dataset."""
    found: set[str] = set()
    for folder in find_folders(home):
        spoken = read_spoken(folder)
        mine = {key for key, one in spoken.datasets.items() if one == dataset}
        found |= {sweep for key, sweep in spoken.sweeps.items() if key in mine}
    return found


def find_journals_of(settings: Settings, dataset: str) -> list[Item]:
    """Returns the journals that speak of a dataset, and what a killed erasure left.

    A journal of a worker may speak of runs whose creation is delivered: those MLflow knows.
    """
    home, lineage = settings.home, read_lineage(settings, dataset)
    keys, sweeps = lineage.tagged(RUN_KEY), lineage.tagged(SWEEP) | find_sweeps(home, dataset)
    found = [
        Item("leftover", path.name, f"what a killed erasure left, {path.name}", None, size_of(path))
        for path in find_trash(home, dataset)
    ]
    for folder in find_folders(home):
        spoken = read_spoken(folder)
        mine = {key for key in spoken.keys if spoken.datasets.get(key) == dataset}
        mine |= spoken.keys & keys
        if folder.name in sweeps:
            mine = spoken.keys
        elif not mine:
            continue
        found.append(
            Item(
                "journal",
                folder.name,
                f"journals of {folder.name}",
                size_bytes=size_of(folder),
                busy=_find_busy(folder, mixed=bool(spoken.keys - mine)),
            )
        )
    return found


def find_live_folders(home: Path) -> list[str]:
    """Returns the folders whose journals are being written or delivered now."""
    return [folder.name for folder in find_folders(home) if _is_live(folder)]


def _is_live(folder: Path) -> bool:
    return is_delivered_now(folder) or any(map(_may_be_written, find_journals(folder)))


def _find_busy(folder: Path, *, mixed: bool) -> str | None:
    if _is_live(folder):
        stop = command_line("python", "-m", "experiments.status", "--stop", folder.name)
        return (
            f"the journals of {folder.name!r} are being written or delivered; end the sweep: {stop}"
        )
    if mixed:
        return (
            f"the journals of {folder.name!r} speak of other data, too; have them delivered first: "
            f"{command_line('python', '-m', 'mlops.sync')}"
        )
    return None


def _may_be_written(path: Path) -> bool:
    if is_closed(path):
        return False
    writer = find_writer(path)
    quiet = time.time() - path.stat().st_mtime > QUIET_S
    return writer == "alive" or (writer == "elsewhere" and not quiet)


def erase_journals(settings: Settings, dataset: str) -> None:
    """Removes journals that `find_journals_of` finds, with the artifacts that wait in them.

    Raises:
        MlopsError: one of them is used just now.
    """
    for item in find_journals_of(settings, dataset):
        if item.busy is not None:
            raise MlopsError(item.busy)
        if item.kind == "journal":
            throw_away(settings.home / "journal" / item.key, settings.home, dataset)
    empty_trash(settings.home, dataset)


def clean_leftovers(home: Path, before: datetime, *, dry: bool) -> list[Item]:
    """Removes what killed drains left in folders whose journals are all delivered."""
    found = []
    for folder in find_folders(home):
        rest = list(_find_rest(folder, before))
        if not rest or find_journals(folder):
            continue
        size = sum(map(size_of, rest))
        found.append(Item("journal leftover", folder.name, f"journal of {folder.name}", None, size))
        if not dry:
            with hold_folder(folder):  # its end removes what serves nothing
                pass
    return found


def _find_rest(folder: Path, before: datetime) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name != "drain.lock" and path.stat().st_mtime < before.timestamp():
            yield path
