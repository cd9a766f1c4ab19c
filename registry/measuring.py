"""Collects the evidence of a decision: what the candidate and the champion do on the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlops.data import Dataset, count_shared
from mlops.dataset_store import DatasetStore, open_dataset_store, open_datasets
from mlops.errors import DataError, refuse_model
from mlops.evaluation import Score, chance_elbo, score_classifier, score_elbo
from mlops.packaging import ModelSpec
from registry.alias import Registry
from registry.evidence import Champion, Commit, Evidence, Measured, Serving
from registry.gates import same_interface
from registry.golden import Golden
from registry.probe import Answered, ModelFailedError
from registry.releases import Verified
from registry.serving_probe import measure_serving


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What was measured.

    Attributes:
        golden: Made-up requests, and what the candidate answered them.
        n_rows: Rows of the dataset's parts.
    """

    evidence: Evidence
    golden: Golden
    n_rows: Mapping[str, int]


def measure(
    folder: Path,
    spec: ModelSpec,
    champion: Verified | None,
    metric: str,
    registry: Registry,
    scratch: Path,
) -> Findings:
    """Measures a checked candidate, and the verified champion on the candidate's test rows.

    Args:
        folder: The candidate, a private copy.
        spec: What it is.
        champion: None where there is none, or it does not verify.
        metric: What a classifier is judged by, one of `CLASSIFIER_METRICS`.
        registry: Its policy says whether serving is measured too.
        scratch: A private folder. A dataset that is on S3, and not here yet, is fetched to it: a
            home keeps no rows because of a promotion, that an erasure would have to reach.

    Raises:
        DataError: the store does not have the candidate's dataset.
        StructureError: the candidate's specification is not of the dataset that it names.
        ModelFailedError: the candidate does not answer.
    """
    policy = registry.policy
    store = open_dataset_store(registry.settings)
    if not (store.folder / spec.dataset_fingerprint).is_dir():
        store = open_datasets(registry.settings.datasets_url, scratch)
    dataset = store.get(spec.dataset_fingerprint)
    _check_dataset(spec, dataset)
    compared = champion if champion and same_interface(spec, champion.spec) else None
    folders = [*([compared.folder] if compared else []), folder]
    vouched = [*([compared.scoring_sha256] if compared else []), None]
    probed = registry.probe(
        folders,
        store=store,
        fingerprint=spec.dataset_fingerprint,
        vouched_scoring=vouched,
    )
    answered = probed.answers[-1]
    if isinstance(answered, ModelFailedError):
        raise answered
    judge = _Judge(dataset, store, metric)
    rival, fault = None, ""
    if champion is not None and compared is None:
        rival = Champion(champion.statement.version, champion.spec, None)
    elif compared is not None:
        said, version = probed.answers[0], compared.statement.version
        if isinstance(said, ModelFailedError):
            fault = f"version {version} does not answer: {said}"
        else:
            measured = judge.measure(compared.folder, compared.spec, said)
            rival = Champion(version, compared.spec, measured)
    evidence = Evidence(
        candidate=judge.measure(folder, spec, answered),
        champion=rival,
        labels=dataset.labels("test") if spec.task == "classifier" else None,
        isolation=probed.isolation,
        serving=_serve(folder, answered.golden) if policy.needs_serving else None,
        champion_fault=fault,
    )
    return Findings(evidence, answered.golden, dataset.counts())


def _check_dataset(spec: ModelSpec, dataset: Dataset) -> None:
    """A model tells its clients the names of classes, and is scored by their indices."""
    own, stored = spec.input, dataset.input
    if spec.task == "classifier" and spec.class_names != dataset.class_names:
        refuse_model("MLmodel", "names other classes than the dataset that it says trained it")
    if (own.kind, own.shape, own.dtype) != (stored.kind, stored.shape, stored.dtype):
        refuse_model("MLmodel", "takes other rows than the dataset that it says trained it has")


def _serve(folder: Path, golden: Golden) -> Serving:
    return measure_serving(folder, json.dumps({"inputs": golden.requests[:1]}).encode())


@dataclass(frozen=True, slots=True)
class _Judge:
    """Scores answers on one dataset's test rows."""

    dataset: Dataset
    store: DatasetStore
    metric: str

    def measure(self, folder: Path, spec: ModelSpec, answered: Answered) -> Measured:
        sign = 1.0 if spec.task == "classifier" else -1.0  # the score of a VAE is minus its ELBO
        return Measured(
            spec=spec,
            answers=sign * answered.test,
            score=self._score(spec, answered.test),
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            n_seen=self._count_seen(spec.dataset_fingerprint),
            perturbed={name: self._score(spec, one) for name, one in answered.perturbed.items()},
        )

    def _score(self, spec: ModelSpec, answers: npt.NDArray[np.float64]) -> Score:
        if spec.task == "classifier":
            return score_classifier(answers, self.dataset.labels("test"), self.metric)
        assert spec.likelihood is not None
        return score_elbo(-answers, chance_elbo(self.dataset, spec.likelihood))

    def _count_seen(self, fingerprint: str) -> int | None:
        if fingerprint == self.dataset.fingerprint:
            return count_shared(self.dataset, self.dataset)
        try:
            return count_shared(self.dataset, self.store.get(fingerprint))
        except DataError:
            return None


def read_commit(tags: Mapping[str, str]) -> Commit:
    """Returns the code that a run was made from, as its sweep noted it in the run's tags."""
    dirty = tags.get("mlops.git_dirty")
    return Commit(tags.get("mlflow.source.git.commit"), None if dirty is None else dirty == "true")
