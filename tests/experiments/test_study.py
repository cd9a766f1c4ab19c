"""The driver's side against real SQLite storage, without training anything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState

from experiments.architectures import Description
from experiments.config import SweepConfig
from experiments.finals import Finals
from experiments.kept_result import ATTRIBUTE, keep_result
from experiments.storage import open_storage
from experiments.studies import (
    find_studies,
    is_locked,
    lock_sweep,
    remove_unborn,
    request_stop,
)
from experiments.study import MAX_ATTEMPTS, Search, open_search, reopen_search
from experiments.tasks import TrialResult
from mlops.errors import MlopsError, UsageError

DESCRIPTION = Description(
    path="module:Thing",
    name="thing",
    task="classifier",
    objective="val_accuracy",
    left_out=None,
    space={"x": distribution_to_json(FloatDistribution(0.0, 1.0))},
    baseline={"x": 0.25},
    likelihood=None,
)
Opener = Callable[..., Search]


def complete(value: float) -> TrialResult:
    return TrialResult("complete", value, 0, "00")


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    url = f"sqlite:///{tmp_path / 'deep' / 'studies.db'}"

    def open_it(
        trials: int = 3,
        seed: int = 0,
        fingerprint: str = "f",
        key: str = "k",
        name: str = "s-thing",
        description: Description = DESCRIPTION,
        **options: Any,
    ) -> Search:
        attrs = {
            "sweep": name.split("-")[0],
            "home": "here:/home",
            "architecture_path": "module:Thing",
            "config_fingerprint": fingerprint,
            "run_key": key,
        }
        config = SweepConfig(trials=trials, seed=seed, **options)
        return open_search(open_storage(url), name, description, config, attrs)

    return open_it


def finish(search: Search, value: float = 0.5) -> int:
    ask = search.ask()
    assert ask is not None
    search.tell(ask.number, complete(value))
    return ask.number


def test_the_first_trial_is_the_baseline(opener: Opener) -> None:
    ask = opener().ask()
    assert ask is not None
    assert (ask.number, ask.params, ask.attempt) == (0, {"x": 0.25}, 1)


def test_it_asks_until_enough_are_finished_or_under_way(opener: Opener) -> None:
    search = opener(trials=2)
    assert search.ask() is not None
    assert search.ask() is not None
    assert search.ask() is None


def test_a_failed_trial_is_asked_for_again_and_counted(opener: Opener) -> None:
    search = opener(trials=1)
    ask = search.ask()
    assert ask is not None
    search.tell(ask.number, TrialResult("failed", None, None, None, reason="it diverged"))
    assert finish(search) == 1
    tally = search.tally()
    assert (tally.n_complete, tally.n_pruned, tally.n_failed) == (1, 0, 1)


def test_a_pruned_trial_is_finished_and_never_the_best(opener: Opener) -> None:
    search = opener(trials=2)
    ask = search.ask()
    assert ask is not None
    search.tell(ask.number, TrialResult("pruned", 0.99, 1, "00"))
    assert search.best() is None
    number = finish(search, 0.5)
    best = search.best()
    assert best is not None and best.number == number
    assert search.ask() is None


def test_of_equal_trials_the_earliest_is_the_best(opener: Opener) -> None:
    search = opener()
    for _ in range(3):
        finish(search, 0.5)
    best = search.best()
    assert best is not None and best.number == 0


def test_a_trial_whose_process_died_is_tried_again_with_the_same_params_and_seed(
    opener: Opener,
) -> None:
    search = opener(trials=1)
    first = search.ask()
    assert first is not None
    for attempt in range(2, MAX_ATTEMPTS + 1):
        assert search.retry(first.number + attempt - 2, "killed", charge=True)
        again = search.ask()
        assert again is not None
        assert (again.params, again.seed, again.attempt) == (first.params, first.seed, attempt)
    assert not search.retry(again.number, "killed", charge=True)
    assert search.tally().n_failed == 1
    failed = search.study.trials[again.number]
    assert failed.user_attrs["reason"] == f"killed, {MAX_ATTEMPTS} times"


def test_an_attempt_that_never_began_is_not_charged(opener: Opener) -> None:
    search = opener()
    ask = search.ask()
    assert ask is not None
    assert not search.was_begun(ask.number)
    search.retry(ask.number, "a neighbour died", charge=False)
    again = search.ask()
    assert again is not None and again.attempt == 1


def test_a_new_driver_retries_what_a_dead_one_left_and_keeps_what_is_finished(
    opener: Opener,
) -> None:
    dead = opener(key="first")
    finish(dead, 0.7)
    left = dead.ask()
    assert left is not None
    dead.set_run_key(left, "run of the dead")

    search = opener(key="second")
    assert search.resumed
    assert search.run_key == "first"
    assert search.recover() == ["run of the dead"]
    again = search.ask()
    assert again is not None and again.params == left.params and again.seed == left.seed
    assert search.tally().n_complete == 1
    assert search.tally().n_failed == 0
    search.tell(again.number, complete(0.6))
    finish(search)
    assert search.ask() is None
    states = [trial.state for trial in search.study.trials]
    assert states.count(TrialState.COMPLETE) == 3


def test_a_trial_that_ended_although_nobody_was_told_is_told_and_not_tried_again(
    opener: Opener,
) -> None:
    search = opener(trials=2)
    ended, left = search.ask(), search.ask()
    assert ended is not None and left is not None
    storage = search.study._storage
    result = dataclasses.replace(complete(0.75), metrics={"val_accuracy": 0.75, "x": math.nan})
    keep_result(storage, ended.trial_id, result)
    assert search.kept_result(left.number) is None
    kept = search.kept_result(ended.number)
    assert kept is not None and (kept.value, kept.weights_sha256) == (0.75, "00")
    later = opener(trials=2)
    later.recover()
    assert (later.tally().n_complete, later.tally().value) == (1, 0.75)
    again = later.ask()
    assert again is not None and (again.origin, again.params) == (left.number, left.params)
    keep_result(storage, ended.trial_id, complete(0.1))  # of one that was given up: too late
    best = later.best()
    assert best is not None and best.value == 0.75


def test_a_result_of_another_version_counts_as_none(opener: Opener) -> None:
    search = opener()
    ask = search.ask()
    assert ask is not None
    search.study._storage.set_trial_system_attr(ask.trial_id, ATTRIBUTE, {"state": "?", "of": 1})
    assert search.kept_result(ask.number) is None
    keep_result(None, ask.trial_id, complete(0.5))  # a database that is away is no error


def test_telling_twice_keeps_the_first_word(opener: Opener) -> None:
    search = opener()
    number = finish(search, 0.5)
    search.tell(number, complete(0.9))
    assert search.study.trials[number].value == 0.5


def test_one_seed_proposes_the_same_trials_again(opener: Opener, tmp_path: Path) -> None:
    def proposals(name: str, seed: int) -> list[float]:
        storage = open_storage(f"sqlite:///{tmp_path / name}.db")
        config = SweepConfig(trials=14, seed=seed)
        attrs = {"sweep": "s", "home": "h", "architecture_path": "m:T", "run_key": "k"}
        attrs["config_fingerprint"] = "f"
        search = open_search(storage, "n", DESCRIPTION, config, attrs)
        found = []
        for _ in range(14):
            ask = search.ask()
            assert ask is not None
            found.append(ask.params["x"])
            search.tell(ask.number, complete(-((ask.params["x"] - 0.6) ** 2)))
        return found

    assert proposals("one", 1) == proposals("two", 1) != proposals("three", 2)


def test_an_interrupted_study_proposes_what_an_uninterrupted_one_would(tmp_path: Path) -> None:
    def proposals(name: str, n_sessions: int) -> list[float]:
        found: list[float] = []
        for _ in range(n_sessions):
            storage = open_storage(f"sqlite:///{tmp_path / name}.db")
            attrs = {"sweep": "s", "home": "h", "architecture_path": "m:T", "run_key": "k"}
            attrs["config_fingerprint"] = "f"
            search = open_search(storage, "n", DESCRIPTION, SweepConfig(trials=12), attrs)
            for _ in range(12 // n_sessions):
                ask = search.ask()
                assert ask is not None
                found.append(ask.params["x"])
                search.tell(ask.number, complete(-((ask.params["x"] - 0.6) ** 2)))
        return found

    whole = proposals("whole", 1)
    assert proposals("parts", 3) == whole
    assert len(set(whole)) == 12


def measured(accuracy: float, n_weights: float) -> TrialResult:
    metrics = {"val_accuracy": accuracy, "n_weights": n_weights}
    return TrialResult("complete", accuracy, 0, "00", metrics=metrics)


def tell_all(search: Search, *results: TrialResult) -> None:
    for result in results:
        ask = search.ask()
        assert ask is not None
        search.tell(ask.number, result)


def test_with_several_objectives_the_best_are_a_pareto_set_after_a_resume_too(
    opener: Opener,
) -> None:
    options: dict[str, Any] = {"trials": 5, "objectives": ("n_weights", "val_accuracy")}
    search = opener(**options)
    tell_all(search, measured(0.8, 10), measured(0.9, 30), measured(0.85, 40), measured(0.7, 10))
    for one in (search, opener(**options)):
        assert [trial.number for trial in one.members()] == [1, 0]
        assert one.tally().value == 0.9
    assert search.study.trials[1].values == [30, 0.9]


def test_a_trial_that_misses_a_requirement_is_never_the_best_and_still_counts(
    opener: Opener,
) -> None:
    search = opener(trials=3, require=("n_weights<20",))
    tell_all(search, measured(0.9, 30))
    assert search.best() is None
    tell_all(search, measured(0.8, 10), measured(0.95, 20))
    for one in (search, opener(trials=3, require=("n_weights<20",))):
        best = one.best()
        assert best is not None and best.number == 1
        assert one.tally().n_complete == 3
        assert one.ask() is None


def test_a_trial_costs_the_same_however_many_there_are(opener: Opener) -> None:
    search = opener(trials=400, sampler="random", pruner="none")

    def count_rows() -> int:
        """Counts what one trial's ask and tell read of the database, row by row."""
        read: list[str] = []

        def hear(_: Any, __: Any, statement: str, *___: Any) -> None:
            read.append(statement)

        engine = search._storage.engine
        sqlalchemy.event.listen(engine, "before_cursor_execute", hear)
        try:
            finish(search)
            search.tally(), search.best(), search.has_enough
        finally:
            sqlalchemy.event.remove(engine, "before_cursor_execute", hear)
        return len(read)

    finish(search)  # the baseline, which was enqueued
    early = count_rows()
    for _ in range(60):
        finish(search)
    assert count_rows() == early


def test_so_many_failures_that_something_else_is_wrong_end_the_study(opener: Opener) -> None:
    search = opener(trials=4)
    for _ in range(3):
        ask = search.ask()
        assert ask is not None
        search.tell(ask.number, TrialResult("failed", None, None, None, reason="no such column"))
    assert search.ask() is None
    assert search.gave_up == "3 trials failed, the last with: no such column"


def test_a_study_of_this_name_with_another_config_is_refused(opener: Opener) -> None:
    opener(fingerprint="one")
    with pytest.raises(UsageError, match="begun with another dataset or config"):
        opener(fingerprint="two")


def test_a_study_is_unfinished_until_its_end_was_noted(opener: Opener) -> None:
    search = opener(trials=2)
    storage = search.study._storage
    finish(search)
    finish(search)
    # All trials are there; the candidate, say, is not: the same command must go on with it.
    assert [one.unfinished for one in find_studies(storage)] == [True]
    search.note_finished()
    assert [(one.unfinished, one.finished_target) for one in find_studies(storage)] == [(False, 2)]
    assert opener(trials=5).ask() is not None
    assert [one.unfinished for one in find_studies(storage)] == [True]


def test_a_study_can_be_read_without_a_worker_to_describe_it(opener: Opener) -> None:
    search = opener()
    finish(search, 0.75)
    reread = reopen_search(search.study._storage, "s-thing", search.config)
    assert reread.description == DESCRIPTION
    assert reread.tally().value == 0.75


def test_one_driver_a_sweep(tmp_path: Path) -> None:
    with lock_sweep(tmp_path, "s"):
        assert is_locked(tmp_path, "s")
        with (
            pytest.raises(MlopsError, match="under way in another process"),
            lock_sweep(tmp_path, "s"),
        ):
            pass
    assert not is_locked(tmp_path, "s")


def test_a_study_whose_maker_died_while_making_it_is_removed_unless_it_is_in_use(
    tmp_path: Path,
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    attrs = {
        "sweep": "whole",
        "home": "here",
        "architecture_path": "thing",
        "config_fingerprint": "c",
        "run_key": "key",
    }
    open_search(storage, "whole-thing", DESCRIPTION, SweepConfig(trials=1), attrs)
    born_late = ("whole-other", "dead-a-thing", "held-thing", "elsewhere-thing")
    for name in born_late:  # what a kill between the making and the run key leaves
        optuna.create_study(study_name=name, storage=storage)
    for sweep in ("whole", "dead", "dead-a", "held"):
        (tmp_path / "sweeps" / sweep).mkdir(parents=True)
    with lock_sweep(tmp_path, "held"):
        remove_unborn(storage, tmp_path)
    left = {study.study_name for study in storage.get_all_studies()}
    assert left == {"whole-thing", "whole-other", "held-thing", "elsewhere-thing"}


def test_a_value_of_zero_is_better_than_a_negative_one(opener: Opener) -> None:
    search = opener()
    finish(search, -1.0)
    number = finish(search, 0.0)
    best = search.best()
    assert best is not None and best.number == number


GRID = dataclasses.replace(
    DESCRIPTION,
    space={
        "n": distribution_to_json(IntDistribution(1, 3)),
        "kind": distribution_to_json(CategoricalDistribution(["a", "b"])),
    },
    baseline={"n": 1, "kind": "a"},
)


def test_a_grid_is_walked_once_through_whatever_interrupts_it_and_ends(opener: Opener) -> None:
    cells = []
    for _ in range(2):  # the second driver goes on where the first one died
        search = opener(trials=50, description=GRID, sampler="grid")
        search.recover()
        for _ in range(3):
            ask = search.ask()
            assert ask is not None
            cells.append((ask.params["n"], ask.params["kind"]))
            search.tell(ask.number, complete(0.5))
    assert sorted(cells) == [(n, kind) for n in (1, 2, 3) for kind in "ab"]
    assert search.ask() is None
    assert search.has_enough


def test_a_cell_of_the_grid_whose_worker_died_is_tried_again(opener: Opener) -> None:
    search = opener(trials=50, description=GRID, sampler="grid")
    first = search.ask()
    assert first is not None
    search.retry(first.number, "killed", charge=True)
    seen = []
    while (ask := search.ask()) is not None:
        seen.append(tuple(sorted(ask.params.items())))
        search.tell(ask.number, complete(0.5))
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_each_sampler_proposes_the_same_again_after_an_interruption(
    opener: Opener, sampler: str
) -> None:
    both = dataclasses.replace(
        DESCRIPTION,
        space={
            "x": distribution_to_json(FloatDistribution(0.0, 1.0)),
            "y": distribution_to_json(FloatDistribution(1e-3, 1.0, log=True)),
            "kind": distribution_to_json(CategoricalDistribution(["a", "b"])),
        },
        baseline={"x": 0.5, "y": 0.1, "kind": "a"},
    )

    def proposals(name: str, n_sessions: int) -> list[Any]:
        found = []
        for _ in range(n_sessions):
            search = opener(trials=24, description=both, sampler=sampler, name=name)
            for _ in range(24 // n_sessions):
                ask = search.ask()
                assert ask is not None
                found.append(ask.params)
                search.tell(ask.number, complete(-((ask.params["x"] - 0.6) ** 2)))
        return found

    whole = proposals("whole-thing", 1)
    assert proposals("parts-thing", 3) == whole
    assert len({params["x"] for params in whole}) > 20


def test_a_warm_start_takes_what_fits_the_space_best_first(opener: Opener) -> None:
    earlier = opener(trials=9, name="old-thing", sampler="random")
    values = []
    for _ in range(9):
        ask = earlier.ask()
        assert ask is not None
        values.append(ask.params["x"])
        earlier.tell(ask.number, complete(ask.params["x"]))
    narrowed = dataclasses.replace(
        DESCRIPTION,
        space={
            "x": distribution_to_json(FloatDistribution(0.0, sorted(values)[-2])),
            "new": distribution_to_json(IntDistribution(1, 5)),
        },
        baseline={"x": 0.1, "new": 3},
    )
    search = opener(trials=9, name="new-thing", description=narrowed, warm_start="old")
    asked = [search.ask() for _ in range(6)]
    expected = [*sorted(values, reverse=True)[1:6], 0.1]
    assert [ask.params for ask in asked if ask] == [{"x": x, "new": 3} for x in expected]


def test_an_existing_study_with_another_space_is_refused(opener: Opener) -> None:
    opener()
    wider = dataclasses.replace(
        DESCRIPTION, space={"x": distribution_to_json(FloatDistribution(0.0, 2.0))}
    )
    with pytest.raises(UsageError, match=r"searches another space .* differ in: x"):
        opener(description=wider)


def test_a_stop_is_heard_and_is_over_for_the_next_driver(opener: Opener) -> None:
    search = opener()
    assert not search.stop_requested
    request_stop(search.study._storage, "s")
    assert search.stop_requested
    assert not opener().stop_requested


def final_result(value: float) -> TrialResult:
    return TrialResult("complete", value, 3, "00", saved=True)


def test_the_median_of_the_seeds_is_chosen_and_a_refit_repeats_it(opener: Opener) -> None:
    search = opener(trials=1, seeds=4, refit=True)
    finals = Finals(search)
    assert finals.pending() == [] and finals.chosen() is None
    ask = search.ask()
    assert ask is not None
    search.set_run_key(ask, "trial")
    search.tell(ask.number, complete(0.9))
    pending = finals.pending()
    assert [final.name for final in pending] == ["seed-00", "seed-01", "seed-02", "seed-03"]
    assert len({ask.seed, *(final.seed for final in pending)}) == 5
    for final, value in zip(pending, (0.7, 0.8, 0.9, 0.6), strict=True):
        finals.begin(final, final.name)
        finals.note(final, final.name, final_result(value))
    chosen = finals.chosen()
    assert chosen is not None
    assert (chosen.name, chosen.run_key, chosen.value) == ("seed-00", "seed-00", 0.7)
    (refit,) = finals.pending()
    assert (refit.kind, refit.seed, refit.epochs) == ("refit", pending[0].seed, 4)
    finals.note(refit, "refit", TrialResult("complete", None, None, "00", saved=True))
    chosen = finals.chosen()
    assert chosen is not None
    assert (chosen.name, chosen.run_key, chosen.value) == ("refit", "refit", 0.7)
    assert finals.pending() == []


def test_the_interval_over_seeds_is_students(opener: Opener) -> None:
    from scipy import stats

    search = opener(trials=1, seeds=3)
    finish(search)
    finals = Finals(search)
    values = [0.7, 0.8, 0.85]
    for final, value in zip(finals.pending(), values, strict=True):
        finals.note(final, final.name, final_result(value))
    summary = finals.summary()
    assert summary is not None
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))


def test_finals_are_found_again_and_begin_anew_for_a_better_trial(opener: Opener) -> None:
    search = opener(trials=1, seeds=2)
    finish(search, 0.5)
    first, second = Finals(search).pending()
    Finals(search).begin(first, "first")
    Finals(search).note(first, "first", final_result(0.5))
    Finals(search).begin(second, "second")
    again = Finals(opener(trials=1, seeds=2))
    assert again.left_behind() == ["second"]
    assert [final.name for final in again.pending()] == ["seed-01"]
    longer = opener(trials=2, seeds=2)
    finish(longer, 0.6)
    assert len(Finals(longer).pending()) == 2


def test_a_seed_that_failed_is_not_the_candidate(opener: Opener) -> None:
    search = opener(trials=1, seeds=2)
    number = finish(search, 0.5)
    finals = Finals(search)
    one, other = finals.pending()
    finals.note(one, "one", TrialResult("failed", None, None, None, reason="killed"))
    finals.note(other, "other", final_result(0.4))
    chosen = finals.chosen()
    assert chosen is not None and (chosen.name, number) == ("seed-01", 0)
    assert finals.summary() is None
