from __future__ import annotations

import dataclasses

import pytest

from experiments.config import SweepConfig
from mlops.errors import UsageError

CONFIG = SweepConfig()


def test_the_defaults_are_allowed() -> None:
    CONFIG.check()


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"epochs": -1}, "--epochs must be at least 1, got -1"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 2**32}, "--seed must be below 2**32"),
        ({"split_seed": -1}, "--split-seed must be at least 0"),
        ({"timeout_s": 0.0}, "--timeout-s must be above 0"),
        ({"timeout_s": float("nan")}, "--timeout-s must be above 0"),
        ({"experiment": "a/b"}, "--experiment may hold letters"),
        ({"experiment": ""}, "--experiment may hold letters"),
        ({"study": "../x"}, "--study may hold letters"),
        ({"architectures": ()}, "--architectures is empty"),
        ({"architectures": ("cn",)}, "did you mean 'cnn'?"),
        ({"architectures": ("cnn", "cnn")}, "names one twice"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_expected(
    change: dict[str, object], fragment: str
) -> None:
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(CONFIG, **change).check()  # type: ignore[arg-type]
    assert fragment in str(caught.value)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(CONFIG, trials=0, epochs=0, architectures=("x",)).check()
    for fragment in ("--trials", "--epochs", "unknown architecture 'x'"):
        assert fragment in str(caught.value)


@pytest.mark.parametrize("change", [{"trials": 3}, {"timeout_s": 5.0}, {"workers": 7}])
def test_how_long_and_how_wide_a_sweep_runs_does_not_change_its_fingerprint(
    change: dict[str, object],
) -> None:
    changed = dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]
    assert changed.fingerprint("d", "a") == CONFIG.fingerprint("d", "a")


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": 5}, {"threads": 2}])
def test_what_decides_a_trial_changes_the_fingerprint(change: dict[str, object]) -> None:
    changed = dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]
    assert changed.fingerprint("d", "a") != CONFIG.fingerprint("d", "a")
    assert CONFIG.fingerprint("other", "a") != CONFIG.fingerprint("d", "a")
    assert CONFIG.fingerprint("d", "other") != CONFIG.fingerprint("d", "a")
