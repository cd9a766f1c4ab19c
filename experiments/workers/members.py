"""Who is there of a running Dask cluster, and who of them may train for this sweep."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.workers.cluster import GROWTH_BYTES, LOOK_S
from experiments.workers.joining import Place, Terms, join
from mlops.errors import MlopsError, first_line

ANSWER_S = 5.0
LOST_S = 60.0
"""Seconds without an answer after which a scheduler is taken for gone."""

FETCH_S = 30.0
RESTART_S = 120.0


@dataclass(slots=True, eq=False)
class Member:
    """One worker process of the cluster, as of the last look at it.

    Attributes:
        directory: Of this process alone; its address may be another's later.
        joining: What it will say to `join`; None once it has.
        refused: Why it gets no trial.
        place: Where it works; None until it has joined.
        n_tasks: Calls that run or wait there, of whatever driver.
        leaves: Whether it is being started anew.
    """

    address: str
    directory: str
    has_nanny: bool
    joining: Any = None
    refused: str | None = None
    place: Place | None = None
    is_running: bool = True
    n_tasks: int = 0
    memory: int = 0
    first_memory: int = 0
    last_seen: float = 0.0
    silent_s: float = 0.0
    is_silent: bool = False
    leaves: bool = False

    def update(
        self, told: dict[str, Any], n_tasks: int, passed_s: float, silent_after_s: float
    ) -> None:
        """Notes what the scheduler says of it now."""
        self.is_running = told["status"] == "running"
        self.n_tasks = n_tasks
        self.memory = int(told.get("metrics", {}).get("memory", 0))
        is_seen = told["last_seen"] != self.last_seen
        self.last_seen = told["last_seen"]
        self.silent_s = 0.0 if is_seen else self.silent_s + passed_s
        self.is_silent = self.silent_s > silent_after_s

    @property
    def is_here(self) -> bool:
        return self.is_running and not self.is_silent and not self.leaves

    @property
    def is_ready(self) -> bool:
        return self.joining is None and self.refused is None and self.is_here

    @property
    def refusal(self) -> str:
        return f"the worker {self.address} is refused: {self.refused}."


class Members:
    """The worker processes of a cluster; each that comes is asked to join.

    Args:
        client: Of Dask, connected.
        address: The cluster's, as a person typed it.
        terms: What a worker must be.
        note: Takes a line for the person at the terminal.

    Attributes:
        have_own_homes: Whether any that has joined keeps its files in a home of its own.
    """

    def __init__(
        self, client: Any, address: str, terms: Terms, note: Callable[[str], None]
    ) -> None:
        self.address = address
        self._client = client
        self._terms = terms
        self._note = note
        self._there: dict[str, Member] = {}
        self._looked = 0.0
        self._heard = time.monotonic()
        self._is_lost = False
        self.have_own_homes = False

    def ready(self) -> list[Member]:
        """Returns who can take a call, those that have one too."""
        return [one for one in self._there.values() if one.is_ready]

    def joining(self) -> list[Member]:
        """Returns who may soon be ready: an answer is waited for."""
        return [one for one in self._there.values() if one.joining is not None and one.is_here]

    def refused(self) -> list[Member]:
        """Returns who is refused, if all that are there are; else nobody."""
        found = [one for one in self._there.values() if one.refused is not None]
        return found if len(found) == len(self._there) else []

    def refusals(self) -> list[str]:
        """Returns a sentence for each that is refused: who, why, and what to do."""
        return [one.refusal for one in self._there.values() if one.refused is not None]

    def is_there(self, member: Member) -> bool:
        return self._there.get(member.address) is member

    def look(self, silent_s: float) -> bool:
        """Looks who is there, at most once in `LOOK_S`; returns whether it was done.

        Only time in which this process ran itself counts as silence.

        Raises:
            MlopsError: the scheduler is gone.
        """
        now = time.monotonic()
        if (passed_s := now - self._looked) < LOOK_S:
            return False
        self._looked = now
        answer = self._ask()
        if answer is None:
            return False
        told, processing = answer
        there = {}
        for address, one in told["workers"].items():
            member = self._there.get(address)
            if member is None or member.directory != one["local_directory"]:
                member = self._greet(address, one)
            n_tasks = len(processing.get(address, ()))
            member.update(one, n_tasks, min(passed_s, 5 * LOOK_S), silent_s)
            there[address] = member
        self._there = there
        self._hear_joins()
        return True

    def send(
        self, member: Member, call: Callable[..., Any], *args: Any, first: bool = False
    ) -> Any:
        """Has a member run a call, and nobody else; returns Dask's future.

        Args:
            first: Before what waits there.

        Raises:
            MlopsError: the scheduler is gone.
        """
        try:
            return self._client.submit(
                call,
                *args,
                workers=[member.address],
                allow_other_workers=False,
                pure=False,
                retries=0,
                priority=int(first),
            )
        except Exception as err:  # the client has closed itself
            raise self.lose() from err

    def let_go(self, futures: list[Any], reason: str) -> None:
        """Waits for calls no more. One that runs ends after its epoch (`wanted`)."""
        with contextlib.suppress(Exception):  # where the connection is gone they are so, too
            self._client.cancel(futures, reason=reason)

    def lose(self) -> MlopsError:
        """Notes that the connection broke, and with it all calls; returns the error to raise."""
        self._is_lost = True
        return MlopsError(
            f"the connection to the Dask scheduler at {self.address} is gone. When the scheduler "
            "is back, the same command goes on with the sweep."
        )

    def renew_grown(self, member: Member) -> None:
        """Starts a process anew whose memory has grown too far, if nobody else uses it."""
        if not member.first_memory:
            member.first_memory = member.memory
        grown = member.memory - member.first_memory > GROWTH_BYTES
        if grown and member.has_nanny and member.is_ready and member.n_tasks <= 0:
            member.leaves = True
            self._client.loop.add_callback(self._restart, member)

    async def _restart(self, member: Member) -> None:
        try:
            await self._client.scheduler.restart_workers(
                workers=[member.address],
                timeout=RESTART_S,
                wait_for_workers=False,
                on_error="return",
                stimulus_id=f"podium-grown-{secrets.token_hex(4)}",
            )
        except Exception:  # it goes on as it is
            member.leaves = False

    def _ask(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns what the scheduler says of its workers; None if it does not answer in time.

        Raises:
            MlopsError: it is gone.
        """
        if self._is_lost or self._client.status != "running":
            raise self.lose()
        try:
            told, processing = self._client.sync(self._read, callback_timeout=ANSWER_S)
        except OSError as err:  # a TimeoutError is one
            if self._client.status != "running" or time.monotonic() - self._heard > LOST_S:
                raise self.lose() from err
            return None
        self._heard = time.monotonic()
        return told, processing

    async def _read(self) -> Any:
        scheduler = self._client.scheduler
        return await asyncio.gather(
            scheduler.identity(n_workers=-1), scheduler.processing(workers=None)
        )

    def _greet(self, address: str, told: dict[str, Any]) -> Member:
        """Asks a process that was not seen before to join."""
        member = Member(address, told["local_directory"], bool(told.get("nanny")))
        if told["nthreads"] == 1:
            member.joining = self.send(member, join, self._terms, first=True)
            return member
        member.refused = (
            f"it runs {told['nthreads']} calls at a time, and a process trains one network. "
            f"Start it with --nthreads 1, and with --nworkers {told['nthreads']} to have as many"
        )
        self._note(member.refusal)
        return member

    def _hear_joins(self) -> None:
        """Takes in what workers have said to `join`.

        Raises:
            MlopsError: the scheduler was gone for a moment, and has forgotten that it was asked.
        """
        n_new = n_own = 0
        for member in self._there.values():
            if member.joining is None or not member.joining.done():
                continue
            answer, member.joining = member.joining, None
            if answer.cancelled():
                raise self.lose()
            try:
                said = answer.result(timeout=FETCH_S)
            except Exception as err:  # it has no such function, or no Podium at all
                member.refused = (
                    f"it cannot be asked ({type(err).__name__}: {first_line(err).rstrip('.')}); "
                    "scheduler and workers need the same Podium and packages as this sweep"
                )
            else:
                member.refused = said if isinstance(said, str) else None
                member.place = said if isinstance(said, Place) else None
            if member.place is None:
                self._note(member.refusal)
                continue
            n_new += 1
            n_own += member.place.is_own
        if n_new:
            self.have_own_homes = self.have_own_homes or n_own > 0
            homes = f", {n_own} of them with a home of its own" if n_own else ""
            self._note(
                f"{n_new} worker(s) of {self.address} joined{homes}; there are "
                f"{len(self.ready())} now."
            )
