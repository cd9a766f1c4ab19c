"""Gates: evidence and a policy in, a decision out; no clock, no network, no file.

A gate compares one measured value with one limit. The policy says what follows when it is not met:
"refuse" fails the gate, "warn" does not, "off" leaves it out. A decision is "promoted" only if no
gate failed; each value stands in it, so that a reader can check the decision by hand. What a policy
asks for and nobody measured is not met. Only a user's own gate may do more than compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from registry.checks import CHECKS, Found, Value, check_own
from registry.evidence import Evidence
from registry.interface import same_interface as same_interface
from registry.policy import OnFailure, Policy, Rule

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One comparison.

    Attributes:
        value: What was measured: a number, or words; None where nothing was.
        limit: What it was compared with; None where it is only shown.
        reason: Why it was not met; empty where it was.
        measured: The value for people, with its unit and interval.
        expected: The limit for people.
    """

    name: str
    verdict: Verdict
    value: Value
    limit: Value
    reason: str
    measured: str
    expected: str = ""

    @property
    def passed(self) -> bool:
        """Whether it lets the candidate through; a warning does."""
        return self.verdict != "fail"

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; a number that is not finite becomes None."""
        return {
            "name": self.name,
            "passed": self.passed,
            "verdict": self.verdict,
            "value": _finite(self.value),
            "limit": _finite(self.limit),
            "measured": self.measured,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of all gates."""

    outcome: Literal["promoted", "rejected"]
    gates: tuple[Gate, ...]

    @property
    def reason(self) -> str:
        """The reasons of the gates that failed, in one line."""
        return "; ".join(gate.reason for gate in self.gates if gate.verdict == "fail")

    @property
    def warnings(self) -> tuple[str, ...]:
        """The reasons of the gates that warn."""
        return tuple(gate.reason for gate in self.gates if gate.verdict == "warn")


def decide(evidence: Evidence, policy: Policy) -> Decision:
    """Decides whether the candidate becomes the champion."""
    gates = [_STRUCTURE]
    for name, find in CHECKS.items():
        rule: Rule = getattr(policy, name, _REFUSE)  # some gates no policy changes
        found = None if rule.on_failure == "off" else find(evidence, policy)
        if found is not None:
            gates.append(_judge(name, found, rule.on_failure))
    # The user's own come last: they may do to the evidence what they like.
    for own in policy.own:
        if own.on_failure != "off":
            found = check_own(own.name, own.function, evidence)
            gates.append(_judge(own.name, found, own.on_failure))
    return _conclude(gates)


def refuse_structure(reason: str) -> Decision:
    """Returns the decision about a model folder that was not even loaded."""
    return _conclude(
        [Gate("structure", "fail", "refused", "allowed", reason, "refused", "allowed")]
    )


def refuse_answers(reason: str) -> Decision:
    """Returns the decision about a model that does not answer the test rows with finite numbers."""
    failure = f"it does not answer: {reason}"
    found = Found(None, 0, "no answer", "at most 0", failure)
    return _conclude([_STRUCTURE, _judge("finite_outputs", found, "refuse")])


def _judge(name: str, found: Found, on_failure: OnFailure) -> Gate:
    verdict: Verdict = "pass"
    if found.failure:
        verdict = "warn" if "warn" in (on_failure, found.at_worst) else "fail"
    return Gate(
        name, verdict, found.value, found.limit, found.failure, found.measured, found.expected
    )


def _conclude(gates: Sequence[Gate]) -> Decision:
    passed = all(gate.passed for gate in gates)
    return Decision("promoted" if passed else "rejected", tuple(gates))


_STRUCTURE: Final = Gate("structure", "pass", "allowed", "allowed", "", "allowed", "allowed")
_REFUSE: Final = Rule()


def table(gates: Sequence[Gate]) -> str:
    """Returns the gates as a table that a person can read, a line each."""
    rows = [("gate", "measured", "limit", "verdict")]
    rows += [(one.name, _cut(one.measured), _cut(one.expected), one.verdict) for one in gates]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _cut(text: str, most: int = 60) -> str:
    plain = "".join(one if one.isprintable() else "?" for one in text)
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
