"""The tables of docs/architectures say what the code searches: names, ranges, scales, baselines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution

from experiments.architectures import describe, open_architecture
from experiments.built_in import BUILT_IN
from mlops.inputs import FLIPS, InputSpec
from tests.docs.pages import ROOT

PAGES = ROOT / "docs" / "architectures"
DIGITS = InputSpec("image", (8, 8, 1), "float32", None, 0.0, 16.0, (4.9,), (36.0,))
LARGE = InputSpec("image", (32, 32, 1), "uint8", None, 0.0, 255.0, (33.0,), (60.0,), flips=FLIPS)
TABLE = InputSpec("table", (4,), "float32", None, 0.0, 1.0, (0.5,) * 4, (1.0,) * 4)


def rows_of(page: Path) -> dict[str, tuple[str, str]]:
    """Returns values and baseline of each param in a page's tables of params."""
    found = {}
    inside = False
    for line in page.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == "param":
            inside = True
        elif inside and not set(line) <= set("|- "):
            assert cells[3], f"{page.name}: why is {cells[0]} searched?"
            found[cells[0].strip("`")] = (cells[1], cells[2])
    return found


def in_words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + ", ".join(map(in_short, distribution.choices))
    low, high = in_short(distribution.low), in_short(distribution.high)
    step = getattr(distribution, "step", None)
    if distribution.log:
        return f"{low} to {high}, log"
    is_plain = step is None or (step == 1 and isinstance(distribution.low, int))
    return f"{low} to {high}" if is_plain else f"{low} to {high} in steps of {in_short(step)}"


def in_short(value: Any) -> str:
    return str(value).lower() if isinstance(value, (bool, str)) else f"{value:g}"


def searched(name: str, data: InputSpec) -> dict[str, tuple[str, str]]:
    architecture = open_architecture(BUILT_IN[name])
    baseline = architecture.baseline(data)
    return {
        param: (in_words(distribution), in_short(baseline[param]))
        for param, distribution in architecture.space(data).items()
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_page_has_each_param_with_its_range_and_baseline(name: str) -> None:
    assert rows_of(PAGES / f"{name}.md") == searched(name, LARGE)


def test_digits_have_what_the_cnns_page_says_without_augmentation() -> None:
    page = rows_of(PAGES / "cnn.md")
    for param in ("flip", "shift", "rotation", "cutout"):
        del page[param]
    assert page == searched("cnn", DIGITS)


@pytest.mark.parametrize("name", ["dnn", "vae"])
def test_a_table_is_searched_over_the_same_ranges(name: str) -> None:
    assert rows_of(PAGES / f"{name}.md") == searched(name, TABLE)


def test_class_weights_are_searched_where_the_shared_page_says() -> None:
    unequal = describe(BUILT_IN["dnn"], TABLE, (15, 10), "accuracy")
    equal = describe(BUILT_IN["dnn"], TABLE, (14, 10), "accuracy")
    added = set(unequal.space) - set(equal.space)
    assert rows_of(PAGES / "README.md") == {
        param: (in_words(unequal.distributions()[param]), in_short(unequal.baseline[param]))
        for param in added
    }
    assert added


@pytest.mark.parametrize(("name", "counted"), [("dnn", 26122), ("cnn", 72842), ("rnn", 14858)])
def test_a_page_says_how_many_weights_the_baseline_has_on_the_digits(
    name: str, counted: int
) -> None:
    architecture = open_architecture(BUILT_IN[name])
    model = architecture.build(architecture.baseline(DIGITS), DIGITS, 10)
    assert model.count_params() == counted
    assert re.search(rf"\b{counted:,} (weights )?on the digits", text_of(name))


def test_the_vaes_page_says_how_many_weights_it_has_on_the_digits() -> None:
    architecture = open_architecture(BUILT_IN["vae"])
    model = architecture.build(architecture.baseline(DIGITS), DIGITS, 10)
    counted = model.encoder.count_params() + model.decoder.count_params()
    assert f"{counted:,} weights on the digits" in text_of("vae")


def text_of(name: str) -> str:
    return " ".join((PAGES / f"{name}.md").read_text("utf-8").split())
