"""Rows in which the server or the way to it fails, while two processes log and a drain delivers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.faults import children
from tests.faults.check import Outcome
from tests.faults.front import At, Fault, Request
from tests.faults.stage import Stage

FLUSH_S = 1.0
N_ITEMS = 80
"""About as many as a seed acknowledges."""


def log_all(stage: Stage) -> None:
    """Starts the driver, which delivers, and a worker."""
    stage.start(children.log_as_driver, True, FLUSH_S)
    stage.start(children.log_as_worker)


def drain_killed(stage: Stage) -> Outcome:
    """The process that delivers dies at a random request, three times; others log meanwhile."""
    stage.start(children.log_as_driver, False, 0.0)
    stage.start(children.log_as_worker)
    for _ in range(3):
        drain = stage.start(children.deliver)
        kill = _killer(drain)
        fault = stage.rng.choice((Fault(before=kill), Fault(after=kill)))
        stage.server.front.plan = At({stage.rng.randrange(25)}, fault)
        _wait_until(lambda drain=drain: not drain.is_alive(), 3.0)
        drain.kill()
        drain.join()
    return stage.end()


def server_absent(stage: Stage) -> Outcome:
    """Nobody listens at first; the server comes while the processes log, or after they ended."""
    stage.server.front.close()
    log_all(stage)
    if stage.rng.random() < 0.5:
        stage.wait_for_done(stage.rng.randrange(N_ITEMS))
    else:
        stage.join()
    stage.server.front.open()
    return stage.end()


def server_restarted(stage: Stage) -> Outcome:
    """The server is killed before or after it does what a random request asks, and comes back."""

    def choose(kill: Callable[[], None]) -> Fault:
        return stage.rng.choice((Fault(before=kill), Fault(after=kill, lost=True)))

    _log_and_harm(stage, stage.server.kill, choose)
    time.sleep(stage.rng.uniform(0.0, 0.6))
    stage.server.start()
    return stage.end()


def server_stopped(stage: Stage) -> Outcome:
    """The server is stopped at a random request; what it was sent meanwhile, it does later."""
    _log_and_harm(stage, stage.server.stop)
    # Shorter, or longer, than a client waits.
    time.sleep(stage.script.timeout_s * stage.rng.choice((0.3, 1.3)))
    stage.server.go_on()
    return stage.end()


def answer_lost(endpoint: str) -> Callable[[Stage], Outcome]:
    """Returns the row in which the server does what is asked, and the answer never arrives."""

    def row(stage: Stage) -> Outcome:
        numbers = {n for n in range(12) if stage.rng.random() < 0.4} | {0}
        plan = At(numbers, Fault(lost=True), endpoint)
        stage.server.front.plan = plan
        log_all(stage)
        return _met(stage, plan)

    row.__doc__ = f"The answer to {endpoint} is lost after the commit, time and again."
    return row


def errors(stage: Stage) -> Outcome:
    """A third of the requests is answered 500, 503 or 429, by the server or before it."""
    rng = stage.rng

    def plan(request: Request) -> Fault | None:
        if rng.random() > 0.33:
            return None
        return Fault(status=rng.choice((500, 503, 429, 502)))

    stage.server.front.plan = plan
    log_all(stage)
    stage.join()
    return stage.end()


def slow_link(stage: Stage) -> Outcome:
    """Each answer takes its time; some take longer than a client waits."""
    rng = stage.rng

    def plan(request: Request) -> Fault | None:
        late = rng.random() < 0.04
        return Fault(delay_s=stage.script.timeout_s * 0.6 if late else rng.uniform(0, 0.03))

    stage.server.front.plan = plan
    log_all(stage)
    return stage.end()


def tracking_disk_full(stage: Stage) -> Outcome:
    """From a random request on the database cannot grow; later it can."""
    _log_and_harm(stage, stage.server.fill_disk)
    time.sleep(stage.rng.uniform(0.1, 0.8))
    stage.server.free_disk()
    return stage.end()


def database_held(stage: Stage) -> Outcome:
    """Eight processes deliver to one store, whose database another process holds for a while."""
    for number in range(8):
        stage.start(children.log_in_folder, number, 2 * FLUSH_S)
    stage.wait_for_done(stage.rng.randrange(60))
    wait = stage.server.hold_database(stage.rng.uniform(0.3, 1.5))
    wait()
    return stage.end()


def clock_set_back(stage: Stage) -> Outcome:
    """The clock of the process goes back an hour while it logs; then it opens its run again."""
    stage.start(children.log_with_clock_set_back, FLUSH_S, stage.rng.randrange(20))
    return stage.end()


def synced_while_dying(stage: Stage) -> Outcome:
    """The processes that log are killed while `mlops.sync` delivers their folder."""
    driver = stage.start(children.log_as_driver, False, 0.0)
    worker = stage.start(children.log_as_worker)
    stage.wait_for_done(stage.rng.randrange(10, N_ITEMS))

    def kill() -> None:
        _killer(driver)()
        _killer(worker)()

    stage.server.front.plan = At({stage.rng.randrange(20)}, Fault(before=kill))
    stage.sync()
    kill()
    return stage.end()


def _log_and_harm(
    stage: Stage,
    harm: Callable[[], None],
    make_fault: Callable[[Callable[[], None]], Fault] = lambda harm: Fault(before=harm),
) -> None:
    """Logs, and harms the server at a random request; returns then, or when nobody logs."""
    harmed = threading.Event()

    def harm_and_tell() -> None:
        harm()
        harmed.set()

    fault = make_fault(harm_and_tell)
    stage.server.front.plan = At({stage.rng.randrange(40)}, fault)
    log_all(stage)
    _wait_until(lambda: harmed.is_set() or not stage.is_alive(), 20.0)


def _met(stage: Stage, plan: At) -> Outcome:
    """Ends the row; a fault that never came about has shown nothing."""
    stage.join()
    outcome = stage.end()
    if plan.n_met == 0:
        raise AssertionError(f"no request to {plan.endpoint} was met by the fault")
    return outcome


def _killer(process: Any) -> Callable[[], None]:
    def kill() -> None:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)

    return kill


def _wait_until(what: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not what() and time.monotonic() < deadline:
        time.sleep(0.002)
