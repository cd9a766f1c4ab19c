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


def same_interface(spec: ModelSpec, champion: ModelSpec) -> bool:
    """Tells whether the champion's clients can use the other model: what they send and get.

    Categories of a column may differ, since each model takes those it does not know; a value that
    the champion lets clients leave out may be left out still; sequences may be longer.
    """
    one, other = spec.input, champion.input
    if (spec.task, spec.class_names) != (champion.task, champion.class_names):
        return False
    if (one.kind, one.dtype, one.ragged) != (other.kind, other.dtype, other.ragged):
        return False
    if one.ragged:
        return one.shape[1] == other.shape[1] and one.shape[0] >= other.shape[0]
    if one.columns is None or other.columns is None:
        return one.columns == other.columns and one.shape == other.shape
    sorts = {column.name: (column.categories is None, column.missing) for column in one.columns}
    return len(sorts) == len(other.columns) and all(
        column.name in sorts
        and sorts[column.name][0] == (column.categories is None)
        and (column.missing == "refused" or sorts[column.name][1] != "refused")
        for column in other.columns
    )


def _interface(spec: ModelSpec) -> str:
    """What a client sees of a model, in one line for people."""
    rows = "x".join(str(size) for size in spec.input.shape)
    named = ""
    if spec.input.columns is not None:
        rows = str(len(spec.input.columns))
        named = " of " + ", ".join(
            f"{column.name} ({'number' if column.categories is None else 'category'}"
            f"{'' if column.missing == 'refused' else ', may be missing'})"
            for column in spec.input.columns
        )
    answers = f"{len(spec.class_names)} classes" if spec.task == "classifier" else "anomaly scores"
    if spec.task == "classifier":
        names = json.dumps(spec.class_names)
        shown = ", ".join(spec.class_names)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        answers += f" ({shown})" if len(shown) <= 80 else f" ({shown[:80]}..., {digest})"
    return f"{spec.input.kind} {rows} {spec.input.dtype}{named} -> {answers}"
