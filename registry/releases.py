"""What a release is: a model folder with a statement, golden answers and a signature.

    release.json   the statement: name, version, run, dataset, gates, the hash of each file
    golden.json    synthetic rows, and what the model answered to them when it was promoted
    reference.json of a VAE: the distribution of its scores of the test rows
    model.sig      the signature over all of it

The signature binds bytes. The statement, which is among them, binds the bytes to a name and a
version, so that one release cannot be put in the place of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mlops.errors import StructureError
from mlops.packaging import ModelSpec, check_files, check_model_folder
from mlops.scoring_code import combine_hashes
from registry.catalog import Catalog, Release
from registry.golden import GOLDEN
from registry.reference import REFERENCE, read_reference
from registry.signing import UNSIGNED, UnverifiedError, verify

STATEMENT: Final = "release.json"
STATEMENT_FORMAT: Final = 1
_MAX_STATEMENT: Final = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """What is said of a release, under its signature.

    Attributes:
        candidate: The candidate whose bytes it holds, as `<name>-candidates/3`.
        created_at: ISO 8601, UTC.
        actor: Who decided, and who vouches for that name.
        dataset: Name and fingerprint.
        gates: Each gate's figures, as `Gate.to_json` gives them.
        policy_sha256: Of the policy that was asked for.
        commit: The code that it was trained from; None where that is unknown.
        previous: The version that held the alias before; None for the first.
        ledger_head: Hash of the newest event of the ledger at that time; None if it was empty.
        files: SHA-256 of each file of the folder but itself and `UNSIGNED`.
    """

    name: str
    version: int
    run_id: str
    candidate: str
    created_at: str
    actor: dict[str, str]
    dataset: dict[str, str]
    gates: tuple[dict[str, Any], ...]
    policy_sha256: str
    commit: str | None
    previous: int | None
    ledger_head: str | None
    files: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"format": STATEMENT_FORMAT, **asdict(self), "gates": list(self.gates)}


@dataclass(frozen=True, slots=True)
class Verified:
    """A release's folder that is what was signed, under the name and version it was asked for.

    Attributes:
        key: Id of the public key that verified it.
        statement_sha256: Of the bytes of release.json.
        scoring_sha256: Of its scoring runtime, for which the signature vouches.
    """

    folder: Path
    statement: Statement
    spec: ModelSpec
    key: str
    statement_sha256: str
    scoring_sha256: str

    def holds(self, files: dict[str, str]) -> bool:
        """Tells whether its model is a candidate's, whose files are `hash_files` of its folder."""
        beside = {GOLDEN: "", REFERENCE: ""}
        return {**self.statement.files, **beside} == {**files, **beside}


def hash_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file that a statement names, by its path inside the folder."""
    names = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    return {
        name: _hash(path)
        for name, path in sorted(names.items())
        if name not in (STATEMENT, *UNSIGNED)
    }


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_statement(folder: Path, statement: Statement) -> str:
    """Writes release.json; returns the SHA-256 of its bytes."""
    text = json.dumps(statement.to_json(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    (folder / STATEMENT).write_text(text, "utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_statement(content: bytes) -> Statement:
    """Reads what `write_statement` wrote.

    Raises:
        UnverifiedError: it is anything else.
    """
    try:
        value = json.loads(content)
        if value.pop("format") != STATEMENT_FORMAT:
            raise UnverifiedError(
                f"release.json is not of the format that this Podium reads, {STATEMENT_FORMAT}; "
                "upgrade Podium"
            )
        value["gates"] = tuple(value["gates"])
        statement = Statement(**value)
        if not _is_sound(statement):
            raise UnverifiedError("release.json holds values of other kinds than a statement's")
        return statement
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise UnverifiedError("release.json is no statement of a release") from err


def _is_sound(statement: Statement) -> bool:
    texts = (statement.name, statement.run_id, statement.candidate, statement.created_at)
    return (
        all(isinstance(text, str) for text in texts)
        and type(statement.version) is int
        and all(isinstance(each, dict) for each in (*statement.gates, statement.actor))
        and all(
            isinstance(each, dict) and all(isinstance(text, str) for text in each.values())
            for each in (statement.dataset, statement.files)
        )
        and (statement.ledger_head is None or isinstance(statement.ledger_head, str))
    )


def fetch_release(
    catalog: Catalog, release: Release, folder: Path, keys: Sequence[Path]
) -> Verified:
    """Downloads a release to a private folder and verifies it there.

    Raises:
        UnverifiedError: it is not what was signed, or its bytes are gone.
        UsageError: a public key is missing.
        MlopsError: its bytes cannot be read now, which says nothing of them.
    """
    if not release.is_ours:
        raise UnverifiedError(
            "it was not made by a promotion: MLflow looks for its bytes at "
            f"{release.source[:200]!r}"
        )
    if not catalog.has_bytes(release):
        raise UnverifiedError("its bytes are gone")
    place = catalog.download(release, folder)
    return check_release(place, release.name, release.version, release.run_id, keys)


def check_release(
    folder: Path, name: str, version: int, run_id: str, keys: Sequence[Path]
) -> Verified:
    """Returns the release in a folder, having verified that it is the one that was signed.

    Nothing of it is imported or loaded. Files first, so that nothing is followed out of the folder;
    then the signature; then what the statement says; then the structure.

    Args:
        folder: A private copy.
        name: The model that it was asked for.
        version: The version of `name` that it was asked for.
        run_id: The run that the registry says it lies in.
        keys: Public keys; any of them will do.

    Raises:
        UnverifiedError: it is not; says what differs.
        UsageError: a public key is missing.
    """
    try:
        code = check_files(folder)
        key = verify(folder, keys)
        content = _read_bounded(folder / STATEMENT)
        statement = read_statement(content)
        _check_statement(folder, statement, name, version, run_id)
        scoring = _scoring_of(statement, f"code/{code.name}/")
        spec = check_model_folder(folder, vouched_scoring=scoring)
        read_reference(folder)
        _check_meta(folder / "registered_model_meta", name, version)
    except StructureError as err:
        raise UnverifiedError(str(err).removesuffix(".").replace(". The model", "; it")) from err
    if (spec.dataset_name, spec.dataset_fingerprint) != (
        statement.dataset.get("name"),
        statement.dataset.get("fingerprint"),
    ):
        raise UnverifiedError("its statement names another dataset than its MLmodel")
    return Verified(folder, statement, spec, key, hashlib.sha256(content).hexdigest(), scoring)


def _scoring_of(statement: Statement, prefix: str) -> str:
    """Returns the hash of the scoring runtime whose files the statement names."""
    files = statement.files.items()
    return combine_hashes(
        {name.removeprefix(prefix): digest for name, digest in files if name.startswith(prefix)}
    )


def _read_bounded(path: Path) -> bytes:
    if not path.is_file():
        raise UnverifiedError(f"{path.name} is missing")
    with path.open("rb") as file:
        content = file.read(_MAX_STATEMENT + 1)
    if len(content) > _MAX_STATEMENT:
        raise UnverifiedError(f"{path.name} is larger than {_MAX_STATEMENT} bytes")
    return content


def _check_statement(
    folder: Path, statement: Statement, name: str, version: int, run_id: str
) -> None:
    said = (statement.name, statement.version, statement.run_id)
    if said != (name, version, run_id):
        raise UnverifiedError(
            f"it is {said[0]} version {said[1]} of run {said[2]}, put in the place of {name} "
            f"version {version} of run {run_id}"
        )
    if GOLDEN not in statement.files:
        raise UnverifiedError("its statement names no golden answers")
    found = hash_files(folder)
    for file in sorted({*found, *statement.files}):
        if found.get(file) != statement.files.get(file):
            raise UnverifiedError(f"{file} is not the file that its statement names")


def _check_meta(path: Path, name: str, version: int) -> None:
    """The one file that is not signed: MLflow writes it where it downloads a version."""
    if not path.exists():
        return
    import yaml

    try:
        value = yaml.safe_load(_read_bounded(path))
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise UnverifiedError(f"{path.name} is not plain YAML") from err
    if not isinstance(value, dict) or {key: str(value[key]) for key in value} != {
        "model_name": name,
        "model_version": str(version),
    }:
        raise UnverifiedError(f"{path.name} names something else than {name} version {version}")
