"""A worker: loads what the parent wants, swaps what answers, and says what it did.

A release is loaded beside the one that answers and swapped in by replacing one reference, so a
request is answered wholly by the old or by the new one. The old one is dropped when the last
request that it answers has ended.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from mlops.errors import MlopsError, first_line
from registry.serving.invocations import Answering, Loaded
from registry.serving.metrics import Meter
from registry.serving.shadow import Offer, columns_of
from registry.serving.state import Desired, Report, Role, StateFolder, Wanted

LOOK_EVERY_S: Final = 0.1
BEAT_EVERY_S: Final = 1.0
_log = logging.getLogger(__name__)


class Model(Protocol):
    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any: ...


Shadowing = Callable[[Offer], None]
"""Takes what the champion answered, to have it scored by the challenger too."""
Watching = Callable[[Any, int, str, Callable[[Any], Any]], None]
"""Takes rows that were answered and their number, to have them scored; `Watch.offer`."""
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
        watch: Watching | None = None,
    ) -> None:
        self.pid = os.getpid() if pid is None else pid
        self._folder = folder
        self._load = load
        self._meter = meter
        self._shadow = shadow
        self._watch = watch
        self._models: dict[str, Model] = {}
        self._report = Report(self.pid)
        self._is_told = False
        self._answers_with: set[str | None] = set()
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
            if champion is not None and champion in self._report.refused:
                version = self._desired.wanted[champion].version
                raise MlopsError(
                    f"version {version} cannot be served: {self._report.refused[champion]}"
                )
            if champion is None or champion not in self._answers_with:
                time.sleep(LOOK_EVERY_S)
            elif self._report.serving:
                break
            else:  # and look once more: who did not know of this worker did not wait for it
                self._report = replace(self._report, serving=True)
                self._tell()
        self._stamp = None  # what else is wanted is loaded by the next look

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
        for key, wanted in self._desired.wanted.items():
            if key in self._models or key in self._report.refused:
                continue
            # Nobody shall wait for one that is only tried: it may hang.
            if not everything and key != self._desired.champion:
                continue
            began = time.perf_counter()
            try:
                self._models[key] = self._load(wanted)
            except Exception as err:  # whatever a model does: the one that answers goes on
                reason = first_line(err) or type(err).__name__
                _log.error("version %d is not served: %s", wanted.version, reason)
                refused = {**self._report.refused, key: reason}
                self._report = replace(self._report, refused=refused)
            else:
                loaded = {**self._report.loaded, key: time.perf_counter() - began}
                self._report = replace(self._report, loaded=loaded)
            self._tell()

    def _swap(self) -> None:
        desired = self._desired
        champion = self._loaded(desired.champion, "champion")
        if champion is None:
            return
        challenger = self._loaded(desired.challenger, "challenger")
        shadow = self._comparing() if desired.shadow else None
        share, watch = desired.challenger_share, self._watching()
        self.answering = Answering(champion, challenger, share, shadow, watch)
        self._answers_with = {desired.champion}
        if challenger is not None:
            self._answers_with.add(desired.challenger)
        if watch is not None:
            self._answers_with.add(desired.watcher)
        self._report = replace(
            self._report,
            champion=champion.version,
            challenger=None if challenger is None else challenger.version,
        )

    def _loaded(self, key: str | None, role: Role) -> Loaded | None:
        if key is None or key not in self._models:
            return None
        version = self._desired.wanted[key].version
        return Loaded(version, self._models[key].predict, self._meter(version, role))

    def _watching(self) -> Callable[[Any, int], None] | None:
        """Returns what takes rows that were answered; scores go under the watcher's own folder."""
        offer, key = self._watch, self._desired.watcher
        if offer is None or key is None or key not in self._models:
            return None
        under, predict = Path(self._desired.wanted[key].folder).name, self._models[key].predict
        return lambda rows, n: offer(rows, n, under, predict)

    def _comparing(self) -> Shadowing | None:
        """Returns what compares; classes that the challenger orders otherwise are put in order."""
        shadow, keys = self._shadow, (self._desired.champion, self._desired.challenger)
        names = [_class_names(self._models.get(key)) for key in keys if key is not None]
        if shadow is None or len(names) < 2:
            return shadow
        columns = columns_of(*names)
        return lambda offer: shadow(replace(offer, columns=columns))

    def _drop(self) -> None:
        """Frees what is neither wanted nor answers; who answers a request still holds it."""
        kept = {*self._desired.wanted, *self._answers_with}
        dropped = [key for key in self._models if key not in kept]
        for key in dropped:
            del self._models[key]
        self._report = replace(
            self._report,
            loaded={one: took for one, took in self._report.loaded.items() if one in kept},
            refused={one: why for one, why in self._report.refused.items() if one in kept},
        )
        if dropped:
            gc.collect()  # a network is full of cycles

    def _tell(self) -> None:
        try:
            self._folder.write_report(self._report)
        except OSError as err:  # a full disk, say
            _log.warning("the parent could not be told: %s", err)
            self._is_told = False
        else:
            self._is_told = True

    def beat(self) -> None:
        """Gives a sign of life, or says what could not be said before."""
        if self._is_told:
            self._folder.touch_report(self.pid)
        else:
            self._tell()

    def watch(self, each: Callable[[], None] = lambda: None) -> None:
        """Looks for ever, in the thread that calls it; `each` is called once a second."""
        beat = time.monotonic()
        while True:
            time.sleep(LOOK_EVERY_S)
            try:
                self.look()
                if time.monotonic() - beat >= BEAT_EVERY_S:
                    beat = time.monotonic()
                    self.beat()
                    each()
            except Exception:
                _log.exception("what the parent wants could not be done")

    def watch_in_thread(self, each: Callable[[], None] = lambda: None) -> None:
        threading.Thread(target=self.watch, args=(each,), name="follow", daemon=True).start()


def _class_names(model: Any) -> list[str] | None:
    """Returns the names of a classifier's columns; None where it says none."""
    names = getattr(model, "class_names", getattr(model, "_class_names", None))
    return list(names) if names else None
