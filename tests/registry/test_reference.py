"""A VAE's release holds its reference, which verifies; one that was changed does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.data import Dataset
from mlops.errors import StructureError
from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from registry.alias import Registry, open_registry
from registry.drift import build_reference, reference_to_json
from registry.promote import promote
from registry.reference import REFERENCE, read_reference, write_reference
from registry.releases import check_release, fetch_release, hash_files, write_statement
from registry.signing import UnverifiedError, sign
from tests.registry.sides import settings_for
from tests.registry.vaes import VAE_NAME, probe_vaes, register_vae, scores_of_test_rows


@dataclass
class Home:
    registry: Registry
    client: Any
    dataset: Dataset
    place: Path

    def fetch(self, version: int, folder: Path) -> Any:
        folder.mkdir()
        release = self.registry.catalog.get_release(VAE_NAME, version)
        keys = self.registry.settings.public_keys
        return fetch_release(self.registry.catalog, release, folder, keys)


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, dataset: Dataset
) -> Iterator[Home]:
    place = tmp_path_factory.mktemp("reference")
    (place / "home").mkdir()
    shutil.copy(mlflow_database, place / "home" / "mlflow.db")
    settings = settings_for(place / "home", dataset)
    client = open_store_client(settings)
    with open_registry(settings, probe=probe_vaes) as registry:
        register_vae(client, dataset, place / "a")
        assert promote(registry, VAE_NAME).decision == "promoted"
        yield Home(registry, client, dataset, place)


def test_a_promoted_vae_has_the_scores_of_its_test_rows_inside_what_was_signed(
    home: Home, tmp_path: Path
) -> None:
    found = home.fetch(1, tmp_path / "copy")
    reference = read_reference(found.folder)
    assert reference is not None
    wanted = build_reference(scores_of_test_rows(home.dataset))
    assert reference_to_json(reference) == reference_to_json(wanted)
    assert reference.n == home.dataset.counts()["test"]
    assert REFERENCE in found.statement.files


def test_the_same_candidate_is_no_second_release(home: Home) -> None:
    assert promote(home.registry, VAE_NAME, version=1).decision == "unchanged"


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda path: path.write_text(path.read_text().replace('"n": ', '"n": 1')), "was changed"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: write_reference(path.parent, np.arange(300.0)), "was changed"),
    ],
)
def test_a_reference_that_was_altered_makes_a_release_that_does_not_verify(
    home: Home, tmp_path: Path, alter: Callable[[Path], Any], said: str
) -> None:
    found = home.fetch(1, tmp_path / "copy")
    alter(found.folder / REFERENCE)
    keys = home.registry.settings.public_keys
    with pytest.raises(UnverifiedError, match=rf"{REFERENCE} {said}"):
        check_release(found.folder, VAE_NAME, 1, found.statement.run_id, keys)


def _sign_anew(folder: Path, statement: Any, settings: Settings) -> None:
    write_statement(folder, replace(statement, files=hash_files(folder)))
    (folder / "model.sig").unlink()
    sign(folder, settings.signing_key)


@pytest.mark.parametrize(
    "change",
    [{"n": 7}, {"format": 2}, {"score": "kl"}, {"edges": [1.0]}, {"quantiles": [1e999]}],
)
def test_a_signed_reference_that_is_none_does_not_verify(
    home: Home, tmp_path: Path, change: dict[str, Any]
) -> None:
    found = home.fetch(1, tmp_path / "copy")
    path = found.folder / REFERENCE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    _sign_anew(found.folder, found.statement, home.registry.settings)
    keys = home.registry.settings.public_keys
    with pytest.raises(UnverifiedError, match=f"{REFERENCE} holds no reference of scores"):
        check_release(found.folder, VAE_NAME, 1, found.statement.run_id, keys)


def test_a_release_from_before_references_verifies_and_has_none(home: Home, tmp_path: Path) -> None:
    found = home.fetch(1, tmp_path / "copy")
    (found.folder / REFERENCE).unlink()
    _sign_anew(found.folder, found.statement, home.registry.settings)
    keys = home.registry.settings.public_keys
    again = check_release(found.folder, VAE_NAME, 1, found.statement.run_id, keys)
    assert read_reference(again.folder) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "1" * 300_000, "[" * 100_000, "\xff"])
def test_what_is_no_reference_at_all_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / REFERENCE).write_text(content, encoding="latin-1")
    with pytest.raises(StructureError, match=f"^{REFERENCE} holds no reference of scores"):
        read_reference(tmp_path)


def test_a_candidate_that_brings_a_reference_is_refused(home: Home) -> None:
    number = register_vae(
        home.client,
        home.dataset,
        home.place / "brings",
        lambda folder: write_reference(folder, np.arange(100.0)),
    )
    done = promote(home.registry, VAE_NAME, version=number)
    assert done.decision == "rejected"
    assert f"{REFERENCE} is not a file of a candidate" in done.reason
