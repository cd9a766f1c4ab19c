"""Promotion against a real MLflow store, real model folders and the real dataset store."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops.data import Dataset
from mlops.errors import MlopsError, UsageError
from mlops.packaging import check_model_folder
from mlops.settings import Settings
from registry import sizes
from registry.alias import Registry, open_registry
from registry.catalog import Candidate, Catalog
from registry.deciding import choose_candidate
from registry.policy import Policy, Rule
from registry.promote import main, promote, serve_lines
from registry.releases import check_release, fetch_release
from registry.signing import UnverifiedError
from tests.registry.sides import NAME, probe_sides

Register = Callable[..., int]


def champion_of(client: Any) -> int | None:
    release = Catalog(client).find_alias(NAME, "champion")
    return None if release is None else release.version


def kinds(registry: Registry) -> list[str]:
    return [event.kind for event in registry.ledger.events(NAME)]


def test_a_candidate_that_is_too_large_is_rejected_before_it_is_downloaded(
    registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(right=9.0, value=0.99)
    monkeypatch.setattr(sizes, "MOST_BYTES", 100)
    monkeypatch.setattr(Catalog, "download", lambda *_: pytest.fail("it was downloaded"))
    done = promote(registry, NAME)
    assert done.decision == "rejected"
    assert "bytes; at most 100 are taken" in done.reason
    assert kinds(registry) == ["rejected"]


def test_a_disk_without_room_is_no_fault_of_the_candidate(
    registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(right=9.0, value=0.99)
    monkeypatch.setattr(sizes, "SPARE_BYTES", 1 << 60)
    with pytest.raises(MlopsError, match=r"is not downloaded: it has .* no room .* TMPDIR"):
        promote(registry, NAME)
    assert kinds(registry) == []


def test_the_best_candidate_becomes_a_signed_release_that_holds_the_alias(
    registry: Registry, client: Any, register: Register, tmp_path: Path
) -> None:
    register(right=0.0, value=0.6)
    best = register(right=9.0, value=0.99)
    done = promote(registry, NAME)
    assert (done.decision, done.version, done.candidate_version) == ("promoted", 1, best)
    assert champion_of(client) == 1

    settings = registry.settings
    version = client.get_model_version(NAME, "1")
    candidate = client.get_model_version(f"{NAME}-candidates", str(best))
    assert version.run_id != candidate.run_id
    assert version.source == f"runs:/{version.run_id}/release"
    run = client.get_run(version.run_id)
    assert client.get_experiment(run.info.experiment_id).name == f"{NAME}-releases"
    assert Path(run.info.artifact_uri).is_relative_to(settings.artifact_root)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlops.source_run"] == candidate.run_id
    folder = Path(client.download_artifacts(version.run_id, "release", str(tmp_path)))
    check_model_folder(folder)
    statement = json.loads((folder / "release.json").read_text())
    assert (statement["name"], statement["version"]) == (NAME, 1)
    assert statement["run_id"] == version.run_id
    assert statement["commit"] == "0" * 40
    assert set(statement["files"]) == {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("release.json", "model.sig")
    }
    verified = check_release(folder, NAME, 1, version.run_id, settings.public_keys)
    assert verified.statement.candidate == f"{NAME}-candidates/{best}"
    assert candidate.tags["mlops.decision"] == "promoted"
    assert candidate.tags["mlops.release"] == f"{NAME}/1"
    # What MLflow shows of it.
    assert "accuracy" in version.description
    assert version.tags["mlops.gate.structure"].startswith("pass")
    assert run.data.metrics["test_accuracy"] == pytest.approx(1.0, abs=0.05)


def test_what_was_decided_stands_in_the_ledger(registry: Registry, register: Register) -> None:
    register(right=9.0, value=0.99)
    promote(registry, NAME)
    intent, done = registry.ledger.events(NAME)
    assert (intent.kind, done.kind) == ("intent", "done")
    assert intent.body["candidate"] == f"{NAME}-candidates/1"
    assert {"structure", "better_than_chance"} <= {gate["name"] for gate in intent.body["gates"]}
    assert (done.body["from"], done.body["to"], done.body["intent"]) == (None, 1, intent.seq)
    assert intent.actor == registry.actor
    register(right=-9.0, value=0.999)
    promote(registry, NAME)
    rejected = registry.ledger.events(NAME)[-1]
    assert rejected.kind == "rejected"
    failed = [gate for gate in rejected.body["gates"] if not gate["passed"]]
    assert failed and all(gate["reason"] for gate in failed)
    register(right=9.0, value=0.9999)
    promote(registry, NAME)
    (statement, _) = registry.catalog.read_statement(registry.catalog.get_release(NAME, 2)) or {}
    assert statement["ledger_head"] == rejected.hash
    assert statement["previous"] == 1


def test_the_real_child_process_answers_as_the_tests_do(
    settings: Settings, register: Register
) -> None:
    register(right=9.0, value=0.99)
    with open_registry(settings) as real:
        done = promote(real, NAME)
        again = dataclasses.replace(real, probe=probe_sides)
        values = {gate.name: gate.value for gate in done.gates}
        second = promote(again, NAME, version=1, alias="challenger")
    assert done.decision == "promoted"
    assert values["better_than_chance"] == pytest.approx(
        next(gate.value for gate in second.gates if gate.name == "better_than_chance")
    )


def test_the_same_command_again_changes_nothing(
    registry: Registry, client: Any, register: Register
) -> None:
    register(right=9.0, value=0.99)
    register(right=9.0, value=0.98)
    promote(registry, NAME)
    before = kinds(registry)
    done = promote(registry, NAME)
    assert (done.decision, done.version) == ("unchanged", 1)
    named = promote(registry, NAME, version=1)
    assert (named.decision, named.version, named.candidate_version) == ("unchanged", 1, 1)
    assert champion_of(client) == 1
    assert kinds(registry) == before


def test_a_worse_one_is_refused_with_exit_code_3_and_the_champion_stays(
    registry: Registry,
    client: Any,
    register: Register,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME)
    # Better in validation than the champion was, and worse on the test rows.
    register(right=-9.0, value=0.999, tags={"mlops.git_dirty": "true"})
    assert main([NAME]) == 3
    out, err = capsys.readouterr()
    assert "asking the champion and the candidate the test rows" in err
    assert "candidate 2 is rejected, version 1 stays champion" in out
    row = next(line for line in out.splitlines() if line.startswith("better_than_chance"))
    assert "fail" in row
    assert "\nWarning: clean_commit: " in out
    assert champion_of(client) == 1


def test_a_script_is_told_what_was_refused_as_one_line_of_json(
    registry: Registry, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME)
    # Refused before it is loaded, so that no child process is needed.
    register(right=9.0, value=0.99, break_it=lambda folder: (folder / "more").write_text(""))
    assert main([NAME, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {"decision", "name", "version", "candidate_version", "gates"} <= set(answer)
    assert (answer["decision"], answer["version"]) == ("rejected", 1)
    assert {"name", "passed", "value", "limit"} <= set(answer["gates"][0])


def test_a_folder_that_could_run_code_is_rejected_before_it_is_loaded(
    registry: Registry, client: Any, register: Register
) -> None:
    def add_code(folder: Path) -> None:
        (folder / "code" / "evil.py").write_text("raise SystemExit('ran')")

    register(right=9.0, value=0.99, break_it=add_code)
    done = promote(registry, NAME)
    assert done.decision == "rejected"
    assert [gate.name for gate in done.gates] == ["structure"]
    assert champion_of(client) is None


def test_a_candidate_does_not_bring_its_own_statement(
    registry: Registry, client: Any, register: Register
) -> None:
    register(
        right=9.0, value=0.99, break_it=lambda folder: (folder / "release.json").write_text("{}")
    )
    done = promote(registry, NAME)
    assert done.decision == "rejected"
    assert "release.json" in done.reason
    assert champion_of(client) is None


def test_a_model_whose_answers_are_not_finite_is_rejected(
    registry: Registry, client: Any, register: Register
) -> None:
    register(right=float("nan"), value=0.99)
    done = promote(registry, NAME)
    assert done.decision == "rejected"
    assert [(gate.name, gate.passed) for gate in done.gates] == [
        ("structure", True),
        ("finite_outputs", False),
    ]
    assert "row 0" in done.reason
    assert champion_of(client) is None


def test_another_alias_is_given_the_same_release(
    registry: Registry, client: Any, register: Register
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME, alias="challenger")
    assert registry.catalog.find_aliases(NAME) == {"challenger": 1}
    done = promote(registry, NAME, version=1)
    assert (done.decision, done.version) == ("promoted", 1)
    assert registry.catalog.find_aliases(NAME) == {"challenger": 1, "champion": 1}
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1


@pytest.mark.parametrize("alias", ["latest", "v3", "a b", ""])
def test_an_alias_that_cannot_be_is_refused_before_anything_is_made(
    registry: Registry, register: Register, alias: str
) -> None:
    register(right=9.0, value=0.9)
    with pytest.raises(UsageError, match="alias"):
        promote(registry, NAME, alias=alias)
    assert registry.catalog.find_releases(NAME) == []
    assert kinds(registry) == []


def test_a_champion_that_was_altered_stops_promotion_until_the_policy_says_otherwise(
    registry: Registry, client: Any, register: Register
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME)
    release = registry.catalog.get_release(NAME, 1)
    stored = registry.settings.artifact_root.rglob("release/requirements.txt")
    for path in stored:
        path.write_text(path.read_text() + "\n")
    done = promote(registry, NAME, version=1)
    assert done.decision == "rejected"
    assert "version 1 does not verify: requirements.txt was changed" in done.reason
    assert champion_of(client) == 1
    lenient = dataclasses.replace(registry, policy=Policy(champion_verifies=Rule("warn")))
    done = promote(lenient, NAME, version=1)
    assert (done.decision, done.version) == ("promoted", 2)
    assert champion_of(client) == 2
    with pytest.raises(UnverifiedError, match=r"requirements\.txt"):
        fetch_release(registry.catalog, release, _new(registry, "a"), registry.settings.public_keys)


def _new(registry: Registry, name: str) -> Path:
    folder = registry.settings.home / name
    folder.mkdir()
    return folder


def test_a_candidate_whose_run_is_deleted_is_refused(
    registry: Registry, client: Any, register: Register
) -> None:
    register(right=9.0, value=0.9)
    version = client.get_model_version(f"{NAME}-candidates", "1")
    client.delete_run(version.run_id)
    with pytest.raises(UsageError, match=r"is deleted.*mlflow runs restore"):
        promote(registry, NAME)
    assert champion_of(client) is None


def test_a_model_without_candidates_is_answered_with_the_names_that_have_some(
    registry: Registry, register: Register
) -> None:
    with pytest.raises(UsageError, match=r"Run python -m experiments.sweep first"):
        promote(registry, NAME)
    register(right=0.0, value=0.5)
    with pytest.raises(UsageError, match=f"did you mean '{NAME}'"):
        promote(registry, "side-classifier")
    with pytest.raises(UsageError, match=r"no version 7; expected one of 1\."):
        promote(registry, NAME, version=7)


def test_a_dataset_that_is_gone_from_the_store_is_named(
    registry: Registry, register: Register, dataset: Dataset
) -> None:
    register(right=9.0, value=0.9)
    shutil.rmtree(registry.settings.datasets_url)
    with pytest.raises(MlopsError, match=dataset.fingerprint[:12]):
        promote(registry, NAME)
    assert kinds(registry) == []


def test_a_signing_key_that_nobody_could_verify_is_refused_before_anything_is_made(
    settings: Settings, register: Register, tmp_path: Path
) -> None:
    register(right=9.0, value=0.9)
    other = Settings.from_env({"MLOPS_HOME": str(tmp_path / "other")})
    from registry.signing import ensure_signing_key

    ensure_signing_key(other)
    mixed = dataclasses.replace(settings, public_keys=other.public_keys)
    with (
        open_registry(mixed, probe=probe_sides) as registry,
        pytest.raises(UsageError, match="MLOPS_PUBLIC_KEYS"),
    ):
        promote(registry, NAME)
    with open_registry(settings, probe=probe_sides) as registry:
        assert registry.catalog.find_releases(NAME) == []


def candidate(
    version: int, value: float, decision: str | None = None, data: str = "d"
) -> Candidate:
    return Candidate("m", version, "r", "dnn", data, "val_accuracy", value, decision)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([candidate(2, 0.8), candidate(1, 0.9)], 1),
        ([candidate(2, 0.9), candidate(1, 0.9)], 1),
        ([candidate(3, 0.5, data="new"), candidate(2, 0.9), candidate(1, 0.8)], 3),
        ([candidate(2, 0.9, "rejected"), candidate(1, 0.8)], 1),
        ([candidate(2, 0.9, "promoted"), candidate(1, 0.8)], None),
        ([candidate(3, 0.95), candidate(2, 0.9, "promoted")], 3),
        ([candidate(1, 0.9, "rejected")], None),
        ([candidate(2, 0.9, "proposed"), candidate(1, 0.8)], 1),
    ],
)
def test_which_candidate_is_decided_on(candidates: list[Candidate], chosen: int | None) -> None:
    found = choose_candidate(candidates, None)
    assert (None if found is None else found.version) == chosen


def run_of(client: Any, number: int, kind: str = "-candidates") -> Path:
    """The folder in which the store keeps the artifacts of a version's run."""
    version = client.get_model_version(f"{NAME}{kind}", str(number))
    return Path(client.get_run(version.run_id).info.artifact_uri)


def test_a_candidate_whose_bytes_changed_since_gets_another_release(
    registry: Registry, client: Any, register: Register
) -> None:
    """What was measured is what is promoted, also where a release of the candidate is there."""
    register(right=0.0, value=0.9)
    register(right=9.0, value=0.95)
    lenient = dataclasses.replace(registry, policy=Policy(better_than_chance=Rule("off")))
    promote(lenient, NAME, version=1)
    promote(registry, NAME, version=2)
    shutil.rmtree(run_of(client, 1) / "model")
    shutil.copytree(run_of(client, 2) / "model", run_of(client, 1) / "model")
    done = promote(registry, NAME, version=1)
    assert (done.decision, done.version) == ("promoted", 3)
    strong = (run_of(client, 2, "") / "release" / "data" / "model.keras").read_bytes()
    assert (run_of(client, 3, "") / "release" / "data" / "model.keras").read_bytes() == strong


def test_a_version_that_looks_elsewhere_for_its_bytes_is_not_taken_over(
    registry: Registry, client: Any, register: Register, tmp_path: Path
) -> None:
    from mlops.mlflow_store import ensure_experiment, ensure_registered_model

    register(right=9.0, value=0.9)
    experiment = ensure_experiment(client, f"{NAME}-releases")
    tags = {"mlops.candidate": f"{NAME}-candidates/1"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.log_text(run_id, "raise SystemExit", "other/code/stranger.py")
    ensure_registered_model(client, NAME)
    client.create_model_version(NAME, f"runs:/{run_id}/other", run_id)
    done = promote(registry, NAME)
    assert (done.decision, done.version) == ("promoted", 2)
    assert client.get_model_version(NAME, "2").source.endswith("/release")
    with pytest.raises(UnverifiedError, match=r"looks for its bytes at 'runs:/.*/other'"):
        keys = registry.settings.public_keys
        fetch_release(registry.catalog, registry.catalog.get_release(NAME, 1), tmp_path, keys)


def test_what_lay_in_the_releases_run_before_is_not_promoted(
    registry: Registry, client: Any, register: Register
) -> None:
    from mlops.mlflow_store import ensure_experiment

    register(right=9.0, value=0.9)
    experiment = ensure_experiment(client, f"{NAME}-releases")
    tags = {"mlops.candidate": f"{NAME}-candidates/1"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.log_text(run_id, "x", "release/data/stray.pkl")
    done = promote(registry, NAME)
    assert done.decision == "promoted"
    release = registry.catalog.get_release(NAME, done.version or 0)
    assert release.run_id != run_id
    fetch_release(registry.catalog, release, _new(registry, "a"), registry.settings.public_keys)


def test_a_champion_that_cannot_be_read_now_ends_the_promotion(
    registry: Registry, client: Any, register: Register
) -> None:
    register(right=9.0, value=0.9)
    promote(registry, NAME)
    register(right=0.0, value=0.99)

    class Cut(Catalog):
        def download(self, version: Any, folder: Path) -> Path:
            if isinstance(version, Candidate):
                return super().download(version, folder)
            raise MlopsError("a model's files could not be read or written: connection reset")

    with pytest.raises(MlopsError, match="connection reset"):
        promote(dataclasses.replace(registry, catalog=Cut(client)), NAME)
    assert champion_of(client) == 1
    assert kinds(registry) == ["intent", "done"]


def test_an_alias_that_was_moved_by_hand_is_moved_and_recorded_and_not_taken_over(
    registry: Registry, client: Any, register: Register
) -> None:
    for value in (0.9, 0.95):
        register(right=9.0, value=value)
        promote(registry, NAME)
    client.set_registered_model_alias(NAME, "champion", "1")
    done = promote(registry, NAME, version=1)
    assert (done.decision, done.version) == ("promoted", 1)
    last = registry.ledger.events(NAME)[-1]
    assert (last.kind, last.body["to"]) == ("done", 1)


@pytest.mark.parametrize("value", ["abc", "", "nan", "inf"])
def test_a_candidate_whose_value_is_no_number_comes_last(
    registry: Registry, client: Any, register: Register, value: str
) -> None:
    register(right=9.0, value=0.9)
    number = register(right=9.0, value=0.8)
    client.set_model_version_tag(f"{NAME}-candidates", str(number), "mlops.value", value)
    assert promote(registry, NAME).candidate_version == 1


def test_a_model_that_names_the_classes_otherwise_is_refused(
    registry: Registry, register: Register
) -> None:
    from mlops.packaging import ModelSpec, _model_uuid
    from tests.mlops.test_packaging import change_mlmodel

    def swap(folder: Path) -> None:
        def change(values: Any) -> None:
            values["metadata"]["podium"]["class_names"].reverse()
            spec = ModelSpec.from_json(values["metadata"]["podium"])
            values["model_uuid"] = _model_uuid(folder / "data" / "model.keras", spec)

        change_mlmodel(folder, change)

    register(right=9.0, value=0.9, break_it=swap)
    done = promote(registry, NAME)
    assert done.decision == "rejected"
    assert "names other classes than the dataset" in done.reason


def test_a_tag_of_a_strangers_does_nothing_to_the_terminal(
    registry: Registry, client: Any, register: Register
) -> None:
    number = register(right=9.0, value=0.9)
    name = f"{NAME}-candidates"
    client.set_model_version_tag(name, str(number), "mlops.architecture", "dnn\x1b[2J\n" + "x" * 99)
    done = promote(registry, NAME)
    assert done.decision == "promoted"
    assert done.reason.isprintable() and len(done.reason) < 200


def test_a_challenger_is_served_beside_the_champion(settings: Settings) -> None:
    first, command, *_ = serve_lines(NAME, "challenger", settings)
    assert first == "Have it score beside the champion:"
    assert command.endswith(f"python -m registry.serve {NAME} --shadow")
    assert serve_lines(NAME, "staging", settings)[1].endswith(f"registry.serve {NAME}@staging")
    assert serve_lines(NAME, "champion", settings)[1].endswith(f"registry.serve {NAME}")
