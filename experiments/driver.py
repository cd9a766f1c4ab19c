"""The driver: asks Optuna, submits to workers, tells Optuna, until every study has its trials.

The order of its steps is the crash consistency of a sweep. A trial is asked for (storage), its run
is begun (journal), then a worker gets it; the worker ends the run (its journal), then the trial is
told (storage). Killed between any two, the trial is RUNNING in the storage and the next driver
fails it and enqueues it afresh; a finished trial was told and is never asked again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from experiments.architectures import Description, Params
from experiments.asking import Asking
from experiments.config import SweepConfig
from experiments.config_file import write_config
from experiments.figures.chosen import ChosenFigures
from experiments.finals import Final, Finals
from experiments.interrupt import Stop
from experiments.networks import Networks
from experiments.population_trial import PopulationTask, run_population
from experiments.privacy.accounting import Privacy
from experiments.privacy.budget import Budget, note_spent
from experiments.progress import Progress
from experiments.reports.delivery import write_report
from experiments.results import (
    StudyResult,
    SweepResult,
    note_delivered,
    runs_url,
    study_result,
)
from experiments.runs import SweepRuns
from experiments.studies import CONFIG, ENVIRONMENT, home_of, sweep_folder
from experiments.study import MAX_ATTEMPTS, Ask, Search, open_search
from experiments.tasks import FinalTask, Training, TrialResult, TrialTask
from experiments.trial import run_final, run_trial
from experiments.workers.away import wait_for_runs
from experiments.workers.cluster import WorkerDiedError, Workers
from experiments.workers.sharing import Sharing
from mlops.data import Dataset
from mlops.drain import Drain
from mlops.errors import MlopsError
from mlops.mlflow_sink import MlflowSink
from mlops.settings import Settings
from mlops.tracking import Run, new_run_key

FLUSH_S = 60.0
FLUSH_SOON_S = 10.0
NO_WORKER_S = 180.0
LISTEN_EVERY_S = 1.0


class Outgoing(NamedTuple):
    """A trial that is out at a worker."""

    search: Search
    ask: Ask
    run: Run
    privacy: Privacy | None = None


@dataclass(slots=True)
class Driver:
    """One sweep under way: its studies, and the trials that are out at workers.

    Attributes:
        sinks: What the drain has opened, newest last; empty while no tracking server answers.
        stop: Set by a signal; ends the sweep so that the same command goes on.
    """

    config: SweepConfig
    settings: Settings
    dataset: Dataset
    sweep_id: str
    cluster: Workers
    progress: Progress
    runs: SweepRuns
    drain: Drain
    sinks: list[MlflowSink]
    stop: Stop
    _searches: list[Search] = field(default_factory=list)
    _out: dict[Any, list[Outgoing]] = field(default_factory=dict)
    """By ticket: one, or a population."""
    _finals_out: dict[Any, tuple[Search, Final, Run]] = field(default_factory=dict)
    _deaths: dict[str, int] = field(default_factory=dict)
    _seen_alive: float = field(default_factory=time.monotonic)
    _asking: Asking = field(init=False)
    _networks: Networks = field(init=False)
    _budget: Budget = field(init=False)
    _sharing: Sharing = field(init=False)
    _listened: float = 0.0
    _told_url: bool = False
    _told_problem: str | None = None

    def __post_init__(self) -> None:
        self._asking = Asking(self.config)
        self._networks = Networks(
            self.settings, self.sweep_id, self.dataset, self.runs, self.progress.note
        )
        self._budget = Budget(self.config, self.dataset.counts()["train"])
        self._sharing = Sharing(self.config, self.cluster, self._searches, self.progress.note)

    @property
    def studies(self) -> list[Any]:
        """Optuna's studies, once they are open."""
        return [search.study for search in self._searches]

    def open_studies(self, storage: Any, descriptions: list[Description]) -> None:
        """Opens each architecture's study and parent run; what a dead driver left is retried."""
        write_config(
            self.config.resolved(), sweep_folder(self.settings.home, self.sweep_id) / CONFIG
        )
        for description in descriptions:
            search = open_search(
                storage,
                f"{self.sweep_id}-{description.name}",
                description,
                self.config,
                {
                    "sweep": self.sweep_id,
                    "home": home_of(self.settings),
                    "experiment": self.runs.experiment,
                    ENVIRONMENT: self.runs.environment,
                    "architecture_path": description.path,
                    "dataset_fingerprint": self.dataset.fingerprint,
                    "config_fingerprint": self.config.fingerprint(
                        self.dataset.fingerprint, description.path
                    ),
                    "run_key": new_run_key(),
                },
            )
            self._searches.append(search)
            self.runs.open_parent(search)
            if search.resumed:
                tally = search.tally()
                self.progress.note(
                    f"{search.name}: resumed with {tally.n_finished} of {tally.target} trials done."
                )
                for run_key in [*search.recover(), *Finals(search).left_behind()]:
                    self.runs.close_interrupted(run_key)
            self.progress.update(description.name, search.tally())

    def search(self, began: float) -> bool:
        """Asks, submits and tells until every study is done; returns whether it was interrupted.

        Args:
            began: `time.monotonic()` when the sweep began; `config.timeout_s` counts from there.
        """
        while not self._must_stop():
            n_alive = self._n_alive()
            timeout_s = self.config.timeout_s
            late = timeout_s is not None and time.monotonic() - began > timeout_s
            late = late or self._sharing.is_spent()
            # More tasks than workers would queue in Dask, and die there with a neighbour's worker.
            wanted = self._asking.holds_any or not self._has_enough()
            free = len(self._out) < n_alive and wanted and not late
            submitted = free and self._sharing.may_send() and self._submit_next()
            if not submitted and not self._out and (late or self._has_enough()):
                self._asking.let_go(self._searches)
                return False
            if not submitted:
                ticket = self.cluster.next_done(timeout_s=0.2)
                if ticket is not None:
                    self._take(ticket)
            self._tell_news()
        self._abandon()
        return not self._has_enough()

    def retrain(self) -> bool:
        """Trains what comes after the search; returns whether it was interrupted."""
        while not self._must_stop():
            pending = self._pending_finals()
            if not pending and not self._finals_out:
                return False
            n_alive = self._n_alive()
            free = bool(pending) and len(self._finals_out) < n_alive
            if free and self._sharing.may_send_final():
                self._submit_final(*pending[0])
            else:
                ticket = self.cluster.next_done(timeout_s=0.2)
                if ticket is not None:
                    self._take_final(ticket)
            self._tell_news()
        self._abandon()
        return bool(self._pending_finals())

    def draw(self) -> bool:
        """Draws each study's chosen network; returns whether it was interrupted."""
        figures = ChosenFigures(self.config, self.cluster, self._networks)
        interrupted = figures.draw(self._searches, self._must_stop)
        if interrupted:
            self._abandon()
        return interrupted

    def _n_alive(self) -> int:
        """Counts live workers.

        Raises:
            MlopsError: there has been none for too long, or all are out of reach.
        """
        self.cluster.end_silent()
        n_alive = self.cluster.n_alive()
        if n_alive > 0 or self.cluster.n_joining() > 0:
            self._seen_alive = time.monotonic()
        elif time.monotonic() - self._seen_alive > NO_WORKER_S:
            where = f"their log is in {self.settings.home / 'logs'}"
            if self.config.cluster is not None:
                where = f"look at those of {self.config.cluster}"
            raise MlopsError(
                f"no worker has started for {NO_WORKER_S:.0f} s; {where}. "
                "The same command goes on with the sweep."
            )
        return n_alive

    def _must_stop(self) -> bool:
        """Tells whether a signal, or `experiments.status --stop` elsewhere, ends the sweep."""
        now = time.monotonic()
        if not self.stop.is_set() and now - self._listened > LISTEN_EVERY_S:
            self._listened = now
            if any(search.stop_requested for search in self._searches):
                self.progress.note("another process asked this sweep to stop.")
                self.stop.set()
        return self.stop.is_set()

    def _has_enough(self) -> bool:
        return all(search.has_enough for search in self._searches)

    def finish(self, began: float, interrupted: bool) -> SweepResult:
        """Registers each study's best, ends the parent runs, and delivers what is left."""
        if self.cluster.has_own_homes and not interrupted:
            self._wait_for_hosts()
        spent = self._budget.spent(self._searches)
        for search in self._searches:
            if spent is not None:
                note_spent(search, spent)
                self.runs.log_spent(search, spent)
            if interrupted:
                self.runs.stop_parent(search, "KILLED")
                continue
            if search.gave_up is not None:
                self.progress.note(f"{search.name}: given up; {search.gave_up}.")
            self._forget_networks(search)
            is_registered = self._networks.register_best(search)
            self.runs.end_parent(search)
            # Last: killed before this line, the same command does the end of it again.
            if search.has_enough and is_registered:
                search.note_finished()
                self._networks.forget_checkpoints(search)
        if not interrupted:
            folder = sweep_folder(self.settings.home, self.sweep_id)
            report = write_report(self.settings, self.sweep_id, folder)
            self.runs.log_report(self._searches, report)
        self.runs.journal.close()
        # A server that did not answer until now need not be waited for: the journal keeps it all.
        soon = interrupted or self.drain.problem is not None
        self.stop.clear()  # from here on it ends the waiting: all else is done
        undelivered = self.drain.flush(FLUSH_SOON_S if soon else FLUSH_S, give_up=self.stop.is_set)
        for sentence in self.sinks[-1].refused if self.sinks else []:
            self.progress.note(f"the tracking server refused a record: {sentence}")
        for sentence in self.drain.dropped:
            self.progress.note(sentence)
        if undelivered:
            self._tell_problem()
        return SweepResult(
            sweep_id=self.sweep_id,
            experiment=self.runs.experiment,
            wall_s=time.monotonic() - began,
            studies=tuple(self._result(search, undelivered) for search in self._searches),
            undelivered=undelivered,
            interrupted=interrupted,
            ui_url=self._ui_url(),
            spent=spent,
        )

    def _wait_for_hosts(self) -> None:
        """Waits for what workers with homes of their own have yet to deliver; ends their runs."""
        parents = {search.run_key for search in self._searches}
        left = wait_for_runs(
            self.settings,
            self.sweep_id,
            parents,
            lambda: self.drain.undelivered() == 0,
            FLUSH_S if self.drain.problem is None else FLUSH_SOON_S,
            self.stop.is_set,
        )
        if left:
            self.progress.note(
                f"{len(left)} run(s) end without their last records, which lie on hosts that do "
                "not deliver now. A host that is back delivers them: python -m mlops.sync"
            )
        ends = {key: status for search in self._searches for key, status in search.run_ends()}
        for key in left:
            self.runs.close_undelivered(key, ends.get(key, "FINISHED"))

    def abort(self) -> None:
        """After an error of the driver: no run stays RUNNING, and nothing finished is lost."""
        self._abandon()
        for search in self._searches:
            self.runs.stop_parent(search, "FAILED")
        self.runs.journal.close()
        self.stop.clear()
        self.drain.flush(FLUSH_SOON_S, give_up=self.stop.is_set)

    def _submit_next(self) -> bool:
        """Submits work of the study that has had the fewest trials; False if none wants any."""
        for search in sorted(self._searches, key=self._n_begun):
            asks = self._asking.ask(search, self._n_begun(search), self.cluster.n_alive())
            if not asks:
                continue
            out = [self._begin(search, ask) for ask in asks]
            tasks = tuple(map(self._task, out))
            if self.config.population is None:
                ticket = self.cluster.submit(run_trial, *tasks)
            else:
                task = PopulationTask(tasks, self.config.population)
                ticket = self.cluster.submit(run_population, task)
            self._out[ticket] = out
            self._sharing.begin(ticket)
            return True
        return False

    def _begin(self, search: Search, ask: Ask) -> Outgoing:
        privacy = self._budget.begin(search, ask)
        return Outgoing(search, ask, self.runs.create_trial(search, ask, privacy), privacy)

    def _task(self, out: Outgoing) -> TrialTask:
        search, ask, run, privacy = out
        training = self._training(
            search, f"{ask.number:05d}", run, ask.params, ask.seed, f"{ask.origin:05d}"
        )
        value = search.tally().value
        return TrialTask(
            training=dataclasses.replace(training, privacy=privacy),
            study=search.name,
            study_url=self.settings.study_url,
            trial_id=ask.trial_id,
            pruner=search.pruner,
            goals=search.goals,
            to_beat=-math.inf if value is None else value,
            is_baseline=ask.params == search.description.baseline,
        )

    def _training(
        self, search: Search, name: str, run: Run, params: Params, seed: int, origin: str
    ) -> Training:
        """Returns what a worker needs; an attempt goes on where another of one origin was cut."""
        return Training(
            architecture=search.description.path,
            objective=search.description.objective,
            params=params,
            seed=seed,
            epochs=self.config.epochs,
            dataset_fingerprint=self.dataset.fingerprint,
            datasets_url=self.settings.datasets_url,
            sweep=self.sweep_id,
            study=search.description.name,
            number=name,
            origin=origin,
            run_key=run.key,
            home=self.settings.home,
            gpu_price=self.config.gpu_price,
            numerics=self.config.numerics,
            plots=self.config.plots == "all",
            log_rows=self.config.log_rows,
        )

    def _pending_finals(self) -> list[tuple[Search, Final]]:
        """Returns what is not trained yet, nor under way."""
        out = {(search.name, final.name) for search, final, _ in self._finals_out.values()}
        return [
            (search, final)
            for search in self._searches
            for final in Finals(search).pending()
            if (search.name, final.name) not in out
        ]

    def _submit_final(self, search: Search, final: Final) -> None:
        privacy = self._budget.begin_final(search, final.params)
        run = self.runs.create_final(search, final, privacy)
        Finals(search).begin(final, run.key)
        training = self._training(search, final.name, run, final.params, final.seed, final.name)
        training = dataclasses.replace(training, epochs=final.epochs, privacy=privacy)
        task = FinalTask(training, refit=final.kind == "refit")
        ticket = self.cluster.submit(run_final, task)
        self._finals_out[ticket] = (search, final, run)
        self._sharing.begin(ticket)

    def _take_final(self, ticket: Any) -> None:
        """Notes how a final ended; one whose worker died is trained again, some times."""
        search, final, run = self._finals_out.pop(ticket)
        self._sharing.end(ticket)
        name = f"{search.description.name}-{final.name}"
        try:
            result = self.cluster.result(ticket)
        except WorkerDiedError as err:
            if self.stop.is_set():
                self.runs.close_interrupted(run.key)
                return
            self.runs.close_dead(run.key, str(err))
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if self._deaths[name] < MAX_ATTEMPTS:
                self.progress.note(f"{name}: {err}; it is tried again.")
                return
            result = TrialResult("failed", None, None, None, reason=str(err))
        if result.out_of_memory is not None and result.out_of_memory > 1:
            self._sharing.finals_alone = True
            self.progress.note(f"{name}: {result.reason}; it is tried again alone.")
            return
        Finals(search).note(final, run.key, result)
        said = f"failed: {result.reason}" if result.state == "failed" else "done"
        if result.value is not None:
            said = f"{search.description.objective} {result.value:.4f}"
        self.progress.note(f"{name}: {said}.")

    def _n_begun(self, search: Search) -> int:
        under_way = sum(one.search is search for out in self._out.values() for one in out)
        return search.tally().n_finished + under_way

    def _take(self, ticket: Any) -> None:
        """Tells the study how its trials ended."""
        died = "the program of its population failed"
        try:
            found = self.cluster.result(ticket)
        except WorkerDiedError as err:
            if self.stop.is_set():
                return  # it was stopped with the sweep: `_abandon` sees to it
            found, died = None, str(err)
        out, gpu_s = self._out.pop(ticket), self._sharing.end(ticket)
        each_s = None if gpu_s is None else gpu_s / len(out)
        results = found if isinstance(found, list) else [found] * len(out)
        for one, result in zip(out, results, strict=True):
            self._take_one(one, result, died, each_s)
        search = out[0].search
        if any(one is not None and one.saved for one in results):
            self._forget_networks(search)
        self.progress.update(search.description.name, search.tally())

    def _take_one(
        self, one: Outgoing, result: TrialResult | None, died: str, gpu_s: float | None
    ) -> None:
        search, ask, run, _ = one
        name = f"{search.description.name}-{ask.number:03d}"
        result = result or search.kept_result(ask.number)
        if result is None:
            charge = search.was_begun(ask.number)
            again = search.retry(ask.number, died, charge=charge, gpu_s=gpu_s)
            self.runs.close_dead(run.key, died)
            self.progress.note(f"{name}: {died}; it is {'tried again' if again else 'given up'}.")
            return
        if search.tell_or_retry(ask.number, result):
            self.progress.note(f"{name}: {result.reason}; it is tried again alone.")
        elif result.state == "failed":
            self.progress.note(f"{name} failed: {result.reason}.")

    def _abandon(self) -> None:
        """Ends at once, so that the same command goes on later; nothing finished is lost."""
        while (ticket := self.cluster.next_done(timeout_s=0.0)) is not None:
            # What was done already counts; but for figures, which are drawn again.
            if ticket in self._out:
                self._take(ticket)
            elif ticket in self._finals_out:
                self._take_final(ticket)
        self.cluster.kill()
        self._asking.let_go(self._searches)
        for ticket, out in self._out.items():
            gpu_s = self._sharing.end(ticket)
            self._abandon_all(out, None if gpu_s is None else gpu_s / len(out))
        for _, _, run in self._finals_out.values():
            self.runs.close_interrupted(run.key)
        self._out.clear()
        self._finals_out.clear()

    def _abandon_all(self, out: list[Outgoing], gpu_s: float | None) -> None:
        """Gives back trials that were out at a worker."""
        for one in out:
            if (kept := one.search.kept_result(one.ask.number)) is not None:
                self._take_one(one, kept, "", gpu_s)
                continue
            one.search.retry(one.ask.number, "interrupted", charge=False, gpu_s=gpu_s)
            self.runs.close_interrupted(one.run.key)

    def _result(self, search: Search, undelivered: int) -> StudyResult:
        if self.sinks:
            note_delivered(search, self.sinks[-1], ask=undelivered == 0)
        return study_result(search, self.runs.experiment)

    def _tell_news(self) -> None:
        self._tell_url()
        problem = self.drain.problem
        if problem != self._told_problem:
            self._tell_problem()

    def _tell_problem(self) -> None:
        """Says why records are not delivered; the training goes on."""
        self._told_problem = self.drain.problem
        if self._told_problem is not None:
            self.progress.note(f"tracking waits, training goes on: {self._told_problem}")

    def _tell_url(self) -> None:
        """Says where to look, once the server shows the sweep's experiment."""
        if not self._told_url and (url := self._ui_url()) is not None:
            self._told_url = True
            self.progress.note(f"The runs are live at {url}")

    def _ui_url(self) -> str | None:
        sink = self.sinks[-1] if self.sinks else None
        experiment_id = None if sink is None else sink.experiment_ids.get(self.runs.experiment)
        if sink is None or experiment_id is None or not sink.client.tracking_uri.startswith("http"):
            return None
        objective = self._searches[0].description.objective
        where = self.settings.ui_url or sink.client.tracking_uri
        return runs_url(where, experiment_id, objective)

    def _forget_networks(self, search: Search) -> None:
        under_way = (one for several in self._out.values() for one in several)
        out = [one.ask.number for one in under_way if one.search is search]
        self._networks.forget_beaten(search, out)
