"""The networks that a sweep keeps, until the best of them are candidates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from experiments.finals import Chosen, Finals
from experiments.results import model_name
from experiments.runs import SweepRuns
from experiments.study import Search
from experiments.tasks import network_file
from experiments.workers.away import NotFetchedError, fetch_network
from mlops.data import Dataset
from mlops.packaging import ModelSpec, build_model_folder
from mlops.settings import Settings
from mlops.tracking import Run

MOST_CANDIDATES = 10
"""Members of a study's Pareto set that are registered."""


class Networks:
    """The networks of one sweep, in its home; each trial's by its number.

    Args:
        note: Takes a line for the person at the terminal.
    """

    def __init__(
        self,
        settings: Settings,
        sweep: str,
        dataset: Dataset,
        runs: SweepRuns,
        note: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self._sweep = sweep
        self.dataset = dataset
        self.runs = runs
        self.note = note

    def path(self, search: Search, name: str) -> Path:
        """Returns where a trial's network is, or that of what came after the search."""
        return network_file(self.settings.home, self._sweep, search.description.name, name)

    def find(self, search: Search, chosen: Chosen) -> Path | None:
        """Returns a network's file, fetched if it is in the artifact store; None if it is gone.

        Raises:
            NotFetchedError: nothing can be fetched now.
        """
        network = self.path(search, chosen.name)
        is_there = network.exists() or fetch_network(self.settings, chosen.run_key, network)
        return network if is_there else None

    def forget_beaten(self, search: Search, out: Collection[int]) -> None:
        """Removes the networks of trials that a better one has beaten.

        Args:
            out: Numbers of the study's trials that are under way.
        """
        kept = {*out, *(one.number for one in search.members())}
        paths = {self.path(search, f"{number:05d}") for number in kept}
        for path in self.path(search, "any").parent.glob("[0-9]*.keras"):
            if path not in paths:
                path.unlink(missing_ok=True)

    def forget_checkpoints(self, search: Search) -> None:
        """Removes those of trials that were killed, and given up."""
        for path in self.path(search, "any").parent.glob("*.checkpoint*"):
            path.unlink(missing_ok=True)

    def register_best(self, search: Search) -> bool:
        """Logs the chosen network as a candidate, and the other members of a Pareto set.

        Returns whether that is done; not while a network is where it cannot be fetched from now.
        """
        try:
            self._register_chosen(search)
        except NotFetchedError as err:
            self.note(f"{search.name}: {err}. The same command makes the candidate later.")
            return False
        return True

    def _register_chosen(self, search: Search) -> None:
        chosen = Finals(search).chosen()
        if chosen is None:
            return
        if search.candidate_run_key != chosen.run_key and self._register(search, chosen):
            # A crash before this line registers again; the sink finds the version that is there.
            search.set_candidate(chosen.run_key)
        others = search.members()[1:]
        if len(others) > MOST_CANDIDATES - 1:
            self.note(
                f"{search.name}: of {len(others) + 1} members of the Pareto set the "
                f"{MOST_CANDIDATES} with the best {search.goals.quality.name} become candidates."
            )
        for trial in others[: MOST_CANDIDATES - 1]:
            quality = search.goals.quality_of(trial)
            member = Chosen(f"{trial.number:05d}", trial.user_attrs["run_key"], quality)
            if member.run_key not in search.other_candidates and self._register(search, member):
                search.note_other_candidate(member.run_key, None)

    def _register(self, search: Search, chosen: Chosen) -> bool:
        """Packages a network and logs it as a candidate; False if the network is gone."""
        network = self.find(search, chosen)
        if network is None:
            gone = self.path(search, chosen.name)
            self.note(
                f"{search.name}: the network {gone.name} is gone; no candidate is made. "
                f"It was kept in {gone.parent}."
            )
            return False
        description = search.description
        spec = ModelSpec.of(
            self.dataset, description.task, description.name, description.likelihood
        )
        run = Run(self.runs.journal, chosen.run_key)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            build_model_folder(network, spec, folder)
            run.register_candidate(
                model_name(self.runs.experiment, search),
                folder,
                {
                    "mlops.architecture": description.name,
                    "mlops.dataset_fingerprint": self.dataset.fingerprint,
                    "mlops.objective": description.objective,
                    "mlops.value": repr(chosen.value),
                    "mlops.sweep": self._sweep,
                    "mlops.network": chosen.name,
                },
            )
        return True
