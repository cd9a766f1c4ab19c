from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments.objectives import (
    LEAST_TIMED,
    MOST_TIMED,
    OBJECTIVES,
    Direction,
    Requirement,
    find_costs,
    find_quality,
    measure_costs,
    objectives_of,
    parse_objectives,
    parse_requirements,
    requirements_of,
)
from experiments.pareto import Point, find_members, pareto_set, write_pareto


def objectives(*names: str) -> Any:
    found, wrong = parse_objectives(names)
    assert wrong == []
    return found


def requirements(*entries: str) -> Any:
    found, wrong = parse_requirements(entries)
    assert wrong == []
    return found


# What users write.


def test_objectives_are_read_in_their_order() -> None:
    found = objectives("latency_ms", "val_accuracy", "n_weights")
    assert [one.name for one in found] == ["latency_ms", "val_accuracy", "n_weights"]
    assert [one.direction for one in found] == ["minimize", "maximize", "minimize"]
    assert find_quality(found).name == "val_accuracy"


@pytest.mark.parametrize(
    ("names", "fragment"),
    [
        (["val_acuracy"], "unknown objective 'val_acuracy'; expected one of val_accuracy,"),
        (["val_acuracy"], "did you mean 'val_accuracy'?"),
        (["val_accuracy", "n_weights", "val_accuracy"], "'val_accuracy' is named twice"),
        (["latency_ms", "n_weights"], "no objective of quality is named; add one of val_accuracy,"),
        ([], "no objective of quality is named"),
    ],
)
def test_what_is_no_objective_is_said(names: list[str], fragment: str) -> None:
    _, (wrong,) = parse_objectives(names)
    assert fragment in wrong


def test_all_wrong_objectives_are_said_at_once() -> None:
    found, wrong = parse_objectives(["speed", "val_accuracy", "size"])
    assert [one.name for one in found] == ["val_accuracy"]
    assert len(wrong) == 2


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("latency_ms<5", Requirement("latency_ms", "<", 5.0)),
        (" latency_ms <= 5e-1 ", Requirement("latency_ms", "<=", 0.5)),
        ("val_accuracy > 0.9", Requirement("val_accuracy", ">", 0.9)),
        ("val_elbo>=-120", Requirement("val_elbo", ">=", -120.0)),
        ("n_weights<=100_000", Requirement("n_weights", "<=", 100_000.0)),
    ],
)
def test_requirements_are_read(entry: str, expected: Requirement) -> None:
    assert requirements(entry) == (expected,)


@pytest.mark.parametrize(
    "entry", ["latency_ms<5", "val_accuracy>=0.9", "size_bytes<=1500000", "val_elbo>-0.125"]
)
def test_a_requirement_is_written_as_it_was_read(entry: str) -> None:
    (one,) = requirements(entry)
    assert str(one) == entry
    assert requirements(str(one)) == (one,)


@pytest.mark.parametrize(
    ("entry", "fragment"),
    [
        ("latency_ms", "'latency_ms' is not of the form metric<number"),
        ("latency_ms", 'in quotes: "latency_ms<5"'),
        ("latency_ms=5", "is not of the form metric<number"),
        ("latency_ms<", "is not of the form"),
        ("latency_ms<<5", "is not of the form"),
        ("latency_ms=<5", "is not of the form"),
        ("<5", "is not of the form"),
        ("", "'' is not of the form"),
        ("latency<5", "'latency<5': unknown metric 'latency'; expected one of val_accuracy,"),
        ("latency<5", "did you mean 'latency_ms'?"),
        ("latency_ms<5ms", "expected a finite number of milliseconds, got '5ms'"),
        ("size_bytes<1MB", "expected a finite number of bytes, got '1MB'"),
        ("n_weights<inf", "expected a finite number, got 'inf'"),
        ("n_weights<nan", "expected a finite number, got 'nan'"),
        ("val_accuracy>=90", "cannot be kept; val_accuracy is from 0 to 1"),
        ("val_accuracy>1", "cannot be kept"),
        ("latency_ms<0", "cannot be kept; latency_ms is 0 or more"),
    ],
)
def test_what_is_no_requirement_is_said(entry: str, fragment: str) -> None:
    found, (wrong,) = parse_requirements([entry])
    assert found == ()
    assert fragment in wrong
    assert "\n" not in wrong


@pytest.mark.parametrize("entry", ["val_accuracy>=1", "latency_ms<=0", "latency_ms>5"])
def test_what_can_just_be_kept_is_a_requirement(entry: str) -> None:
    assert len(requirements(entry)) == 1


def test_requirements_that_exclude_each_other_are_said() -> None:
    for pair in (("latency_ms<5", "latency_ms>=5"), ("latency_ms<=5", "latency_ms>9")):
        _, (wrong,) = parse_requirements(pair)
        assert wrong == f"'{pair[0]}' and '{pair[1]}' cannot both be kept"
    assert len(requirements("latency_ms<=5", "latency_ms>=5", "latency_ms>1", "n_weights>9")) == 4


def test_a_requirement_said_twice_counts_once() -> None:
    assert len(requirements("latency_ms<5", "latency_ms < 5.0")) == 1


# Which architecture has what.


def test_each_task_has_its_own_objective_of_quality() -> None:
    both = objectives("latency_ms", "val_macro_f1", "val_elbo", "n_weights")
    classifier = [one.name for one in objectives_of(both, "classifier", "val_accuracy")]
    assert classifier == ["latency_ms", "val_macro_f1", "n_weights"]
    vae = [one.name for one in objectives_of(both, "vae", "val_elbo")]
    assert vae == ["latency_ms", "val_elbo", "n_weights"]


def test_a_task_that_nobody_thought_of_has_its_usual_objective_in_the_same_place() -> None:
    two = objectives("latency_ms", "val_macro_f1", "n_weights")
    vae = [one.name for one in objectives_of(two, "vae", "val_elbo")]
    assert vae == ["latency_ms", "val_elbo", "n_weights"]
    (one,) = objectives_of(objectives("val_elbo"), "classifier", "val_macro_f1")
    assert one.name == "val_macro_f1"


def test_requirements_of_the_other_task_are_left_out() -> None:
    needs = requirements("latency_ms<5", "val_accuracy>0.9", "val_elbo>-100")
    assert [str(one) for one in requirements_of(needs, "vae")] == ["latency_ms<5", "val_elbo>-100"]


def test_only_costs_that_somebody_asks_for_are_measured() -> None:
    found = find_costs(
        objectives("val_accuracy", "n_weights"),
        requirements("latency_ms<5", "n_weights<9", "val_accuracy>0.5"),
    )
    assert found == ("n_weights", "latency_ms")


# Violations.


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("latency_ms<5", 10.0, 1.0),
        ("latency_ms<5", 2.5, -0.5),
        ("val_accuracy>=0.8", 0.6, 0.25),
        ("val_elbo>=-100", -150.0, 0.5),
        ("val_elbo>=0", -3.0, 3.0),
        ("latency_ms<=5", 5.0, 0.0),
        ("latency_ms<=5", math.inf, math.inf),
    ],
)
def test_a_violation_is_the_distance_in_units_of_the_bound(
    entry: str, value: float, expected: float
) -> None:
    (need,) = requirements(entry)
    assert need.violation({need.metric: value}) == pytest.approx(expected)


def test_a_strict_bound_itself_is_a_violation() -> None:
    (need,) = requirements("latency_ms<5")
    assert 0 < need.violation({"latency_ms": 5.0}) < 1e-300


@pytest.mark.parametrize("values", [{}, {"latency_ms": math.nan}])
def test_what_was_not_measured_keeps_no_requirement(values: dict[str, float]) -> None:
    for need in requirements("latency_ms<5") + requirements("latency_ms>=1"):
        assert not need.is_met(values)
        assert need.violation(values) == math.inf


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    operator=st.sampled_from(["<", "<=", ">", ">="]),
    bound=FINITE,
    value=st.one_of(FINITE, st.sampled_from([math.inf, -math.inf])),
)
def test_a_violation_is_above_zero_exactly_where_the_bound_is_not_kept(
    operator: Any, bound: float, value: float
) -> None:
    need = Requirement("val_elbo", operator, bound)
    python = {"<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound}
    for at in (value, bound):
        need_met = need.is_met({"val_elbo": at})
        violation = need.violation({"val_elbo": at})
        assert need_met == (violation <= 0)
        assert not math.isnan(violation)
    assert need.is_met({"val_elbo": value}) == python[operator]


def test_optuna_takes_violations_as_constraints_and_finds_what_is_feasible() -> None:
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=0)
    )
    needs = requirements("latency_ms<5", "n_weights<=3000")
    for latency_ms in (1.0, 4.0, 5.0, 8.0):
        trial = study.ask()
        values = {"latency_ms": latency_ms, "n_weights": 1000 * latency_ms}
        for need in needs:
            trial.set_constraint(str(need), need.violation(values))
        study.tell(trial, [latency_ms / 10, latency_ms])
    assert [trial.number for trial in study.best_trials] == [0]
    constraints = study.get_trials()[2].constraints
    assert constraints["latency_ms<5"] > 0
    assert constraints["n_weights<=3000"] == pytest.approx(2 / 3)


# The Pareto set.


def naive_set(points: np.ndarray, directions: Sequence[Direction]) -> list[int]:
    """The definition, word for word."""
    signs = np.array([-1.0 if one == "maximize" else 1.0 for one in directions])
    losses = points * signs
    known = [i for i in range(len(losses)) if not np.isnan(losses[i]).any()]

    def dominates(a: int, b: int) -> bool:
        return bool((losses[a] <= losses[b]).all() and (losses[a] < losses[b]).any())

    return [i for i in known if not any(dominates(j, i) for j in known)]


@st.composite
def clouds(draw: st.DrawFn) -> tuple[np.ndarray, list[Direction]]:
    k = draw(st.integers(1, 4))
    few = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, -math.inf, math.nan])
    number = draw(st.sampled_from([few, st.floats(width=16, allow_nan=True)]))
    rows = draw(st.lists(st.lists(number, min_size=k, max_size=k), max_size=40))
    directions: list[Direction] = draw(
        st.lists(st.sampled_from(["maximize", "minimize"]), min_size=k, max_size=k)
    )
    return np.array(rows, float).reshape(len(rows), k), directions


@given(clouds())
def test_the_pareto_set_is_what_the_definition_says(
    cloud: tuple[np.ndarray, list[Direction]],
) -> None:
    points, directions = cloud
    assert pareto_set(points, directions).tolist() == naive_set(points, directions)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_pareto_set_of_more_points_than_one_block_is_right(k: int) -> None:
    rng = np.random.default_rng(k)
    points = rng.integers(0, 40, (700, k)).astype(float)
    directions: list[Direction] = ["minimize", "maximize", "minimize"]
    assert pareto_set(points, directions[:k]).tolist() == naive_set(points, directions[:k])


def test_the_pareto_set_of_nothing_is_empty() -> None:
    assert pareto_set([], ["minimize", "maximize"]).tolist() == []
    assert pareto_set([[math.nan, 1.0]], ["minimize", "maximize"]).tolist() == []


def test_equal_points_are_all_members() -> None:
    assert pareto_set([[1, 1], [1, 1], [2, 0], [2, 2]], ["minimize"] * 2).tolist() == [0, 1, 2]


def test_the_pareto_set_agrees_with_optuna() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    values = np.random.default_rng(0).integers(0, 12, (60, 2)).astype(float)
    for row in values:
        study.tell(study.ask(), row.tolist())
    best = [trial.number for trial in study.best_trials]
    assert pareto_set(values, ["maximize", "minimize"]).tolist() == sorted(best)


# Members, table and plot.


def points_of(rows: Sequence[tuple[float, float]]) -> list[Point]:
    return [
        Point(
            number,
            {"val_accuracy": accuracy, "latency_ms": latency_ms, "n_weights": 1000 * latency_ms},
            {"units": 2**number, "activation": "relu"},
        )
        for number, (accuracy, latency_ms) in enumerate(rows)
    ]


ROWS = [(0.90, 1.0), (0.95, 4.0), (0.94, 4.5), (0.99, 6.0), (0.95, 4.0), (0.5, 0.5)]
TWO = ("val_accuracy", "latency_ms")


def test_members_keep_what_is_required_and_come_best_first() -> None:
    members = find_members(points_of(ROWS), objectives(*TWO), requirements("latency_ms<5"))
    assert [one.number for one in members] == [1, 4, 0, 5]
    everyone = find_members(points_of(ROWS), objectives(*TWO))
    assert [one.number for one in everyone] == [3, 1, 4, 0, 5]


def test_members_are_sorted_by_the_first_objective_whichever_it_is() -> None:
    members = find_members(points_of(ROWS), objectives("latency_ms", "val_accuracy"))
    assert [one.number for one in members] == [5, 0, 1, 4, 3]


def test_there_are_no_members_where_nothing_is_feasible() -> None:
    needs = requirements("latency_ms<0.1")
    assert find_members(points_of(ROWS), objectives(*TWO), needs) == []
    assert find_members([], objectives(*TWO)) == []


def test_a_trial_without_one_of_the_objectives_is_no_member() -> None:
    lacking = Point(9, {"val_accuracy": 1.0}, {})
    members = find_members([*points_of(ROWS), lacking], objectives(*TWO))
    assert 9 not in [one.number for one in members]


def test_one_objective_has_the_best_feasible_trials_as_its_set() -> None:
    needs = requirements("latency_ms<5")
    members = find_members(points_of(ROWS), objectives("val_accuracy"), needs)
    assert [one.number for one in members] == [1, 4]


def test_the_table_has_a_line_a_member(tmp_path: Path) -> None:
    members = write_pareto(tmp_path, "cnn", points_of(ROWS), objectives(*TWO))
    with (tmp_path / "pareto.csv").open() as file:
        head, *lines = csv.reader(file)
    assert head == ["number", "val_accuracy", "latency_ms", "n_weights", "activation", "units"]
    assert [int(line[0]) for line in lines] == [one.number for one in members]
    assert lines[0] == ["3", "0.99", "6.0", "6000.0", "relu", "8"]


@pytest.mark.parametrize(
    ("names", "needs", "panels"),
    [
        (TWO, (), 1),
        (TWO, ("latency_ms<5", "val_accuracy>=0.9"), 1),
        (("latency_ms", "val_accuracy", "n_weights"), ("n_weights<=4000",), 2),
        (("val_accuracy",), ("latency_ms<5",), 1),
        (TWO, ("latency_ms<0.01",), 1),
        (TWO, ("size_bytes<9",), 2),
    ],
)
def test_the_plot_has_a_panel_for_each_further_metric(
    tmp_path: Path, names: tuple[str, ...], needs: tuple[str, ...], panels: int
) -> None:
    write_pareto(tmp_path, "cnn", points_of(ROWS), objectives(*names), requirements(*needs))
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.size[0] == round(120 * (1 + 5.5 * panels))


def test_a_study_without_complete_trials_has_an_empty_table_and_plot(tmp_path: Path) -> None:
    assert write_pareto(tmp_path, "cnn", [], objectives(*TWO), requirements("latency_ms<5")) == []
    assert (tmp_path / "pareto.csv").read_text().splitlines() == ["number,val_accuracy,latency_ms"]
    assert (tmp_path / "pareto.png").is_file()


def test_one_number_alone_is_not_drawn(tmp_path: Path) -> None:
    write_pareto(tmp_path, "cnn", points_of(ROWS), objectives("val_accuracy"))
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.csv"]


# Costs.


class Clock:
    """Moves on when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Sized:
    """A model of so many weights."""

    def count_params(self) -> int:
        return 4242


ROW = np.zeros((1, 3), np.float32)


def latency_ms(seconds: Sequence[float]) -> tuple[float, int]:
    """Median latency of passes that take so long, again and again, and how many there were."""
    clock, n_passes = Clock(), 0

    def forward(row: Any) -> list[np.ndarray]:
        nonlocal n_passes
        clock.now_s += seconds[n_passes % len(seconds)]
        n_passes += 1
        return [row, row]

    costs = measure_costs(
        Sized(),
        Path("unused"),
        ROW,
        ("latency_ms",),
        compile_forward=lambda model, row: forward,
        clock=clock,
    )
    assert set(costs) == {"latency_ms"}
    return costs["latency_ms"], n_passes


def test_latency_is_the_median_of_the_passes_after_the_warm_up() -> None:
    latency, n_passes = latency_ms([9.0, 9.0, 9.0] + [0.001] * 60 + [0.004] * 40)
    assert latency == pytest.approx(1.0)
    assert n_passes == MOST_TIMED + 3


def test_a_slow_network_is_timed_a_few_times_only() -> None:
    latency, n_passes = latency_ms([2.0])
    assert latency == pytest.approx(2000.0)
    assert n_passes == LEAST_TIMED + 3


def test_nothing_is_compiled_for_what_the_weights_and_the_file_say(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"x" * 1234)

    def refuse(model: Any, row: np.ndarray) -> Any:
        raise AssertionError("compiled")

    costs = measure_costs(
        Sized(),
        tmp_path / "model.keras",
        ROW,
        find_costs(objectives("val_accuracy", "n_weights", "size_bytes"), ()),
        compile_forward=refuse,
    )
    assert costs == {"n_weights": 4242, "size_bytes": 1234}


def test_every_cost_is_measured_on_a_network_of_keras(tmp_path: Path) -> None:
    import keras

    from mlops.packaging import save_network

    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    model = keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(3)(x)))
    network = tmp_path / "model.keras"
    save_network(model, network)
    costs = measure_costs(model, network, np.ones((1, 4), np.float32))
    assert set(costs) == {name for name, one in OBJECTIVES.items() if one.is_cost}
    assert costs["n_weights"] == (4 * 8 + 8) + 4 * 8 + (8 * 3 + 3)
    assert costs["size_bytes"] == network.stat().st_size
    assert 0 < costs["latency_ms"] < 1000
