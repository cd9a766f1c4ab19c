"""Which studies and sweeps came from a dataset, and their removal.

A study says its dataset since it has the attribute `dataset_fingerprint`. An older one is known by
the runs of its sweep, delivered or waiting in a journal, or by its config: the fingerprint of the
config was made of the dataset's.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable

from experiments.config_file import load_config, read_options
from experiments.studies import CONFIG, home_of, is_locked, is_sweep, lock_sweep, sweep_folder
from experiments.study_rows import SETTING, StudyRow, all_tables, read_studies, remove_studies
from mlops.errors import MlopsError
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.database_removal import compact
from mlops.stores.journal_removal import find_sweeps
from mlops.stores.store import Item
from mlops.stores.tracking_rows import read_lineage
from mlops.stores.trash import size_of
from mlops.tracked_runs import STUDY, SWEEP

DATASET = "dataset_fingerprint"
"""The user attribute of a study that says which dataset it searches on."""


def find_studies_of(settings: Settings, dataset: str) -> list[Item]:
    """Returns the studies of a dataset, and the folders of their sweeps here."""
    studies, sweeps = _find(settings, dataset)
    busy = {sweep: _find_busy(settings, sweep, studies) for sweep in sweeps}
    found = [
        Item("study", one.name, f"study {one.name}", busy=busy.get(one.sweep or ""))
        for one in studies
    ]
    for sweep in sorted(sweeps):
        folder = sweep_folder(settings.home, sweep)
        if folder.is_dir():
            found.append(
                Item("sweep folder", sweep, f"sweeps/{sweep}", None, size_of(folder), busy[sweep])
            )
    return found


def erase_studies(settings: Settings, dataset: str) -> None:
    """Takes out what `find_studies_of` finds, and writes the study database anew.

    A sweep's rows go before its folder: killed in between, its runs still tell whose folder it is.

    Raises:
        MlopsError: a sweep is under way, or a store does not do it.
    """
    studies, sweeps = _find(settings, dataset)
    for sweep in sweeps:
        busy = _find_busy(settings, sweep, studies)
        if busy is not None:
            raise MlopsError(busy)
    with contextlib.ExitStack() as stack:
        for sweep in sorted(sweeps):
            stack.enter_context(lock_sweep(settings.home, sweep))
        if studies:
            remove_studies(settings.study_url, [one.study_id for one in studies])
        for sweep in sweeps:
            shutil.rmtree(sweep_folder(settings.home, sweep))
    compact(settings.study_url, all_tables(), SETTING)


def _find(settings: Settings, dataset: str) -> tuple[list[StudyRow], set[str]]:
    """Returns the studies of a dataset, and its sweeps."""
    lineage = read_lineage(settings, dataset)
    sweeps = lineage.tagged(SWEEP) | find_sweeps(settings.home, dataset)
    names = lineage.tagged(STUDY)
    studies = [
        one
        for one in read_studies(settings.study_url)
        if one.attrs.get(DATASET, dataset) == dataset
        and (
            one.attrs.get(DATASET) == dataset
            or one.name in names
            or one.sweep in sweeps
            or _is_begun_for(one, sweeps)
            or _is_by_config(settings, one, dataset)
        )
    ]
    sweeps |= {one.sweep for one in studies if one.sweep is not None}
    return studies, {one for one in sweeps if is_sweep(one)}  # no folder has another name


def _is_begun_for(study: StudyRow, sweeps: Iterable[str]) -> bool:
    """Tells whether a study that has no run key yet was being made by one of some sweeps."""
    return study.sweep is None and any(study.name.startswith(f"{sweep}-") for sweep in sweeps)


def _is_by_config(settings: Settings, study: StudyRow, dataset: str) -> bool:
    if study.sweep is None or DATASET in study.attrs or not is_sweep(study.sweep):
        return False
    path = sweep_folder(settings.home, study.sweep) / CONFIG
    if not path.is_file():
        return False
    try:
        config = read_options(load_config(path), str(path))
    except MlopsError:  # of another version
        return False
    found = config.fingerprint(dataset, study.attrs["architecture_path"])
    return bool(found == study.attrs["config_fingerprint"])


def _find_busy(settings: Settings, sweep: str, studies: Iterable[StudyRow]) -> str | None:
    stop = command_line("python", "-m", "experiments.status", "--stop", sweep)
    if is_locked(settings.home, sweep):
        return f"the sweep {sweep!r} is under way; end it: {stop}"
    homes = {one.attrs["home"] for one in studies if one.sweep == sweep and not one.is_done} - {
        home_of(settings)
    }
    if homes and _is_beating(settings, sweep):
        return f"the sweep {sweep!r} is under way in {' and '.join(sorted(homes))}; end it: {stop}"
    return None


def _is_beating(settings: Settings, sweep: str) -> bool:
    from experiments.beat import is_beating
    from experiments.storage import open_storage

    return is_beating(open_storage(settings.study_url), sweep)
