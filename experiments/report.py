"""python -m experiments.report: one page of a sweep, or of several side by side.

The page needs no network and no server. It is written as HTML and as Markdown, and logged to the
parent runs of the sweep, of which each architecture has one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mlops.errors import UsageError
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from experiments.reports.document import Page
    from experiments.reports.facts import SweepFacts


@dataclass(frozen=True, slots=True)
class Report:
    """What was made: the page, its data, and what it is called.

    Attributes:
        sweeps: Those it is about.
        name: Of its files, without their ends.
    """

    page: Page
    data: dict[str, Any]
    sweeps: tuple[SweepFacts, ...]
    name: str


def make_report(settings: Settings, wanted: str) -> Report:
    """Returns the report of a sweep; writes nothing.

    Args:
        wanted: A sweep, one of its studies, or a beginning of its name that no other has.

    Raises:
        UsageError: there is no such sweep, or the study database cannot be read.
    """
    from datetime import UTC, datetime

    from experiments.reports.advice import advise
    from experiments.reports.delivery import NAME
    from experiments.reports.facts import to_json
    from experiments.reports.page import build_page
    from experiments.reports.reading import find_sweep, read_sweep

    facts = read_sweep(settings, find_sweep(settings, wanted))
    advice = advise(facts)
    page = build_page(facts, advice, datetime.now(UTC), command_line)
    data = {**to_json(facts), "advice": [to_json(one) for one in advice]}
    return Report(page, data, (facts,), NAME)


def make_comparison(settings: Settings, wanted: tuple[str, ...]) -> Report:
    """Returns the comparison of several sweeps with the first; raises as `make_report`."""
    from datetime import UTC, datetime

    from experiments.reports.comparing import compare
    from experiments.reports.comparison_page import build_comparison_page
    from experiments.reports.data import have_same_rows
    from experiments.reports.delivery import comparison_name
    from experiments.reports.facts import to_json
    from experiments.reports.reading import find_sweep, read_sweep

    ids = [find_sweep(settings, one) for one in wanted]
    if len({*ids}) < max(2, len(ids)):
        raise UsageError(f"--compare needs two sweeps or more, each once; got {', '.join(ids)}.")
    sweeps = tuple(read_sweep(settings, one) for one in ids)
    same = have_same_rows(settings, [one.dataset.fingerprint for one in sweeps])
    comparison = compare(sweeps, same)
    page = build_comparison_page(comparison, datetime.now(UTC))
    return Report(page, to_json(comparison), sweeps, comparison_name(ids))


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    sweep: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SWEEP]")] = None
    """A sweep's id, the name of one of its studies, or how only it begins."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SWEEP SWEEP")] = ()
    """Two sweeps or more, to put side by side."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where the files go; by default the sweep's folder in MLOPS_HOME, if it was begun there."""
    no_log: bool = False
    """Write the files, and log them to no run."""
    json: bool = False
    """Print the data of the report as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from experiments.reports.delivery import write_page

    settings = Settings.from_env()
    if (options.sweep is None) == (not options.compare):
        raise UsageError("give one sweep, or --compare with two or more.")
    if options.compare:
        report = make_comparison(settings, options.compare)
    else:
        report = make_report(settings, str(options.sweep))
    folder = options.out or _choose_folder(settings, report.sweeps[0])
    files = write_page(report.page, folder, report.name)
    shown = say if options.json else answer
    for path in files:
        shown(str(path))
    if not options.no_log:
        for problem in _log(settings, report.sweeps, files):
            say(problem)
    if options.json:
        answer_json({**report.data, "files": [str(path) for path in files]})
    return 0


def _choose_folder(settings: Settings, sweep: SweepFacts) -> Path:
    """Returns the sweep's folder; of one that was begun in another home one where this is typed.

    A folder in this home would tell others that the sweep was begun here.
    """
    from experiments.studies import home_of, sweep_folder

    folder = sweep_folder(settings.home, sweep.sweep_id)
    if folder.is_dir() or sweep.home == home_of(settings):
        return folder
    return Path(f"report-{sweep.sweep_id}").absolute()


def _log(settings: Settings, sweeps: Sequence[SweepFacts], files: Sequence[Path]) -> Iterator[str]:
    """Logs the files to the runs of the sweeps; yields why some are not there yet."""
    from experiments.reports.delivery import log_files

    if len({one.dataset.fingerprint for one in sweeps}) > 1:
        # Who erases one of the datasets would leave it in the runs of the other.
        yield "The comparison is not logged: it speaks of several datasets."
        return
    problems = [log_files(settings, one, files) for one in sweeps]
    yield from dict.fromkeys(one for one in problems if one is not None)


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m experiments.report",
        description="Make one page of a sweep, or of several side by side.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
