"""What each gate of Podium's looks at: one function a gate, evidence and policy in, finding out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from mlops.errors import MlopsError
from mlops.evaluation import expected_calibration_error, interval
from registry.evidence import Evidence, Measured
from registry.interface import describe_interface, same_interface
from registry.own_gates import ask_own
from registry.paired import compare
from registry.policy import Policy, Replays
from registry.replayed import Replay

Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A gate's finding, before the policy says what follows; the words are those of `Gate`.

    Attributes:
        failure: Why the gate is not met; empty where it is.
        at_worst: What a policy that refuses makes of a failure.
    """

    value: Value
    limit: Value
    measured: str
    expected: str = ""
    failure: str = ""
    at_worst: Literal["warn", "fail"] = "fail"


def _finite_outputs(evidence: Evidence, policy: Policy) -> Found | None:
    score = evidence.candidate.score
    failure = f"{score.n_not_finite} of {score.n_rows} answers are not finite"
    return Found(
        score.n_not_finite,
        0,
        f"{score.n_not_finite} of {score.n_rows} not finite",
        "at most 0",
        failure if score.n_not_finite else "",
    )


def _better_than_chance(evidence: Evidence, policy: Policy) -> Found | None:
    score = evidence.candidate.score
    chance = f"{score.chance:.4f}"
    failure = f"{score.metric} {score.value:.4f} is not above chance, {chance}"
    return Found(
        score.value,
        score.chance,
        _shown_score(evidence),
        f"above {chance}",
        "" if score.value > score.chance else failure,
    )


def _quality(evidence: Evidence, policy: Policy) -> Found | None:
    score, floor = evidence.candidate.score, policy.quality.floor
    if floor is None:
        return None
    failure = f"{score.metric} {score.value:.4f} is below the floor, {floor:g}"
    return Found(
        score.value,
        floor,
        _shown_score(evidence),
        f"at least {floor:g}",
        "" if score.value >= floor else failure,
    )


def _champion_verifies(evidence: Evidence, policy: Policy) -> Found | None:
    fault = evidence.champion_fault
    if fault:
        failure = f"the champion cannot be compared with: {fault}"
        return Found("no", "yes", "no", "verifies, answers", failure)
    if evidence.champion is None:
        return None
    return Found("yes", "yes", "verifies, answers", "verifies, answers")


def _same_interface(evidence: Evidence, policy: Policy) -> Found | None:
    if evidence.champion is None:
        return None
    spec, champion = evidence.candidate.spec, evidence.champion.spec
    sends, takes = describe_interface(spec), describe_interface(champion)
    failure = f"its clients send and expect something else: {sends}, not {takes}"
    same = same_interface(spec, champion)
    expected = "as the champion's" if same else takes
    return Found(sends, takes, sends, expected, "" if same else failure)


def _not_worse_than_champion(evidence: Evidence, policy: Policy) -> Found | None:
    if evidence.champion is None:
        return None
    confidence = policy.not_worse_than_champion.confidence
    expected = f"not shown worse ({100 * confidence:.4g} %)"
    rival, own = evidence.champion.measured, evidence.candidate
    if rival is None:
        reason = "the champion does not answer these rows, so the two are not compared"
        return Found(None, 0.0, "not measured", expected, reason, at_worst="warn")
    if rival.spec.likelihood != own.spec.likelihood:
        reason = (
            f"ELBOs of different likelihoods do not compare: {own.spec.likelihood}, not the "
            f"champion's {rival.spec.likelihood}"
        )
        return Found(None, 0.0, "not comparable", expected, reason)
    pair = compare(own.answers, rival.answers, evidence.labels, own.score.metric, confidence)
    test = "" if pair.p is None else f", McNemar p {_shown_p(pair.p)}"
    measured = _shown_points(evidence, pair.difference, pair.low, pair.high) + test
    failure = (
        f"{own.score.metric} {own.score.value:.4f} on {own.score.n_rows} test rows is shown to be "
        f"worse than the champion's {rival.score.value:.4f}: {measured}"
    )
    return Found(pair.difference, 0.0, measured, expected, failure if pair.is_worse else "")


def _largest_drop(evidence: Evidence, policy: Policy) -> Found | None:
    own = evidence.candidate
    rival = None if evidence.champion is None else evidence.champion.measured
    limits = policy.largest_drop
    largest = limits.largest_drop if evidence.labels is not None else limits.largest_drop_nats
    if rival is None or largest is None or rival.spec.likelihood != own.spec.likelihood:
        return None
    # 0.98 - 1.00 is a little less than -0.02, which is to pass.
    difference = round(own.score.value - rival.score.value, 12)
    measured, allowed = (_shown_points(evidence, one) for one in (difference, -largest))
    return Found(
        difference,
        -largest,
        measured,
        f"at least {allowed}",
        ""
        if difference >= -largest
        else f"{own.score.metric} is {measured} from the champion's; at least {allowed} is allowed",
    )


def _test_rows_unseen(evidence: Evidence, policy: Policy) -> Found | None:
    return _find_seen(evidence.candidate, "the candidate")


def _test_rows_unseen_by_champion(evidence: Evidence, policy: Policy) -> Found | None:
    champion = evidence.champion
    if champion is None or champion.measured is None:
        return None
    return _find_seen(champion.measured, "the champion")


def _find_seen(model: Measured, who: str) -> Found:
    n_seen, n_rows = model.n_seen, model.score.n_rows
    if n_seen is None:
        failure = f"the dataset of {who} is not in the store, so which test rows it has seen is not"
        return Found(None, 0, "unknown", "at most 0", f"{failure} known", at_worst="warn")
    failure = f"{who} was trained or chosen on {n_seen} of the {n_rows} test rows"
    return Found(n_seen, 0, f"{n_seen} of {n_rows} seen", "at most 0", failure if n_seen else "")


def _calibration(evidence: Evidence, policy: Policy) -> Found | None:
    if evidence.labels is None:
        return None
    limit = policy.calibration.ece
    error = expected_calibration_error(evidence.candidate.answers, evidence.labels)
    return _at_most(error, limit, lambda value: f"{value:.3g}", "the expected calibration error")


def _robustness(evidence: Evidence, policy: Policy) -> Found | None:
    score, changed = evidence.candidate.score, evidence.candidate.perturbed
    limit = policy.robustness.drop if evidence.labels is not None else None
    expected = "" if limit is None else f"at least {_shown_points(evidence, -limit)}"
    if not changed:
        reason = "it was not measured on rows that are changed a little"
        return Found(None, limit, "not measured", expected, "" if limit is None else reason)
    drops = {name: round(score.value - one.value, 12) for name, one in changed.items()}
    measured = ", ".join(f"{name} {_shown_points(evidence, -drop)}" for name, drop in drops.items())
    is_met = limit is None or all(drop <= limit for drop in drops.values())
    failure = f"{score.metric} falls on rows that are changed a little: {measured}"
    return Found(max(drops.values()), limit, measured, expected, "" if is_met else failure)


def _size(evidence: Evidence, policy: Policy) -> Found | None:
    return _at_most(
        evidence.candidate.size_bytes, policy.size.size_bytes, _shown_bytes, "the folder's size"
    )


def _latency(evidence: Evidence, policy: Policy) -> Found | None:
    limit, serving = policy.latency.p95_ms, evidence.serving
    if limit is None:
        return None
    value = None if serving is None else serving.p95_ms
    return _at_most(value, limit, lambda ms: f"{ms:.1f} ms", "the 95th percentile of a request")


def _memory(evidence: Evidence, policy: Policy) -> Found | None:
    limit, serving = policy.memory.memory_bytes, evidence.serving
    if limit is None:
        return None
    value = None if serving is None else serving.memory_bytes
    return _at_most(value, limit, _shown_bytes, "the memory to serve it")


def _replayed(evidence: Evidence, policy: Policy) -> Found | None:
    has_champion = evidence.champion is not None or evidence.champion_fault
    if evidence.alias != "champion" or not has_champion:
        return None
    rule, replay = policy.replayed, evidence.replay
    least = rule.min_agreement
    expected = f"{_shown_percent(least)} of {rule.min_requests:,}"
    if rule.max_p95_ms is not None:
        expected += f", p95 {rule.max_p95_ms:g} ms"
    if replay is None:
        failure = (
            "no replay beside the champion was reported: serve both with python -m registry.serve "
            "--shadow, and name its report with --replayed"
        )
        return Found(None, least, "not replayed", expected, failure)
    measured = _shown_replay(replay)
    failure = evidence.replay_fault or _find_short(replay, rule)
    return Found(replay.agreement, least, measured, expected, failure)


def _find_short(replay: Replay, rule: Replays) -> str:
    """Returns in what a replay falls short of a policy; "" where in nothing."""
    short = []
    if replay.n_requests < rule.min_requests:
        short.append(f"{rule.min_requests:,} requests are asked for")
    if replay.agreement < rule.min_agreement:
        short.append(f"{_shown_percent(rule.min_agreement)} must agree")
    if rule.max_p95_ms is not None and not (
        replay.p95_ms is not None and replay.p95_ms <= rule.max_p95_ms
    ):
        short.append(f"p95 may be {rule.max_p95_ms:g} ms")
    return f"replayed on {_shown_replay(replay)}: {', '.join(short)}" if short else ""


def _dataset_known(evidence: Evidence, policy: Policy) -> Found | None:
    # A dataset that is not in the store has no test rows: there is no evidence then.
    digits = evidence.candidate.spec.dataset_fingerprint[:12]
    return Found(digits, None, digits, "in the store")


def _clean_commit(evidence: Evidence, policy: Policy) -> Found | None:
    commit = evidence.commit
    if commit.sha is None or commit.is_dirty is None:
        return Found(None, "clean", "unknown", "clean", "the commit it was trained from is unknown")
    state = "dirty" if commit.is_dirty else "clean"
    failure = f"files differed from the commit {commit.sha[:12]} that it was trained from"
    return Found(
        state, "clean", f"{commit.sha[:12]} {state}", "clean", failure if commit.is_dirty else ""
    )


def _reproduced(evidence: Evidence, policy: Policy) -> Found | None:
    found = evidence.reproduced or "not reproduced"
    failure = f"its run is not reproduced to the bit: {found}"
    expected = "identical, signed" if policy.reproduced.signed else "identical"
    return Found(found, "identical", found, expected, "" if found == "identical" else failure)


def _decisions_on_these_rows(evidence: Evidence, policy: Policy) -> Found | None:
    # Choosing by the same rows again and again fits them (Dwork et al. 2015, section 1).
    n, limit = evidence.n_decisions, policy.decisions_on_these_rows.decisions
    return _at_most(n, limit, str, "the number of decisions made on these test rows")


def _isolation(evidence: Evidence, policy: Policy) -> Found | None:
    found, wanted = evidence.isolation, "no network"
    failure = f"the candidate was {found}"
    return Found(found, wanted, found, wanted, "" if found == wanted else failure)


CHECKS: Final[dict[str, Callable[[Evidence, Policy], Found | None]]] = {
    "finite_outputs": _finite_outputs,
    "better_than_chance": _better_than_chance,
    "quality": _quality,
    "champion_verifies": _champion_verifies,
    "same_interface": _same_interface,
    "not_worse_than_champion": _not_worse_than_champion,
    "largest_drop": _largest_drop,
    "test_rows_unseen": _test_rows_unseen,
    "test_rows_unseen_by_champion": _test_rows_unseen_by_champion,
    "calibration": _calibration,
    "robustness": _robustness,
    "size": _size,
    "latency": _latency,
    "memory": _memory,
    "replayed": _replayed,
    "dataset_known": _dataset_known,
    "clean_commit": _clean_commit,
    "reproduced": _reproduced,
    "decisions_on_these_rows": _decisions_on_these_rows,
    "isolation": _isolation,
}
"""By the gate's name, in the order of a decision. One that does not apply returns None."""


def check_own(name: str, function: str, evidence: Evidence) -> Found:
    """Returns what a user's gate found; one that cannot be asked is not met."""
    try:
        passed, measured, limit = ask_own(function, evidence)
    except MlopsError as err:
        return Found(None, None, "no answer", "", f"{name}: {err}")
    failure = f"{name}: {measured}" + ("" if limit is None else f", limit {limit}")
    expected = "" if limit is None else _shown_value(limit)
    return Found(measured, limit, _shown_value(measured), expected, "" if passed else failure)


def _at_most(value: Any, limit: Any, show: Callable[[Any], str], what: str) -> Found:
    if value is None:
        return Found(None, limit, "not measured", f"at most {show(limit)}", f"{what} is unknown")
    # Written so that NaN fails.
    failure = "" if value <= limit else f"{what} {show(value)} is above {show(limit)}"
    return Found(value, limit, show(value), f"at most {show(limit)}", failure)


# In people's units.


def _shown_score(evidence: Evidence) -> str:
    score = evidence.candidate.score
    low, high = interval(evidence.candidate.answers, evidence.labels, score.metric)
    unit = "" if evidence.labels is not None else " nats"
    return f"{score.metric} {score.value:.4f}{unit} [{low:.4f}, {high:.4f}]"


def _shown_points(evidence: Evidence, value: float, *interval: float) -> str:
    """A difference of scores: "-0.3 points [-1.3, 0.8]", or nats for a VAE."""
    scale, digits, unit = (100, 1, "points") if evidence.labels is not None else (1, 2, "nats")
    # Adding 0 makes -0.0 a 0.0.
    shown = [f"{round(scale * one, digits) + 0.0:.{digits}f}" for one in (value, *interval)]
    return f"{shown[0]} {unit}" + (f" [{shown[1]}, {shown[2]}]" if interval else "")


def _shown_p(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def _shown_bytes(n: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n / 1024:.1f} KiB"


def _shown_replay(replay: Replay) -> str:
    """As in "5,000 requests: agrees 99.2 %, p95 4 ms"."""
    errors = f", {replay.n_errors:,} errors" if replay.n_errors else ""
    p95 = "unknown" if replay.p95_ms is None else f"{replay.p95_ms:.3g} ms"
    agrees = f"agrees {_shown_percent(replay.agreement)}"
    return f"{replay.n_requests:,} requests: {agrees}{errors}, p95 {p95}"


def _shown_percent(share: float) -> str:
    """Rounded down: what falls short of a limit is not shown as the limit."""
    return f"{math.floor(round(1e4 * share, 6)) / 100:g} %"


def _shown_value(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
