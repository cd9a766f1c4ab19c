"""Harms sweeps in every way that is listed, and counts what that cost: `python -m tests.faults`.

Each row plays with as many seeds as one asks for; the seed decides what goes wrong, and when. Most
are played before a tracking server of our own, in memory, that does what MLflow does; some before a
real embedded MLflow on SQLite. What the processes said that they logged is then compared with what
the server has.

Prints one line for each row and server. Exits with 1 where anything is lost, duplicated, orphaned,
or there though it was never logged.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from mlops.settings import Settings, quiet
from tests.faults.check import Outcome
from tests.faults.rows import ROWS
from tests.faults.stage import Harmed, Kind, MlflowServer, RecorderServer, open_stage

TITLES = ("row", "server", "seeds", "acknowledged", "lost", "duplicated", "orphaned", "strange")
MOST_SAID = 5

_server: list[MlflowServer] = []  # of this process, for all rows that it plays


def play(row: str, kind: Kind, seed: int) -> Outcome:
    """Plays one seed of a row in a new folder."""
    with tempfile.TemporaryDirectory(prefix="faults-") as place, _open_server(kind) as server:
        try:
            with open_stage(server, Path(place), row, seed) as stage:
                return ROWS[row](stage)
        except Exception as err:  # a row that breaks has shown nothing
            return Outcome(0, lost=1, said=(f"the row broke: {type(err).__name__}: {err}",))


@contextlib.contextmanager
def _open_server(kind: Kind) -> Iterator[Harmed]:
    if kind == "recorder":
        server = RecorderServer()
        try:
            yield server
        finally:
            server.go_on()
            server.front.close()
        return
    if not _server:
        home = Path(tempfile.mkdtemp(prefix="faults-mlflow-")) / "home"
        _server.append(MlflowServer(Settings.from_env({"MLOPS_HOME": str(home)})))
    yield _server[0]


def _close_server(_: int) -> None:
    """Ends the server of a process of the pool, before that ends."""
    while _server:
        _server.pop().close()


def main(typed: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, default=50, help="before the recorder (50)")
    parser.add_argument("--real-seeds", type=int, default=5, help="before a real MLflow (5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=4, help="how many are played at once (4)")
    asked = parser.parse_args(typed)
    quiet()
    began = time.monotonic()
    outcomes: dict[tuple[str, Kind], Outcome] = {}
    for kind, n_seeds, at_once in (
        ("recorder", asked.seeds, asked.at_once),
        ("mlflow", asked.real_seeds, min(2, asked.at_once)),
    ):
        seeds = range(asked.first_seed, asked.first_seed + n_seeds)
        outcomes |= _play_all(asked.rows, kind, seeds, at_once)
    _print_table(outcomes, {"recorder": asked.seeds, "mlflow": asked.real_seeds})
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes, {asked.at_once} seeds at once.")
    return 0 if all(outcome.good for outcome in outcomes.values()) else 1


def _play_all(
    rows: list[str], kind: Kind, seeds: range, at_once: int
) -> dict[tuple[str, Kind], Outcome]:
    outcomes = {(row, kind): Outcome(0) for row in rows if seeds}
    with ProcessPoolExecutor(at_once) as pool:
        played = {pool.submit(play, row, kind, seed): (row, seed) for row in rows for seed in seeds}
        for n, future in enumerate(as_completed(played), start=1):
            row, seed = played[future]
            outcome = future.result()
            outcomes[row, kind] += outcome
            if not outcome.good:
                again = f"--rows {row} --first-seed {seed}"
                for line in outcome.said[:MOST_SAID]:
                    print(f"{kind} {again}: {line}", file=sys.stderr, flush=True)
            if n % 50 == 0:
                print(f"{kind}: {n} of {len(played)}", file=sys.stderr, flush=True)
        list(pool.map(_close_server, range(4 * at_once)))
    return outcomes


def _print_table(outcomes: dict[tuple[str, Kind], Outcome], n_seeds: dict[Kind, int]) -> None:
    print(f"| {' | '.join(TITLES)} |\n|{' --- |' * len(TITLES)}")
    for (row, kind), one in outcomes.items():
        counts = (one.acknowledged, one.lost, one.duplicated, one.orphaned, one.strange)
        print(f"| {row.replace('-', ' ')} | {kind} | {n_seeds[kind]} | ", end="")
        print(" | ".join(f"{count:,}" for count in counts), end=" |\n")


if __name__ == "__main__":
    sys.exit(main())
