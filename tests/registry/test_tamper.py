"""The tamper table: ways to alter a candidate or a release, each refused and none loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest

from mlops import scoring_code
from mlops.data import Dataset
from mlops.errors import StructureError
from mlops.mlflow_store import open_store_client, upload
from mlops.packaging import check_model_folder, load_model
from mlops.settings import Settings
from registry.alias import Registry, open_registry
from registry.catalog import Release
from registry.promote import promote
from registry.releases import (
    Verified,
    fetch_release,
    hash_files,
    read_statement,
    write_statement,
)
from registry.rollback import rollback
from registry.signing import UnverifiedError, ensure_signing_key, sign
from registry.verify import main as verify
from tests.mlops.test_packaging import TAMPERED, code_of, flip
from tests.packaged_models import name_code
from tests.registry.sides import NAME, Sides, probe_sides, settings_for

CANDIDATE = [
    "extra file",
    "pickle",
    "extra code",
    "changed code",
    "unknown code",
    "extra module",
    "extra module, renamed",
    "module gone, renamed",
    "modules exchanged",
    "runtime's bytecode",
    "extension module",
    "subpackage",
    "hidden module",
    "code in one file",
    "loader",
    "requirement URL",
    "python_env",
    "not a zip",
    "truncated",
    "bit flipped",
    "huge config",
    "Lambda",
    "foreign module",
    "compiled loss",
    "units",
]
"""Of TAMPERED, those whose way of altering fits any model and that a store takes as they are (a
link it follows); `check_model_folder` is given all of them."""


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a model was asked that should not have been loaded")


@dataclass
class Home:
    """A registry in which versions 1, 2 and 3 are released, and 2 is champion again."""

    registry: Registry
    sides: Sides
    client: Any

    def release(self, version: int) -> Release:
        return self.registry.catalog.get_release(NAME, version)

    def stored(self, version: int) -> Path:
        """The folder that the store keeps of a release."""
        run = self.client.get_run(self.release(version).run_id)
        return Path(run.info.artifact_uri) / "release"

    def fetch(self, version: int, folder: Path) -> Verified:
        folder.mkdir(exist_ok=True)
        keys = self.registry.settings.public_keys
        return fetch_release(self.registry.catalog, self.release(version), folder, keys)


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory,
    mlflow_database: Path,
    dataset: Dataset,
    made_models: tuple[Path, dict[float, Path]],
) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("tamper")
    (folder / "home").mkdir()
    shutil.copy(mlflow_database, folder / "home" / "mlflow.db")
    settings = settings_for(folder / "home", dataset)
    client = open_store_client(settings)
    sides = Sides(client, dataset, folder, *made_models)
    with open_registry(settings, probe=probe_sides) as registry:
        for value in (0.9, 0.91, 0.92):
            sides.register(right=9.0, value=value)
            promote(registry, NAME)
        rollback(registry, NAME)
        yield Home(registry, sides, client)


@pytest.mark.parametrize("way", CANDIDATE)
def test_an_altered_candidate_is_refused_and_not_loaded(home: Home, way: str) -> None:
    alter, said = TAMPERED[way]
    number = home.sides.register(right=9.0, value=0.5, break_it=alter)
    done = promote(replace(home.registry, probe=never), NAME, version=number)
    assert done.decision == "rejected"
    assert [gate.name for gate in done.gates] == ["structure"]
    assert said in done.reason
    assert home.registry.catalog.find_aliases(NAME) == {"champion": 2}


def test_swapped_weights_of_a_candidate_are_refused(home: Home) -> None:
    other = home.sides.model(0.0) / "data" / "model.keras"
    number = home.sides.register(
        right=9.0,
        value=0.5,
        break_it=lambda folder: shutil.copy(other, folder / "data" / "model.keras"),
    )
    done = promote(replace(home.registry, probe=never), NAME, version=number)
    assert done.decision == "rejected"
    assert "is not the network that MLmodel was written for" in done.reason


def change_statement(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Home], None]:
    def alter(folder: Path, home: Home) -> None:
        statement = json.loads((folder / "release.json").read_text())
        change(statement)
        (folder / "release.json").write_text(json.dumps(statement))

    return alter


def put(name: str, content: bytes) -> Callable[[Path, Home], None]:
    def alter(folder: Path, home: Home) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return alter


def add(name: str) -> Callable[[Path, Home], None]:
    def alter(folder: Path, home: Home) -> None:
        with (folder / name).open("a") as file:
            file.write("\n")

    return alter


def take_from(version: int, *names: str) -> Callable[[Path, Home], None]:
    """Puts files of another release in the place of this one's."""

    def alter(folder: Path, home: Home) -> None:
        for name in names or ["."]:
            source = home.stored(version) / name
            if source.is_dir():
                shutil.rmtree(folder)
                shutil.copytree(source, folder)
            else:
                shutil.copy(source, folder / name)

    return alter


def sign_again(folder: Path, home: Home) -> None:
    """Signs an altered folder with a stranger's key."""
    other = Settings.from_env({"MLOPS_HOME": str(folder.parent / "stranger")})
    key = ensure_signing_key(other)
    add("requirements.txt")(folder, home)
    (folder / "model.sig").unlink()
    statement = json.loads((folder / "release.json").read_text())
    statement["files"] = hash_files(folder)
    (folder / "release.json").write_text(json.dumps(statement))
    sign(folder, key)


def of_code(way: str) -> Callable[[Path, Home], None]:
    """One of the ways to alter a candidate's code."""
    return lambda folder, home: TAMPERED[way][0](folder)


RELEASE: dict[str, tuple[Callable[[Path, Home], Any], str]] = {
    "MLmodel": (add("MLmodel"), "MLmodel was changed"),
    "MLmodel: another loader": (
        lambda folder, home: TAMPERED["loader"][0](folder),
        "MLmodel was changed",
    ),
    "requirements": (add("requirements.txt"), "requirements.txt was changed"),
    "python_env": (add("python_env.yaml"), "python_env.yaml was changed"),
    "weights: a bit": (
        lambda folder, home: flip(folder / "data" / "model.keras"),
        "data/model.keras was changed",
    ),
    "weights: of another model": (
        lambda folder, home: shutil.copy(
            home.sides.model(0.0) / "data" / "model.keras", folder / "data" / "model.keras"
        ),
        "data/model.keras was changed",
    ),
    "weights: gone": (
        lambda folder, home: (folder / "data" / "model.keras").unlink(),
        "data",
    ),
    "code": (lambda folder, home: TAMPERED["changed code"][0](folder), "was changed"),
    "code: renamed after its content": (
        lambda folder, home: TAMPERED["unknown code"][0](folder),
        "is missing",
    ),
    "code: one more": (put("code/evil.py", b"raise SystemExit"), "code"),
    "code: a module more": (of_code("extra module"), "evil.py was added"),
    "code: a module gone": (of_code("module gone"), "scores.py is missing"),
    "code: modules exchanged": (of_code("modules exchanged"), "scores.py was changed"),
    "code: bytecode": (of_code("runtime's bytecode"), "__pycache__' is a link or an unknown"),
    "code: bytecode beside": (of_code("bytecode beside"), "not a file of a scoring runtime"),
    "code: an extension module": (of_code("extension module"), "not a file of a scoring runtime"),
    "code: a subfolder": (of_code("subpackage"), "/model' is a link or an unknown folder"),
    "code: a hidden module": (of_code("hidden module"), "not a file of a scoring runtime"),
    "code: in one file": (of_code("code in one file"), "code holds something else"),
    "code: a second runtime": (of_code("second runtime"), "code holds something else"),
    "golden answers": (add("golden.json"), "golden.json was changed"),
    "golden answers: gone": (lambda folder, home: (folder / "golden.json").unlink(), "golden"),
    "statement: its version": (
        change_statement(lambda statement: statement.update(version=9)),
        "release.json was changed",
    ),
    "statement: its gates": (
        change_statement(lambda statement: statement.update(gates=[])),
        "release.json was changed",
    ),
    "statement: gone": (lambda folder, home: (folder / "release.json").unlink(), "release.json"),
    "statement: of another release": (take_from(1, "release.json"), "release.json was changed"),
    "signature: gone": (lambda folder, home: (folder / "model.sig").unlink(), "is not signed"),
    "signature: no signature": (put("model.sig", b"{}"), "is not valid"),
    "signature: no text": (put("model.sig", b"\xff\x00"), "is not valid"),
    "signature: of another release": (take_from(1, "model.sig"), "was changed"),
    "signature: a stranger's": (sign_again, "is not valid"),
    "signature: huge": (put("model.sig", b" " * (2 << 20)), "larger than"),
    "all of an older release": (take_from(1), "version 1 of run"),
    "an extra file": (put("notes.txt", b"x"), "notes.txt"),
    "a pickle": (put("python_model.pkl", b"\x80\x04."), "python_model.pkl"),
    "a hidden file": (put(".gitattributes", b"x"), ".gitattributes"),
    "a folder": (put("more/x", b"x"), "more"),
    "MLflow's note: another model": (
        put("registered_model_meta", b"model_name: other\nmodel_version: '3'\n"),
        "registered_model_meta names something else",
    ),
    "MLflow's note: another version": (
        put("registered_model_meta", f"model_name: {NAME}\nmodel_version: '1'\n".encode()),
        "registered_model_meta names something else",
    ),
    "MLflow's note: more": (
        put("registered_model_meta", f"model_name: {NAME}\nmodel_version: 3\nx: 1\n".encode()),
        "registered_model_meta",
    ),
}


@pytest.fixture
def altered(home: Home, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Release 3 altered in the store, and as it was afterwards."""
    alter, said = RELEASE[request.param]
    folder = home.stored(3)
    shutil.copytree(folder, tmp_path / "whole")
    alter(folder, home)
    yield said
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "whole", folder)


@pytest.mark.parametrize("altered", RELEASE, indirect=True)
def test_an_altered_release_verifies_no_more_and_no_alias_moves_to_it(
    home: Home, altered: str, tmp_path: Path
) -> None:
    with pytest.raises(UnverifiedError) as found:
        home.fetch(3, tmp_path / "copy")
    assert altered in str(found.value)
    with pytest.raises(UnverifiedError, match="champion stays version 2"):
        rollback(replace(home.registry, probe=never), NAME, 3)
    assert home.registry.catalog.find_aliases(NAME) == {"champion": 2}


def test_every_class_of_file_is_in_the_table() -> None:
    assert len(CANDIDATE) + len(RELEASE) >= 20
    for word in ("MLmodel", "weights", "code", "statement", "signature", "golden"):
        assert any(way.startswith(word) for way in RELEASE)


def test_a_release_that_nobody_altered_verifies(home: Home, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        verified = home.fetch(version, tmp_path / f"copy{version}")
        assert verified.statement.version == version


def test_a_link_in_a_release_is_refused(home: Home, tmp_path: Path) -> None:
    verified = home.fetch(3, tmp_path / "copy")
    place = verified.folder / "requirements.txt"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    from registry.releases import check_release

    with pytest.raises(UnverifiedError, match=r"requirements\.txt"):
        check_release(
            verified.folder, NAME, 3, home.release(3).run_id, home.registry.settings.public_keys
        )


@pytest.mark.parametrize("way", ["linked module", "linked code"])
def test_a_link_in_the_code_of_a_release_is_refused(home: Home, tmp_path: Path, way: str) -> None:
    from registry.releases import check_release

    verified = home.fetch(3, tmp_path / "copy")
    TAMPERED[way][0](verified.folder)
    with pytest.raises(UnverifiedError, match=r"'code/podium_scoring_.*' is a link"):
        check_release(
            verified.folder, NAME, 3, home.release(3).run_id, home.registry.settings.public_keys
        )


def test_a_release_under_a_key_that_is_no_longer_listed_is_refused(
    home: Home, tmp_path: Path
) -> None:
    other = Settings.from_env({"MLOPS_HOME": str(tmp_path / "other")})
    ensure_signing_key(other)
    (tmp_path / "copy").mkdir()
    catalog, release = home.registry.catalog, home.release(3)
    with pytest.raises(UnverifiedError, match="is not valid under the public key"):
        fetch_release(catalog, release, tmp_path / "copy", other.public_keys)
    # Keys are a list, so that they rotate.
    both = (*other.public_keys, *home.registry.settings.public_keys)
    (tmp_path / "again").mkdir()
    assert fetch_release(catalog, release, tmp_path / "again", both).statement.version == 3


def test_a_release_loaded_five_times_through_stock_mlflow_still_verifies(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Not mlflow.set_tracking_uri, which sets the variable for all that follows.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home.registry.settings.direct_uri)
    for _ in range(5):
        model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    rows = np.array([[2.0, 0.0], [-2.0, 0.0]], np.float32)
    assert model.predict(rows).argmax(axis=1).tolist() == [1, 0]
    assert home.fetch(2, tmp_path / "copy").statement.version == 2


def test_a_release_of_an_older_scoring_runtime_verifies_loads_and_can_be_rolled_back_to(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scoring runtime is in no list of this Podium: its signature vouches for it."""
    folder = tmp_path / "older"
    shutil.copytree(home.stored(2), folder)
    with (code_of(folder) / "model.py").open("a") as file:
        file.write("\n# As an earlier Podium shipped it.\n")
    name_code(folder)
    (folder / "model.sig").unlink()
    with pytest.raises(StructureError, match="not a scoring runtime this Podium knows"):
        check_model_folder(folder)

    catalog, settings = home.registry.catalog, home.registry.settings
    candidate = replace(catalog.find_candidates(NAME)[0], version=99)
    release = catalog.open_release(candidate, ("sides", candidate.dataset_fingerprint), {})
    statement = read_statement((folder / "release.json").read_bytes())
    statement = replace(
        statement, version=release.version, run_id=release.run_id, files=hash_files(folder)
    )
    write_statement(folder, statement)
    sign(folder, settings.signing_key)
    upload(home.client, release.run_id, folder, "release")
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    assert verify([f"{NAME}/{release.version}"]) == 0  # loads it, and asks its golden requests
    done = rollback(home.registry, NAME, release.version)
    assert done.moved and done.version == release.version
    rollback(home.registry, NAME, 2)

    verified = home.fetch(release.version, tmp_path / "copy")
    model = load_model(verified.folder, verified.scoring_sha256)
    assert model.predict(np.array([[2.0, 0.0]], np.float32)).argmax() == 1
    revoked = tmp_path / "revoked.txt"
    revoked.write_text(f"{verified.scoring_sha256}  # it answers wrongly\n")
    monkeypatch.setattr(scoring_code, "_REVOKED", revoked)
    with pytest.raises(UnverifiedError, match="was revoked"):
        home.fetch(release.version, tmp_path / "again")
