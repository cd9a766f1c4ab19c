"""Approval: what waits for another account, and who may complete it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import UsageError
from registry.alias import Registry, open_registry
from registry.approve import RefusedError, approve, main
from registry.ledger import Actor, os_user
from registry.policy import Hook
from registry.promote import promote
from registry.releases import read_statement, write_statement
from registry.rollback import rollback
from registry.signing import UnverifiedError, sign
from tests.registry.sides import NAME

Register = Callable[..., int]
ADA = Actor("ada", "tracking server")
BOB = Actor("bob", "tracking server")


def seen_as(registry: Registry, actor: Actor, approvals: int = 1) -> Registry:
    return replace(registry, actor=actor, policy=replace(registry.policy, approvals=approvals))


def champion_of(registry: Registry) -> int | None:
    return registry.catalog.find_aliases(NAME).get("champion")


def kinds(registry: Registry) -> list[str]:
    return [event.kind for event in registry.ledger.events(NAME)]


@pytest.fixture
def proposed(registry: Registry, register: Register) -> Registry:
    """Ada's registry, in which version 1 waits; the policy asks for one account."""
    register(right=9.0, value=0.9)
    done = promote(seen_as(registry, ADA), NAME, propose=True)
    assert (done.decision, done.version) == ("proposed", 1)
    return seen_as(registry, ADA)


def test_a_proposal_leaves_the_alias_and_another_account_completes_it(
    proposed: Registry, client: Any
) -> None:
    assert champion_of(proposed) is None
    assert kinds(proposed) == ["proposed"]
    candidate = client.get_model_version(f"{NAME}-candidates", "1")
    assert candidate.tags["mlops.decision"] == "proposed"

    done = approve(seen_as(proposed, BOB, approvals=2), NAME, 1)
    assert done.moved and (done.alias, done.proposer) == ("champion", ADA)
    assert champion_of(proposed) == 1
    proposal, approval, intent, end = proposed.ledger.events(NAME)
    assert (proposal.kind, proposal.actor) == ("proposed", ADA)
    assert (approval.kind, approval.actor) == ("approved", BOB)
    assert approval.body == {"alias": "champion", "proposal": proposal.seq}
    assert (intent.body["proposal"], intent.body["approval"]) == (proposal.seq, approval.seq)
    assert intent.body["statement_sha256"] == proposal.body["statement_sha256"]
    assert (end.kind, end.body["to"]) == ("done", 1)
    candidate = client.get_model_version(f"{NAME}-candidates", "1")
    assert candidate.tags["mlops.decision"] == "promoted"


def test_the_account_that_proposed_it_may_approve_it_where_one_is_enough(
    proposed: Registry,
) -> None:
    assert approve(proposed, NAME, 1).moved
    assert champion_of(proposed) == 1


def test_the_account_that_proposed_it_is_refused_where_the_policy_asks_for_two(
    proposed: Registry,
) -> None:
    with pytest.raises(RefusedError, match=r"ada proposed it, .* another must approve") as refused:
        approve(seen_as(proposed, ADA, approvals=2), NAME, 1)
    assert refused.value.exit_code == 3
    assert champion_of(proposed) is None
    assert kinds(proposed) == ["proposed"]


def test_the_policy_of_the_proposal_holds_for_its_approval(
    registry: Registry, register: Register
) -> None:
    register(right=9.0, value=0.9)
    done = promote(seen_as(registry, ADA, approvals=2), NAME)
    assert done.decision == "proposed"  # though nobody said --propose
    assert champion_of(registry) is None
    with pytest.raises(RefusedError, match="the policy asks for two accounts"):
        approve(seen_as(registry, ADA, approvals=1), NAME, 1)
    assert approve(seen_as(registry, BOB, approvals=1), NAME, 1).moved
    assert champion_of(registry) == 1


@pytest.mark.parametrize(
    "other", [Actor("ada", "operating system"), Actor("ada_lovelace", "database")]
)
def test_a_login_that_another_authority_knows_may_be_the_same_person(
    proposed: Registry, other: Actor
) -> None:
    with pytest.raises(RefusedError, match="they may be one person") as refused:
        approve(seen_as(proposed, other, approvals=2), NAME, 1)
    assert f"login of the tracking server and {other.name}" in str(refused.value)
    assert champion_of(proposed) is None


def test_a_proposal_against_a_champion_that_was_replaced_is_proposed_again(
    proposed: Registry, register: Register
) -> None:
    register(right=9.0, value=0.95)
    assert promote(proposed, NAME).version == 2
    with pytest.raises(
        RefusedError, match="was proposed when champion was nothing, and it is version 2 now"
    ) as refused:
        approve(seen_as(proposed, BOB), NAME, 1)
    assert champion_of(proposed) == 2
    # What it says to type: without the version it would be another candidate's turn.
    command = f"python -m registry.promote {NAME} --version 1 --propose"
    assert str(refused.value).endswith(command)
    again = promote(proposed, NAME, version=1, propose=True)
    assert (again.decision, again.version) == ("proposed", 1)
    assert approve(seen_as(proposed, BOB), NAME, 1).moved
    assert champion_of(proposed) == 1


def test_a_proposal_for_another_alias_says_so_when_it_must_be_repeated(
    registry: Registry, register: Register
) -> None:
    register(right=9.0, value=0.9)
    register(right=9.0, value=0.95)
    promote(registry, NAME, version=1, alias="challenger", propose=True)
    promote(registry, NAME, version=2, alias="challenger")
    with pytest.raises(RefusedError, match="--version 1 --alias challenger --propose"):
        approve(registry, NAME, 1)


def test_a_version_that_was_not_proposed_is_answered_with_those_that_were(
    proposed: Registry, register: Register
) -> None:
    register(right=9.0, value=0.95)
    promote(proposed, NAME)
    with pytest.raises(UsageError, match="version 2 was not proposed; proposed were 1"):
        approve(proposed, NAME, 2)
    with pytest.raises(UsageError, match=r"has no version 7; expected one of 2, 1\."):
        approve(proposed, NAME, 7)
    with pytest.raises(UsageError, match=f"did you mean '{NAME}'"):
        approve(proposed, "side-classifier", 1)


def test_a_proposed_release_that_was_altered_is_refused(proposed: Registry) -> None:
    (stored,) = proposed.settings.artifact_root.rglob("release/requirements.txt")
    stored.write_text(stored.read_text() + "\n")
    with pytest.raises(UnverifiedError, match=r"requirements\.txt"):
        approve(seen_as(proposed, BOB), NAME, 1)
    assert champion_of(proposed) is None
    assert kinds(proposed) == ["proposed"]


def test_to_approve_twice_changes_nothing(proposed: Registry) -> None:
    bobs = seen_as(proposed, BOB, approvals=2)
    assert approve(bobs, NAME, 1).moved
    before = kinds(proposed)
    again = approve(bobs, NAME, 1)
    assert (again.moved, again.version, again.alias) == (False, 1, "champion")
    assert kinds(proposed) == before


def test_a_note_that_a_crash_left_out_is_made_by_the_same_approval(
    proposed: Registry, client: Any
) -> None:
    approve(proposed, NAME, 1)
    client.set_model_version_tag(f"{NAME}-candidates", "1", "mlops.decision", "proposed")
    assert not approve(proposed, NAME, 1).moved
    candidate = client.get_model_version(f"{NAME}-candidates", "1")
    assert candidate.tags["mlops.decision"] == "promoted"


def test_an_approval_is_not_good_for_a_second_move(proposed: Registry, register: Register) -> None:
    """Else one account alone could bring back what was rolled back."""
    approve(seen_as(proposed, BOB), NAME, 1)
    register(right=9.0, value=0.95)
    twos = seen_as(proposed, ADA, approvals=2)
    assert promote(twos, NAME).decision == "proposed"
    approve(seen_as(proposed, BOB, approvals=2), NAME, 2)
    rollback(twos, NAME)
    assert champion_of(proposed) == 1
    with pytest.raises(RefusedError, match=r"was approved before.*--version 2 --propose"):
        approve(seen_as(proposed, BOB, approvals=2), NAME, 2)
    assert champion_of(proposed) == 1
    promote(twos, NAME, version=2, propose=True)
    assert approve(seen_as(proposed, BOB, approvals=2), NAME, 2).moved


def test_the_hook_runs_after_an_approval(proposed: Registry, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    copy = f"import sys, pathlib; pathlib.Path({str(told)!r}).write_text(sys.stdin.read())"
    hook = Hook(command=(sys.executable, "-c", copy))
    approve(replace(proposed, policy=replace(proposed.policy, hook=hook)), NAME, 1)
    assert json.loads(told.read_text())["event"] == "done"
    assert kinds(proposed)[-1] == "hook"


def test_the_program_says_what_an_approval_is_worth_in_embedded_mode(
    registry: Registry, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME, propose=True)
    assert main([NAME, "1"]) == 0
    who = f"{os_user()} (only the OS user; no server authenticated the name)"
    out = capsys.readouterr().out
    assert f"{NAME} version 1 is champion: proposed by {who}, approved by {who}." in out
    assert f"models:/{NAME}@champion" in out
    assert main([NAME, "1"]) == 0
    assert "unchanged; version 1 is champion already" in capsys.readouterr().out


def test_the_program_answers_in_json(
    registry: Registry, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME, propose=True)
    for decision in ("promoted", "unchanged"):
        assert main([NAME, "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
            "decision": decision,
            "name": NAME,
            "version": 1,
            "alias": "champion",
            "proposed_by": os_user(),
        }


def test_the_program_refuses_in_one_line(
    registry: Registry,
    register: Register,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME, propose=True)
    policy = tmp_path / "policy.toml"
    policy.write_text("approvals = 2\n")
    assert main([NAME, "1", "--policy", str(policy)]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert "another must approve it" in line
    assert main([NAME, "2"]) == 2
    assert main(["nothing", "1"]) == 2
    assert champion_of(registry) is None


def test_what_was_signed_anew_since_it_was_proposed_is_not_approved(
    proposed: Registry, client: Any
) -> None:
    """The proposer holds the key: a signature alone does not say that it is what was proposed."""
    release = proposed.catalog.get_release(NAME, 1)
    stored = Path(client.get_run(release.run_id).info.artifact_uri) / "release"
    statement = read_statement((stored / "release.json").read_bytes())
    (stored / "model.sig").unlink()
    write_statement(stored, replace(statement, commit="1" * 40))
    sign(stored, proposed.settings.signing_key)
    with pytest.raises(RefusedError, match="is not what was proposed"):
        approve(seen_as(proposed, BOB, approvals=2), NAME, 1)
    assert champion_of(proposed) is None


def test_an_approval_for_one_alias_is_none_for_another(
    registry: Registry, register: Register
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME)
    register(right=9.0, value=0.95)
    promote(seen_as(registry, ADA, approvals=2), NAME, alias="challenger")
    assert approve(seen_as(registry, BOB), NAME, 2).moved
    with pytest.raises(RefusedError, match="version 2 never was champion"):
        rollback(seen_as(registry, ADA), NAME, to=2)
    assert champion_of(registry) == 1


def test_an_alias_that_was_set_by_hand_is_no_approval(proposed: Registry, client: Any) -> None:
    client.set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(RefusedError):
        approve(seen_as(proposed, ADA, approvals=2), NAME, 1)
    assert "approved" not in kinds(proposed)


def test_a_policy_on_the_command_line_cannot_ask_for_fewer_accounts(
    registry: Registry, tmp_path: Path
) -> None:
    home = registry.settings.home
    (home / "policy.toml").write_text("approvals = 2\n")
    (tmp_path / "mine.toml").write_text("[size]\non_failure = 'off'\n")
    with (
        pytest.raises(UsageError, match="expected approvals = 2"),
        open_registry(registry.settings, tmp_path / "mine.toml"),
    ):
        pass
    (home / "policy.toml").unlink()
    (home / "policy.toml").symlink_to(tmp_path / "not-mounted.toml")
    with pytest.raises(UsageError, match=r"policy\.toml"), open_registry(registry.settings):
        pass
