"""The driver's side of drawing: the chosen network of each study, after its search.

Workers draw, since they have Keras. What goes wrong costs a sweep nothing but the figure, and a
sentence at the terminal. It comes before a study counts as finished: killed in between, the same
command draws again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from experiments.config import SweepConfig
from experiments.figures import FOLDER
from experiments.figures.curves import draw_curves, find_baseline_curves, name_network
from experiments.figures.task import Drawn, DrawTask, run_drawing
from experiments.finals import Chosen, Finals
from experiments.networks import Networks
from experiments.study import Search
from experiments.workers.cluster import Workers
from mlops.errors import MlopsError, first_line
from mlops.tracking import Run

PATIENCE_S: Final = 180.0
"""Seconds without a figure from any worker after which no more are waited for."""


@dataclass(slots=True)
class ChosenFigures:
    """Has the chosen network of each study drawn, and logs what was drawn to its run.

    Of a refit, which learned from the validation rows, it is the network whose training it repeats.
    """

    config: SweepConfig
    cluster: Workers
    networks: Networks
    _out: dict[Any, tuple[Search, Chosen]] = field(default_factory=dict)

    def draw(self, searches: Sequence[Search], must_stop: Callable[[], bool]) -> bool:
        """Draws until all is drawn, or cannot be; returns whether `must_stop` ended it before.

        Args:
            must_stop: Asked again and again.
        """
        if self.config.plots == "none":
            return False
        waiting = [(one, found) for one in searches if (found := Finals(one).judged()) is not None]
        heard = time.monotonic()
        while waiting or self._out:
            if must_stop():
                return True
            try:
                self.cluster.end_silent()
                # More tasks than workers would die with a neighbour's.
                if waiting and len(self._out) < self.cluster.n_alive():
                    search, chosen = waiting.pop(0)
                    self._submit(search, chosen)
                    self._draw_curves(search, chosen)  # while a worker is at it
                elif self._take_next():
                    heard = time.monotonic()
            except MlopsError as err:
                self._note(f"no more figures are drawn: {err}")
                return False
            if time.monotonic() - heard > PATIENCE_S:
                self._note(f"no figure was drawn for {PATIENCE_S:.0f} s; no more are waited for.")
                return False
        return False

    def _note(self, line: str) -> None:
        self.networks.note(line)

    def _submit(self, search: Search, chosen: Chosen) -> None:
        with self._costs_no_more(search):
            network = self.networks.find(search, chosen)
            if network is None:
                self._note(f"{search.name}: no figures; the network {chosen.name} is gone.")
                return
            task = DrawTask(
                network=network,
                content=network.read_bytes() if self.cluster.has_own_homes else None,
                task=search.description.task,
                likelihood=search.description.likelihood,
                dataset_fingerprint=self.networks.dataset.fingerprint,
                datasets_url=self.networks.settings.datasets_url,
                home=self.networks.settings.home,
                log_rows=self.config.log_rows,
            )
            self._out[self.cluster.submit(run_drawing, task)] = (search, chosen)

    def _take_next(self) -> bool:
        """Waits a moment for what a worker has drawn; returns whether one has."""
        ticket = self.cluster.next_done(timeout_s=0.2)
        if ticket is None or ticket not in self._out:
            return False
        search, chosen = self._out.pop(ticket)
        with self._costs_no_more(search):
            drawn: Drawn = self.cluster.result(ticket)
            for problem in drawn.problems:
                self._note(f"{search.name}: no figure; {problem}.")
            with tempfile.TemporaryDirectory(prefix="podium-") as scratch:
                for name, content in drawn.files.items():
                    (Path(scratch) / name).write_bytes(content)
                self._log(chosen, Path(scratch))
        return True

    def _draw_curves(self, search: Search, chosen: Chosen) -> None:
        with (
            self._costs_no_more(search),
            tempfile.TemporaryDirectory(prefix="podium-") as scratch,
        ):
            curves = Finals(search).curves()
            if curves is not None:
                title = name_network(search.description.name, chosen.name)
                baseline = find_baseline_curves(search.study)
                objective = search.description.objective
                draw_curves(curves, baseline, objective, title, Path(scratch))
                self._log(chosen, Path(scratch))

    def _log(self, chosen: Chosen, folder: Path) -> None:
        if any(folder.iterdir()):
            Run(self.networks.runs.journal, chosen.run_key).log_artifact(folder, FOLDER)

    @contextmanager
    def _costs_no_more(self, search: Search) -> Iterator[None]:
        """Turns whatever goes wrong into a sentence."""
        try:
            yield
        except Exception as err:
            why = first_line(err).rstrip(".")
            self._note(f"{search.name}: no figures; {why}.")
