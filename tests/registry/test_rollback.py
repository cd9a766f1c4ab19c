"""Rollback: where it goes, what it refuses, and what it records."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlops.data import Dataset
from mlops.errors import MlopsError, UsageError
from mlops.mlflow_store import open_store_client
from registry import history
from registry.alias import Registry, open_registry
from registry.approve import RefusedError
from registry.catalog import Catalog, Release
from registry.ledger import Actor, os_user
from registry.moves import holding_at, open_intent, present_holder
from registry.policy import Hook
from registry.promote import promote
from registry.release_store import ReleaseStore
from registry.rollback import main, rollback
from registry.signing import UnverifiedError
from tests.registry.sides import NAME, Sides, probe_sides, settings_for

Register = Callable[..., int]
ROOT = Path(__file__).parents[2]


def champion_of(registry: Registry) -> int | None:
    return registry.catalog.find_aliases(NAME).get("champion")


def kinds(registry: Registry) -> list[str]:
    return [event.kind for event in registry.ledger.events(NAME)]


def promote_next(registry: Registry, register: Register) -> None:
    number = register(right=9.0, value=0.9)
    assert promote(registry, NAME, version=number).decision == "promoted"


@pytest.fixture(scope="module")
def three_made(
    tmp_path_factory: pytest.TempPathFactory,
    mlflow_database: Path,
    dataset: Dataset,
    made_models: tuple[Path, dict[float, Path]],
) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("rollback")
    (folder / "home").mkdir()
    shutil.copy(mlflow_database, folder / "home" / "mlflow.db")
    settings = settings_for(folder / "home", dataset)
    sides = Sides(open_store_client(settings), dataset, folder, *made_models)
    with open_registry(settings, probe=probe_sides) as made:
        for _ in range(3):
            promote_next(made, sides.register)
        yield made


@pytest.fixture
def three(three_made: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry in which 1, 2 and 3 were promoted, one after the other; 3 is champion."""
    monkeypatch.setenv("MLOPS_HOME", str(three_made.settings.home))
    rollback(three_made, NAME, to=3)
    return three_made


def test_two_rollbacks_go_two_promotions_back(three: Registry) -> None:
    first = rollback(three, NAME)
    assert (first.previous, first.version, first.moved) == (3, 2, True)
    assert champion_of(three) == 2
    second = rollback(three, NAME)
    assert (second.previous, second.version, second.moved) == (2, 1, True)
    assert champion_of(three) == 1
    with pytest.raises(MlopsError, match=r"no earlier holder of champion to go back to.*--to"):
        rollback(three, NAME)
    assert champion_of(three) == 1
    assert kinds(three)[-4:] == ["intent", "rolled_back", "intent", "rolled_back"]


def test_a_rollback_goes_to_the_version_that_is_named_and_is_recorded(three: Registry) -> None:
    done = rollback(three, NAME, to=1)
    assert (done.name, done.alias, done.previous, done.version) == (NAME, "champion", 3, 1)
    assert champion_of(three) == 1
    intent, end = three.ledger.events(NAME)[-2:]
    assert (intent.kind, end.kind) == ("intent", "rolled_back")
    assert (intent.body["from"], intent.body["to"], intent.body["move"]) == (3, 1, "rollback")
    statement = three.catalog.read_statement(three.catalog.get_release(NAME, 1))
    assert statement is not None and intent.body["statement_sha256"] == statement[1]
    assert end.body == {"alias": "champion", "from": 3, "to": 1, "intent": intent.seq}
    assert end.actor == three.actor == Actor(os_user(), "operating system")


def test_forward_again_is_a_rollback_too(three: Registry) -> None:
    rollback(three, NAME, to=1)
    assert rollback(three, NAME, to=3).moved
    assert champion_of(three) == 3
    assert rollback(three, NAME).version == 2  # what 3 replaced when it was promoted


def test_a_rollback_to_where_the_alias_is_changes_nothing(three: Registry) -> None:
    before = kinds(three)
    done = rollback(three, NAME, to=3)
    assert (done.moved, done.previous, done.version) == (False, 3, 3)
    assert kinds(three) == before


def test_what_was_the_first_has_nothing_to_go_back_to(
    registry: Registry, register: Register
) -> None:
    promote_next(registry, register)
    with pytest.raises(MlopsError, match="no earlier holder of champion"):
        rollback(registry, NAME)
    assert main([NAME]) == 1
    assert champion_of(registry) == 1


def test_an_alias_has_a_past_of_its_own(registry: Registry, register: Register) -> None:
    for _ in range(2):
        promote_next(registry, register)
    for version in (1, 2):
        promote(registry, NAME, version=version, alias="challenger")
    assert rollback(registry, NAME, alias="challenger").version == 1
    assert registry.catalog.find_aliases(NAME) == {"champion": 2, "challenger": 1}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nothing"], f"no model 'nothing'; expected one of {NAME}"),
        (["nothing", "--to", "1"], "no model 'nothing'"),
        ([NAME, "--to", "7"], "has no version 7; expected one of 3, 2, 1."),
        ([NAME, "--to", "0"], "--to is no version; expected 1 or more, got 0."),
        ([NAME, "--alias", "champoin"], "no alias 'champoin'; expected one of champion; did you"),
        ([NAME, "--alias", "champoin", "--to", "1"], "did you mean 'champion'?"),
        ([NAME, "--alias", "latest"], "'latest' is reserved by MLflow"),
        ([NAME, "--alias", "v1"], "'v1' is reserved by MLflow"),
        ([NAME, "--alias", "a b"], "'a b' is no name of an alias"),
    ],
)
def test_what_there_is_not_is_answered_with_what_there_is(
    three: Registry, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    before = kinds(three)
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert three.catalog.find_aliases(NAME) == {"champion": 3}
    assert kinds(three) == before


def test_an_alias_that_somebody_deleted_can_be_put_back(three: Registry) -> None:
    client = open_store_client(three.settings)
    client.delete_registered_model_alias(NAME, "champion")
    done = rollback(three, NAME, to=3)
    assert (done.previous, done.version, done.moved) == (None, 3, True)
    assert champion_of(three) == 3


def test_an_alias_that_was_moved_by_hand_is_recorded_where_it_is(
    three: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_store_client(three.settings)
    client.set_registered_model_alias(NAME, "champion", "2")
    (finding,) = ReleaseStore(three.settings).check().findings
    assert "it holds version 2 in MLflow, and by the ledger version 3" in finding.wrong
    assert finding.mend.endswith(f"python -m registry.rollback {NAME} --to 3 --alias champion")
    assert main([NAME, "--to", "2"]) == 0
    said = (
        f"{NAME} version 2 stays champion: the alias was moved to it by hand, in place of version "
        "3; that is recorded and signed now."
    )
    assert capsys.readouterr().out.splitlines()[0] == said
    intent, end = three.ledger.events(NAME)[-2:]
    assert (intent.body["from"], intent.body["to"], intent.body["by_hand"]) == (3, 2, True)
    assert (end.kind, end.body["from"], end.body["by_hand"]) == ("rolled_back", 3, True)
    assert "champion 3 -> 2, moved to it by hand before" in history.as_table([intent, end])
    # Ledger and MLflow agree, and so does what asks them.
    assert ReleaseStore(three.settings).check().findings == ()
    assert history.main([NAME, "--check"]) == 0
    held = holding_at(three.ledger.events(NAME), "champion", datetime.now(UTC))
    assert held.version == 2
    assert not rollback(three, NAME, to=2).moved
    back = rollback(three, NAME)
    assert (back.previous, back.version, back.by_hand) == (2, 1, False)


def test_what_an_earlier_version_recorded_of_a_move_by_hand_is_read_as_it_was_meant(
    three: Registry,
) -> None:
    """It wrote `from` equal to `to`, and then refused every rollback without --to."""
    open_store_client(three.settings).set_registered_model_alias(NAME, "champion", "2")
    body = {"alias": "champion", "from": 2, "to": 2}
    known = next(one for one in three.ledger.events(NAME) if one.version == 2)
    intent = three.ledger.append(
        *("intent", NAME, 2, three.actor),
        {**body, "move": "rollback", "statement_sha256": known.body["statement_sha256"]},
    )
    end = three.ledger.append("rolled_back", NAME, 2, three.actor, {**body, "intent": intent.seq})
    assert history.main([NAME, "--check"]) == 0
    assert "champion 2 -> 2, which it held in MLflow already" in history.as_table([end])
    assert rollback(three, NAME).version == 1


def test_a_promotion_to_where_somebody_moved_the_alias_is_recorded_as_one(
    registry: Registry, register: Register
) -> None:
    for _ in range(2):
        promote_next(registry, register)
    open_store_client(registry.settings).set_registered_model_alias(NAME, "champion", "1")
    assert promote(registry, NAME, version=1).decision == "promoted"
    assert present_holder(registry.ledger.events(NAME), "champion") == 1
    assert rollback(registry, NAME).version == 2


def test_a_release_that_was_altered_is_not_gone_back_to(three: Registry) -> None:
    run = three.catalog.get_release(NAME, 2).run_id
    (folder,) = three.settings.artifact_root.rglob(f"{run}/artifacts/release")
    file = folder / "requirements.txt"
    was = file.read_text()
    file.write_text("tensorflow\n")
    with pytest.raises(UnverifiedError, match="champion stays version 3; choose another") as err:
        rollback(three, NAME)
    assert "requirements.txt was changed after it was signed" in str(err.value)
    assert champion_of(three) == 3
    assert rollback(three, NAME, to=1).version == 1
    file.write_text(was)


def test_a_release_that_waits_for_approval_is_not_gone_back_to(
    registry: Registry, register: Register
) -> None:
    promote_next(registry, register)
    number = register(right=9.0, value=0.95)
    promote(registry, NAME, version=number, propose=True)
    with pytest.raises(RefusedError, match=r"version 2 never was champion.*registry.approve"):
        rollback(registry, NAME, to=2)
    assert champion_of(registry) == 1


def test_twenty_moves_in_one_process_leave_one_chain(three: Registry) -> None:
    targets = [1, 2, 3, 2] * 5
    before = three.ledger.events(NAME)[-1].seq
    for to in targets:
        assert rollback(three, NAME, to=to).moved
        assert champion_of(three) == to
    events = [event for event in three.ledger.events(NAME) if event.seq > before]
    assert [one.body["to"] for one in events if one.kind == "rolled_back"] == targets
    assert [one.body["to"] for one in events if one.kind == "intent"] == targets
    assert three.ledger.check() == []
    assert open_intent(three.ledger.events(NAME), "champion") is None


@pytest.mark.parametrize(
    ("moved", "end", "goes_to"), [(False, "abandoned", 2), (True, "rolled_back", 1)]
)
def test_a_move_that_was_interrupted_is_settled_first(
    three: Registry, moved: bool, end: str, goes_to: int
) -> None:
    body = {"alias": "champion", "from": 3, "to": 2, "move": "rollback"}
    intent = three.ledger.append("intent", NAME, 2, three.actor, body)
    if moved:
        three.catalog.move_alias(three.catalog.get_release(NAME, 2), "champion")
    done = rollback(three, NAME)
    assert done.version == goes_to
    assert champion_of(three) == goes_to
    settled, *_ = [event for event in three.ledger.events(NAME) if event.seq > intent.seq]
    assert (settled.kind, settled.body["intent"], settled.body["late"]) == (end, intent.seq, True)
    assert open_intent(three.ledger.events(NAME), "champion") is None
    assert kinds(three)[-2:] == ["intent", "rolled_back"]


class LostAnswer(Catalog):
    """Moves the alias, and does not say so."""

    def move_alias(self, release: Release, alias: str) -> None:
        super().move_alias(release, alias)
        raise MlopsError("the model registry did not do it: Read timed out.")


def test_a_move_whose_answer_was_lost_is_settled_by_the_next_command(three: Registry) -> None:
    deaf = replace(three, catalog=LostAnswer(open_store_client(three.settings)))
    with pytest.raises(MlopsError, match="Read timed out"):
        rollback(deaf, NAME)
    intent = open_intent(three.ledger.events(NAME), "champion")
    assert intent is not None and kinds(three)[-1] == "intent"
    assert not rollback(three, NAME, to=2).moved
    end = three.ledger.events(NAME)[-1]
    assert (end.kind, end.body["intent"], end.body["late"]) == ("rolled_back", intent.seq, True)


def test_the_hook_runs_after_a_rollback(three: Registry, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    copy = f"import sys, pathlib; pathlib.Path({str(told)!r}).write_text(sys.stdin.read())"
    hook = Hook(command=(sys.executable, "-c", copy))
    rollback(replace(three, policy=replace(three.policy, hook=hook)), NAME)
    said = json.loads(told.read_text())
    assert (said["event"], said["from"], said["to"]) == ("rolled_back", 3, 2)
    ended = three.ledger.events(NAME)[-1]
    assert (ended.kind, ended.body["succeeded"]) == ("hook", True)


def test_the_program_says_who_did_it_and_what_that_is_worth(
    three: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([NAME]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME} version 2 is champion again, in place of version 3.",
        f"Recorded as done by {os_user()} (only the OS user; no server authenticated the name).",
    ]
    assert main([NAME, "--to", "2"]) == 0
    said = f"{NAME}: unchanged; version 2 is champion already.\n"
    assert capsys.readouterr().out == said


def test_the_program_answers_in_json(three: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    for decision, previous in (("rolled_back", 3), ("unchanged", 1)):
        assert main([NAME, "--to", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
            "decision": decision,
            "name": NAME,
            "alias": "champion",
            "version": 1,
            "previous": previous,
            "by_hand": False,
        }


def test_a_rollback_imports_no_tensorflow(three: Registry) -> None:
    program = (
        "import sys\n"
        "from registry.rollback import main\n"
        f"assert main([{NAME!r}]) == 0\n"
        "print(sorted({'tensorflow', 'keras', 'jax'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert champion_of(three) == 2


def test_a_model_that_was_never_promoted_is_named_with_what_to_do(
    registry: Registry, register: Register
) -> None:
    register(right=9.0, value=0.9)
    with pytest.raises(UsageError, match=r"yet\. Run python -m registry.promote"):
        rollback(registry, NAME)
