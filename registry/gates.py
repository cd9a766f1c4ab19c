"""Gates: evidence in, decision out. Pure: no clock, no network, no file.

A gate compares one measured value with one limit. A decision is "promoted" only if every gate
passed; each value stands in it, so that a reader can check the decision by hand.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from mlops.evaluation import Score
from mlops.packaging import ModelSpec


@dataclass(frozen=True, slots=True)
class Gate:
    """One comparison. `value` and `limit` are numbers, or words where nothing was measured.

    Attributes:
        reason: Why it did not pass; empty where it did.
    """

    name: str
    passed: bool
    value: float | str | None
    limit: float | str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a decision rests on.

    Attributes:
        candidate: The candidate's description and its score on the stored test split.
        champion: The present champion's, on the same rows; None where there is no champion.
    """

    candidate: tuple[ModelSpec, Score]
    champion: tuple[ModelSpec, Score | None] | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of all gates."""

    outcome: Literal["promoted", "rejected"]
    gates: tuple[Gate, ...]

    @property
    def reason(self) -> str:
        """The reasons of the gates that did not pass, in one line."""
        return "; ".join(gate.reason for gate in self.gates if not gate.passed)


def _gate(
    name: str,
    passed: bool,
    value: float | str | None,
    limit: float | str | None,
    failure: str,
) -> Gate:
    return Gate(name, passed, value, limit, "" if passed else failure)


def refuse_structure(reason: str) -> Decision:
    """Returns the decision about a model folder that was not even loaded."""
    return Decision("rejected", (Gate("structure", False, "refused", "allowed", reason),))


def refuse_answers(reason: str) -> Decision:
    """Returns the decision about a model that does not answer the test rows with finite numbers."""
    structure = Gate("structure", True, "allowed", "allowed", "")
    answers = Gate("finite_outputs", False, None, 0.0, f"it does not answer: {reason}")
    return Decision("rejected", (structure, answers))


def decide(evidence: Evidence) -> Decision:
    """Decides whether the candidate becomes the champion. Equal to the champion is good enough."""
    spec, score = evidence.candidate
    gates = [
        Gate("structure", True, "allowed", "allowed", ""),
        _gate(
            "finite_outputs",
            score.n_not_finite == 0,
            float(score.n_not_finite),
            0.0,
            f"{score.n_not_finite} of {score.n_rows} answers are not finite",
        ),
        _gate(
            "better_than_chance",
            score.value > score.chance,
            score.value,
            score.chance,
            f"{score.metric} {score.value:.4f} is not above chance, {score.chance:.4f}",
        ),
    ]
    if evidence.champion is not None:
        gates.extend(_compare(spec, score, *evidence.champion))
    outcome: Literal["promoted", "rejected"] = (
        "promoted" if all(gate.passed for gate in gates) else "rejected"
    )
    return Decision(outcome, tuple(gates))


def _compare(
    spec: ModelSpec, score: Score, champion: ModelSpec, champion_score: Score | None
) -> list[Gate]:
    takes = _interface(champion)
    gates = [
        _gate(
            "same_interface",
            same_interface(spec, champion),
            _interface(spec),
            takes,
            f"its clients send and expect something else: {_interface(spec)}, not {takes}",
        )
    ]
    if champion_score is not None:
        gates.append(
            _gate(
                "not_worse_than_champion",
                score.value >= champion_score.value,
                score.value,
                champion_score.value,
                f"{score.metric} {score.value:.4f} on {score.n_rows} test rows is worse than the "
                f"champion's {champion_score.value:.4f}",
            )
        )
    return gates


def same_interface(one: ModelSpec, other: ModelSpec) -> bool:
    """Tells whether clients of one model can use the other: what they send, and what they get."""
    return (
        (one.task, one.class_names) == (other.task, other.class_names)
        and (one.input.kind, one.input.shape) == (other.input.kind, other.input.shape)
        and (one.input.dtype, one.input.columns) == (other.input.dtype, other.input.columns)
    )


def _interface(spec: ModelSpec) -> str:
    """What a client sees of a model, in one line for people."""
    rows = "x".join(str(size) for size in spec.input.shape)
    named = "" if spec.input.columns is None else f" of {', '.join(spec.input.columns)}"
    answers = f"{len(spec.class_names)} classes" if spec.task == "classifier" else "anomaly scores"
    if spec.task == "classifier":
        names = json.dumps(spec.class_names)
        shown = ", ".join(spec.class_names)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        answers += f" ({shown})" if len(shown) <= 80 else f" ({shown[:80]}..., {digest})"
    return f"{spec.input.kind} {rows} {spec.input.dtype}{named} -> {answers}"
