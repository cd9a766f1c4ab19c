from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.evaluation import score_classifier, score_vae
from mlops.inputs import Column, InputSpec
from mlops.packaging import ModelSpec
from registry.evidence import Champion, Commit, Evidence, Measured, Serving
from registry.gates import Decision, Gate, decide, refuse_answers, refuse_structure, table
from registry.interface import describe_interface, same_interface
from registry.policy import (
    LargestDrop,
    Latency,
    Memory,
    OwnGate,
    Policy,
    Quality,
    Reproduction,
    Rule,
)

SPEC = ModelSpec(
    task="classifier",
    architecture="cnn",
    input=InputSpec("image", (8, 8, 1), "float32", None, 0.0, 16.0, (4.9,), (36.0,)),
    class_names=("cat", "dog"),
    dataset_name="pets",
    dataset_fingerprint="f" * 64,
    likelihood=None,
)
VAE = dataclasses.replace(SPEC, task="vae", class_names=(), likelihood="bernoulli")
LABELS = np.arange(1000) % 2
CLEAN = Commit("abcdef0123456789", False)


def classifier(right: float, sure: float = 1.0, spec: ModelSpec = SPEC, **more: Any) -> Measured:
    """One that names the first rows rightly, as sure of each as is said."""
    named = np.where(np.arange(1000) < 1000 * right, LABELS, 1 - LABELS)
    answers = np.where(np.eye(2)[named] == 1.0, sure, 1.0 - sure)
    given = {"size_bytes": 5 << 20, "n_seen": 0, "perturbed": {"noise": scored(right)}}
    return Measured(spec, answers, score_classifier(answers, LABELS), **{**given, **more})


def scored(right: float) -> Any:
    answers = np.eye(2)[np.where(np.arange(1000) < 1000 * right, LABELS, 1 - LABELS)]
    return score_classifier(answers, LABELS)


def vae(elbo: float, spec: ModelSpec = VAE, spread: float = 3.0, **more: Any) -> Measured:
    rows = elbo + spread * np.sin(np.arange(1000.0))
    score = score_vae([{"anomaly_score": -one} for one in rows], chance=-40.0)
    return Measured(spec, rows, score, **{"size_bytes": 5 << 20, "n_seen": 0, **more})


def evidence(candidate: Measured, champion: Measured | None = None, **more: Any) -> Evidence:
    labels = LABELS if candidate.spec.task == "classifier" else None
    rival = None if champion is None else Champion(3, champion.spec, champion)
    return Evidence(candidate, rival, labels, **{"commit": CLEAN, **more})


def gate(decision: Decision, name: str) -> Gate:
    return next(one for one in decision.gates if one.name == name)


def names(decision: Decision) -> list[str]:
    return [one.name for one in decision.gates]


def test_a_first_honest_model_passes_without_a_warning() -> None:
    decision = decide(evidence(classifier(0.9, sure=0.95)), Policy())
    assert (decision.outcome, decision.reason, decision.warnings) == ("promoted", "", ())
    assert names(decision) == [
        "structure",
        "finite_outputs",
        "better_than_chance",
        "test_rows_unseen",
        "calibration",
        "robustness",
        "size",
        "dataset_known",
        "clean_commit",
        "decisions_on_these_rows",
        "isolation",
    ]
    assert all(one.passed and one.reason == "" for one in decision.gates)


def test_a_champion_and_every_limit_bring_the_other_gates_in_their_order() -> None:
    policy = Policy(
        quality=Quality(floor=0.5),
        latency=Latency(p95_ms=50.0),
        memory=Memory(memory_bytes=2**30),
        reproduced=Reproduction("refuse"),
    )
    serving = Serving(200, 4.0, 7.25, 600 << 20)
    found = evidence(
        classifier(0.9, 0.95), classifier(0.9), serving=serving, reproduced="identical"
    )
    decision = decide(found, policy)
    assert decision.outcome == "promoted"
    assert names(decision)[3:9] == [
        "quality",
        "champion_verifies",
        "same_interface",
        "not_worse_than_champion",
        "largest_drop",
        "test_rows_unseen",
    ]
    assert gate(decision, "latency").measured == "7.2 ms"
    assert gate(decision, "memory").measured == "600.0 MiB"


NAN = np.full((1000, 2), np.nan)


@pytest.mark.parametrize(
    ("found", "name", "fragment"),
    [
        (
            evidence(dataclasses.replace(classifier(0.9), score=score_classifier(NAN, LABELS))),
            "finite_outputs",
            "1000 of 1000 answers are not finite",
        ),
        (
            evidence(classifier(0.5)),
            "better_than_chance",
            "accuracy 0.5000 is not above chance, 0.5000",
        ),
        (evidence(vae(-41.0)), "better_than_chance", "is not above chance, -40.0000"),
        (
            evidence(classifier(0.891), classifier(0.9)),
            "not_worse_than_champion",
            "accuracy 0.8910 on 1000 test rows is shown to be worse than the champion's 0.9000: "
            "-0.9 points [",
        ),
        (
            evidence(vae(-20.5), vae(-20.0)),
            "not_worse_than_champion",
            "elbo_at_mean -20.5",
        ),
        (
            evidence(classifier(0.87), classifier(0.9)),
            "largest_drop",
            "accuracy is -3.0 points from the champion's; at least -2.0 points is allowed",
        ),
        (
            evidence(classifier(0.9, n_seen=7)),
            "test_rows_unseen",
            "the candidate was trained or chosen on 7 of the 1000 test rows",
        ),
        (
            evidence(vae(-10.0, dataclasses.replace(VAE, likelihood="gaussian")), vae(-20.0)),
            "not_worse_than_champion",
            "ELBOs of different likelihoods do not compare: gaussian, not the champion's bernoulli",
        ),
    ],
)
def test_what_refuses_refuses_with_its_value_and_its_limit(
    found: Evidence, name: str, fragment: str
) -> None:
    decision = decide(found, Policy())
    failed = gate(decision, name)
    assert decision.outcome == "rejected"
    assert failed.verdict == "fail" and not failed.passed and failed.limit is not None
    assert fragment in failed.reason and failed.reason in decision.reason
    assert "\n" not in decision.reason


@pytest.mark.parametrize(
    ("found", "name", "fragment"),
    [
        (
            evidence(classifier(0.9, n_seen=None)),
            "test_rows_unseen",
            "the dataset of the candidate is not in the store",
        ),
        (
            evidence(classifier(0.9), classifier(0.9, n_seen=5)),
            "test_rows_unseen_by_champion",
            "the champion was trained or chosen on 5 of the 1000 test rows",
        ),
        (
            evidence(classifier(0.8)),
            "calibration",
            "the expected calibration error 0.2 is above 0.1",
        ),
        (
            evidence(classifier(0.9, perturbed={"noise": scored(0.9), "shift": scored(0.7)})),
            "robustness",
            "accuracy falls on rows that are changed a little: noise 0.0 points, shift -20.0",
        ),
        (evidence(classifier(0.9, perturbed={})), "robustness", "it was not measured"),
        (
            evidence(classifier(0.9, size_bytes=3 << 30)),
            "size",
            "the folder's size 3.0 GiB is above 1.0 GiB",
        ),
        (evidence(classifier(0.9), commit=Commit("abc", True)), "clean_commit", "files differed"),
        (evidence(classifier(0.9), commit=Commit(None, None)), "clean_commit", "is unknown"),
        (evidence(classifier(0.9), commit=Commit("abc", None)), "clean_commit", "is unknown"),
        (
            evidence(classifier(0.9), n_decisions=51),
            "decisions_on_these_rows",
            "the number of decisions made on these test rows 51 is above 50",
        ),
        (
            evidence(classifier(0.9), isolation="not kept from the network: no namespaces"),
            "isolation",
            "the candidate was not kept from the network: no namespaces",
        ),
    ],
)
def test_what_warns_promotes_and_says_why_not_gladly(
    found: Evidence, name: str, fragment: str
) -> None:
    decision = decide(found, Policy())
    warned = gate(decision, name)
    assert decision.outcome == "promoted" and decision.reason == ""
    assert warned.verdict == "warn" and warned.passed
    assert fragment in warned.reason and warned.reason in decision.warnings


def test_the_worst_change_is_the_value_of_robustness() -> None:
    changed = {"noise": scored(0.9), "shift": scored(0.7)}
    found = gate(decide(evidence(classifier(0.9, perturbed=changed)), Policy()), "robustness")
    assert (found.value, found.limit) == (0.2, 0.1)


def test_the_policy_says_what_follows() -> None:
    bad = evidence(classifier(0.8), isolation="not kept from the network: no namespaces")
    assert decide(bad, Policy(isolation=Rule("refuse"))).outcome == "rejected"
    assert "isolation" not in names(decide(bad, Policy(isolation=Rule("off"))))
    worse = evidence(classifier(0.5))
    assert decide(worse, Policy(better_than_chance=Rule("warn"))).outcome == "promoted"
    low = Policy(quality=Quality(floor=0.81))
    assert "accuracy 0.8000 is below the floor, 0.81" in decide(bad, low).reason
    assert decide(bad, Policy(quality=Quality(floor=0.8))).outcome == "promoted"


def test_which_test_rows_were_seen_is_only_a_warning_where_it_is_unknown() -> None:
    unknown = evidence(classifier(0.9, n_seen=None))
    strict = Policy(test_rows_unseen=Rule("refuse"))
    assert gate(decide(unknown, strict), "test_rows_unseen").verdict == "warn"


def test_a_champion_that_cannot_be_compared_with_stops_it_unless_the_policy_warns() -> None:
    found = evidence(classifier(0.9), champion_fault="version 1 does not verify: x was changed")
    decision = decide(found, Policy())
    assert decision.outcome == "rejected"
    assert "version 1 does not verify: x was changed" in decision.reason
    lenient = decide(found, Policy(champion_verifies=Rule("warn")))
    assert lenient.outcome == "promoted"
    assert gate(lenient, "champion_verifies").verdict == "warn"


def test_as_good_as_the_champion_is_good_enough() -> None:
    decision = decide(evidence(classifier(0.9), classifier(0.9)), Policy())
    assert decision.outcome == "promoted"
    found = gate(decision, "not_worse_than_champion")
    assert found.measured == "0.0 points [0.0, 0.0], McNemar p 1.00"
    assert found.expected == "not shown worse (95 %)"


def test_a_drop_of_the_very_limit_passes_and_a_larger_one_does_not() -> None:
    policy = Policy(not_worse_than_champion=dataclasses.replace(
        Policy().not_worse_than_champion, on_failure="off"
    ))  # fmt: skip
    assert decide(evidence(classifier(0.98), classifier(1.0)), policy).outcome == "promoted"
    assert decide(evidence(classifier(0.979), classifier(1.0)), policy).outcome == "rejected"


def test_a_vae_is_held_to_a_drop_only_where_nats_are_given() -> None:
    found = evidence(vae(-20.5), vae(-20.0))
    lenient = dataclasses.replace(Policy().not_worse_than_champion, on_failure="warn")
    assert "largest_drop" not in names(decide(found, Policy()))
    policy = Policy(
        not_worse_than_champion=lenient, largest_drop=LargestDrop(largest_drop_nats=0.4)
    )
    decision = decide(found, policy)
    assert decision.outcome == "rejected"
    assert gate(decision, "largest_drop").measured == "-0.50 nats"
    assert gate(decision, "largest_drop").expected == "at least -0.40 nats"


def test_elbos_of_different_likelihoods_are_not_subtracted() -> None:
    gaussian = dataclasses.replace(VAE, likelihood="gaussian")
    policy = Policy(largest_drop=LargestDrop(largest_drop_nats=0.1))
    decision = decide(evidence(vae(-30.0, gaussian), vae(-20.0)), policy)
    assert "largest_drop" not in names(decision)


def test_a_vae_has_no_calibration_and_its_robustness_is_only_shown() -> None:
    changed = score_vae([{"anomaly_score": 30.0}], chance=-40.0)
    decision = decide(evidence(vae(-20.0, perturbed={"noise": changed})), Policy())
    assert decision.outcome == "promoted"
    assert "calibration" not in names(decision)
    shown = gate(decision, "robustness")
    assert (shown.verdict, shown.limit, shown.measured) == ("pass", None, "noise -10.00 nats")
    measured = gate(decision, "better_than_chance").measured
    assert measured.startswith("elbo_at_mean -20.0000 nats [-20.1")


def test_a_champion_that_does_not_answer_is_no_bar() -> None:
    found = dataclasses.replace(evidence(classifier(0.9)), champion=Champion(3, SPEC, None))
    decision = decide(found, Policy())
    assert decision.outcome == "promoted"
    assert gate(decision, "not_worse_than_champion").verdict == "warn"
    assert "does not answer these rows" in decision.warnings[0]
    assert not {"largest_drop", "test_rows_unseen_by_champion"} & set(names(decision))


def test_what_the_policy_asks_for_and_nobody_measured_is_not_met() -> None:
    policy = Policy(
        latency=Latency(p95_ms=50.0),
        memory=Memory(memory_bytes=2**30),
        reproduced=Reproduction("refuse"),
    )
    decision = decide(evidence(classifier(0.9)), policy)
    failed = [one.name for one in decision.gates if one.verdict == "fail"]
    assert failed == ["latency", "memory", "reproduced"]
    assert "the 95th percentile of a request is unknown" in decision.reason
    slow = evidence(classifier(0.9), serving=Serving(200, 4.0, 51.0, 3 << 30))
    reason = decide(slow, policy).reason
    assert "51.0 ms is above 50.0 ms" in reason and "3.0 GiB is above 1.0 GiB" in reason


def test_numbers_that_are_not_finite_never_pass_nor_reach_json() -> None:
    broken = dataclasses.replace(classifier(0.9), answers=NAN, score=score_classifier(NAN, LABELS))
    decision = decide(evidence(broken), Policy(calibration=dataclasses.replace(
        Policy().calibration, on_failure="refuse"
    )))  # fmt: skip
    assert gate(decision, "calibration").verdict == "fail"
    text = json.dumps([one.to_json() for one in decision.gates], allow_nan=False)
    assert json.loads(text)[0] == {
        "name": "structure",
        "passed": True,
        "verdict": "pass",
        "value": "allowed",
        "limit": "allowed",
        "measured": "allowed",
        "reason": "",
    }
    nothing = vae(float("nan"))
    decision = decide(evidence(nothing, vae(-20.0)), Policy())
    assert decision.outcome == "rejected"
    json.dumps([one.to_json() for one in decision.gates], allow_nan=False)


def test_a_folder_that_is_not_loaded_is_rejected_with_the_reason() -> None:
    decision = refuse_structure("config.json holds Lambda")
    assert (decision.outcome, decision.reason) == ("rejected", "config.json holds Lambda")
    assert names(decision) == ["structure"]


def test_a_model_that_does_not_answer_is_rejected_with_the_reason() -> None:
    decision = refuse_answers("out of memory")
    assert (decision.outcome, decision.reason) == ("rejected", "it does not answer: out of memory")
    assert names(decision) == ["structure", "finite_outputs"]


def test_the_table_has_a_line_a_gate_and_straight_columns() -> None:
    decision = decide(evidence(classifier(0.87), classifier(0.9)), Policy())
    lines = table(decision.gates).splitlines()
    assert len(lines) == 1 + len(decision.gates)
    assert lines[0].split() == ["gate", "measured", "limit", "verdict"]
    column = lines[0].index("verdict")
    assert {line[column:] for line in lines[1:]} == {"pass", "warn", "fail"}
    row = next(line for line in lines if line.startswith("not_worse"))
    assert "-3.0 points [-4." in row and "McNemar p 2e-09" in row


def test_a_stranger_cannot_break_the_table_nor_make_it_wide() -> None:
    named = dataclasses.replace(SPEC, class_names=("cat", "\x1b[2J\n" + "x" * 200))
    found = evidence(classifier(0.9, spec=named), classifier(0.9))
    decision = decide(found, Policy())
    text = table(decision.gates)
    assert "\x1b" not in text + decision.reason and len(text.splitlines()) == 17
    assert max(map(len, text.splitlines())) < 170


# The user's own gates.


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Decision]]:
    """Writes a module with a gate in the present folder, and decides by it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def decide_by(body: str, on_failure: Any = "refuse") -> Decision:
        module = f"own_{abs(hash((body, str(tmp_path))))}"
        (tmp_path / f"{module}.py").write_text(body)
        gates = (OwnGate("mine", f"{module}:mine", on_failure),)
        return decide(evidence(classifier(0.9)), Policy(own=gates))

    before = set(sys.modules)
    yield decide_by
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_gate_of_the_users_own_is_asked_last(own: Callable[..., Decision]) -> None:
    decision = own("def mine(e):\n    return e.candidate.score.value > 0.8, 0.9, 0.8")
    found = decision.gates[-1]
    assert decision.outcome == "promoted"
    assert (found.name, found.verdict, found.value, found.limit) == ("mine", "pass", 0.9, 0.8)
    with_class = own(
        "from registry.own_gates import OwnAnswer\n"
        "import numpy as np\n"
        "def mine(e):\n    return OwnAnswer(np.False_, np.float32(0.5), 'half')"
    )
    assert with_class.reason == "mine: 0.5, limit half"
    json.dumps(with_class.gates[-1].to_json())
    assert own("def mine(e):\n    return False, 1, None", "warn").warnings == ("mine: 1",)
    assert len(own("raise ValueError", "off").gates) == 11


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def mine(e):\n    raise ValueError('no\\nrows')", "mine raised ValueError: no"),
        ("def mine(e):\n    raise SystemExit(0)", "mine called sys.exit"),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("def yours(e): ...", "raised AttributeError: module"),
        ("def mine(:", "raised SyntaxError"),
        ("mine = 3", "raised TypeError"),
        ("def mine(e): ...", "returned None; expected (passed, measured, limit)"),
        ("def mine(e):\n    return True", "returned True; expected (passed, measured, limit)"),
        ("def mine(e):\n    return 1, 2, 3", "returned (1, 2, 3); expected True or False first"),
        ("def mine(e):\n    return True, [1], 3", "expected a number or a text as measured"),
        ("def mine(e):\n    return True, 1, [3]", "expected a number or a text as measured"),
        ("def mine(e):\n    return True, None, 3", "expected a number or a text as measured"),
        ("def mine(e):\n    return True, float('nan'), 3", "mine: nan, limit 3"),
    ],
)
def test_a_gate_of_the_users_own_that_fails_itself_is_not_met(
    body: str, said: str, own: Callable[..., Decision]
) -> None:
    decision = own(body)
    assert decision.outcome == "rejected"
    assert decision.gates[-1].reason.startswith("mine: ")
    assert said in decision.reason and "\n" not in decision.reason


# The interface.


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ("dog", "cat")},
        {"class_names": tuple(f"kind {i}" for i in range(40))},
        {"input": dataclasses.replace(SPEC.input, shape=(9, 8, 1))},
        {"input": dataclasses.replace(SPEC.input, dtype="uint8")},
    ],
)
def test_a_model_whose_clients_would_have_to_change_is_refused(change: dict[str, Any]) -> None:
    other = dataclasses.replace(SPEC, **change)
    found = evidence(classifier(0.9, spec=other))
    found = dataclasses.replace(found, champion=Champion(3, SPEC, None))
    decision = decide(found, Policy())
    assert decision.outcome == "rejected"
    assert "its clients send and expect something else" in decision.reason
    assert describe_interface(other) != describe_interface(SPEC)
    meant = decide(found, Policy(same_interface=Rule("warn")))
    assert meant.outcome == "promoted"


def test_an_interface_is_short_and_tells_two_apart_however_many_columns_there_are() -> None:
    wide = [Column(f"column {i}") for i in range(10_000)]
    other = [*wide[:-1], Column("another")]
    one, two = describe_interface(columns(*wide)), describe_interface(columns(*other))
    assert one != two and len(one) < 600


def columns(*columns: Column) -> ModelSpec:
    width = sum(len(column.features) for column in columns)
    zeros = (0.0,) * width
    data = InputSpec("table", (width,), "float32", columns, 0.0, 1.0, zeros, zeros)
    return dataclasses.replace(SPEC, input=data)


def test_a_table_with_more_categories_or_fewer_demands_keeps_its_clients() -> None:
    champion = columns(Column("age"), Column("island", ("a", "b")))
    assert same_interface(columns(Column("island", ("a", "b", "c")), Column("age")), champion)
    assert same_interface(
        columns(Column("age", None, "filled", 1.0), *champion.input.columns[1:]), champion
    )
    assert not same_interface(
        champion, columns(Column("age", None, "filled", 1.0), *champion.input.columns[1:])
    )
    assert not same_interface(columns(Column("age"), Column("island")), champion)
    assert not same_interface(columns(Column("age"), Column("isle", ("a", "b"))), champion)
    assert not same_interface(columns(Column("age")), champion)
