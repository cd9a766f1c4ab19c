from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from experiments.built_in import BUILT_IN
from experiments.config import SweepConfig, fixes_of
from mlops.errors import UsageError

CONFIG = SweepConfig()
CNN = BUILT_IN["cnn"]
DNN = BUILT_IN["dnn"]


def change(**fields: Any) -> SweepConfig:
    return dataclasses.replace(CONFIG, **fields)


def refusal(config: SweepConfig) -> str:
    with pytest.raises(UsageError) as caught:
        config.check()
    return str(caught.value)


def test_the_defaults_are_allowed() -> None:
    CONFIG.check()


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"trials": -1}, "--trials must be at least 1, got -1"),
        ({"epochs": -1}, "--epochs must be at least 1, got -1"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"cluster": "scheduler:8786"}, "--cluster must be a Dask scheduler's address, as tcp://"),
        ({"cluster": "tcp://scheduler"}, "or its file, as scheduler.json; got 'tcp://scheduler'"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"seeds": 1}, "--seeds must be at least 2, got 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 2**32}, "--seed must be below 2**32"),
        ({"split_seed": -1}, "--split-seed must be at least 0"),
        ({"split_seed": 2**64}, "--split-seed must be below 2**64"),
        ({"trials_per_gpu": 0}, "--trials-per-gpu must be at least 1, got 0"),
        ({"budget_gpu_hours": 0.0}, "--budget-gpu-hours must be above 0 and finite, got 0.0"),
        ({"gpu_price": -1.0}, "--gpu-price must be above 0 and finite, got -1.0"),
        ({"timeout_s": 0.0}, "--timeout-s must be above 0"),
        ({"timeout_s": float("nan")}, "--timeout-s must be above 0"),
        ({"timeout_s": float("inf")}, "--timeout-s must be above 0 and finite, got inf"),
        ({"image_size": (0, 8)}, "--image-size must be at least 1 pixel each way, got 0 8"),
        ({"experiment": "a/b"}, "--experiment may hold letters"),
        ({"experiment": ""}, "--experiment must be a text, in UTF-8 and not empty, got ''"),
        ({"study": "../x"}, "--study may hold letters"),
        ({"study": "x", "warm_start": "x"}, "--warm-start and --study name the same sweep"),
        ({"architectures": ()}, "--architectures is empty"),
        ({"architectures": ("cn",)}, "did you mean 'cnn'?"),
        ({"architectures": ("cnn", "cnn")}, "names one twice"),
        ({"architectures": ("cnn", CNN)}, "names one twice"),
        ({"architectures": ("a b:C",)}, "'a b:C' is not of the form module:Class"),
        ({"architectures": ("module:",)}, "'module:' is not of the form module:Class"),
        ({"fix": ("learning_rate",)}, "--fix 'learning_rate' is not of the form name=value"),
        ({"fix": ("=3",)}, "--fix '=3' is not of the form name=value"),
        ({"fix": ("units=[1, 2]",)}, "--fix units must be one value, got '[1, 2]'"),
        ({"fix": ("dropout=nan",)}, "--fix dropout: must be finite, got nan"),
        ({"fix": ("cn.units=3",)}, "--fix cn.units: unknown architecture 'cn'"),
        ({"space": {"cn": {}}}, "[space.cn]: unknown architecture 'cn'; expected one of dnn, cnn"),
        ({"space": {"cnn": {"units": []}}}, "[space.cnn] units: has no choices"),
        (
            {"space": {"m:B": {}}, "architectures": ("m:A",)},
            "[space.\"m:B\"]: unknown architecture 'm:B'",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_expected(
    fields: dict[str, Any], fragment: str
) -> None:
    assert fragment in refusal(change(**fields))


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"trials": "ten"}, "--trials must be a whole number, got 'ten'"),
        ({"trials": True}, "--trials must be a whole number, got True"),
        ({"trials": 1.5}, "--trials must be a whole number, got 1.5"),
        ({"trials": None}, "--trials must be a whole number, got None"),
        ({"timeout_s": "1h"}, "--timeout-s must be a number, got '1h'"),
        ({"trials_per_gpu": "all"}, "--trials-per-gpu must be a whole number or auto, got 'all'"),
        ({"trials_per_gpu": 1.5}, "--trials-per-gpu must be a whole number or auto, got 1.5"),
        ({"refit": 1}, "--refit must be true or false, got 1"),
        ({"dataset": 3}, "--dataset must be a text"),
        ({"dataset": "\udcff.csv"}, "--dataset must be a text, in UTF-8"),
        ({"label": " "}, "--label must be a text"),
        ({"categorical": "a"}, "--categorical must be a list of texts, none of them empty"),
        ({"categorical": ("a", "")}, "--categorical must be a list of texts"),
        ({"architectures": (3,)}, "--architectures must be a list of texts"),
        ({"image_size": (1, 2, 3)}, "--image-size must be two whole numbers, height and width"),
        ({"image_size": 8}, "--image-size must be two whole numbers"),
        ({"space": {"cnn": 3}}, "--space must be tables by architecture, as [space.cnn]"),
        ({"kind": "tabel"}, "--kind 'tabel' is unknown; expected one of table, sequence, image"),
        ({"objective": "acuracy"}, "did you mean 'accuracy'?"),
        ({"sampler": "tpee"}, "--sampler 'tpee' is unknown; expected one of auto, tpe"),
        ({"pruner": "medain"}, "did you mean 'median'?"),
        ({"objectives": ("val_acuracy",)}, "did you mean 'val_accuracy'?"),
        ({"objectives": ("latency_ms",)}, "--objectives: no objective of quality is named"),
        ({"require": ("latency_ms<",)}, "--require 'latency_ms<' is not of the form"),
        (
            {"objectives": ("val_accuracy",), "objective": "macro_f1"},
            "--objective macro_f1 and --objectives val_accuracy differ",
        ),
        (
            {"objectives": ("val_accuracy", "n_weights"), "pruner": "median"},
            "--pruner median cannot judge by several objectives",
        ),
        (
            {"objectives": ("val_accuracy", "n_weights"), "sampler": "cmaes"},
            "--sampler cmaes knows nothing of several objectives",
        ),
        (
            {"require": ("n_weights<10",), "sampler": "cmaes"},
            "--sampler cmaes knows nothing of --require",
        ),
        ({"pruner": None}, "--pruner None is unknown"),
        ({"label": "x" * 10**6 + "\udcff"}, "xxx…."),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(fields: dict[str, Any], fragment: str) -> None:
    message = refusal(change(**fields))
    assert fragment in message
    assert len(message) < 300


def test_all_wrong_fields_are_named_at_once() -> None:
    message = refusal(
        change(
            trials=0,
            epochs="x",
            architectures=("x",),
            fix=("a", "b=inf"),
            space={"cnn": {"filters": [], "dropout": {"low": 2, "high": 1}}},
        )
    )
    for fragment in (
        "--trials must",
        "--epochs must",
        "unknown architecture 'x'",
        "--fix 'a'",
        "--fix b:",
        "[space.cnn] filters:",
        "[space.cnn] dropout:",
    ):
        assert fragment in message
    assert "\n" not in message


def test_a_message_ends_with_one_mark() -> None:
    assert refusal(change(architectures=("cn",))).endswith("did you mean 'cnn'?")
    assert refusal(change(architectures=("zz",))).endswith("dnn, cnn, rnn, vae.")


def test_a_table_for_an_architecture_that_is_not_searched_this_time_is_allowed() -> None:
    change(architectures=("cnn",), space={"dnn": {"units": 8}, "m:A": {"units": 8}}).check()


def test_what_auto_stands_for_follows_from_trials_and_epochs() -> None:
    assert change(trials=59).resolved().pruner == "median"
    assert change(trials=60).resolved().pruner == "hyperband"
    assert change(trials=60, epochs=3).resolved().pruner == "none"
    assert change(objectives=("val_accuracy", "n_weights")).resolved().pruner == "none"
    assert change(objectives=("val_accuracy", "val_elbo")).resolved().pruner == "median"
    assert CONFIG.resolved().sampler == "tpe"
    chosen = change(sampler="grid", pruner="halving")
    assert chosen.resolved() == chosen


@pytest.mark.parametrize(
    "fields",
    [
        {"trials": 3},
        {"timeout_s": 5.0},
        {"workers": 7},
        {"trials_per_gpu": "auto"},
        {"trials_per_gpu": 4},
        {"budget_gpu_hours": 8.0},
        {"gpu_price": 2.0},
        {"cluster": "tcp://scheduler:8786"},
        {"sampler": "tpe", "pruner": "median"},
        {"trials": 60, "pruner": "hyperband"},
        {"study": "x"},
        {"plots": "none"},
        {"log_rows": True},
        {"space": {"dnn": {"units": 8}}, "fix": ("dnn.units=8",)},
    ],
)
def test_what_decides_no_trial_of_a_study_does_not_change_its_fingerprint(
    fields: dict[str, Any],
) -> None:
    assert change(**fields).fingerprint("d", CNN) == CONFIG.fingerprint("d", CNN)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"epochs": 5},
        {"threads": 2},
        {"objective": "macro_f1"},
        {"objectives": ("val_accuracy", "n_weights")},
        {"require": ("n_weights<10",)},
        {"sampler": "random"},
        {"pruner": "none"},
        {"pruner": "hyperband"},
        {"warm_start": "x"},
        {"seeds": 3},
        {"refit": True},
        {"space": {"cnn": {"filters": 32}}},
        {"space": {CNN: {"filters": 32}}},
        {"fix": ("filters=32",)},
        {"fix": ("cnn.filters=32",)},
        {"population": 4},
        {"precision": "bfloat16"},
        {"xla": "on"},
        {"dp_epsilon": 1.0},
        {"dp_delta": 1e-6},
        {"dp_clip": 0.5},
    ],
)
def test_what_decides_a_trial_or_the_candidate_changes_the_fingerprint(
    fields: dict[str, Any],
) -> None:
    assert change(**fields).fingerprint("d", CNN) != CONFIG.fingerprint("d", CNN)
    assert CONFIG.fingerprint("other", CNN) != CONFIG.fingerprint("d", CNN)
    assert CONFIG.fingerprint("d", DNN) != CONFIG.fingerprint("d", CNN)


def test_two_ways_to_say_the_same_of_a_space_have_one_fingerprint() -> None:
    table = change(space={"cnn": {"filters": 32}})
    assert table.fingerprint("d", CNN) == change(fix=("filters=32",)).fingerprint("d", CNN)
    other_order = change(fix=("b=1", "a=2")), change(fix=("a=2", "b=1"))
    assert len({one.fingerprint("d", CNN) for one in other_order}) == 1


def test_a_fix_goes_before_the_table_and_one_for_an_architecture_before_one_for_all() -> None:
    config = change(
        space={"cnn": {"filters": [16, 32], "dropout": 0.1}},
        fix=("cnn.filters=32", "filters=64", "filters=128", "dnn.units=3"),
    )
    assert config.space_of(CNN) == {"filters": 32, "dropout": 0.1}
    assert config.space_of(BUILT_IN["rnn"]) == {"filters": 128}
    assert [fix.key for fix in fixes_of(config.fix, DNN)] == ["filters", "dnn.units"]


def test_a_config_is_plain_as_json_and_stays_hashable() -> None:
    config = change(image_size=(8, 9), space={"cnn": {"filters": (16, 32)}}, fix=("a=1",))
    value = config.to_json()
    assert json.loads(json.dumps(value)) == value
    assert value["image_size"] == [8, 9]
    assert value["space"] == {"cnn": {"filters": [16, 32]}}
    assert hash(config) == hash(dataclasses.replace(config))
