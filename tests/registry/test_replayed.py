"""The gate `replayed`: what a report must be, and how a challenger becomes champion with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import UsageError
from mlops.settings import Settings
from registry.alias import Registry
from registry.approve import approve
from registry.gates import Gate
from registry.policy import Policy, Replays, Rule
from registry.promote import main, promote
from registry.replayed import Replay, Replayed, read_replay
from tests.registry.sides import NAME, Sides

Register = Callable[..., int]
REPORT = {
    "format": 1,
    "name": NAME,
    "champion": {"version": 1, "statement_sha256": "a" * 64},
    "challenger": {"version": 2, "statement_sha256": "b" * 64},
    "requests": 5000,
    "agreed": 4960,
    "challenger_errors": 3,
    "dropped": 0,
    "p50_ms": 2.1,
    "p95_ms": 4.0,
    "max_abs_difference": 0.25,
    "since": "2026-01-02T03:04:05+00:00",
    "until": "2026-01-02T04:04:05+00:00",
}


def write(folder: Path, **changed: Any) -> Path:
    path = folder / "shadow.json"
    path.write_text(json.dumps({**REPORT, **changed}))
    return path


# The report.


def test_a_report_is_read(tmp_path: Path) -> None:
    found = read_replay(write(tmp_path))
    assert isinstance(found, Replay)
    assert (found.name, found.n_requests, found.n_agreed, found.n_errors) == (NAME, 5000, 4960, 3)
    assert (found.champion, found.challenger) == (Replayed(1, "a" * 64), Replayed(2, "b" * 64))
    assert (found.agreement, found.p95_ms, len(found.sha256)) == (0.992, 4.0, 64)
    nothing = write(tmp_path, requests=0, agreed=0, challenger_errors=0, p95_ms=None)
    assert (read_replay(nothing).agreement, read_replay(nothing).p95_ms) == (0.0, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2},
        {"name": 7},
        {"champion": None},
        {"champion": {"version": 1}},
        {"challenger": {"version": True, "statement_sha256": "b"}},
        {"challenger": {"version": 2, "statement_sha256": None}},
        {"requests": -1},
        {"requests": 5000.0},
        {"requests": 4962},
        {"agreed": "4960"},
        {"agreed": 5001},
        {"challenger_errors": True},
        {"p95_ms": float("nan")},
        {"p95_ms": float("inf")},
        {"p95_ms": -1.0},
        {"p95_ms": "4"},
        {"more": "x" * (1 << 20)},
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is no report of a replay; expected the one"):
        read_replay(write(tmp_path, **changed))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is no report of a replay"):
        read_replay(path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_replay(tmp_path / "nothing.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_replay(tmp_path)


# The promotion.


@pytest.fixture
def asking(registry: Registry) -> Registry:
    """A registry whose policy asks for a replay."""
    return replace(registry, policy=replace(registry.policy, replayed=Replays("refuse")))


@pytest.fixture
def raced(asking: Registry, register: Register) -> Registry:
    """Version 1 is champion, version 2 of candidate 2 is challenger."""
    register(right=9.0, value=0.9)
    register(right=9.0, value=0.95)
    promote(asking, NAME, version=1)
    promote(asking, NAME, version=2, alias="challenger")
    assert asking.catalog.find_aliases(NAME) == {"champion": 1, "challenger": 2}
    return asking


def report(registry: Registry, folder: Path, champion: int, challenger: int, **more: Any) -> Path:
    """What a server that shadows these two would write."""
    both = {}
    for role, version in (("champion", champion), ("challenger", challenger)):
        statement = registry.catalog.read_statement(registry.catalog.get_release(NAME, version))
        assert statement is not None
        both[role] = {"version": version, "statement_sha256": statement[1]}
    return write(folder, **both, **more)


def gate(gates: tuple[Gate, ...]) -> Gate | None:
    return next((one for one in gates if one.name == "replayed"), None)


def test_the_first_champion_and_a_challenger_need_no_replay(raced: Registry) -> None:
    promoted = [one for one in raced.ledger.events(NAME) if one.kind == "intent"]
    assert len(promoted) == 2
    for one in promoted:
        assert "replayed" not in {each["name"] for each in one.body["gates"]}


def test_a_challenger_becomes_champion_by_its_report(raced: Registry, tmp_path: Path) -> None:
    file = report(raced, tmp_path, 1, 2)
    done = promote(raced, NAME, replayed=file)
    assert (done.decision, done.version, done.candidate_version) == ("promoted", 2, 2)
    assert raced.catalog.find_aliases(NAME) == {"champion": 2, "challenger": 2}
    found = gate(done.gates)
    assert found is not None and found.verdict == "pass"
    assert found.measured == "5,000 requests: agrees 99.2 %, 3 errors, p95 4 ms"
    assert found.expected == "98 % of 1,000"
    intent, end = raced.ledger.events(NAME)[-2:]
    assert (intent.kind, end.kind) == ("intent", "done")
    assert intent.body["replayed"] == {
        "report_sha256": read_replay(file).sha256,
        "champion": 1,
        "challenger": 2,
        "requests": 5000,
        "agreed": 4960,
        "challenger_errors": 3,
        "p95_ms": 4.0,
    }
    again = promote(raced, NAME, replayed=file)
    assert (again.decision, again.version) == ("unchanged", 2)


def test_without_a_report_the_challenger_stays_one(raced: Registry) -> None:
    done = promote(raced, NAME, version=2)
    assert (done.decision, done.version) == ("rejected", 1)
    assert done.reason.startswith("no replay beside the champion was reported: serve both with")
    assert raced.catalog.find_aliases(NAME) == {"champion": 1, "challenger": 2}


def test_a_policy_that_warns_promotes_and_says_so(raced: Registry) -> None:
    warned = replace(raced, policy=replace(raced.policy, replayed=Replays("warn")))
    done = promote(warned, NAME, version=2)
    found = gate(done.gates)
    assert done.decision == "promoted" and found is not None and found.verdict == "warn"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"requests": 999, "agreed": 999, "challenger_errors": 0}, "1,000 requests are asked for"),
        (
            {"requests": 10_000, "agreed": 9799},
            "replayed on 10,000 requests: agrees 97.99 %, 3 errors, p95 4 ms: 98 % must agree",
        ),
        ({"agreed": 0, "challenger_errors": 5000}, "agrees 0 %, 5,000 errors"),
        ({"p95_ms": 20.5}, "p95 20.5 ms: p95 may be 20 ms"),
        ({"p95_ms": None}, "p95 unknown: p95 may be 20 ms"),
    ],
)
def test_a_replay_that_falls_short_is_refused(
    raced: Registry, tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    rule = Replays("refuse", max_p95_ms=20.0)
    raced = replace(raced, policy=replace(raced.policy, replayed=rule))
    done = promote(raced, NAME, replayed=report(raced, tmp_path, 1, 2, **more))
    assert done.decision == "rejected" and why in done.reason
    rejected = raced.ledger.events(NAME)[-1]
    assert (rejected.kind, rejected.body["replayed"]["challenger"]) == ("rejected", 2)
    assert raced.catalog.find_aliases(NAME) == {"champion": 1, "challenger": 2}


def test_a_report_about_another_release_is_no_evidence(
    raced: Registry, register: Register, tmp_path: Path
) -> None:
    for changed, why in (
        ({"challenger": {"version": 2, "statement_sha256": "b" * 64}}, "it was signed anew"),
        ({"champion": {"version": 1, "statement_sha256": "a" * 64}}, "it was signed anew"),
    ):
        file = report(raced, tmp_path, 1, 2)
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
        done = promote(raced, NAME, replayed=file)
        assert done.decision == "rejected" and why in done.reason
    number = register(right=9.0, value=0.99)
    file = report(raced, tmp_path, 1, 2)
    done = promote(raced, NAME, version=number, replayed=file)
    assert "the candidate has no release that verifies" in done.reason
    promote(raced, NAME, version=number, alias="challenger")
    done = promote(raced, NAME, version=number, replayed=file)
    assert "is about version 2, and the candidate is version 3" in done.reason
    assert raced.catalog.find_aliases(NAME)["champion"] == 1


def test_a_report_beside_an_earlier_champion_is_no_evidence(
    raced: Registry, register: Register, tmp_path: Path
) -> None:
    number = register(right=9.0, value=0.99)
    promote(raced, NAME, version=number, alias="challenger")
    promote(raced, NAME, replayed=report(raced, tmp_path, 1, 3))
    done = promote(raced, NAME, replayed=report(raced, tmp_path, 1, 2))
    assert done.decision == "rejected"
    assert "is about version 1, and the present champion is version 3" in done.reason
    # A challenger older than the champion is no less a challenger.
    done = promote(raced, NAME, replayed=report(raced, tmp_path, 3, 2))
    assert (done.decision, done.version) == ("promoted", 2)
    assert raced.catalog.find_aliases(NAME) == {"champion": 2, "challenger": 3}


def test_a_challenger_whose_bytes_were_altered_is_no_evidence(
    raced: Registry, tmp_path: Path
) -> None:
    file = report(raced, tmp_path, 1, 2)
    run = raced.catalog.get_release(NAME, 2).run_id
    (folder,) = raced.settings.artifact_root.rglob(f"{run}/artifacts/release")
    (folder / "requirements.txt").write_text("tensorflow\n")
    done = promote(raced, NAME, replayed=file)
    assert done.decision == "rejected"
    assert "version 2 does not verify: requirements.txt was changed" in done.reason


def test_a_challenger_whose_candidate_was_altered_is_no_evidence(
    raced: Registry, sides: Sides, tmp_path: Path
) -> None:
    file = report(raced, tmp_path, 1, 2)
    candidate = raced.catalog.find_candidates(NAME)[0]
    (folder,) = raced.settings.artifact_root.rglob(f"{candidate.run_id}/artifacts/model")
    shutil.copytree(sides.model(8.0), folder, dirs_exist_ok=True)
    done = promote(raced, NAME, replayed=file)
    assert done.decision == "rejected"
    assert done.reason == "version 2 holds other bytes than the candidate does now"


def test_beside_a_champion_that_does_not_verify_nothing_was_replayed(
    raced: Registry, tmp_path: Path
) -> None:
    file = report(raced, tmp_path, 1, 2)
    run = raced.catalog.get_release(NAME, 1).run_id
    (folder,) = raced.settings.artifact_root.rglob(f"{run}/artifacts/release")
    (folder / "requirements.txt").write_text("tensorflow\n")
    lenient = replace(raced.policy, champion_verifies=Rule("warn"))
    done = promote(replace(raced, policy=lenient), NAME, replayed=file)
    assert done.decision == "rejected"
    assert done.reason.startswith("the present champion does not verify, so what was replayed")


def test_a_replayed_challenger_may_wait_for_an_approval(raced: Registry, tmp_path: Path) -> None:
    done = promote(raced, NAME, propose=True, replayed=report(raced, tmp_path, 1, 2))
    assert (done.decision, done.version) == ("proposed", 2)
    assert approve(raced, NAME, 2).moved
    assert raced.catalog.find_aliases(NAME)["champion"] == 2


# The program.


def test_a_report_that_cannot_count_is_refused_before_anything(
    raced: Registry, registry: Registry, tmp_path: Path
) -> None:
    file = report(raced, tmp_path, 1, 2)
    before = raced.ledger.events()
    with pytest.raises(UsageError, match="leaves the gate replayed off; set on_failure ="):
        promote(registry, NAME, replayed=file)
    with pytest.raises(UsageError, match="for the alias challenger; a replay is asked for where"):
        promote(raced, NAME, alias="challenger", replayed=file)
    with pytest.raises(UsageError, match=f"a report about 'other'; expected one about {NAME}"):
        promote(raced, NAME, replayed=write(tmp_path, name="other"))
    with pytest.raises(UsageError, match=r"has no version 7; expected one of 2, 1\."):
        challenger = {"version": 7, "statement_sha256": "b" * 64}
        promote(raced, NAME, replayed=write(tmp_path, challenger=challenger))
    assert raced.ledger.events() == before


def test_the_program_takes_a_report(
    settings: Settings,
    register: Register,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    register(right=9.0, value=0.9)
    assert main([NAME, "--replayed", str(tmp_path / "nothing.json")]) == 2
    assert "leaves the gate replayed off" in capsys.readouterr().err
    policy = tmp_path / "policy.toml"
    policy.write_text(Policy(replayed=Replays("refuse")).to_toml())
    args = [NAME, "--policy", str(policy), "--replayed", str(tmp_path / "nothing.json")]
    assert main(args) == 2
    assert "nothing.json cannot be read: No such file" in capsys.readouterr().err
