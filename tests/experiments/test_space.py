from __future__ import annotations

import math
import tomllib
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from experiments.built_in import BUILT_IN
from experiments.entries import parse_fix, static_errors, table_name
from experiments.space import (
    Space,
    fits,
    grid,
    grid_cell,
    grid_size,
    narrow,
    narrow_all,
    nearest,
)

SPACE: Space = {
    "units": IntDistribution(32, 512, log=True),
    "layers": IntDistribution(1, 3),
    "even": IntDistribution(2, 20, step=2),
    "dropout": FloatDistribution(0.0, 0.5),
    "shift": FloatDistribution(0.0, 1.0, step=0.25),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "filters": CategoricalDistribution([16, 32, 64]),
    "rate": CategoricalDistribution([0, 0.5]),
    "norm": CategoricalDistribution([False, True]),
    "cell": CategoricalDistribution(["gru", "lstm"]),
    "penalty": CategoricalDistribution([None, "l2"]),
}
WHERE = "[space.rnn]"


def narrowed(text: str) -> Any:
    """Returns the distribution that an entry of a file gives the param it names."""
    table = tomllib.loads(text)
    space, errors = narrow(SPACE, table, WHERE)
    assert errors == []
    assert {name for name in SPACE if space[name] != SPACE[name]} <= set(table)
    return space[next(iter(table))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("units = 64", CategoricalDistribution([64])),
        ("dropout = 0", CategoricalDistribution([0.0])),
        ("norm = true", CategoricalDistribution([True])),
        ("cell = 'lstm'", CategoricalDistribution(["lstm"])),
        ("penalty = 'l2'", CategoricalDistribution(["l2"])),
        ("filters = 128", CategoricalDistribution([128])),
        ("filters = [8, 16]", CategoricalDistribution([8, 16])),
        ("rate = [0, 1]", CategoricalDistribution([0.0, 1.0])),
        ("units = [64, 128]", CategoricalDistribution([64, 128])),
        ("dropout = [0, 0.5]", CategoricalDistribution([0.0, 0.5])),
        ("units = {high = 64}", IntDistribution(32, 64, log=True)),
        ("units = {low = 8, high = 1024}", IntDistribution(8, 1024, log=True)),
        ("units = {low = 0, log = false}", IntDistribution(0, 512)),
        ("units = {step = 32}", IntDistribution(32, 512, step=32)),
        ("units = {low = 1, high = 10, step = 4}", IntDistribution(1, 9, step=4)),
        ("layers = {high = 5}", IntDistribution(1, 5)),
        ("layers = {log = true}", IntDistribution(1, 3, log=True)),
        ("even = {high = 9}", IntDistribution(2, 8, step=2)),
        ("even = {log = true}", IntDistribution(2, 20, log=True)),
        ("dropout = {high = 1}", FloatDistribution(0.0, 1.0)),
        ("dropout = {step = 0.2}", FloatDistribution(0.0, 0.4, step=0.2)),
        ("dropout = {low = 0.1, high = 0.1}", FloatDistribution(0.1, 0.1)),
        ("learning_rate = {low = 1e-5}", FloatDistribution(1e-5, 1e-2, log=True)),
        ("learning_rate = {log = false}", FloatDistribution(1e-4, 1e-2)),
        ("filters = {low = 8, high = 64, log = true}", IntDistribution(8, 64, log=True)),
        ("rate = {low = 0, high = 1}", FloatDistribution(0.0, 1.0)),
    ],
)
def test_an_entry_takes_the_place_of_what_the_architecture_says(text: str, expected: Any) -> None:
    assert narrowed(text) == expected
    choices = getattr(expected, "choices", ())
    assert [*map(type, getattr(narrowed(text), "choices", ()))] == [*map(type, choices)]


STATIC = [
    ("dropout = {low = 1, high = 0}", "dropout: low must be at most high, got 1 and 0"),
    ("dropout = {low = 0, log = true}", "dropout: low must be above 0 where log is true, got 0"),
    ("dropout = {low = -1.5, log = true}", "dropout: low must be above 0 where log is true"),
    ("dropout = {step = 0}", "dropout: step must be above 0, got 0"),
    ("dropout = {step = -0.1}", "dropout: step must be above 0, got -0.1"),
    ("dropout = {step = 0.1, log = true}", "dropout: step and log do not go together"),
    ("dropout = {}", "dropout: says nothing; expected low, high, step, log"),
    ("dropout = {hihg = 1}", "dropout: unknown key 'hihg'; expected one of low, high, step, log;"),
    ("dropout = {hihg = 1}", "did you mean 'high'?"),
    ("dropout = {low = nan}", "dropout: low must be finite, got nan"),
    ("dropout = {high = inf}", "dropout: high must be finite, got inf"),
    ("dropout = {low = '0'}", "dropout: low must be a number, got '0'"),
    ("dropout = {low = true}", "dropout: low must be a number, got True"),
    ("dropout = {log = 1}", "dropout: log must be true or false, got 1"),
    ("filters = []", "filters: has no choices; expected at least one"),
    ("filters = [16, 32, 16]", "filters: names a choice twice"),
    ("rate = [1, 1.0]", "rate: names a choice twice"),
    ("rate = [0.5, nan]", "rate: must be finite, got nan"),
    ("rate = [[1]]", "rate: must be numbers, texts, true or false, got [1]"),
    ("rate = 2020-01-01", "rate: must be numbers, texts, true or false, got datetime.date"),
    ("cell = ''", "cell: must not be an empty text"),
    ("units = 99999999999999999999", "units: must be a whole number between -2**53 and 2**53"),
    (f"dropout = {10**400}", "dropout: must be a whole number between -2**53 and 2**53"),
]
DYNAMIC = [
    ("unist = 3", "unist: there is no such param; expected one of units, layers"),
    ("unist = 3", "did you mean 'units'?"),
    ("units = 64.0", "units: must be a whole number, got 64.0"),
    ("units = true", "units: must be a whole number, got True"),
    ("units = [64, 'x']", "units: must be a whole number, got 'x'"),
    ("units = {low = 64.5}", "units: low must be a whole number, got 64.5"),
    ("units = {step = 0.5}", "units: step must be a whole number, got 0.5"),
    ("units = {low = 513}", "units: low must be at most high, got 513 and 512"),
    ("units = {low = 0}", "units: low must be above 0 where log is true, got 0"),
    ("dropout = {log = true}", "dropout: low must be above 0 where log is true, got 0.0"),
    ("dropout = '0.1'", "dropout: must be a number, got '0.1'"),
    ("dropout = false", "dropout: must be a number, got False"),
    ("dropout = {low = -1e308, high = 1e308}", "dropout: low and high are too far apart"),
    ("dropout = {step = 1e-300}", "dropout: step 1e-300 is too small for the range"),
    (
        "dropout = {low = 0.12345678901234567, high = 100, step = 0.33333333333333331}",
        "dropout: low and step have more digits than a float holds",
    ),
    ("filters = 16.5", "filters: must be a whole number, got 16.5"),
    ("filters = 'many'", "filters: many is unknown; expected one of 16, 32, 64"),
    ("filters = {high = 64}", "filters: is one of 16, 32, 64; a range in their place needs both"),
    ("filters = {low = 1, high = 2.5}", "filters: high must be a whole number, got 2.5"),
    ("norm = 'True'", "norm: True is unknown; expected one of false, true; did you mean 'true'?"),
    ("norm = 1", "norm: 1 is unknown; expected one of false, true"),
    ("cell = 'lstn'", "cell: lstn is unknown; expected one of gru, lstm; did you mean 'lstm'?"),
    ("cell = {low = 1, high = 2}", "cell: is one of gru, lstm; expected a list of choices"),
    ("norm = {low = 0, high = 1}", "norm: is one of false, true; expected a list of choices"),
    ("penalty = 3", "penalty: 3 is unknown; expected one of l2"),
]


@pytest.mark.parametrize(("text", "fragment"), STATIC + DYNAMIC)
def test_a_wrong_entry_is_named_as_it_is_written_and_changes_nothing(
    text: str, fragment: str
) -> None:
    space, errors = narrow(SPACE, tomllib.loads(text), WHERE)
    assert space == SPACE
    assert f"{WHERE} {fragment}" in errors[0] or fragment in errors[0]
    assert errors[0].startswith(f"{WHERE} ")
    assert not errors[0].endswith(".")


@pytest.mark.parametrize(("text", "fragment"), STATIC)
def test_what_no_architecture_could_take_is_refused_without_one(text: str, fragment: str) -> None:
    errors = static_errors(tomllib.loads(text), WHERE)
    assert fragment in errors[0]
    assert errors[0].startswith(f"{WHERE} ")


@pytest.mark.parametrize(("text", "fragment"), DYNAMIC)
def test_what_some_architecture_could_take_is_not(text: str, fragment: str) -> None:
    assert static_errors(tomllib.loads(text), WHERE) == []


def test_all_that_is_wrong_in_a_table_is_said() -> None:
    table = {"unist": 3, "units": 1.5, "cell": [], "dropout": {"low": math.nan, "step": 0}}
    _, errors = narrow(SPACE, table, WHERE)
    assert len(errors) == 5


def test_the_head_of_a_table_is_quoted_where_toml_needs_it() -> None:
    assert table_name("cnn") == "[space.cnn]"
    assert table_name("my.module:Own") == '[space."my.module:Own"]'


# --- fixes


@pytest.mark.parametrize(
    ("entry", "architecture", "param", "value"),
    [
        ("learning_rate=0.001", None, "learning_rate", 0.001),
        ("learning_rate=1e-3", None, "learning_rate", 0.001),
        ("dropout=.5", None, "dropout", 0.5),
        ("cnn.filters=32", "cnn", "filters", 32),
        ("my.module:Own.units=8", "my.module:Own", "units", 8),
        ("norm=true", None, "norm", True),
        ("norm=True", None, "norm", "True"),
        ("cell=gru", None, "cell", "gru"),
        ("cell='gru'", None, "cell", "gru"),
        (" cell = gru ", None, "cell", "gru"),
        ("cell=a=b", None, "cell", "a=b"),
        ("cell=2020-01-01", None, "cell", "2020-01-01"),
        ("cell=1\nx=2", None, "cell", "1\nx=2"),
    ],
)
def test_a_fix_names_a_param_and_its_value(
    entry: str, architecture: str | None, param: str, value: Any
) -> None:
    (fix,), wrong = parse_fix([entry])
    assert wrong == []
    assert (fix.architecture, fix.param, fix.value) == (architecture, param, value)
    assert type(fix.value) is type(value)
    assert fix.key == entry.partition("=")[0].strip()


@pytest.mark.parametrize("entry", ["", "a", "a=", "=1", "cnn.=1", ".a=1", " = "])
def test_a_fix_that_says_nothing_is_refused(entry: str) -> None:
    fixes, wrong = parse_fix([entry])
    assert fixes == []
    assert f"{entry!r} is not of the form name=value" in wrong[0]


@pytest.mark.parametrize("entry", ["a=[1]", "a={low=1}"])
def test_a_fix_is_one_value(entry: str) -> None:
    fixes, wrong = parse_fix([entry])
    assert fixes == []
    assert "a must be one value" in wrong[0]
    assert "under [space.NAME]" in wrong[0]


def own(*params: str) -> Space:
    return {param: SPACE[param] for param in params}


DNN, RNN, OWN = BUILT_IN["dnn"], BUILT_IN["rnn"], "module:Own"
SPACES = {DNN: own("units", "dropout"), RNN: own("units", "cell")}


def test_each_architecture_is_narrowed_by_what_is_meant_for_it() -> None:
    tables: dict[str, dict[str, Any]] = {"dnn": {"units": {"low": 64}}, "cnn": {"filters": 16}}
    fixes = ("dropout=0.3", "rnn.units=256", "cell=lstm", "cnn.filters=3")
    narrowed, errors = narrow_all(SPACES, tables, fixes)
    assert errors == []
    assert narrowed == {
        DNN: {
            "units": IntDistribution(64, 512, log=True),
            "dropout": CategoricalDistribution([0.3]),
        },
        RNN: {
            "units": CategoricalDistribution([256]),
            "cell": CategoricalDistribution(["lstm"]),
        },
    }
    assert SPACES[DNN] == own("units", "dropout")


def test_a_fix_goes_before_what_the_table_leaves() -> None:
    narrowed, errors = narrow_all(SPACES, {"dnn": {"dropout": 0.1}}, ("dropout=0.4",))
    assert errors == []
    assert narrowed[DNN]["dropout"] == CategoricalDistribution([0.4])


def test_nothing_said_changes_nothing() -> None:
    assert narrow_all(SPACES, {}, ()) == (SPACES, [])


def test_an_unknown_param_of_a_fix_is_answered_with_the_nearest_one() -> None:
    fixes = ("unist=3", "rnn.dropout=0.5", "cell=x", "vae.latent=3")
    first, second, third = sorted(narrow_all(SPACES, {}, fixes)[1])
    assert "--fix cell: x is unknown; expected one of gru, lstm" in first
    assert "--fix rnn.dropout: there is no such param; expected one of units, cell" in second
    assert "--fix unist: there is no such param; expected one of units, dropout, cell" in third
    assert "did you mean 'units'?" in third


def test_what_is_wrong_for_two_architectures_is_said_once() -> None:
    errors = narrow_all(SPACES, {}, ("units=1.5",))[1]
    assert errors == ["--fix units: must be a whole number, got 1.5"]


def test_an_own_architecture_is_called_as_on_the_command_line() -> None:
    errors = narrow_all({OWN: own("units")}, {OWN: {"units": 1.5}}, ())[1]
    assert errors == ['[space."module:Own"] units: must be a whole number, got 1.5']


# --- params in a space


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("units", 1, 32),
        ("units", 10**6, 512),
        ("units", 100.4, 100),
        ("units", math.inf, 512),
        ("even", 7, 6),
        ("even", 7.5, 8),
        ("shift", 0.6, 0.5),
        ("shift", 2, 1.0),
        ("dropout", 0.7, 0.5),
        ("dropout", 0, 0.0),
        ("filters", 40, 32),
        ("filters", 32, 32),
        ("filters", "many", 16),
        ("norm", True, True),
        ("norm", 1, False),
        ("cell", "lstm", "lstm"),
        ("cell", "rnn", "gru"),
        ("penalty", None, None),
    ],
)
def test_the_nearest_value_is_inside(name: str, value: Any, expected: Any) -> None:
    moved = nearest(SPACE, {name: value})
    assert moved == {name: expected}
    assert type(moved[name]) is type(expected)


def test_what_has_no_place_in_the_space_is_left_out() -> None:
    assert nearest(SPACE, {"other": 1, "units": "many", "dropout": math.nan, "layers": True}) == {}


def test_params_fit_a_space_only_whole_and_inside() -> None:
    params = {name: values[0] for name, values in grid(SPACE).items()}
    assert fits(SPACE, params)
    assert fits(SPACE, params | {"dropout": 0, "penalty": None})
    assert not fits(SPACE, params | {"other": 1})
    assert not fits(SPACE, {name: params[name] for name in params if name != "cell"})
    for name, value in (
        ("units", 31),
        ("units", 64.0),
        ("units", "64"),
        ("units", True),
        ("even", 3),
        ("shift", 0.3),
        ("dropout", 0.6),
        ("dropout", math.nan),
        ("filters", 40),
        ("norm", 1),
        ("cell", "rnn"),
    ):
        assert not fits(SPACE, params | {name: value}), (name, value)


# --- the grid


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (FloatDistribution(0.0, 1.0), [0.0, 0.5, 1.0]),
        (FloatDistribution(2.0, 2.0), [2.0]),
        (FloatDistribution(1e-4, 1e-2, log=True), [1e-4, pytest.approx(1e-3), 1e-2]),
        (FloatDistribution(0.0, 0.9, step=0.1), [k / 10 for k in range(10)]),
        (FloatDistribution(0.0, 1.0, step=0.1), [0.0, 0.2, 0.5, 0.8, 1.0]),
        (IntDistribution(1, 10), [*range(1, 11)]),
        (IntDistribution(0, 100), [0, 25, 50, 75, 100]),
        (IntDistribution(0, 100, step=50), [0, 50, 100]),
        (IntDistribution(1, 16, log=True), [1, 2, 4, 8, 16]),
        (IntDistribution(1, 3, log=True), [1, 2, 3]),
        (CategoricalDistribution(["a", None, True, 3]), ["a", None, True, 3]),
    ],
)
def test_the_grid_takes_some_values_of_each_param(distribution: Any, values: list[Any]) -> None:
    assert grid({"a": distribution}) == {"a": values}


def test_each_cell_of_the_grid_comes_once_in_an_order_of_the_seed() -> None:
    space = {name: SPACE[name] for name in ("dropout", "layers", "filters", "norm")}
    size = grid_size(space)
    assert size == 3 * 3 * 3 * 2
    orders = []
    for seed in (0, 1):
        cells = [grid_cell(space, seed, index) for index in range(size)]
        assert len({tuple(cell.items()) for cell in cells if cell is not None}) == size
        assert all(cell is not None and fits(space, cell) for cell in cells)
        assert grid_cell(space, seed, size) is None
        orders.append(cells)
    assert orders[0] != orders[1]
    assert orders[0] == [grid_cell(dict(reversed(space.items())), 0, i) for i in range(size)]


def test_the_first_cells_of_a_grid_are_spread_over_all_params() -> None:
    space: Space = {f"p{i}": CategoricalDistribution([0, 1, 2]) for i in range(8)}
    cells = [grid_cell(space, 0, index) for index in range(60)]
    for name in space:
        counts = [sum(cell is not None and cell[name] == one for cell in cells) for one in range(3)]
        assert min(counts) >= 8


def test_a_huge_grid_is_never_made() -> None:
    space: Space = {f"p{i}": FloatDistribution(0, 1) for i in range(200)}
    assert grid_size(space) == 3**200
    assert grid_cell(space, 0, 0) != grid_cell(space, 0, 1)
    assert grid_cell(space, 0, 3**200 - 1) is not None
    assert grid_cell(space, 0, 3**200) is None


def test_the_grid_of_an_empty_or_fixed_space_has_one_cell() -> None:
    assert [grid_cell({}, 0, index) for index in range(2)] == [{}, None]
    fixed: Space = {"a": CategoricalDistribution([7])}
    assert [grid_cell(fixed, 0, index) for index in range(2)] == [{"a": 7}, None]


# --- whatever is written

bounds = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.floats()
steps = st.integers(-1, 9) | st.floats(0, 9) | st.sampled_from([0.1, 0.3, 1e-3])
written = st.fixed_dictionaries(
    {}, optional={"low": bounds, "high": bounds, "step": steps, "log": st.booleans()}
)
values = bounds | st.booleans() | st.sampled_from(["gru", "lstm", "x", ""])


@given(
    table=st.dictionaries(
        st.sampled_from([*SPACE, "other"]), written | values | st.lists(values, max_size=4)
    )
)
def test_whatever_is_written_gives_a_space_that_holds_what_is_put_into_it(
    table: dict[str, Any],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space, errors = narrow(SPACE, table, WHERE)
        again = {name: json_to_distribution(distribution_to_json(space[name])) for name in space}
    assert again == space
    assert all(space[name] == SPACE[name] for name in SPACE if name not in table)
    named = {error.split(":")[0].removeprefix(f"{WHERE} ") for error in errors}
    assert named <= set(table)
    baseline = {name: first[0] for name, first in grid(SPACE).items()}
    assert fits(space, nearest(space, baseline))
    for index in (0, grid_size(space) - 1):
        cell = grid_cell(space, 3, index)
        assert cell is not None
        assert fits(space, cell)


@given(size=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_a_grid_leaves_no_cell_out(size: int, seed: int) -> None:
    space: Space = {"a": CategoricalDistribution([*range(size)])}
    cells = [grid_cell(space, seed, index) for index in range(size)]
    assert {cell["a"] for cell in cells if cell is not None} == set(range(size))
