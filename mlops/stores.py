"""What keeps state, and what is asked of it: the stores of a home.

A store implements `Store` where it lives and is found through the entry-point group
`podium.stores`, so that a program here asks the stores of packages that stand above it, and of
other distributions, without importing them by name. A line of the group is
`<name> = "<module>:<callable>"`; the callable takes the settings and returns the store. It opens
nothing that takes long: a server that is down is for `check` to tell.

Now a store is asked for its health alone. Backup, restore and erasure are further methods of
`Store`, to be added here with their meaning, and looped over by a program each as `mlops.doctor`
does.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

from mlops.settings import Settings

GROUP = "podium.stores"
DISTRIBUTION = "podium-mlops"
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        store: The area it was found in.
        wrong: What is wrong: a sentence or two, without a password and without a row of data.
        mend: The complete command that mends it; where none can, a sentence.
    """

    store: str
    wrong: str
    mend: str


@dataclass(frozen=True, slots=True)
class Health:
    """How a store is.

    Attributes:
        says: A few words on what is there.
    """

    says: str
    findings: tuple[Finding, ...] = ()


class Store(Protocol):
    """Something that keeps state under the settings it was made with."""

    @property
    def name(self) -> str:
        """One lower-case word, the store's name in the group."""
        ...

    def check(self) -> Health:
        """Looks whether what is kept is whole; changes nothing and waits for nothing long.

        What is not there yet is no finding. May raise whatever comes; the caller makes a finding
        of it.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnopenedStore:
    """Stands for a store that could not be opened; every use of it raises why."""

    name: str
    error: Exception

    def check(self) -> Health:
        raise self.error


def open_stores(
    settings: Settings, entries: Iterable[metadata.EntryPoint] | None = None
) -> list[Store]:
    """Returns all stores, by name; one that cannot be opened is an `UnopenedStore`.

    Args:
        settings: What they are opened with.
        entries: Where they are found; by default `find_entries()`.
    """
    stores: list[Store] = []
    for entry in find_entries() if entries is None else entries:
        try:
            stores.append(entry.load()(settings))
        except Exception as err:
            stores.append(UnopenedStore(entry.name, err))
    return stores


def find_entries(checkout: Path = CHECKOUT) -> list[metadata.EntryPoint]:
    """Returns the entry points of the group, by name.

    Those that are installed, and those that the pyproject.toml of a checkout declares: run from a
    checkout by PYTHONPATH nothing is installed, and an editable install knows only the entry
    points of the day it was made. The file is the same declaration, never out of date.
    """
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    found |= {entry.name: entry for entry in _read_pyproject(checkout / "pyproject.toml")}
    return [found[name] for name in sorted(found)]


def _read_pyproject(path: Path) -> list[metadata.EntryPoint]:
    try:
        project = tomllib.loads(path.read_text("utf-8")).get("project", {})
    except (OSError, ValueError):
        return []
    if project.get("name") != DISTRIBUTION:  # beside an installed package lies another's, if any
        return []
    lines = project.get("entry-points", {}).get(GROUP, {})
    return [metadata.EntryPoint(name, value, GROUP) for name, value in lines.items()]
