"""python -m experiments.status: which sweeps there are, how they stand, and how to stop one."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mlops.errors import MlopsError, UsageError, choose
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from experiments.overview import StudyStatus, SweepStatus

N_OTHERS = 10
"""Sweeps that are shown beside the running ones."""
STOP_WAIT_S = 120.0
LOOK_EVERY_S = 0.2
ASK_EVERY_S = 10.0
NOTHING = "No sweep has run here yet; begin one with python -m experiments.sweep."


@dataclass(frozen=True, slots=True)
class Listing:
    """The sweeps that are shown, oldest first, and how many more there are."""

    sweeps: tuple[SweepStatus, ...] = ()
    n_hidden: int = 0


def list_sweeps(settings: Settings, *, everything: bool = False) -> Listing:
    """Returns the running sweeps and the last `N_OTHERS` others, or all of them.

    Raises:
        UsageError: the study database cannot be read.
    """
    from experiments.overview import open_overview

    with open_overview(settings) as overview:
        if overview is None:
            return Listing()
        states = overview.states()
        others = [sweep_id for sweep_id, state in states.items() if state != "running"]
        hidden = set() if everything else set(others[:-N_OTHERS])
        shown = {sweep_id: state for sweep_id, state in states.items() if sweep_id not in hidden}
        return Listing(tuple(overview.read(shown)), len(hidden))


def get_sweep(settings: Settings, sweep_id: str) -> SweepStatus:
    """Returns one sweep.

    Raises:
        UsageError: there is none of this name, or the study database cannot be read.
    """
    from experiments.overview import open_overview

    with open_overview(settings) as overview:
        states = {} if overview is None else overview.states()
        if overview is not None and sweep_id in states:
            return overview.read({sweep_id: states[sweep_id]})[0]
    if not states:
        raise UsageError(f"there is no sweep {sweep_id!r}; no sweep has run here yet.")
    near = difflib.get_close_matches(sweep_id, states, n=5, cutoff=0.0)
    raise UsageError(f"there is no sweep {sweep_id!r}; {choose(sweep_id, near)}")


def stop_sweep(
    settings: Settings,
    sweep_id: str,
    *,
    note: Callable[[str], None],
    wait_s: float = STOP_WAIT_S,
    ask_every_s: float = ASK_EVERY_S,
) -> SweepStatus:
    """Asks a sweep to stop, waits until its driver is gone, and returns how it stands then.

    One that was begun elsewhere is asked, and not waited for: its end cannot be seen from here.

    Args:
        note: Takes a line now and then.
        wait_s: How long to wait, in seconds.
        ask_every_s: Seconds after which it is asked again.

    Raises:
        UsageError: there is no such sweep.
        MlopsError: it is not running, or has not ended in time.
    """
    from experiments.storage import open_storage
    from experiments.studies import is_locked, request_stop

    sweep = get_sweep(settings, sweep_id)
    if sweep.state in ("done", "interrupted"):
        raise MlopsError(f"the sweep {sweep_id!r} is not running; it is {sweep.state}.")
    storage = open_storage(settings.study_url)
    request_stop(storage, sweep_id)
    if sweep.state == "elsewhere":
        return sweep
    note(f"{sweep_id} is asked to stop; waiting until its driver has ended.")
    began = asked = time.monotonic()
    while is_locked(settings.home, sweep_id):
        now = time.monotonic()
        if now - began > wait_s:
            raise MlopsError(
                f"{sweep_id} was asked to stop and has not ended within {wait_s:.0f} s. "
                "It may still do so: look again with python -m experiments.status."
            )
        if now - asked > ask_every_s:
            # A driver that was just opening its studies took the first request for an old one.
            request_stop(storage, sweep_id)
            note(f"still waiting, after {now - began:.0f} s.")
            asked = now
        time.sleep(LOOK_EVERY_S)
    return get_sweep(settings, sweep_id)


def next_commands(sweep: SweepStatus, settings: Settings) -> list[str]:
    """Returns what to type next, complete; nothing where that is not known."""
    from experiments.studies import CONFIG

    if sweep.state == "running":
        return [command_line("python", "-m", "experiments.status", "--stop", sweep.sweep_id)]
    if sweep.state == "interrupted":
        config = settings.home / "sweeps" / sweep.sweep_id / CONFIG
        if not config.exists():
            return []
        options = ("--config", str(config), "--study", sweep.sweep_id)
        return [command_line("python", "-m", "experiments.sweep", *options)]
    if sweep.state == "done" and sweep.experiment is not None:
        models = sorted(
            {f"{sweep.experiment}-{one.task}" for one in sweep.studies if one.has_candidate}
        )
        return [command_line("python", "-m", "registry.promote", name) for name in models]
    return []


def to_json(sweep: SweepStatus, settings: Settings) -> dict[str, Any]:
    """Returns all that is known of a sweep as plain values, times as aware UTC."""
    found = dataclasses.asdict(sweep)
    found["created_at"] = None if sweep.created_at is None else sweep.created_at.isoformat()
    for entry, study in zip(found["studies"], sweep.studies, strict=True):
        entry["n_finished"] = study.n_finished
    found["commands"] = next_commands(sweep, settings)
    return found


def as_table(sweeps: Iterable[SweepStatus]) -> str:
    """Returns a line a sweep and, under it, a line a study."""
    lines = [_row("", "finished", "pruned", "failed", "best", "objective", "time left")]
    for sweep in sweeps:
        lines.append(f"{sweep.sweep_id}: {_state_in_words(sweep)}")
        for study in sweep.studies:
            lines.append(
                _row(
                    f"  {study.architecture}",
                    f"{study.n_finished}/{study.target}",
                    str(study.n_pruned),
                    str(study.n_failed),
                    "-" if study.best is None else f"{study.best.value:.4f}",
                    study.objective,
                    _in_words(study.time_left_s),
                )
            )
    return "\n".join(lines)


def _row(name: str, finished: str, pruned: str, failed: str, *last: str) -> str:
    best, objective, time_left = last
    return (
        f"{name:<16}{finished:>10}{pruned:>8}{failed:>8}{best:>10}  {objective:<22}{time_left:>9}"
    )


def _state_in_words(sweep: SweepStatus) -> str:
    words: str = sweep.state
    if sweep.state == "elsewhere":
        host, _, folder = sweep.home.partition(":")
        words += f", on {host} in {folder}"
    if sweep.created_at is not None:
        words += f", since {sweep.created_at:%Y-%m-%d %H:%M} UTC"
    return words if sweep.experiment is None else f"{words}, experiment {sweep.experiment}"


def _in_words(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _describe(sweep: SweepStatus, settings: Settings) -> str:
    """Returns a sweep with its best params and what to type next."""
    lines = [as_table([sweep])]
    for study in sweep.studies:
        if study.best is not None:
            params = ", ".join(f"{name}={_short(it)}" for name, it in study.best.params.items())
            lines.append(f"best of {study.architecture}, trial {study.best.number}: {params}")
    commands = next_commands(sweep, settings)
    if commands:
        lines += [_INTRODUCE[sweep.state], *(f"  {one}" for one in commands)]
    return "\n".join(lines)


_INTRODUCE = {
    "running": "Stop it, so that it can go on later:",
    "interrupted": "Go on with it, in the folder where it was begun:",
    "done": "Promote the best, then serve it:",
}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _kept(study: StudyStatus) -> str:
    return f"{study.architecture} {study.n_finished} of {study.target}"


def _say_stopped(sweep: SweepStatus, settings: Settings) -> str:
    """Returns how a sweep stands after it was asked to stop."""
    if sweep.state == "elsewhere":
        host, _, folder = sweep.home.partition(":")
        return (
            f"{sweep.sweep_id} is asked to stop. It was begun on {host} in {folder}: "
            "whether it ends cannot be watched from here."
        )
    kept = ", ".join(_kept(study) for study in sweep.studies)
    if sweep.state == "done":
        return f"{sweep.sweep_id} was done before it stopped; finished trials: {kept}."
    return "\n".join(
        [
            f"{sweep.sweep_id} has stopped. Its finished trials are kept: {kept}. "
            "The command that began it goes on with it.",
            *(f"  {one}" for one in next_commands(sweep, settings)),
        ]
    )


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    sweep: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[ID]")] = None
    """Id of one sweep, to see its best params and what to type next."""
    all: bool = False
    """Show all sweeps; by default the running ones and the last 10 others."""
    stop: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Ask a sweep to stop, and wait until it has."""
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    settings = Settings.from_env()
    if options.stop is not None and options.sweep not in (None, options.stop):
        raise UsageError(
            f"two sweeps are named; expected one, got {options.sweep!r} and --stop "
            f"{options.stop!r}. Stop one at a time."
        )
    if options.stop is not None:
        sweeps = (stop_sweep(settings, options.stop, note=say),)
        listing, text = Listing(sweeps), _say_stopped(sweeps[0], settings)
    elif options.sweep is not None:
        found = get_sweep(settings, options.sweep)
        listing, text = Listing((found,)), _describe(found, settings)
    else:
        listing = list_sweeps(settings, everything=options.all)
        text = as_table(listing.sweeps) if listing.sweeps else NOTHING
        if listing.n_hidden:
            text += f"\n{listing.n_hidden} older ones are not shown; --all shows them."
    if not options.json:
        answer(text)
        return 0
    if options.stop is not None or not listing.sweeps:
        say(text)
    entries = [to_json(sweep, settings) for sweep in listing.sweeps]
    answer_json({"sweeps": entries, "n_hidden": listing.n_hidden})
    return 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m experiments.status",
        description="Show the sweeps that are going on or done, and stop one.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
