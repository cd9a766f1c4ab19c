"""How `registry.serve` stands load that does not wait for it: `python -m benchmarks.soak`.

Open-loop clients ask at a fixed rate. First the knee is sought: the highest rate that is answered
wholly, with a p99 under 50 ms. Then half of it for ten minutes, with the memory of the worker each
second; then twice the knee for twenty seconds, and half of it again until answers are as before.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.load import Second, ask_open_loop, open_loop
from benchmarks.served import (
    BASE64,
    Server,
    body_of,
    live_server,
    memory_mb,
    promote_pictures,
    running,
)
from benchmarks.tables import print_aim, print_heading, print_rows, quantile
from mlops.settings import quiet
from tests.e2e.serving import free_port

COMMAND = "python -m benchmarks.soak"
KNEE_P99_MS = 50.0
STEP_S = 6.0
OVERLOAD_S = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(COMMAND, description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the load at half the knee")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        settings = promote_pictures(place)
        server = live_server(settings, free_port(), free_port(), asked.workers)
        with running("registry.serve", server, place):
            knee = find_knee(server.port)
            memory, half = _soak(server, knee / 2, 60 * asked.minutes)
            over, after = _overload(server.port, knee)
    workers = f"{asked.workers} worker{'s' if asked.workers > 1 else ''}"
    data = (
        f"baseline CNN on uint8 32x32x3, one image a request in base64, {workers}; open-loop load "
        f"from a process of its own; n = 1; the knee is the highest rate with a p99 under "
        f"{KNEE_P99_MS:g} ms and no failure"
    )
    print_heading("Serving under load that does not wait", data, COMMAND)
    print_rows(
        ("load", "asked/s", "s", "200", "503", "other", "p50 ms", "p99 ms"),
        [
            _row("half the knee", half, knee / 2),
            _row("twice the knee", over, 2 * knee),
            _row("half the knee again", after, knee / 2),
        ],
    )
    recovery = recovery_s(after)
    slope = _slope_mb_per_hour(memory)
    print(f"- The knee: {knee:.0f} requests a second.")
    print(
        f"- Memory of a worker at half the knee: {memory[0]:.0f} MB at first, {memory[-1]:.0f} at "
        f"the end; slope {slope:+.1f} MB an hour over the second half."
    )
    failed = sum(one.answers.total() - one.answers[200] for one in half)
    print_aim("failed requests at half the knee", failed, 0)
    print_aim("seconds until all is as before after twice the knee", recovery, 5)


def find_knee(port: int) -> float:
    """Returns the highest rate that is answered well: doubled until it is not, then halved into."""
    body = body_of(BASE64, 1)
    good, bad = 0.0, 0.0
    rate = 100.0
    while not bad or bad / good > 1.1:
        seen = ask_open_loop(port, body, rate, STEP_S)
        latencies = [ms for one in seen[1:] for ms in one.latencies_ms]
        failed = sum(one.answers.total() - one.answers[200] for one in seen)
        well = bool(latencies) and not failed and quantile(latencies, 0.99) < KNEE_P99_MS
        print(f"{rate:.0f}/s: {'well' if well else 'not well'} answered", file=sys.stderr)
        if well:
            good = rate
        else:
            bad = rate
            time.sleep(3)
        if bad and not good:
            raise SystemExit(f"{rate:g} requests a second are too many already")
        rate = (good + bad) / 2 if bad else 2 * rate
    return good


def _soak(server: Server, rate: float, seconds: float) -> tuple[list[float], list[Second]]:
    memory = []
    with open_loop(server.port, body_of(BASE64, 1), rate, seconds) as seen:
        for _ in range(int(seconds)):
            time.sleep(1)
            memory.append(memory_mb(server))
    return memory, seen


def _overload(port: int, knee: float) -> tuple[list[Second], list[Second]]:
    body = body_of(BASE64, 1)
    over = ask_open_loop(port, body, 2 * knee, OVERLOAD_S)
    return over, ask_open_loop(port, body, knee / 2, OVERLOAD_S)


def recovery_s(after: Sequence[Second]) -> float | None:
    """Returns after how many seconds all requests are answered well; None if never."""
    good = [
        set(one.answers) == {200} and quantile(one.latencies_ms, 0.99) < KNEE_P99_MS
        for one in after
    ]
    last_bad = max((index for index, well in enumerate(good) if not well), default=-1)
    return None if last_bad == len(good) - 1 else float(last_bad + 1)


def _row(load: str, seen: Sequence[Second], rate: float) -> list[object]:
    answers: Counter[int] = sum((one.answers for one in seen), Counter())
    latencies = [ms for one in seen for ms in one.latencies_ms]
    others = answers.total() - answers[200] - answers[503]
    p50 = statistics.median(latencies) if latencies else None
    p99 = quantile(latencies, 0.99) if latencies else None
    return [load, f"{rate:.0f}", len(seen), answers[200], answers[503], others, p50, p99]


def _slope_mb_per_hour(memory: Sequence[float]) -> float:
    late = np.array(memory[len(memory) // 2 :])
    return float(np.polyfit(np.arange(len(late)) / 3600, late, 1)[0]) if len(late) > 1 else 0.0


if __name__ == "__main__":
    main()
