"""Candidates and releases in MLflow's model registry: the only file that talks to it.

(But for one thing: sweeps create candidates through the journal, so that no trial waits for it.)

A candidate is a version of `<name>-candidates`, made by a sweep. A release is a version of
`<name>`, made by a promotion: its bytes are a copy in the experiment `<name>-releases`, where
sweeps do not write. The alias `champion` of `<name>` points at the release that is served.
`alias.py` alone calls `move_alias`, since it writes the ledger too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError, UsageError, choose, first_line
from mlops.evaluation import CLASSIFIER_METRICS
from mlops.mlflow_store import ensure_experiment, ensure_registered_model, upload
from mlops.tracking import MODEL_PATH
from registry.failpoints import failpoint

CHAMPION = "champion"
RELEASE_PATH = "release"
MOVES_PATH = "moves"
CERTIFICATES_PATH = "reproduction"
ALTERED_TAG = "mlops.altered"
CANDIDATE_TAG = "mlops.candidate"
DECISION_TAG = "mlops.decision"
REPRODUCED_TAG = "mlops.reproduced"
RELEASE_TAG = "mlops.release"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version of `<name>-candidates`.

    Attributes:
        value: The study's objective on the validation split; higher is better.
        decision: "promoted", "proposed" or "rejected"; None while nothing was decided.
        created_at: When it was registered, aware UTC; None where MLflow does not say.
    """

    name: str
    version: int
    run_id: str
    architecture: str
    dataset_fingerprint: str
    objective: str
    value: float
    decision: str | None
    created_at: datetime | None = None

    @property
    def metric(self) -> str:
        """What a classifier is judged by on the test split: its study's objective there."""
        name = self.objective.removeprefix("val_")
        return name if name in CLASSIFIER_METRICS else CLASSIFIER_METRICS[0]

    @property
    def reference(self) -> str:
        return f"{self.name}-candidates/{self.version}"


@dataclass(frozen=True, slots=True)
class Release:
    """A version of `<name>`.

    Attributes:
        candidate: Which candidate's bytes it holds, by its tag; the signed statement says it too.
        source: Where MLflow looks for its bytes.
    """

    name: str
    version: int
    run_id: str
    candidate: str
    source: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether the bytes that MLflow serves of it are those that are verified here."""
        return bool(self.run_id) and self.source == release_source(self.run_id)


def release_source(run_id: str) -> str:
    return f"runs:/{run_id}/{RELEASE_PATH}"


@dataclass(frozen=True, slots=True)
class Registered:
    """All that the registry knows of one model; candidates and releases newest first.

    Attributes:
        aliases: The version that each alias holds.
        tags: Of each release, by its version; what they say is not verified.
    """

    name: str
    aliases: Mapping[str, int]
    releases: tuple[Release, ...]
    tags: Mapping[int, Mapping[str, str]]
    candidates: tuple[Candidate, ...]

    @classmethod
    def empty(cls, name: str) -> Registered:
        """Returns a model of which the registry knows nothing."""
        return cls(name, {}, (), {}, ())


@dataclass(frozen=True, slots=True)
class Source:
    """The run that made a candidate."""

    run_id: str
    experiment_id: str
    tags: Mapping[str, str]


class Catalog:
    """Reads and writes candidates and releases of one MLflow server."""

    def __init__(self, client: Any) -> None:
        """`client` is an `MlflowClient`, as `mlops.mlflow_store.open_client` gives it."""
        self._client = client
        self._stores: dict[str, Any] = {}  # of runs that were asked for moves: a run's stays

    def find_candidates(self, name: str) -> list[Candidate]:
        """Returns the candidates of a model, newest first.

        Raises:
            UsageError: there are none; names the models that have some.
        """
        with _translated():
            found = self._versions(f"name = '{_checked(name)}-candidates'")
        if not found:
            others = sorted(
                model.name.removesuffix("-candidates")
                for model in self._client.search_registered_models(max_results=1000)
                if model.name.endswith("-candidates")
            )
            if not others:
                raise UsageError(
                    f"there are no candidates of {name!r}; no sweep has registered any model. "
                    "Run python -m experiments.sweep first."
                )
            raise UsageError(f"there are no candidates of {name!r}; {choose(name, others)}")
        return [_candidate(name, version) for version in found]

    def find_alias(self, name: str, alias: str) -> Release | None:
        """Returns the release that holds an alias, or None."""
        # Not asked by alias: of a model that is not there a server with accounts answers 403.
        version = self.find_aliases(name).get(alias)
        if version is None:
            return None
        with _translated():
            return _release(name, self._client.get_model_version(name, str(version)))

    def find_aliases(self, name: str) -> dict[str, int]:
        """Returns the versions that a model's aliases hold; {} where there is no such model."""
        from mlflow.exceptions import MlflowException

        with _translated():
            try:
                model = self._client.get_registered_model(_checked(name))
            except MlflowException as err:
                if err.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
        return {alias: int(version) for alias, version in model.aliases.items()}

    def find_releases(self, name: str) -> list[Release]:
        """Returns the versions of a model, newest first; [] where there is no such model."""
        with _translated():
            return [_release(name, one) for one in self._versions(f"name = '{_checked(name)}'")]

    def survey(self, name: str | None = None) -> dict[str, Registered]:
        """Returns all models, or the one that is named, by name; {} where there is none.

        Two requests for all models, whatever their number, up to a thousand of each kind.
        """
        with _translated():
            if name is None:
                versions = self._versions("")
                models = self._models("")
            else:
                checked = _checked(name)
                versions = self._versions(f"name = '{checked}'")
                versions += self._versions(f"name = '{checked}-candidates'")
                models = self._models(f"name = '{checked}'")
        return _survey(models, versions)

    def _models(self, condition: str) -> list[Any]:
        """All registered models that meet a condition."""
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_registered_models(
                condition, max_results=1000, page_token=token
            )
            found.extend(page)
            token = page.token
            if not token:
                return found

    def get_release(self, name: str, version: int) -> Release:
        """Returns a version of a model.

        Raises:
            UsageError: there is none; names those that there are.
        """
        found = self.find_releases(name)
        for one in found:
            if one.version == version:
                return one
        if found:
            versions = ", ".join(str(one.version) for one in found[:20])
            raise UsageError(f"{name} has no version {version}; expected one of {versions}.")
        raise self._unknown(name)

    def _unknown(self, name: str) -> UsageError:
        with _translated():
            models = self._client.search_registered_models(max_results=1000)
        names = sorted(one.name for one in models if not one.name.endswith("-candidates"))
        if name in names:
            return UsageError(f"{name} has no version; promote another, or roll back.")
        if not names:
            return UsageError(
                f"there is no model {name!r}; nothing was promoted yet. "
                f"Run python -m registry.promote {name} first."
            )
        return UsageError(f"there is no model {name!r}; {choose(name, names)}")

    def read_statement(self, release: Release) -> tuple[dict[str, Any], str] | None:
        """Returns a release's statement and the SHA-256 of its bytes; None where there is none.

        What it says is not verified.
        """
        with tempfile.TemporaryDirectory(prefix="podium-") as folder, _translated():
            files = self._client.list_artifacts(release.run_id, RELEASE_PATH)
            path = f"{RELEASE_PATH}/release.json"
            if path not in {item.path for item in files}:
                return None
            file = Path(self._client.download_artifacts(release.run_id, path, folder))
            content = file.read_bytes()
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        digest = hashlib.sha256(content).hexdigest()
        return (value if isinstance(value, dict) else {}), digest

    def read_source(self, candidate: Candidate) -> Source:
        """Returns the run that made a candidate.

        Raises:
            UsageError: the run is deleted.
        """
        from mlflow.exceptions import MlflowException

        if not candidate.run_id:
            raise UsageError(
                f"{candidate.reference} names no run that made it; decide on another with "
                "--version."
            )
        try:
            run = self._client.get_run(candidate.run_id)
        except MlflowException as err:
            if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise MlopsError(f"the tracking server does not answer: {first_line(err)}") from err
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            raise UsageError(
                f"the run {candidate.run_id} that made candidate {candidate.version} of "
                f"{candidate.name} is deleted; nobody could say where a release of it comes from. "
                f"Restore it (mlflow runs restore --run-id {candidate.run_id}), or decide on "
                "another with --version."
            )
        return Source(run.info.run_id, run.info.experiment_id, dict(run.data.tags))

    def download(self, version: Candidate | Release, folder: Path) -> Path:
        """Copies a version's bytes to a private folder, and returns where the model lies."""
        path = MODEL_PATH if isinstance(version, Candidate) else RELEASE_PATH
        with _translated():
            return Path(self._client.download_artifacts(version.run_id, path, str(folder)))

    def open_release(
        self, candidate: Candidate, dataset: tuple[str, str], shown: Mapping[str, str]
    ) -> Release:
        """Makes the version of `<name>` that will hold a candidate's bytes, or finds it again.

        The version is there before its bytes, since the release's statement names it. Killed in
        between, it has no alias, nobody serves it, and the same promotion finds it by its tag.

        Args:
            dataset: Name and fingerprint of what the model itself says that it was trained on.
            shown: More tags of the version.
        """
        name, experiment = candidate.name, f"{candidate.name}-releases"
        tags = {
            CANDIDATE_TAG: candidate.reference,
            "mlops.dataset_fingerprint": dataset[1],
            "mlops.architecture": candidate.architecture,
        }
        with _translated():
            experiment_id = ensure_experiment(self._client, experiment)
            run_id = (
                self._find_run(experiment_id, candidate)
                or self._client.create_run(
                    experiment_id,
                    tags={
                        **tags,
                        "mlops.dataset": dataset[0],
                        "mlops.source_run": candidate.run_id,
                    },
                    run_name=f"release of {candidate.reference}",
                ).info.run_id
            )
            failpoint("release-run")
            ensure_registered_model(self._client, name)
            source = release_source(run_id)
            found = self._find_version(name, run_id)
            version = found or self._client.create_model_version(
                name,
                source,
                run_id,
                tags={**tags, **shown},
                await_creation_for=0,
            )
            release = Release(name, int(version.version), run_id, candidate.reference, source)
            if found and not self.is_published(release):  # of an earlier try, which was killed
                self._set_tags(name, release.version, shown)
        return release

    def find_release(self, candidate: Candidate) -> Release | None:
        """Returns the release that `open_release` would find; makes none."""
        name = candidate.name
        with _translated():
            experiment = self._client.get_experiment_by_name(f"{name}-releases")
            if experiment is None:
                return None
            run_id = self._find_run(experiment.experiment_id, candidate)
            found = self._find_version(name, run_id) if run_id else None
        return None if found is None else _release(name, found)

    def _find_run(self, experiment_id: str, candidate: Candidate) -> str | None:
        """The run that holds the bytes of a candidate's release, unless they were altered."""
        runs = self._client.search_runs(
            [experiment_id], f"tags.`{CANDIDATE_TAG}` = '{candidate.reference}'"
        )
        sound = [run for run in runs if ALTERED_TAG not in run.data.tags]
        return sound[0].info.run_id if sound else None

    def _find_version(self, name: str, run_id: str) -> Any | None:
        """The version of a release's run; one that looks elsewhere for its bytes is not of ours."""
        found = self._versions(f"name = '{name}' and run_id = '{run_id}'")
        return next((one for one in found if one.source == release_source(run_id)), None)

    def has_bytes(self, release: Release) -> bool:
        """Tells whether anything is left of a release's bytes."""
        return bool(self._list(release, RELEASE_PATH))

    def _list(self, version: Candidate | Release, path: str) -> list[Any]:
        """What lies in a folder of a version's run; [] where there is no such run."""
        from mlflow.exceptions import MlflowException

        with _translated():
            try:
                return list(self._client.list_artifacts(version.run_id, path))
            except MlflowException as err:
                if err.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise

    def find_size(self, version: Candidate | Release, most_files: int) -> tuple[int, int]:
        """Returns how many bytes a version has by its listing, and how many files and folders.

        Counts no further than `most_files` allows: a release has about twenty.
        """
        path = MODEL_PATH if isinstance(version, Candidate) else RELEASE_PATH
        size, count, folders = 0, 0, [path]
        while folders and count <= most_files:
            for item in self._list(version, folders.pop()):
                count += 1
                size += item.file_size or 0
                if item.is_dir:
                    folders.append(item.path)
        return size, count

    def is_published(self, release: Release) -> bool:
        """Tells whether a release's bytes are all there: its signature is the last of them."""
        with _translated():
            found = self._client.list_artifacts(release.run_id, RELEASE_PATH)
        return f"{RELEASE_PATH}/model.sig" in {item.path for item in found}

    def publish(self, release: Release, folder: Path) -> None:
        """Uploads a release's bytes, the files that make it valid last."""
        with _translated():
            upload(
                self._client,
                release.run_id,
                folder,
                RELEASE_PATH,
                after_each=lambda: failpoint("upload"),
            )

    def give_up(self, release: Release) -> None:
        """Marks a release whose bytes were altered, so that its candidate gets another."""
        with _translated():
            self._client.set_tag(release.run_id, ALTERED_TAG, "true")
            self._set_tags(release.name, release.version, {ALTERED_TAG: "true"})

    def describe(self, release: Release, card: str, metrics: Mapping[str, float]) -> None:
        """Writes a release's card and metrics where MLflow shows them, and ends its run."""
        with _translated():
            self._client.update_model_version(release.name, str(release.version), card)
            self._client.set_tag(release.run_id, "mlflow.note.content", card)
            for metric, measured in metrics.items():
                self._client.log_metric(release.run_id, metric, measured)
            self._client.set_terminated(release.run_id, "FINISHED")

    def move_alias(self, release: Release, alias: str) -> None:
        """Moves an alias. From this call on `<name>@<alias>` is the release."""
        with _translated():
            self._client.set_registered_model_alias(release.name, alias, str(release.version))

    def delete_alias(self, name: str, alias: str) -> None:
        """Takes an alias away: nothing is `<name>@<alias>` from this call on."""
        with _translated():
            self._client.delete_registered_model_alias(_checked(name), alias)

    def write_move(self, release: Release, alias: str, file: str, content: bytes) -> None:
        """Writes a file of an alias record beside a release (`registry.alias_record`)."""
        self._write_file(release.run_id, f"{MOVES_PATH}/{alias}", file, content)

    def find_moves(self, release: Release, alias: str, most_bytes: int) -> set[str]:
        """Returns the names of the files of an alias's records beside a release, but large ones."""
        return self._find_files(release.run_id, f"{MOVES_PATH}/{alias}", most_bytes)

    def write_certificate(self, run_id: str, file: str, content: bytes) -> None:
        """Writes a file of a certificate of reproduction beside its run."""
        self._write_file(run_id, CERTIFICATES_PATH, file, content)

    def note_reproduction(self, run_id: str, verdict: str) -> None:
        """Notes on a run what its newest certificate says, where MLflow shows it."""
        with _translated():
            self._client.set_tag(run_id, REPRODUCED_TAG, verdict)

    def find_certificates(self, run_id: str, most_bytes: int) -> set[str]:
        """Returns the names of the files of certificates beside a run, but large ones."""
        return self._find_files(run_id, CERTIFICATES_PATH, most_bytes)

    def read_certificate(self, run_id: str, file: str) -> bytes:
        """Returns the content of a file that `find_certificates` named."""
        return self._read_file(run_id, f"{CERTIFICATES_PATH}/{file}")

    def _write_file(self, run_id: str, path: str, file: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="podium-") as folder, _translated():
            place = Path(folder) / file
            place.write_bytes(content)
            upload(self._client, run_id, place, path)

    def _read_file(self, run_id: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="podium-") as folder, _translated():
            return Path(self._client.download_artifacts(run_id, path, folder)).read_bytes()

    def _find_files(self, run_id: str, path: str, most_bytes: int) -> set[str]:
        return {
            one.path.rpartition("/")[2]
            for one in self._list_at_once(run_id, path)
            if not one.is_dir and (one.file_size or 0) <= most_bytes
        }

    def _list_at_once(self, run_id: str, path: str) -> list[Any]:
        """One request a listing; `list_artifacts` takes four, and a server lists many runs."""
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with _translated():
            try:
                if run_id not in self._stores:
                    place = self._client.get_run(run_id).info.artifact_uri
                    self._stores[run_id] = get_artifact_repository(
                        place, tracking_uri=self._client.tracking_uri
                    )
                return list(self._stores[run_id].list_artifacts(path))
            except MlflowException as err:
                if err.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise

    def read_move(self, release: Release, alias: str, file: str) -> bytes:
        """Returns the content of a file that `find_moves` named."""
        return self._read_file(release.run_id, f"{MOVES_PATH}/{alias}/{file}")

    def note_decision(
        self, candidate: Candidate, decision: str, release: Release | None = None
    ) -> None:
        """Notes on a candidate what was decided, so that it is not decided on again unasked."""
        tags = {DECISION_TAG: decision}
        if release is not None:
            tags[RELEASE_TAG] = f"{release.name}/{release.version}"
        with _translated():
            self._set_tags(f"{candidate.name}-candidates", candidate.version, tags)

    def _set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        for tag, value in tags.items():
            self._client.set_model_version_tag(name, str(version), tag, value)

    def _versions(self, condition: str) -> list[Any]:
        """All versions that meet a condition, newest first."""
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_model_versions(condition, max_results=1000, page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return sorted(found, key=lambda version: -int(version.version))


def _release(name: str, version: Any) -> Release:
    return Release(
        name,
        int(version.version),
        version.run_id or "",
        version.tags.get(CANDIDATE_TAG, ""),
        version.source or "",
    )


def _candidate(name: str, version: Any) -> Candidate:
    tags = version.tags
    return Candidate(
        name=name,
        version=int(version.version),
        run_id=version.run_id,
        architecture=_harmless(tags.get("mlops.architecture", "unknown")),
        dataset_fingerprint=tags.get("mlops.dataset_fingerprint", ""),
        objective=tags.get("mlops.objective", ""),
        value=_value(tags.get("mlops.value", "")),
        decision=tags.get(DECISION_TAG),
        created_at=_created_at(version),
    )


def _survey(models: Iterable[Any], versions: Iterable[Any]) -> dict[str, Registered]:
    by_name: dict[str, list[Any]] = defaultdict(list)
    for one in versions:
        by_name[one.name].append(one)
    aliases = {
        one.name: {alias: int(version) for alias, version in one.aliases.items()}
        for one in models
        if not one.name.endswith("-candidates")
    }
    names = {one.removesuffix("-candidates") for one in by_name} | aliases.keys()
    return {
        name: Registered(
            name,
            aliases.get(name, {}),
            tuple(_release(name, one) for one in by_name[name]),
            {int(one.version): dict(one.tags) for one in by_name[name]},
            tuple(_candidate(name, one) for one in by_name[f"{name}-candidates"]),
        )
        for name in sorted(names)
    }


def _created_at(version: Any) -> datetime | None:
    milliseconds = version.creation_timestamp
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _harmless(text: str) -> str:
    """A tag that anybody may have written, as a terminal may show it."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:80]


def _value(text: str) -> float:
    """Reads a tag that anybody may have written: what is no finite number is the least."""
    try:
        value = float(text)
    except ValueError:
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def _checked(name: str) -> str:
    """Returns a model's name, if it can be part of a question to MLflow."""
    if not name.isprintable() or not name or any(sign in name for sign in "'\"`/:%"):
        raise UsageError(f"{name!r} is no name of a model; expected none of ' \" ` / : %.")
    return name


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as err:
        raise MlopsError(_in_words(err.error_code, first_line(err))) from err
    except OSError as err:
        # A server with accounts answers so where a file is asked for.
        status = getattr(getattr(err, "response", None), "status_code", None)
        if code := {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}.get(status or 0):
            raise MlopsError(_in_words(code, first_line(err))) from err
        raise MlopsError(f"a model's files could not be read or written: {err}") from err


def _in_words(code: str, said: str) -> str:
    if code == "UNAUTHENTICATED" or "error code 401" in said:
        return (
            "the tracking server did not accept the login; look at MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        )
    if code == "PERMISSION_DENIED" or "error code 403" in said:
        return (
            "the tracking server does not allow this login to do that, or what it asks for is not "
            f"there yet: {said}"
        )
    return f"the model registry did not do it: {said}"
