"""Takes releases, candidates and their aliases out of the registry, and copies that are served.

The order is what a kill leaves behind. Aliases move first, by `registry.rollback`, each a whole
move; then servers here let go of what they answered with; then, under a model's lease, the ledger
is told of each release, and the release is gone. Whatever is gone by then is not found again, and
the same command goes on with the rest.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlops.errors import MlopsError, UsageError
from mlops.settings import Settings
from mlops.stores.store import Item
from mlops.stores.tracking_removal import remove_versions
from mlops.stores.tracking_rows import VersionRow, read_lineage
from mlops.stores.trash import size_of, throw_away
from mlops.tracking import CANDIDATES

if TYPE_CHECKING:
    from registry.alias import Registry
    from registry.catalog import Catalog

FOLLOW_S = 60.0
"""How long a server of this home may take to follow an alias that moved."""
RELEASE_FILES = ("MLmodel", "release.json")
"""The files of a served copy that name its dataset."""


def find_releases_of(settings: Settings, dataset: str) -> list[Item]:
    """Returns the aliases, releases, candidates and served copies that came from a dataset."""
    found = []
    for one in _find_versions(settings, dataset):
        held_by = [f"{one.name}@{alias}" for alias in one.aliases]
        found += [
            Item("alias", alias, f"{alias}, which holds version {one.version}", alias)
            for alias in held_by
        ]
        what = "candidate" if one.is_candidate else "release"
        label = f"{what} {one.key}"
        found.append(Item("model version", one.key, label, held_by[0] if held_by else None))
    for path in find_copies(settings.home, dataset):
        name = path.relative_to(settings.home).as_posix()
        found.append(Item("serving copy", name, f"served copy {name}", size_bytes=size_of(path)))
    return found


def erase_releases(settings: Settings, dataset: str, replace: Mapping[str, int]) -> None:
    """Takes out what `find_releases_of` finds.

    Raises:
        RefusedError: an alias depends on one, and `replace` does not say what it goes to.
        UsageError: `replace` names a release that is not there or came from the dataset, or an
            alias that does not depend on it.
        UnverifiedError: what an alias was to go to does not verify.
        MlopsError: a model is being changed, or a server answers with one of them still.
    """
    from registry.alias import open_registry

    mine = _find_versions(settings, dataset)
    if mine or replace:
        with open_registry(settings) as registry:
            _check_replacements(registry.catalog, mine, replace)
            for alias, version in replace.items():
                _move(registry, alias, version)
            _wait_for_servers(settings, dataset)
            for name in dict.fromkeys(one.name for one in mine):
                _remove(registry, name, dataset)
    for path in find_copies(settings.home, dataset):
        throw_away(path, settings.home, dataset)


def check_replacements(settings: Settings, dataset: str, replace: Mapping[str, int]) -> None:
    """Looks whether aliases may go where they are to; raises as `erase_releases`."""
    from mlops.mlflow_store import open_store_client
    from registry.catalog import Catalog

    mine = _find_versions(settings, dataset)
    if mine or replace:
        _check_replacements(Catalog(open_store_client(settings)), mine, replace)


def find_copies(home: Path, dataset: str) -> list[Path]:
    """Returns the private copies of releases that servers of this home keep of a dataset."""
    return sorted(
        path
        for path in (home / "serving").glob("*/releases/*")
        if path.is_dir() and any(_names(path / name, dataset) for name in RELEASE_FILES)
    )


def _names(path: Path, dataset: str) -> bool:
    try:
        return dataset.encode() in path.read_bytes()
    except OSError:
        return False


def _find_versions(settings: Settings, dataset: str) -> tuple[VersionRow, ...]:
    return read_lineage(settings, dataset).versions


def _check_replacements(
    catalog: Catalog, mine: tuple[VersionRow, ...], replace: Mapping[str, int]
) -> None:
    """Looks at all of them before any alias moves."""
    from registry.approve import RefusedError

    holders = {f"{one.name}@{alias}": one for one in mine for alias in one.aliases}
    for held in sorted(holders.keys() - replace.keys()):
        raise RefusedError(
            f"{held} depends on {holders[held].key}; say which release of another dataset it goes "
            f"to, with --replace {held}=VERSION."
        )
    from_it = {one.key for one in mine}
    for held, version in replace.items():
        name, _, alias = held.partition("@")
        if held not in holders:
            now = catalog.find_aliases(name).get(alias, 0)
            if now != version:  # else an earlier try, which was killed, has moved it
                raise UsageError(
                    f"{held} does not depend on this dataset: it holds "
                    f"{f'version {now}' if now else 'nothing'}. Leave its --replace out."
                )
        if f"{name}/{version}" in from_it:
            raise UsageError(
                f"{name} version {version} came from this dataset, too; expected a release of "
                f"another one in --replace {held}=VERSION."
            )
        if version:
            catalog.get_release(name, version)


def _move(registry: Registry, held: str, version: int) -> None:
    from registry.alias import changing
    from registry.catalog import Release
    from registry.rollback import rollback

    name, _, alias = held.partition("@")
    if registry.catalog.find_aliases(name).get(alias, 0) == version:
        with changing(registry, name.removesuffix(CANDIDATES), "rollback"):
            return  # an earlier try moved it, and may have been killed before it told the ledger
    if version and not name.endswith(CANDIDATES):
        rollback(registry, name, version, alias)
        return
    with changing(registry, name.removesuffix(CANDIDATES), "rollback"):
        if version:  # candidates are not signed, and their aliases nobody follows
            registry.catalog.move_alias(Release(name, version, "", ""), alias)
        else:
            registry.catalog.delete_alias(name, alias)


def _wait_for_servers(settings: Settings, dataset: str) -> None:
    """Waits until no server of this home answers with a release of the dataset."""
    deadline = time.monotonic() + FOLLOW_S
    while served := _find_served(settings.home, dataset):
        if time.monotonic() > deadline:
            raise MlopsError(
                f"a server still answers with {', '.join(served)}, and has not followed its alias "
                f"within {FOLLOW_S:.0f} s; end it, and type the same command again."
            )
        time.sleep(0.2)


def _find_served(home: Path, dataset: str) -> list[str]:
    from mlops.lease import try_lock
    from registry.serving.state import StateFolder

    found = []
    for path in find_copies(home, dataset):
        folder = StateFolder(path.parent.parent)
        fd = try_lock(folder.lock, create=False) if folder.lock.exists() else -1
        if fd is not None:  # no server runs on this folder
            if fd >= 0:
                os.close(fd)
            continue
        try:
            wanted = folder.read_desired().wanted.values()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if any(Path(one.folder) == path for one in wanted):
            found.append(path.relative_to(home).as_posix())
    return found


def _remove(registry: Registry, name: str, dataset: str) -> None:
    from registry.approve import RefusedError
    from registry.ledger_witness import note_erased

    model = name.removesuffix(CANDIDATES)
    holder = f"{registry.actor.name} (erase, pid {os.getpid()} on {platform.node()})"
    with registry.ledger.lease(model, holder):
        mine = [one for one in _find_versions(registry.settings, dataset) if one.name == name]
        for one in mine:
            if one.aliases:
                raise RefusedError(
                    f"{name}@{one.aliases[0]} was moved to version {one.version} meanwhile. Type "
                    "the same command again, and say where it goes."
                )
        for one in mine:
            if not one.is_candidate:
                note_erased(registry.ledger, registry.settings, name, one.version, dataset)
        remove_versions(registry.settings, mine)
