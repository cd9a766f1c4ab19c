"""A worker: loads what the parent wants, swaps what answers, and says what it did.

A release is loaded beside the one that answers and swapped in by replacing one reference, so a
request is answered wholly by the old or by the new one. The old one is dropped when the last
request that it answers has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from mlops.errors import MlopsError, first_line
from registry.serving.invocations import Answering, Loaded
from registry.serving.metrics import Meter
from registry.serving.shadow import Offer
from registry.serving.state import Desired, Report, Role, StateFolder, Wanted

LOOK_EVERY_S: Final = 0.1
BEAT_EVERY_S: Final = 1.0
_log = logging.getLogger(__name__)


class Model(Protocol):
    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any: ...


Shadowing = Callable[[Offer], None]
"""Takes what the champion answered, to have it scored by the challenger too."""
Load = Callable[[Wanted], Model]
"""Loads a release, warms it and checks its golden answers; raises with the reason."""


class Worker:
    """What answers in this process. `answering` may be read at any time, from any thread."""

    answering: Answering

    def __init__(
        self,
        folder: StateFolder,
        load: Load,
        meter: Callable[[int, Role], Meter],
        shadow: Shadowing | None = None,
        pid: int | None = None,
    ) -> None:
        self.pid = os.getpid() if pid is None else pid
        self._folder = folder
        self._load = load
        self._meter = meter
        self._shadow = shadow
        self._models: dict[int, Model] = {}
        self._report = Report(self.pid)
        self._desired = Desired()
        self._stamp: tuple[int, int] | None = None

    def start(self) -> None:
        """Loads what shall answer, and more that came meanwhile; returns when it answers.

        Raises:
            MlopsError: the champion could not be loaded.
        """
        self._tell()
        while True:
            self._look(everything=False)
            champion = self._desired.champion
            if champion in self._report.refused:
                raise MlopsError(
                    f"version {champion} cannot be served: {self._report.refused[champion]}"
                )
            if champion is not None and self._report.champion == champion:
                break
            time.sleep(LOOK_EVERY_S)
        self._report = replace(self._report, serving=True)
        self._stamp = None  # what else is wanted is loaded by the next look
        self._tell()

    def look(self) -> None:
        """Does what the parent wants, if that has changed."""
        self._look(everything=True)

    def _look(self, everything: bool) -> None:
        try:
            status = self._folder.desired.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp:
                return
            self._desired, self._stamp = self._folder.read_desired(), stamp
        except (OSError, ValueError, KeyError, TypeError):
            return  # the parent has not come so far, or is gone: what answers goes on
        self._load_wanted(everything)
        self._swap()
        self._drop()
        self._tell()

    def _load_wanted(self, everything: bool) -> None:
        for version, wanted in self._desired.wanted.items():
            if version in self._models or version in self._report.refused:
                continue
            # Nobody shall wait for one that is only tried: it may hang.
            if not everything and version != self._desired.champion:
                continue
            began = time.perf_counter()
            try:
                self._models[version] = self._load(wanted)
            except Exception as err:  # whatever a model does: the one that answers goes on
                reason = first_line(err) or type(err).__name__
                _log.error("version %d is not served: %s", version, reason)
                refused = {**self._report.refused, version: reason}
                self._report = replace(self._report, refused=refused)
            else:
                loaded = {**self._report.loaded, version: time.perf_counter() - began}
                self._report = replace(self._report, loaded=loaded)
            self._tell()

    def _swap(self) -> None:
        desired = self._desired
        champion = self._loaded(desired.champion, "champion")
        if champion is None:
            return
        challenger = self._loaded(desired.challenger, "challenger")
        shadow = self._shadow if desired.shadow else None
        self.answering = Answering(champion, challenger, desired.challenger_share, shadow)
        self._report = replace(
            self._report,
            champion=champion.version,
            challenger=None if challenger is None else challenger.version,
        )

    def _loaded(self, version: int | None, role: Role) -> Loaded | None:
        if version is None or version not in self._models:
            return None
        return Loaded(version, self._models[version].predict, self._meter(version, role))

    def _drop(self) -> None:
        """Frees what is neither wanted nor answers; who answers a request still holds it."""
        kept = {*self._desired.wanted, self._report.champion, self._report.challenger}
        dropped = [version for version in self._models if version not in kept]
        for version in dropped:
            del self._models[version]
        self._report = replace(
            self._report,
            loaded={one: took for one, took in self._report.loaded.items() if one in kept},
            refused={one: why for one, why in self._report.refused.items() if one in kept},
        )
        if dropped:
            gc.collect()  # a network is full of cycles

    def _tell(self) -> None:
        with contextlib.suppress(OSError):  # the folder is gone: nobody listens
            self._folder.write_report(self._report)

    def watch(self, each: Callable[[], None] = lambda: None) -> None:
        """Looks for ever, in the thread that calls it; `each` is called once a second."""
        beat = time.monotonic()
        while True:
            time.sleep(LOOK_EVERY_S)
            try:
                self.look()
                if time.monotonic() - beat >= BEAT_EVERY_S:
                    beat = time.monotonic()
                    self._folder.touch_report(self.pid)
                    each()
            except Exception:
                _log.exception("what the parent wants could not be done")

    def watch_in_thread(self, each: Callable[[], None] = lambda: None) -> None:
        threading.Thread(target=self.watch, args=(each,), name="follow", daemon=True).start()


def end_when_orphaned(folder: StateFolder) -> None:
    """Ends this process group, gently, if the parent is gone: nobody would end it ever."""
    try:
        fd = os.open(folder.lock, os.O_RDWR)
    except OSError:
        return  # the whole folder is gone; without knowing, go on
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    _log.error("the parent is gone: this server ends")
    os.killpg(0, signal.SIGTERM)
