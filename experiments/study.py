"""The driver's side of one study: ask, tell, resume, prune, try again.

Optuna's RDB storage is the record of truth about trials; this module is the only one that asks and
tells. What a crash leaves behind: RUNNING trials (the next driver of the study tells them FAIL and
enqueues the same params afresh), and never a finished trial that is lost or asked twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.architectures import Description, Params
from experiments.config import SweepConfig
from experiments.figures.curves import CURVES
from experiments.goals import METRICS, Goals, goals_of, to_attrs
from experiments.kept_result import find_result
from experiments.samplers import build_pruner, build_sampler
from experiments.space import grid_cell
from experiments.standing import ALONE, GPU_PEAK, GPU_S, OUT_OF_MEMORY, Standing
from experiments.tasks import STATUS, TrialResult
from experiments.warm_start import find_warm_params
from mlops.errors import UsageError
from mlops.tracking import Status

MAX_ATTEMPTS = 3
STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}

ENDS: dict[TrialState, Status] = {STATES[state]: end for state, end in STATUS.items()}
"""How the run of a trial ends that has this state."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True, slots=True)
class Ask:
    """A trial to train: what the sampler proposed, with the seed that makes it repeatable.

    Attributes:
        origin: Number of the trial that this one tries again; its own, the first time.
        alone: Whether it ran out of memory beside others, and is to have a GPU to itself.
    """

    trial_id: int
    number: int
    params: Params
    seed: int
    attempt: int
    origin: int
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """How a study stands. `value` is the best trial's quality."""

    target: int
    n_complete: int
    n_pruned: int
    n_failed: int
    value: float | None

    @property
    def n_finished(self) -> int:
        return self.n_complete + self.n_pruned


class Search:
    """One study of one architecture, opened by one driver at a time.

    Attributes:
        goals: What its trials are compared by.
    """

    def __init__(
        self, study: optuna.Study, description: Description, config: SweepConfig, resumed: bool
    ) -> None:
        self.study = study
        self.description = description
        self.config = config
        self.resumed = resumed
        self.goals: Goals = goals_of(config, description)
        self._space = description.distributions()
        self._resolved = config.resolved()
        self._storage = _find_storage(study, self._resolved)
        self._ids: dict[int, int] = {}
        """Of the trials under way."""
        self._standing = Standing(self.goals, study.get_trials(deepcopy=False))

    @property
    def name(self) -> str:
        return str(self.study.study_name)

    @property
    def run_key(self) -> str:
        """The key of the study's parent run."""
        return str(self.study.user_attrs["run_key"])

    @property
    def config_fingerprint(self) -> str:
        return str(self.study.user_attrs["config_fingerprint"])

    @property
    def pruner(self) -> optuna.pruners.BasePruner:
        return build_pruner(self._resolved)

    def recover(self) -> list[str]:
        """Fails the trials that a dead driver left running, and enqueues them afresh.

        One that has ended although nobody was told is told now.

        Returns their run keys; a trial whose driver died before its run was begun has none.
        """
        left = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (result := find_result(trial)) is not None:
                self.tell_or_retry(trial.number, result)
            else:
                left.append(trial)
        for trial in left:
            self.retry(trial.number, "the driver died", charge=False)
        return [t.user_attrs["run_key"] for t in left if "run_key" in t.user_attrs]

    def shape_of(self, params: Params) -> Params:
        """Returns those params that decide the shape of a network, and of its training."""
        variable = self.description.variable_params
        return {name: value for name, value in params.items() if name not in variable}

    def ask(self, shape: Params | None = None) -> Ask | None:
        """Proposes the next trial, or None when enough are finished or under way.

        Args:
            shape: Params that it shall have; one that waits to be tried may have others.
        """
        if self.has_enough:
            return None
        standing = self._standing
        if self._resolved.sampler == "grid" and not standing.count(TrialState.WAITING):
            self._enqueue_cell()
        # A sampler as fresh as the trial: what is proposed depends on the trials so far, and not on
        # how often the sweep was interrupted. One that lives on would begin its stream again.
        self.study.sampler = build_sampler(
            self._resolved,
            new_seed(self.config.seed, self.description.name, "sampler", standing.n_trials),
            shape,
        )
        trial = self.study.ask(self._space)
        attrs = trial.user_attrs
        seed = attrs.get("seed", self._seed(trial.number))
        trial.set_user_attr("seed", seed)
        standing.note(trial.number, TrialState.RUNNING, attrs)
        self._ids[trial.number] = trial._trial_id
        return Ask(
            trial_id=trial._trial_id,
            number=trial.number,
            params=trial.params,
            seed=seed,
            attempt=attrs.get("attempt", 1),
            origin=attrs.get("origin", trial.number),
            alone=attrs.get(ALONE, False),
        )

    @property
    def has_enough(self) -> bool:
        """Tells whether no more trials are wanted, counting those under way."""
        n_counted = self._standing.count(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        if self.gave_up is not None or n_counted >= self.config.trials:
            return True
        if self._resolved.sampler != "grid" or self._standing.count(TrialState.WAITING):
            return False
        return self._next_cell() is None

    def _next_cell(self) -> tuple[int, Params] | None:
        """Returns the first cell of the grid that was not asked for; None past the last one."""
        index = 1 + self._standing.last_cell
        seed = new_seed(self.config.seed, self.description.name, "grid")
        cell = grid_cell(self._space, seed, index)
        return None if cell is None else (index, cell)

    def _enqueue_cell(self) -> None:
        found = self._next_cell()
        assert found is not None  # `has_enough` says so of a grid that is used up
        index, cell = found
        self._enqueue(cell, {"cell": index})

    def _enqueue(self, params: Params, attrs: dict[str, Any]) -> None:
        """Makes a trial with these params the next to be asked for, but for those that wait."""
        number = self._standing.n_trials  # numbers count from 0, and no one else makes trials
        self.study.enqueue_trial(params, user_attrs=attrs)
        self._standing.note(number, TrialState.WAITING, attrs)

    def set_run_key(self, ask: Ask, run_key: str) -> None:
        self.set_trial_attr(ask, "run_key", run_key)

    def set_trial_attr(self, ask: Ask, name: str, value: Any) -> None:
        """Notes something of a trial that no worker has yet."""
        self._storage.set_trial_user_attr(ask.trial_id, name, value)

    def tell(self, number: int, result: TrialResult) -> None:
        """Writes down how a trial ended. A trial that was told already stays as it is."""
        state, trial_id = STATES[result.state], self._trial_id(number)
        attrs = {
            "weights_sha256": result.weights_sha256,
            "best_epoch": result.best_epoch,
            "reason": result.reason,
            OUT_OF_MEMORY: result.out_of_memory,
            GPU_S: result.gpu_s,
            GPU_PEAK: result.gpu_peak_bytes,
            METRICS: None if self.goals.are_plain else result.metrics,
            CURVES: result.curves,
        }
        try:
            for key, attr in attrs.items():
                if attr is not None:
                    self._storage.set_trial_user_attr(trial_id, key, attr)
        except optuna.exceptions.UpdateFinishedTrialError:
            return
        self._ids.pop(number, None)
        self._standing.note_gpu(attrs)
        if state is not TrialState.COMPLETE:
            self.study.tell(number, state=state, skip_if_finished=True)
            self._standing.note(number, state, {k: v for k, v in attrs.items() if v is not None})
            return
        assert result.value is not None
        metrics = {self.goals.quality.name: result.value, **(result.metrics or {})}
        self.study.tell(number, self.goals.values(metrics), state=state, skip_if_finished=True)
        self._standing.note_complete(number, metrics, lambda: self._storage.get_trial(trial_id))

    def retry(self, number: int, reason: str, *, charge: bool, gpu_s: float | None = None) -> bool:
        """Fails a trial whose process is gone, and enqueues the same params and seed afresh.

        A trial that was begun and died `MAX_ATTEMPTS` times is not tried again. A crash between
        the two steps costs the retry, and a new trial is asked for in its place.

        Args:
            reason: What happened.
            charge: Whether the attempt counts; an interrupted or never begun one does not.
            gpu_s: GPU seconds that it used all the same; None without a GPU.

        Returns:
            Whether it was enqueued.
        """
        trial = self._trial(number)
        attempt = trial.user_attrs.get("attempt", 1)
        if charge and attempt >= MAX_ATTEMPTS:
            reason = f"{reason}, {attempt} times"
            self.tell(number, TrialResult("failed", None, None, None, reason=reason, gpu_s=gpu_s))
            return False
        if gpu_s is not None:
            self._storage.set_trial_user_attr(self._trial_id(number), GPU_S, gpu_s)
            self._standing.note_gpu({GPU_S: gpu_s})
        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        self._ids.pop(number, None)
        self._standing.note(number, TrialState.FAIL, {})
        self._enqueue_again(trial, attempt + charge, bool(trial.user_attrs.get(ALONE)))
        return True

    def kept_result(self, number: int) -> TrialResult | None:
        """Returns how a trial ended whose worker could not say so itself; None if it did not."""
        return find_result(self._trial(number))

    def run_ends(self) -> Iterator[tuple[str, Status]]:
        """Yields the run key of each trial that was told, and how its run is to end."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state in ENDS and "run_key" in trial.user_attrs:
                yield trial.user_attrs["run_key"], ENDS[trial.state]

    def tell_or_retry(self, number: int, result: TrialResult) -> bool:
        """Tells how a trial ended; one that ran out of memory beside others is enqueued afresh.

        The new one has the same params and seed, and is marked to have a GPU to itself, whoever
        drives the study by then. A crash between the two steps is as in `retry`.

        Returns:
            Whether it was enqueued.
        """
        trial = self._trial(number)
        self.tell(number, result)
        again = (result.out_of_memory or 1) > 1 and not trial.user_attrs.get(ALONE)
        if again:
            self._enqueue_again(trial, trial.user_attrs.get("attempt", 1) + 1, alone=True)
        return again

    def _enqueue_again(self, trial: FrozenTrial, attempt: int, alone: bool) -> None:
        number, attrs = trial.number, trial.user_attrs
        again = {
            "seed": attrs.get("seed", self._seed(number)),
            "retry_of": number,
            "origin": attrs.get("origin", number),
            "attempt": attempt,
        }
        self._enqueue(trial.params, {**again, ALONE: True} if alone else again)

    @property
    def waits_alone(self) -> bool:
        """Tells whether a trial waits that is to have a GPU to itself."""
        return self._standing.n_waiting_alone > 0 and not self.has_enough

    @property
    def gpu_s(self) -> float:
        """GPU seconds that its trials have used, whatever became of them."""
        return self._standing.gpu_s

    @property
    def gpu_peaks(self) -> tuple[int, int]:
        """How many trials' GPU memory was measured, and the largest peak of all, in bytes."""
        return self._standing.n_gpu_peaks, self._standing.largest_gpu_peak

    def was_begun(self, number: int) -> bool:
        """Tells whether a worker had begun the trial (else its death is not the trial's fault)."""
        return bool(self._trial(number).user_attrs.get("started"))

    def tally(self) -> Tally:
        standing, best = self._standing, self.best()
        return Tally(
            target=self.config.trials,
            n_complete=standing.count(TrialState.COMPLETE),
            n_pruned=standing.count(TrialState.PRUNED),
            # An attempt that was made again is part of the trial that replaced it.
            n_failed=standing.count(TrialState.FAIL) - standing.n_retries,
            value=None if best is None else self.goals.quality_of(best),
        )

    def best(self) -> FrozenTrial | None:
        """Returns the complete trial with the best quality, the earliest of equals.

        Only trials that keep all requirements count.
        """
        return next(iter(self._standing.best), None)

    def members(self) -> tuple[FrozenTrial, ...]:
        """Returns the trials that no other beats, best quality first: with one objective one."""
        return tuple(self._standing.best)

    def set_candidate(self, run_key: str) -> None:
        """Notes that a run's network is registered (its version follows when delivered)."""
        self.study.set_user_attr("candidate_version", None)
        self.study.set_user_attr("candidate_run_key", run_key)

    def note_candidate_version(self, version: int) -> None:
        self.study.set_user_attr("candidate_version", version)

    def note_best_run(self, best: FrozenTrial, run_id: str) -> None:
        self.study.set_user_attr("best_run", {"number": best.number, "run_id": run_id})

    @property
    def candidate_run_key(self) -> str | None:
        return self.study.user_attrs.get("candidate_run_key")

    @property
    def candidate_version(self) -> int | None:
        """The candidate's version; None while it is not delivered."""
        return self.study.user_attrs.get("candidate_version")

    @property
    def other_candidates(self) -> dict[str, int | None]:
        """Members of the Pareto set that are registered beside the candidate: versions by run key.

        A version is None while it is not delivered.
        """
        found: dict[str, int | None] = self.study.user_attrs.get("other_candidates", {})
        return found

    def note_other_candidate(self, run_key: str, version: int | None) -> None:
        """Notes that a member is registered, and its version once it is delivered."""
        self.study.set_user_attr("other_candidates", {**self.other_candidates, run_key: version})

    @property
    def best_run_id(self) -> str | None:
        """MLflow's id of the best trial's run; None while it is not delivered."""
        best, found = self.best(), self.study.user_attrs.get("best_run")
        if best is None or found is None or found["number"] != best.number:
            return None
        return str(found["run_id"])

    def note_finished(self) -> None:
        """Notes that all is done, its candidate too; until then the same command goes on."""
        self.study.set_user_attr("finished_target", self.config.trials)

    @property
    def has_parent(self) -> bool:
        """Tells whether the study's parent run was begun."""
        return bool(self.study.user_attrs.get("has_parent"))

    def note_parent(self) -> None:
        self.study.set_user_attr("has_parent", True)

    @property
    def gave_up(self) -> str | None:
        """Why no more trials are asked for, if so many failed that something else is wrong."""
        standing = self._standing
        if standing.n_errors >= max(3, self.config.trials // 2):
            return f"{standing.n_errors} trials failed, the last with: {standing.last_error}"
        # A network that is too large says nothing of the others; but they may all be.
        if standing.n_out_of_memory >= max(10, 2 * self.config.trials):
            return f"{standing.n_out_of_memory} trials ran out of memory"
        return None

    @property
    def stop_requested(self) -> bool:
        """Tells whether another process asked the sweep to stop (`request_stop`)."""
        return bool(self.study.user_attrs.get("stop"))

    def _trial(self, number: int) -> FrozenTrial:
        trial: FrozenTrial = self._storage.get_trial(self._trial_id(number))
        return trial

    def _trial_id(self, number: int) -> int:
        if number in self._ids:
            return self._ids[number]
        study_id = self.study._study_id
        return int(self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _seed(self, number: int) -> int:
        return new_seed(self.config.seed, self.description.name, number)


def _find_storage(study: optuna.Study, resolved: SweepConfig) -> Any:
    """Returns a study's storage, without Optuna's cache of all trials where nobody looks at them.

    The cache holds each trial for ever, and each `ask` goes through it.
    """
    if resolved.sampler in ("random", "grid") and hasattr(study._storage, "_backend"):
        study._storage = study._storage._backend
    return study._storage


def new_seed(*of: object) -> int:
    """Returns a seed, 0 to 2**32 - 1, that is the same for the same words."""
    text = "/".join(str(one) for one in of)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def open_search(
    storage: optuna.storages.RDBStorage,
    name: str,
    description: Description,
    config: SweepConfig,
    attrs: dict[str, Any],
) -> Search:
    """Opens a study by name, or makes it with its first trials.

    Those are the best of `config.warm_start`, then the baseline; of a grid its cells alone.

    Raises:
        UsageError: a study of this name searches something else.
    """
    resumed = name in optuna.get_all_study_names(storage)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=goals_of(config, description).directions,
        load_if_exists=True,
        pruner=build_pruner(config.resolved()),
    )
    resumed = resumed and "run_key" in study.user_attrs
    if resumed:
        _check_same(study, description, attrs["config_fingerprint"])
    else:
        # A study without a run key is one whose maker died just here. Whoever opens it next makes
        # it whole; where nobody would, `remove_unborn` removes it.
        for params in _first_params(storage, description, config):
            study.enqueue_trial(params, skip_if_exists=True)
        # The run key comes last: a study that has one is whole.
        described = {
            "description": dataclasses.asdict(description),
            "target": config.trials,
            **to_attrs(config),
            **attrs,
        }
        for key, value in sorted(described.items(), key=lambda item: item[0] == "run_key"):
            study.set_user_attr(key, value)
    if study.user_attrs.get("target") != config.trials:
        study.set_user_attr("target", config.trials)
    if study.user_attrs.get("stop"):
        study.set_user_attr("stop", False)  # it was for the driver before
    return Search(study, description, config, resumed)


def _check_same(study: optuna.Study, description: Description, config_fingerprint: str) -> None:
    known = study.user_attrs
    if known.get("cleaned"):  # what is asked for next would get the number of one that is there
        raise UsageError(
            f"trials of the study {study.study_name!r} were taken out (python -m mlops.clean), so "
            f"no more can be asked for. Give another --study, with --warm-start {study.study_name}."
        )
    if known.get("config_fingerprint") != config_fingerprint:
        raise UsageError(
            f"the study {study.study_name!r} was begun with another dataset or config. "
            "Give the same options, or another --study."
        )
    before = known["description"]["space"]
    differ = sorted(
        param
        for param in {*before, *description.space}
        if before.get(param) != description.space.get(param)
    )
    if differ:
        raise UsageError(
            f"the study {study.study_name!r} searches another space than the architecture has now; "
            f"they differ in: {', '.join(differ)}. Give another --study."
        )


def _first_params(
    storage: optuna.storages.RDBStorage, description: Description, config: SweepConfig
) -> list[Params]:
    warm = []
    if config.warm_start is not None:
        warm = find_warm_params(storage, config.warm_start, description)
    return warm if config.resolved().sampler == "grid" else [*warm, description.baseline]


def reopen_search(storage: optuna.storages.RDBStorage, name: str, config: SweepConfig) -> Search:
    """Opens a study to read from it, with the description it was made with."""
    study = optuna.load_study(study_name=name, storage=storage)
    description = dict(study.user_attrs["description"])
    description["variable_params"] = tuple(description.get("variable_params", ()))
    return Search(study, Description(**description), config, resumed=True)
