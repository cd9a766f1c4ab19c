"""MLflow's part of a home as a store: its database or server, and runs that nobody ends."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from mlops.errors import ServerError, first_line, without_passwords
from mlops.lease import Address, ServerFolder, try_lock
from mlops.program import command_line
from mlops.server import is_loopback
from mlops.settings import Settings
from mlops.stores.backup_record import find_restoring
from mlops.stores.database_check import Database, check_database, find_package
from mlops.stores.journal_state import find_speakers
from mlops.stores.store import Finding, Health, Item, Steps, Store
from mlops.stores.tracking_retention import clean_deleted, erase_runs, find_run_needs, find_runs_of
from mlops.stores.tracking_upgrade import find_tracking_writers, upgrade_tracking
from mlops.tracked_runs import is_server, read_tracked_runs

ANSWER_S = 3.0
START_S = 60.0
"""How long an embedded server may take until it answers."""
N_SHOWN = 3
"""Names that a sentence lists."""


@dataclass(frozen=True, slots=True)
class TrackingStore(Store):
    """What MLflow keeps for a home; its moves begin and end in the ledger, which holds them."""

    settings: Settings
    name: str = "tracking"
    rank: int = 4

    def check(self) -> Health:
        findings, ready = check_backend(self.settings)
        if ready:
            findings = [*findings, *self._orphans()]
        findings = [*findings, *_interrupted(self.settings)]
        if self.settings.embedded:
            says = "embedded" if ready or findings else "no run yet"
        else:
            says = without_passwords(self.settings.direct_uri)
        return Health(says, tuple(findings))

    def backup_records(self, home: Path) -> Steps:
        from mlops.stores.tracking_copy import back_up_records

        return back_up_records(self.settings, home)

    def backup_files(self, home: Path) -> None:
        from mlops.stores.tracking_copy import back_up_files

        back_up_files(self.settings, home)

    def restore(self, home: Path) -> Steps:
        from mlops.stores.tracking_copy import restore

        return restore(self.settings, home)

    def writers(self) -> list[str]:
        return find_tracking_writers(self.settings)

    def upgrade(self) -> str:
        return upgrade_tracking(self.settings)

    def needs(self, gone: Set[tuple[str, str]] = frozenset()) -> set[tuple[str, str]]:
        return find_run_needs(self.settings, gone)

    def clean(
        self, before: datetime, keep_best: int, needed: Set[tuple[str, str]], *, dry: bool
    ) -> list[Item]:
        """Takes out deleted runs only; trials' runs go with their trials."""
        return clean_deleted(self.settings, before, needed, dry=dry)

    def find(self, dataset: str) -> list[Item]:
        return find_runs_of(self.settings, dataset)

    def erase(self, dataset: str, replace: Mapping[str, int]) -> None:
        erase_runs(self.settings, dataset)

    def _orphans(self) -> Iterator[Finding]:
        running = read_tracked_runs(self.settings, running=True)
        # After the runs: a run whose journal is delivered and gone meanwhile has ended.
        speakers = find_speakers(self.settings.home) if running else {}
        orphans = [
            run.name for run in running if not run.is_deleted and speakers.get(run.key) == {"gone"}
        ]
        if orphans:
            yield Finding(
                self.name,
                f"{len(orphans)} run(s) are RUNNING in MLflow and their processes are gone: "
                f"{shorten(orphans)}.",
                command_line("python", "-m", "mlops.sync"),
            )


def _interrupted(settings: Settings) -> Iterator[Finding]:
    begun = find_restoring(settings.home)
    if begun is not None:
        yield Finding(
            "tracking",
            f"the restore of {begun.folder!r} is going on, or was interrupted; what is here is not "
            "whole.",
            command_line("python", "-m", "mlops.restore", begun.folder),
        )


def check_backend(settings: Settings) -> tuple[list[Finding], bool]:
    """Returns what is wrong with MLflow's server or database, and whether runs can be read."""
    if is_server(settings):
        return _check_server(settings.direct_uri)
    found: list[Finding] = []
    if settings.embedded:
        found += _check_embedded_server(ServerFolder(settings.home / "server"))
        if not (settings.home / "mlflow.db").is_file():
            return found, False
    unreadable = check_database(_database(settings.direct_uri))
    return [*found, *unreadable], not unreadable


def _database(uri: str) -> Database:
    return Database(
        store="tracking",
        what="MLflow's runs",
        url=uri,
        setting="MLFLOW_TRACKING_URI",
        revisions=find_package("mlflow") / "store" / "db_migrations" / "versions",
        upgrade=command_line("python", "-m", "mlops.upgrade"),
    )


def _check_embedded_server(folder: ServerFolder) -> Iterator[Finding]:
    """Yields what is wrong with the embedded server; nothing where none was ever started."""
    if not folder.path.is_dir():
        return
    address = folder.find_address()
    if not folder.is_running():
        left = [path for path in (folder.path / "server.json",) if path.exists()]
        left += _find_left_leases(folder)
        if left:
            yield Finding(
                "tracking",
                "an embedded server or one that used it was killed and left its address or lease "
                f"in {str(folder.path)!r}; nothing runs there, and they do no harm.",
                shlex.join(["rm", "-f", *map(str, left)]),
            )
    elif address is not None and _should_answer(address):
        try:
            _get(f"{address.url}/health")
        except (OSError, ValueError):
            yield Finding(
                "tracking",
                f"the embedded server runs but does not answer; expected {address.url}/health "
                f"within {ANSWER_S:g} s. Its log is {str(folder.log)!r}. The journal keeps what "
                "is told meanwhile.",
                f"kill -9 {address.mlflow_pid}",  # its supervisor starts it anew
            )


def _check_server(uri: str) -> tuple[list[Finding], bool]:
    shown = without_passwords(uri).rstrip("/")
    try:
        _get(f"{shown}/health")
    except (OSError, ValueError) as err:
        wrong = (
            f"the tracking server does not answer; expected {shown}/health within {ANSWER_S:g} s, "
            f"got: {first_line(err)}."
        )
        mend = (
            "Start that server, or let MLFLOW_TRACKING_URI name another. What is told meanwhile "
            f"waits in the journal, for: {command_line('python', '-m', 'mlops.sync')}"
        )
        return [Finding("tracking", wrong, mend)], False
    return list(_check_version(shown)), True


def _check_version(url: str) -> Iterator[Finding]:
    try:
        there, here = _get(f"{url}/version"), metadata.version("mlflow")
    except (OSError, ValueError):  # behind a login, or a server that does not tell
        return
    if re.match(r"\d+\.\d+", there) and _minor(there) != _minor(here):
        yield Finding(
            "tracking",
            "the tracking server is of another version than the client here; expected MLflow "
            f"{_minor(here)}, got {there[:20]}.",
            f"On the server's machine, type: python -m pip install mlflow=={here}",
        )


def shorten(names: list[str]) -> str:
    """Returns the first names, and how many more there are."""
    shown = ", ".join(names[:N_SHOWN])
    return shown if len(names) <= N_SHOWN else f"{shown} and {len(names) - N_SHOWN} more"


def _find_left_leases(folder: ServerFolder) -> list[Path]:
    """Returns the leases of holders that are gone, unless somebody starts or ends just now."""
    left = []
    with contextlib.suppress(ServerError, OSError), folder.starting(timeout_s=0.0):
        for path in sorted((folder.path / "leases").glob("*")):
            fd = try_lock(path, create=False)
            if fd is not None:
                left.append(path)
                os.close(fd)
    return left


def _should_answer(address: Address) -> bool:
    try:
        started = datetime.fromisoformat(address.started_at)
    except ValueError:
        return True
    return (datetime.now(UTC) - started).total_seconds() > START_S


def _get(url: str) -> str:
    """Returns what a server says; one on this machine is not asked through a proxy.

    Raises:
        OSError: no answer in time, or one that is an error.
        ValueError: the URL is none.
    """
    here = is_loopback(urllib.parse.urlsplit(url).hostname or "")
    proxies = [urllib.request.ProxyHandler({})] if here else []
    with urllib.request.build_opener(*proxies).open(url, timeout=ANSWER_S) as response:
        return str(response.read(1000).decode("utf-8", "replace").strip())


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
