"""Candidates and releases in MLflow's model registry: the only file that talks to it.

(But for one thing: sweeps create candidates through the journal, so that no trial waits for it.)

A candidate is a version of `<name>-candidates`, made by a sweep. A release is a version of
`<name>`, made by a promotion: its bytes are a copy in the experiment `<name>-releases`, where
sweeps do not write. The alias `champion` of `<name>` points at the release that is served.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError, choose, first_line
from mlops.evaluation import CLASSIFIER_METRICS
from mlops.mlflow_store import ensure_experiment, ensure_registered_model, upload
from mlops.tracking import MODEL_PATH

CHAMPION = "champion"
RELEASE_PATH = "release"
CANDIDATE_TAG = "mlops.candidate"
DECISION_TAG = "mlops.decision"
RELEASE_TAG = "mlops.release"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version of `<name>-candidates`.

    Attributes:
        value: The study's objective on the validation split; higher is better.
        decision: "promoted" or "rejected"; None while nothing was decided.
    """

    name: str
    version: int
    run_id: str
    architecture: str
    dataset_fingerprint: str
    objective: str
    value: float
    decision: str | None

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
    """A version of `<name>`; `candidate` says which candidate's bytes it holds."""

    name: str
    version: int
    run_id: str
    candidate: str


class Catalog:
    """Reads and writes candidates and releases of one MLflow server."""

    def __init__(self, client: Any) -> None:
        """`client` is an `MlflowClient`, as `mlops.mlflow_store.open_client` gives it."""
        self._client = client

    def find_candidates(self, name: str) -> list[Candidate]:
        """Returns the candidates of a model, newest first.

        Raises:
            MlopsError: there are none; names the models that have some.
        """
        with _translated():
            found = self._versions(f"name = '{name}-candidates'")
        if not found:
            others = sorted(
                model.name.removesuffix("-candidates")
                for model in self._client.search_registered_models(max_results=1000)
                if model.name.endswith("-candidates")
            )
            if not others:
                raise MlopsError(
                    f"there are no candidates of {name!r}; no sweep has registered any model. "
                    "Run python -m experiments.sweep first."
                )
            raise MlopsError(f"there are no candidates of {name!r}; {choose(name, others)}")
        return [_candidate(name, version) for version in found]

    def find_champion(self, name: str) -> Release | None:
        """Returns the release that holds the alias `champion`, or None."""
        from mlflow.exceptions import MlflowException

        try:
            version = self._client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as err:
            if err.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise MlopsError(f"the model registry does not answer: {first_line(err)}") from err
        return Release(
            name, int(version.version), version.run_id, version.tags.get(CANDIDATE_TAG, "")
        )

    def download(self, version: Candidate | Release, folder: Path) -> Path:
        """Copies a version's bytes to a private folder, and returns where the model lies."""
        path = MODEL_PATH if isinstance(version, Candidate) else RELEASE_PATH
        with _translated():
            return Path(self._client.download_artifacts(version.run_id, path, str(folder)))

    def open_release(self, candidate: Candidate, dataset_name: str) -> Release:
        """Makes the version of `<name>` that will hold a candidate's bytes, or finds it again.

        The version is there before its bytes, since the release's statement names it. Killed in
        between, it has no alias, nobody serves it, and the same promotion finds it by its tag.
        """
        name, experiment = candidate.name, f"{candidate.name}-releases"
        tags = {
            CANDIDATE_TAG: candidate.reference,
            "mlops.dataset_fingerprint": candidate.dataset_fingerprint,
            "mlops.architecture": candidate.architecture,
        }
        with _translated():
            experiment_id = ensure_experiment(self._client, experiment)
            runs = self._client.search_runs(
                [experiment_id], f"tags.`{CANDIDATE_TAG}` = '{candidate.reference}'", max_results=1
            )
            run_id = (
                runs[0].info.run_id
                if runs
                else self._client.create_run(
                    experiment_id,
                    tags={**tags, "mlops.dataset": dataset_name},
                    run_name=f"release of {candidate.reference}",
                ).info.run_id
            )
            ensure_registered_model(self._client, name)
            found = self._versions(f"name = '{name}' and run_id = '{run_id}'")
            version = (
                found[0]
                if found
                else self._client.create_model_version(
                    name,
                    f"runs:/{run_id}/{RELEASE_PATH}",
                    run_id,
                    tags=tags,
                    await_creation_for=0,
                )
            )
        return Release(name, int(version.version), run_id, candidate.reference)

    def is_published(self, release: Release) -> bool:
        """Tells whether a release's bytes are all there: its statement is the last of them."""
        with _translated():
            found = self._client.list_artifacts(release.run_id, RELEASE_PATH)
        return f"{RELEASE_PATH}/release.json" in {item.path for item in found}

    def publish(self, release: Release, folder: Path, metrics: dict[str, float]) -> None:
        """Uploads a release's bytes, the files that make it valid last, and ends its run."""
        with _translated():
            upload(self._client, release.run_id, folder, RELEASE_PATH)
            for metric, value in metrics.items():
                self._client.log_metric(release.run_id, metric, value)
            self._client.set_terminated(release.run_id, "FINISHED")

    def set_champion(self, release: Release) -> None:
        """Moves the alias. From this call on `<name>@champion` is the release."""
        with _translated():
            self._client.set_registered_model_alias(release.name, CHAMPION, str(release.version))

    def note_decision(
        self, candidate: Candidate, decision: str, release: Release | None = None
    ) -> None:
        """Notes on a candidate what was decided, so that it is not decided on again unasked."""
        tags = {DECISION_TAG: decision}
        if release is not None:
            tags[RELEASE_TAG] = f"{release.name}/{release.version}"
        with _translated():
            for tag, value in tags.items():
                self._client.set_model_version_tag(
                    f"{candidate.name}-candidates", str(candidate.version), tag, value
                )

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


def _candidate(name: str, version: Any) -> Candidate:
    tags = version.tags
    return Candidate(
        name=name,
        version=int(version.version),
        run_id=version.run_id,
        architecture=tags.get("mlops.architecture", "unknown"),
        dataset_fingerprint=tags.get("mlops.dataset_fingerprint", ""),
        objective=tags.get("mlops.objective", ""),
        value=float(tags.get("mlops.value", "-inf")),
        decision=tags.get(DECISION_TAG),
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as err:
        raise MlopsError(f"the model registry did not do it: {first_line(err)}") from err
    except OSError as err:
        raise MlopsError(f"a model's files could not be read or written: {err}") from err
