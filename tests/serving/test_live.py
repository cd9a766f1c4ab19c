"""The model that follows an alias, as MLflow loads it; and what keeps a release from it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest

from mlops.errors import MlopsError, StructureError
from registry.alias import Registry
from registry.serving.follower import Accepted, Follower
from registry.serving.loading import _import, load_release
from registry.serving.server import Serving, write_model
from registry.serving.state import Desired, StateFolder, Wanted
from tests.registry.sides import NAME

SERVING = Serving("127.0.0.1", 5001, 1, 30, 30, 3, 64, 0.0, 256)


def fetch(registry: Registry, folder: StateFolder) -> Accepted:
    folder.create()
    folder.clean()
    keys = registry.settings.public_keys
    (found,) = Follower(registry.catalog, NAME, {"champion": "champion"}, folder, keys).look()
    assert isinstance(found, Accepted)
    return found


def wanted(found: Accepted) -> Wanted:
    return Wanted(found.version, str(found.folder), found.scoring_sha256)


@pytest.fixture
def folder(registry: Registry, tmp_path: Path) -> StateFolder:
    """A state folder whose model answers with the champion."""
    made = StateFolder(tmp_path / "state")
    found = fetch(registry, made)
    made.write_desired(Desired({"a": wanted(found)}, champion="a"))
    write_model(made, SERVING)
    return made


def test_mlflow_loads_it_as_any_model_and_it_answers_in_python(folder: StateFolder) -> None:
    model = mlflow.pyfunc.load_model(str(folder.model))
    answer: Any = model.predict(np.array([[1.0, 0.5]], np.float32))
    assert answer.shape == (1, 2)
    (labelled,) = model.predict([[1.0, 0.5]], params={"labels": True})
    assert labelled["label"] == "right"
    (report,) = folder.read_reports().values()
    assert report.champion == 3


def test_its_settings_reach_the_scoring_runtime(folder: StateFolder) -> None:
    model = mlflow.pyfunc.load_model(str(folder.model))
    with pytest.raises(Exception, match="it has 4 rows, more than the 3"):
        model.predict([[1.0, 0.5]] * 4)


def test_each_forward_pass_is_counted(registry: Registry, tmp_path: Path) -> None:
    found = fetch(registry, StateFolder(tmp_path / "state"))
    rows: list[int] = []
    model = load_release(wanted(found), {"max_batch": 8}, rows.append)
    model.predict([[1.0, 0.5]] * 5)
    assert rows == [5]


def test_a_release_whose_golden_answers_are_others_is_not_loaded(
    registry: Registry, tmp_path: Path
) -> None:
    found = fetch(registry, StateFolder(tmp_path / "state"))
    golden = json.loads((found.folder / "golden.json").read_text())
    golden["answers"] = [row[::-1] for row in golden["answers"]]
    (found.folder / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(MlopsError, match="answers otherwise than it did"):
        load_release(wanted(found))


def test_a_folder_that_was_altered_after_it_was_verified_is_not_loaded(
    registry: Registry, tmp_path: Path
) -> None:
    found = fetch(registry, StateFolder(tmp_path / "state"))
    (code,) = (found.folder / "code").iterdir()
    (code / "__init__.py").write_text("raise SystemExit('run')")
    with pytest.raises(StructureError, match="not named after its content"):
        load_release(wanted(found))


def test_a_runtime_that_cannot_be_imported_leaves_nothing_behind(tmp_path: Path) -> None:
    code = tmp_path / "podium_scoring_000000000000"
    code.mkdir()
    (code / "errors.py").write_text("STATUS = {}\n")
    (code / "__init__.py").write_text("from .errors import STATUS\nraise RuntimeError('no')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            _import(code)
        assert not [name for name in sys.modules if name.startswith(code.name)]


def test_loading_leaves_no_bytecode_in_the_folder(folder: StateFolder) -> None:
    mlflow.pyfunc.load_model(str(folder.model))
    assert list(folder.path.rglob("__pycache__")) == []


def test_the_parent_imports_no_tensorflow() -> None:
    code = (
        "import sys, registry.serve, registry.serving.parent, mlflow; "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_that_follows_swaps_when_it_is_told(
    folder: StateFolder, registry: Registry
) -> None:
    model = mlflow.pyfunc.load_model(str(folder.model))
    before = model.predict([[0.1, 0.0]])
    catalog, keys = registry.catalog, registry.settings.public_keys
    follower = Follower(catalog, NAME, {"champion": "champion"}, folder, keys)
    older = follower.fetch(catalog.get_release(NAME, 1))
    one = Wanted(1, str(older.folder), older.scoring_sha256)
    folder.write_desired(Desired({"b": one}, champion="b"))
    deadline = time.monotonic() + 30
    while (model.predict([[0.1, 0.0]]) == before).all():
        assert time.monotonic() < deadline
        time.sleep(0.05)
