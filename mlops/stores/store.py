"""What keeps state, and what is asked of it: the stores of a home.

A store implements `Store` where it lives and is found through the entry-point group
`podium.stores`, so that a program here asks the stores of packages that stand above it, and of
other distributions, without importing them by name. A line of the group is
`<name> = "<module>:<callable>"`; the callable takes the settings and returns the store. It opens
nothing that takes long: a server that is down is for `check` to tell.

What each program asks of all of them: `mlops.doctor` their health; `mlops.backup` and
`mlops.restore` a copy; `mlops.upgrade` the schema of this version; `mlops.clean` what is old and
nobody needs; `mlops.erase` what came from a dataset.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

from mlops.errors import MlopsError, first_line
from mlops.settings import Settings

Steps = Generator[None, None, None]
"""Work in two steps: up to the first yield, and from there to the end; either may be empty."""

GROUP = "podium.stores"
DISTRIBUTION = "podium-mlops"
CHECKOUT = Path(__file__).resolve().parents[2]


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


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """Something that a store keeps and that can be taken out of it.

    Attributes:
        kind: "alias", "model version", "run", "study", "journal", "dataset", ...
        key: Names it among its kind, for programs: a run's id, "NAME/VERSION", a fingerprint.
        label: Names it for people.
        held_by: The alias that depends on it, as NAME@ALIAS; None if none does.
        size_bytes: What goes with it, of files; rows of databases are not counted.
        busy: Why it cannot be taken out now: who uses it, in a sentence; None if nobody does.
    """

    kind: str
    key: str
    label: str
    held_by: str | None = None
    size_bytes: int = 0
    busy: str | None = None


class Store(Protocol):
    """Something that keeps state under the settings it was made with.

    A backup is laid out as an embedded home, whatever the settings name: `MLOPS_HOME=BACKUP` opens
    it, and a backup of PostgreSQL and S3 may be restored into an embedded home, or the other way
    round. Each store writes and reads its own part of it.

    A subclass says what it is and how it is; all else is there for those that have something to do.
    """

    @property
    def name(self) -> str:
        """One lower-case word, the store's name in the group."""
        ...

    @property
    def rank(self) -> int:
        """Who is asked first, of backup, clean and erase: lower before higher.

        What refers to others has a lower rank than what it refers to: since it is copied first, a
        copy refers to nothing that came later; since it is taken out first, nothing is left that
        refers to what is gone.
        """
        ...

    def check(self) -> Health:
        """Looks whether what is kept is whole; changes nothing and waits for nothing long.

        What is not there yet is no finding. May raise whatever comes; the caller makes a finding
        of it.
        """
        ...

    def hold(self) -> AbstractContextManager[None]:
        """Keeps moves that touch several stores from beginning and ending while the block runs.

        The block takes seconds: the first steps of all `backup_records` run in it.
        """
        return contextlib.nullcontext()

    def backup_records(self, home: Path) -> Steps:
        """Copies, as of one moment, what changes: rows of databases, journals.

        The first step fixes the moment, while moves are held. The second copies what takes longer
        than seconds, of a snapshot that the first opened.
        """
        yield from ()

    def backup_files(self, home: Path) -> None:
        """Copies what never changes once it is there: artifacts, datasets, keys.

        Called after all records are copied, so that what they refer to is there.
        """

    def restore(self, home: Path) -> Steps:
        """Brings a backup to where the settings name.

        The first step only looks. The second writes; killed in it, it may be done again.

        Raises:
            MlopsError: in the first step: there is something already, or the backup is of another
                version. In the second: it could not be written.
        """
        yield from ()

    def writers(self) -> list[str]:
        """Returns who writes to it now, a few words each; none is good.

        What cannot be seen from this machine is not among them.
        """
        return []

    def upgrade(self) -> str:
        """Brings what is kept to the format of this version; makes it where it is not there.

        Killed on the way, the next call goes on.

        Returns:
            What was done, in a few words: "schema a1 -> b2", "made", "up to date".

        Raises:
            MlopsError: somebody writes to it now; says who.
        """
        return "up to date"

    def needs(self, gone: Set[tuple[str, str]] = frozenset()) -> set[tuple[str, str]]:
        """Returns kind and key of what must stay because something here refers to it.

        Args:
            gone: Kind and key of what counts as taken out already, and needs nothing.
        """
        return set()

    def clean(
        self, before: datetime, keep_best: int, needed: Set[tuple[str, str]], *, dry: bool
    ) -> list[Item]:
        """Takes out what is older than `before`, is not among the best, and is not needed.

        Args:
            before: Aware; what ended later stays.
            keep_best: Trials of each study that stay whatever their age.
            needed: What all stores said that must stay.
            dry: Only tell.

        Returns:
            What was, or would be, taken out.
        """
        return []

    def find(self, dataset: str) -> list[Item]:
        """Returns what is kept here of a dataset, by its fingerprint, and of what came from it."""
        return []

    def erase(self, dataset: str, replace: Mapping[str, int]) -> None:
        """Takes out what `find` finds, so that its bytes are gone; may be repeated.

        Args:
            dataset: The fingerprint.
            replace: The release that an alias goes to before, by NAME@ALIAS; 0 for none.

        Raises:
            MlopsError: something is used just now; says by whom. What is gone by then stays gone.
        """


@runtime_checkable
class Witness(Protocol):
    """A store that also keeps what was erased from all of them, for good and signed."""

    def pending(self) -> list[str]:
        """Returns the datasets whose erasure was begun and not completed."""
        ...

    def begin(self, dataset: str, items: Sequence[Item], replace: Mapping[str, int]) -> None:
        """Writes down that an erasure begins, before anything is gone.

        Raises:
            UsageError: `replace` names what is not there, or came from the dataset, too.
            MlopsError: it cannot be written, or not be signed later.
        """
        ...

    def attest(self, dataset: str, notes: Sequence[str]) -> str:
        """Writes down, signed, that a dataset was erased, and what came from it.

        Args:
            dataset: The fingerprint.
            notes: What was looked at afterwards, a sentence each.

        Returns:
            Where it stands, in a few words.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnopenedStore:
    """Stands for a store that could not be opened; every use of it raises why."""

    name: str
    error: Exception

    def check(self) -> Health:
        raise self.error

    def __getattr__(self, name: str) -> NoReturn:
        raise self.error


def in_step(works: Iterable[Steps]) -> Steps:
    """Does several works in two steps: the first step of each, then the second of each.

    What one of them holds open between its steps is closed, whatever happens.
    """
    with contextlib.ExitStack() as closing:
        works = [closing.enter_context(contextlib.closing(work)) for work in works]
        for work in works:
            next(work, None)
        yield
        for work in works:
            for _ in work:
                pass


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


def get_stores(settings: Settings) -> list[Store]:
    """Returns all stores, lowest rank first, for who may leave none of them out.

    Raises:
        MlopsError: one cannot be opened, or none is known.
    """
    stores = open_stores(settings)
    for store in stores:
        if isinstance(store, UnopenedStore):
            if isinstance(store.error, MlopsError):
                raise store.error
            raise MlopsError(
                f"the store {store.name!r} cannot be opened: {type(store.error).__name__}: "
                f"{first_line(store.error)}. Nothing was done."
            ) from store.error
    if not stores:
        raise MlopsError(
            "no store is known; Podium is neither installed nor run from its checkout. Type: "
            "python -m pip install podium-mlops"
        )
    return sorted(stores, key=lambda store: store.rank)


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
