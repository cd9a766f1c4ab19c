"""From facts to files, and from files to the parent runs of a sweep."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.reports.document import Page
from experiments.reports.html import to_html
from experiments.reports.markdown import to_markdown
from mlops.errors import MlopsError
from mlops.program import command_line
from mlops.settings import Settings

if TYPE_CHECKING:
    from experiments.reports.facts import SweepFacts

NAME = "report"

_log = logging.getLogger(__name__)


def write_page(page: Page, folder: Path, name: str = NAME) -> list[Path]:
    """Writes a page as HTML and as Markdown into a folder, which is made; returns the files.

    Raises:
        MlopsError: the folder cannot be written.
    """
    files = [folder / f"{name}.html", folder / f"{name}.md"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(files, (to_html(page), to_markdown(page)), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as err:
        raise MlopsError(
            f"the report cannot be written to {str(folder)!r}: {err.strerror or err}. "
            "Check the rights and the space there, or give another --out."
        ) from err
    return files


def write_report(settings: Settings, sweep_id: str, folder: Path) -> list[Path]:
    """Writes the report of a sweep that its driver is about to end; raises nothing.

    A report that fails is no reason to fail a sweep: then there is none, and the log says why.
    """
    from experiments.reports.advice import advise
    from experiments.reports.page import build_page
    from experiments.reports.reading import read_sweep

    try:
        facts = read_sweep(settings, sweep_id, state="done")
        page = build_page(facts, advise(facts), datetime.now(UTC), command_line)
        return write_page(page, folder)
    except Exception as err:
        _log.warning("no report of %s was made: %s", sweep_id, err)
        return []


def log_files(settings: Settings, sweep: SweepFacts, files: Sequence[Path]) -> str | None:
    """Logs files to the parent runs of a sweep; returns why they are not there yet, or None.

    Through the sweep's journal, as its driver does: where that is at work, it delivers them. What
    a server does not take now stays in the journal, and `mlops.sync` sends it.
    """
    from experiments.reports.reading import run_keys
    from mlops.drain import Delivery, hold_folder
    from mlops.journal import Journal
    from mlops.mlflow_sink import MlflowSink
    from mlops.mlflow_store import open_store_client
    from mlops.tracking import Run

    why_not = _why_not(settings, sweep)
    if why_not is not None:
        return why_not
    folder = settings.home / "journal" / sweep.sweep_id
    with Journal(folder, NAME) as journal:
        for key in run_keys(settings, sweep.sweep_id):
            for path in files:
                Run(journal, key).log_artifact(path)
    sinks: list[MlflowSink] = []

    def open_sink() -> MlflowSink:
        sinks.append(MlflowSink(open_store_client(settings)))
        return sinks[-1]

    with hold_folder(folder) as held:
        if not held:
            return None  # the sweep's own driver, or a sync, is at it
        delivery = Delivery(folder, open_sink)
        while delivery.run_pass():
            pass
    if delivery.problems:
        sync = command_line("python", "-m", "mlops.sync")
        problem = delivery.problems[0].rstrip(".")
        return f"The report is not logged to its runs yet: {problem}. This sends it later: {sync}"
    if sinks and sinks[-1].refused:
        return f"The tracking server refused the report: {sinks[-1].refused[0]}"
    return None


def _why_not(settings: Settings, sweep: SweepFacts) -> str | None:
    """Says why nothing can be logged to a sweep's runs from here."""
    from experiments.studies import home_of

    if sweep.state == "elsewhere":
        # A sync of this home would take a run that nobody here holds for one whose driver is gone.
        return (
            "The report is not logged: its sweep is unfinished and was begun in another home, "
            f"{sweep.home}. Type the command there, or once the sweep is done."
        )
    if settings.embedded and sweep.home != home_of(settings):
        return (
            f"The report is not logged: its runs are those of another home, {sweep.home}. "
            "Set MLFLOW_TRACKING_URI to the server that has them, or type the command there."
        )
    return None


def comparison_name(sweeps: Sequence[str]) -> str:
    """Returns a file's name for a comparison of a first sweep with others."""
    others = "-".join(sweeps[1:])
    if len(others) > 100:
        others = hashlib.sha256(others.encode()).hexdigest()[:16]
    return f"compared-with-{others}"
