"""Verification: which release is meant, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops.data import Dataset
from mlops.errors import UsageError
from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from registry.alias import Registry, open_registry
from registry.promote import promote
from registry.signing import UnverifiedError
from registry.verify import find_release, main, verify_release
from tests.registry.sides import NAME, Sides, probe_sides, settings_for


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    mlflow_database: Path,
    dataset: Dataset,
    made_models: tuple[Path, dict[float, Path]],
) -> Iterator[Registry]:
    """Version 1 is challenger, version 2 champion, and version 3 was altered."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "home").mkdir()
    shutil.copy(mlflow_database, folder / "home" / "mlflow.db")
    settings = settings_for(folder / "home", dataset)
    sides = Sides(open_store_client(settings), dataset, folder, *made_models)
    with open_registry(settings, probe=probe_sides) as registry:
        for alias in ("challenger", "champion", "altered"):
            number = sides.register(right=9.0, value=0.9)
            assert promote(registry, NAME, number, alias).decision == "promoted"
        run = registry.catalog.get_release(NAME, 3).run_id
        (release,) = settings.artifact_root.rglob(f"{run}/artifacts/release")
        with (release / "requirements.txt").open("a") as file:
            file.write("\n")
        yield registry


@pytest.fixture
def registry(made: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("MLOPS_HOME", str(made.settings.home))
    return made


@pytest.mark.parametrize(
    ("what", "version"),
    [
        (NAME, 2),
        (f"{NAME}@champion", 2),
        (f"{NAME}@challenger", 1),
        (f"{NAME}/1", 1),
        (f"{NAME}/03", 3),
    ],
)
def test_a_release_is_named_by_model_alias_or_version(
    registry: Registry, what: str, version: int
) -> None:
    found = find_release(registry.catalog, what)
    assert (found.name, found.version) == (NAME, version)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", f"no model 'nothing'; expected one of {NAME}"),
        ("nothing@champion", "no model 'nothing'"),
        ("nothing/1", "no model 'nothing'"),
        ("", "names no release"),
        ("@champion", "names no release"),
        ("side-classifier", f"did you mean '{NAME}'?"),
        (f"{NAME}@champoin", "no alias 'champoin'; expected one of altered, challenger, champion"),
        (f"{NAME}@", "no alias ''"),
        (f"{NAME}/7", "has no version 7; expected one of 3, 2, 1."),
        (f"{NAME}/0", "has no version 0"),
        (f"{NAME}/", "names no release; expected NAME, NAME@alias or NAME/version."),
        (f"{NAME}/-1", "names no release"),
        (f"{NAME}/²", "names no release"),
        (f"{NAME}/1@champion", "names no release"),
        (f"{NAME}@champion/1", "no alias 'champion/1'"),
        (f"models:/{NAME}/1", "names no release"),
    ],
)
def test_what_names_no_release_is_answered_with_what_there_is(
    registry: Registry, capsys: pytest.CaptureFixture[str], what: str, said: str
) -> None:
    assert main([what]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line


def test_where_nothing_was_promoted_it_says_what_to_do_first(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([NAME]) == 2
    assert f"Run python -m registry.promote {NAME} first" in capsys.readouterr().err


def test_a_release_that_is_what_was_signed_verifies(registry: Registry) -> None:
    release = find_release(registry.catalog, f"{NAME}/1")
    verified = verify_release(registry.catalog, release, registry.settings, ask=False)
    assert (verified.statement.name, verified.statement.version) == (NAME, 1)
    assert len(verified.key) == 16
    assert not verified.folder.exists()  # the private copy


def test_the_program_loads_what_verifies_and_asks_its_golden_requests(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    release = find_release(registry.catalog, NAME)
    key = verify_release(registry.catalog, release, registry.settings, ask=False).key
    assert main([NAME, "--json"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in said] == [
        {"name": NAME, "version": 2, "key": key, "verified": True, "reason": ""}
    ]


def test_an_altered_release_does_not_verify(registry: Registry) -> None:
    release = find_release(registry.catalog, f"{NAME}@altered")
    with pytest.raises(UnverifiedError, match=r"requirements\.txt was changed after it was signed"):
        verify_release(registry.catalog, release, registry.settings, ask=False)


def test_the_program_says_in_one_line_what_was_altered(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"{NAME}/3"]) == 1
    reason = "requirements.txt was changed after it was signed"
    captured = capsys.readouterr()
    assert captured.out == f"{NAME} version 3 does not verify: {reason}.\n"
    assert captured.err == ""
    assert main([f"{NAME}/3", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "name": NAME,
        "version": 3,
        "key": None,
        "verified": False,
        "reason": reason,
    }


def test_a_public_key_that_is_not_there_is_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = find_release(registry.catalog, f"{NAME}/1")
    lost = dataclasses.replace(registry.settings, public_keys=(tmp_path / "lost.pem",))
    with pytest.raises(UsageError, match=r"no public key at .*lost\.pem.*MLOPS_PUBLIC_KEYS"):
        verify_release(registry.catalog, release, lost, ask=False)
    monkeypatch.setenv("MLOPS_PUBLIC_KEYS", str(tmp_path / "lost.pem"))
    assert main([f"{NAME}/1"]) == 2
