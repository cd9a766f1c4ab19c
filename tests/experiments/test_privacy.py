"""What private trainings spend: the accounting beside closed forms, and the driver's side of it.

Trials train nothing and run in this process; studies, journals and the tracking server are real.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import SweepConfig
from experiments.preparation import check_backend
from experiments.privacy.accounting import Mechanism, calibrate, compose, default_delta, plan
from experiments.privacy.budget import EPOCHS, Budget, trainings_of
from experiments.privacy.space import narrow_private
from experiments.progress import Lines
from experiments.results import leaderboard
from experiments.storage import open_storage
from experiments.sweep import main, run_sweep
from experiments.tasks import Training
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted, run_final, run_trial
from experiments.workers.cluster import WorkerDiedError
from mlops.errors import UsageError
from mlops.mlflow_store import open_client
from mlops.settings import Settings
from tests.conftest import Tracking
from tests.experiments.bare_trials import describe_flat
from tests.faults.zeros import write_network

N_ROWS, DELTA = 1051, 1e-5  # the digits
SPACE = {"batch_size": optuna.distributions.CategoricalDistribution([256, 512])}


@pytest.mark.parametrize(("noise", "n_steps"), [(1.0, 1), (4.0, 1), (20.0, 100), (3.0, 4)])
def test_steps_on_all_rows_cost_what_the_closed_form_says(noise: float, n_steps: int) -> None:
    # Balle & Wang 2018, theorem 8; n steps of Gaussian noise are one of its n-th part's root.
    exact = dp_accounting.get_epsilon_gaussian(noise / math.sqrt(n_steps), DELTA)
    found = compose([(Mechanism(noise, 1.0, 1), n_steps)], DELTA)
    assert exact <= found <= exact * 1.002 + 1e-3


def test_steps_cost_no_more_than_the_moments_accountant_of_the_paper_says() -> None:
    # Abadi et al. 2016, section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta 1e-5: 1.26.
    found = compose([(Mechanism(4.0, 0.01, 100), 100)], 1e-5)
    assert 0.9 < found < 1.26


def test_the_cost_is_that_of_the_library_s_own_accountant() -> None:
    trainings = [(Mechanism(1.1, 0.05, 20), 10), (Mechanism(0.9, 0.1, 10), 7)]
    accountant = dp_accounting.pld.PLDAccountant()
    for one, n_epochs in trainings:
        step = dp_accounting.PoissonSampledDpEvent(
            one.rate, dp_accounting.GaussianDpEvent(one.noise_multiplier)
        )
        accountant.compose(step, n_epochs * one.steps_per_epoch)
    assert compose(trainings, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)


def test_trainings_together_cost_more_than_each_and_less_than_their_sum() -> None:
    one, other = (Mechanism(2.0, 0.05, 20), 10), (Mechanism(1.5, 0.03, 30), 5)
    each = [compose([training], DELTA) for training in (one, other)]
    assert max(each) < compose([one, other], DELTA) < sum(each)
    assert compose([one, one], DELTA) == compose([(one[0], 20)], DELTA)
    assert compose([], DELTA) == compose([(one[0], 0)], DELTA) == 0.0


@settings(max_examples=5, deadline=None)
@given(
    epsilon=st.floats(0.2, 12.0),
    batch_size=st.sampled_from([32, 128, 1051, 5000]),
    epochs=st.integers(1, 30),
)
def test_a_plan_spends_its_epsilon_and_no_more(
    epsilon: float, batch_size: int, epochs: int
) -> None:
    privacy = plan(epsilon, DELTA, 1.0, n_rows=N_ROWS, batch_size=batch_size, epochs=epochs)
    mechanism = privacy.mechanism
    assert 0.98 * epsilon < privacy.spent(epochs) <= epsilon
    assert mechanism.rate == min(1.0, batch_size / N_ROWS)
    assert mechanism.steps_per_epoch * batch_size >= N_ROWS
    less = Mechanism(0.99 * mechanism.noise_multiplier, mechanism.rate, mechanism.steps_per_epoch)
    assert compose([(less, epochs)], DELTA) > epsilon


def test_noise_grows_with_steps_and_as_epsilon_falls() -> None:
    noise = calibrate(2.5, DELTA, 0.05, 100)
    assert calibrate(2.5, DELTA, 0.05, 200) > noise
    assert calibrate(3.0, DELTA, 0.05, 100) < noise


def test_delta_is_never_more_than_a_tenth_of_one_row_s_share() -> None:
    assert default_delta(1000) == default_delta(10_000) == 1e-5
    assert default_delta(50_000) == 2e-6


def test_what_mixes_rows_is_taken_out_of_a_space() -> None:
    flags = optuna.distributions.CategoricalDistribution([False, True])
    weights = optuna.distributions.CategoricalDistribution(["none", "balanced"])
    units = optuna.distributions.IntDistribution(1, 9)
    space = {"batch_norm": flags, "class_weight": weights, "units": units}
    narrowed, wrong = narrow_private({"a:B": space})
    assert wrong == []
    assert narrowed["a:B"]["batch_norm"].choices == (False,)
    assert narrowed["a:B"]["class_weight"].choices == ("none",)
    assert narrowed["a:B"]["units"] == units
    fixed = {"batch_norm": optuna.distributions.CategoricalDistribution([True])}
    _, wrong = narrow_private({"a:B": fixed})
    assert wrong == [
        "batch_norm of a:B can only be false with --dp-epsilon, since anything else mixes rows"
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dp-epsilon", "0"], "--dp-epsilon must be above 0 and at most 100"),
        (["--dp-epsilon", "101"], "above which it promises nothing; got 101"),
        (["--dp-epsilon", "nan"], "--dp-epsilon must be above 0"),
        (["--dp-delta", "1e-5"], "--dp-delta is of private trainings; give --dp-epsilon too"),
        (["--dp-epsilon", "1", "--dp-delta", "1"], "--dp-delta must be above 0 and below 1"),
        (["--dp-epsilon", "1", "--dp-clip", "0"], "--dp-clip must be above 0 and finite"),
        (["--dp-epsilon", "1", "--refit"], "--refit cannot be with --dp-epsilon"),
        (["--dp-epsilon", "1", "--population", "4"], "--population cannot be with --dp-epsilon"),
        (["--dp-epsilon", "1", "--precision", "bfloat16"], "the noise is added in float32"),
        (["--dp-epsilon", "1"], "Put KERAS_BACKEND=jax before the same command"),
    ],
)
def test_what_cannot_be_private_is_refused_before_anything_is_made(
    args: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert main(args) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_private_training_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    check_backend(SweepConfig(dp_epsilon=1.0))
    monkeypatch.setitem(__import__("sys").modules, "jax_privacy", None)
    with pytest.raises(UsageError, match=r"needs jax_privacy.*podium-mlops\[privacy\]"):
        check_backend(SweepConfig(dp_epsilon=1.0))


def fit(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
    """Trains nothing, until it is stopped; `units` is what a trial is worth."""
    assert training.privacy is not None
    value = training.params["batch_size"] / 1000
    history = []
    stopped = False
    for epoch in range(training.epochs):
        history.append({"val_loss": 1.0, "val_accuracy": value})
        if stopped := on_epoch(epoch, history[-1]):
            break
    return Fitted(Trained(None, tuple(history), 0, value, stopped, "0" * 64), write_network)


def fail(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
    """Fails in its second epoch."""
    on_epoch(0, {"val_loss": 1.0, "val_accuracy": 0.1})
    raise ValueError("broken")


def die(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
    """Its worker dies in the second epoch."""
    on_epoch(0, {"val_loss": 1.0, "val_accuracy": 0.1})
    raise WorkerDiedError("its worker died")


class Here:
    """A worker that is this process; `fits` are what becomes of one training after another."""

    has_own_homes = False

    def __init__(self, *fits: Any) -> None:
        self.trainings: list[Training] = []
        self._fits = deque(fits)
        self._done: deque[tuple[int, Any]] = deque()
        self._results: dict[int, Any] = {}

    def n_alive(self) -> int:
        return 1

    def n_joining(self) -> int:
        return 0

    def submit(self, call: Callable[..., Any], task: Any) -> int:
        assert call in (run_trial, run_final)
        self.trainings.append(task.training)
        ticket = len(self.trainings)
        one = self._fits.popleft() if self._fits else fit
        found = call(task, one)
        if found.reason == "WorkerDiedError: its worker died":
            found = WorkerDiedError("its worker died")
        self._results[ticket] = found
        self._done.append((ticket, found))
        return ticket

    def next_done(self, timeout_s: float) -> int | None:
        return self._done.popleft()[0] if self._done else None

    def result(self, ticket: int) -> Any:
        found = self._results.pop(ticket)
        if isinstance(found, Exception):
            raise found
        return found

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return describe_flat(SPACE, {"batch_size": 256})

    def end_silent(self, silent_s: float = 60.0) -> None:
        pass

    def kill(self) -> None:
        pass


def sweep(tracking: Tracking, workers: Here, experiment: str, **changed: Any) -> Any:
    config = SweepConfig(
        architectures=("nobody:Flat",),
        **{"trials": 3, "epochs": 4, "dp_epsilon": 8.0, "sampler": "random", "pruner": "none"}
        | changed,
        experiment=experiment,
    )
    with Lines() as progress:
        return run_sweep(config, settings=tracking.settings, cluster=workers, progress=progress)


@pytest.fixture(autouse=True)
def on_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")


def open_study(settings: Settings, result: Any) -> optuna.Study:
    name = result.studies[0].study
    return optuna.load_study(study_name=name, storage=open_storage(settings.study_url))


def test_a_sweep_tells_what_all_its_trainings_spent_together(tracking: Tracking) -> None:
    workers = Here()
    result = sweep(tracking, workers, "private", seeds=2)
    privacies = [one.privacy for one in workers.trainings]
    assert len(privacies) == 5  # three trials, and two seeds
    expected = compose([(one.mechanism, 4) for one in privacies if one], DELTA)
    spent = result.spent
    assert (spent.epsilon, spent.delta, spent.n_trainings) == (8.0, DELTA, 5)
    assert spent.total == pytest.approx(expected)
    assert spent.total > 8.0
    assert f"epsilon {spent.total:.4g} at delta 1e-05, over 5 training(s)" in leaderboard(result)
    assert result.to_json()["privacy"]["total"] == spent.total

    client = open_client(tracking.url)
    experiment = client.get_experiment_by_name("private")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.data.metrics["dp_epsilon_total"] for run in parents] == [spent.total]
    assert float(parents[0].data.params["dp_delta"]) == DELTA
    assert "Privacy of the training rows" in parents[0].data.tags["mlflow.note.content"]
    assert len(children) == 5
    noises = {one.mechanism.noise_multiplier for one in privacies if one}
    for run in children:
        params = run.data.params
        assert (params["dp_epsilon"], params["dp_delta"], params["dp_clip"]) == (
            "8.0",
            "1e-05",
            "1.0",
        )
        assert float(params["dp_noise_multiplier"]) in noises

    # Asked for again, it is told again, and nothing is trained.
    again = sweep(tracking, Here(), "private", seeds=2, study=result.sweep_id)
    assert again.spent == spent


def test_a_failed_a_dead_and_a_pruned_trial_spend_what_they_were_trained(
    tracking: Tracking,
) -> None:
    workers = Here(fail, die, fit)
    result = sweep(tracking, workers, "private-failed", trials=2)
    study = open_study(tracking.settings, result)
    # Begun were two epochs of the one that failed and of the one whose worker died, and all four of
    # those that took their places.
    assert sorted(n_epochs for _, n_epochs in trainings_of(study)) == [2, 2, 4, 4]
    assert [trial.user_attrs[EPOCHS] for trial in study.trials][:2] == [2, 2]
    assert result.spent.n_trainings == 4
    assert result.spent.total == pytest.approx(compose(trainings_of(study), DELTA))


def test_a_pruned_trial_spends_the_epochs_that_it_ran(tracking: Tracking) -> None:
    def fall(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
        worse = {"val_loss": 1.0, "val_accuracy": 0.0}
        assert [on_epoch(epoch, worse) for epoch in range(3)] == [False, False, True]  # pruned
        return Fitted(Trained(None, (worse,) * 3, 0, 0.0, True, "0" * 64), write_network)

    workers = Here(fit, fit, fit, fit, fit, fall)
    result = sweep(tracking, workers, "private-pruned", trials=6, pruner="median")
    assert result.studies[0].n_pruned == 1
    found = sorted(n for _, n in trainings_of(open_study(tracking.settings, result)))
    assert found == [3, 4, 4, 4, 4, 4]


def test_a_training_that_goes_on_from_a_checkpoint_counts_the_epochs_it_ran_itself(
    tracking: Tracking,
) -> None:
    def go_on(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
        fitted = fit(training, on_epoch, refit)
        return Fitted(
            Trained(None, fitted.trained.history, 0, 0.3, False, "0" * 64, n_before=1),
            write_network,
        )

    result = sweep(tracking, Here(die, go_on), "private-resumed", trials=1)
    found = [n for _, n in trainings_of(open_study(tracking.settings, result))]
    assert found == [2, 3]


def test_nothing_is_noted_of_a_sweep_that_is_not_private() -> None:
    budget = Budget(SweepConfig(), N_ROWS)
    assert budget.plan({"batch_size": 64}) is None
    assert budget.spent([]) is None
