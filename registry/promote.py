"""python -m registry.promote NAME: the best candidate becomes the champion, if every gate passes.

The order of steps is what a crash may leave behind. Candidate -> private download -> structural
check -> gates -> release run and version -> bytes, the statement last -> alias -> note on the
candidate. Killed before the alias moves, the old champion serves on and the same command completes
the release that was begun; killed after, the same command only writes the note.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mlops.errors import MlopsError, StructureError
from mlops.program import answer, answer_json, run_program
from mlops.settings import Settings

if TYPE_CHECKING:
    from mlops.data import Dataset
    from mlops.evaluation import Score
    from mlops.packaging import ModelSpec
    from registry.catalog import Candidate, Catalog, Release
    from registry.gates import Decision, Gate

STATEMENT = "release.json"
STATEMENT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion did.

    Attributes:
        version: The version of `name` that is champion now; None if there is none.
        candidate_version: The candidate it decided on; None if there was nothing to decide.
    """

    decision: Literal["promoted", "rejected", "unchanged", "proposed"]
    name: str
    version: int | None
    candidate_version: int | None
    gates: tuple[Gate, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "decision": self.decision,
            "name": self.name,
            "version": self.version,
            "candidate_version": self.candidate_version,
            "gates": [
                {"name": g.name, "passed": g.passed, "value": g.value, "limit": g.limit}
                for g in self.gates
            ],
        }


def promote(
    name: str,
    *,
    version: int | None = None,
    settings: Settings | None = None,
    catalog: Catalog | None = None,
) -> Promotion:
    """Decides on a candidate of `name` and, if every gate passes, makes it the champion.

    Args:
        name: The model, as in `digits-classifier`.
        version: The candidate to decide on. By default the one with the best validation score among
            those of the newest dataset and objective that are not decided on; one that scored no
            better in validation than a promoted one of the same two is passed over.
        settings: Where things live; by default as the environment says.
        catalog: The registry to use; by default the one the settings name.

    Raises:
        MlopsError: there is no such candidate, or a store does not answer.
    """
    from mlops.mlflow_store import open_store_client
    from registry.catalog import Catalog

    settings = settings or Settings.from_env()
    if name.endswith("-candidates"):
        name = name.removesuffix("-candidates")
    catalog = catalog or Catalog(open_store_client(settings))
    candidate = choose_candidate(catalog.find_candidates(name), version)
    champion = catalog.find_champion(name)
    if candidate is None:
        return Promotion(
            "unchanged",
            name,
            None if champion is None else champion.version,
            None,
            (),
            "no candidate of the newest dataset and objective is better in validation than what "
            "was decided on",
        )
    if champion is not None and champion.candidate == candidate.reference:
        # Also what a crash between the alias and the note left behind.
        catalog.note_decision(candidate, "promoted", champion)
        reason = f"candidate {candidate.version} is the champion already"
        return Promotion("unchanged", name, champion.version, candidate.version, (), reason)
    with tempfile.TemporaryDirectory(prefix="podium-") as private:
        return _decide(catalog, candidate, champion, settings, Path(private))


def choose_candidate(candidates: list[Candidate], version: int | None) -> Candidate | None:
    """Picks the candidate to decide on; None when nothing is left to decide.

    Args:
        candidates: Newest first.
        version: The one the user named, if any.

    Raises:
        MlopsError: there is no such version.
    """
    if version is not None:
        for one in candidates:
            if one.version == version:
                return one
        versions = ", ".join(str(one.version) for one in candidates[:20])
        raise MlopsError(
            f"{candidates[0].name}-candidates has no version {version}; expected one of {versions}."
        )
    newest = (candidates[0].dataset_fingerprint, candidates[0].objective)
    same = [one for one in candidates if (one.dataset_fingerprint, one.objective) == newest]
    to_beat = max((one.value for one in same if one.decision == "promoted"), default=None)
    open_ones = [
        one for one in same if one.decision is None and (to_beat is None or one.value > to_beat)
    ]
    return max(open_ones, key=lambda one: (one.value, -one.version), default=None)


def _decide(
    catalog: Catalog,
    candidate: Candidate,
    champion: Release | None,
    settings: Settings,
    private: Path,
) -> Promotion:
    from mlops.dataset_store import open_dataset_store
    from mlops.packaging import check_model_folder
    from registry.gates import Evidence, decide, refuse_answers, refuse_structure

    serving = None if champion is None else champion.version
    folder = catalog.download(candidate, _new_folder(private / "candidate"))
    try:
        spec = check_model_folder(folder)
    except StructureError as err:
        return _reject(catalog, candidate, serving, refuse_structure(str(err)))
    dataset = open_dataset_store(settings.datasets_url).get(spec.dataset_fingerprint)
    try:
        score = _score(folder, spec, dataset, candidate.metric)
    except ModelFailedError as err:
        return _reject(catalog, candidate, serving, refuse_answers(str(err)))
    evidence = Evidence((spec, score), None)
    if champion is not None:
        rival = _score_champion(catalog, champion, spec, dataset, score.metric, private)
        evidence = Evidence((spec, score), rival)
    decision = decide(evidence)
    if decision.outcome == "rejected":
        return _reject(catalog, candidate, serving, decision)
    release = catalog.open_release(candidate, spec.dataset_name)
    if not catalog.is_published(release):  # what was published is never written again
        write_statement(folder, release, spec, decision, champion)
        metrics = {f"test_{name}": value for name, value in score.values.items()}
        catalog.publish(release, folder, metrics)
    catalog.set_champion(release)
    catalog.note_decision(candidate, "promoted", release)
    return Promotion(
        "promoted",
        candidate.name,
        release.version,
        candidate.version,
        decision.gates,
        f"{score.metric} {score.value:.4f} on {score.n_rows} test rows ({candidate.architecture})",
    )


def _score_champion(
    catalog: Catalog,
    champion: Release,
    spec: ModelSpec,
    dataset: Dataset,
    metric: str,
    private: Path,
) -> tuple[ModelSpec, Score | None] | None:
    """Scores the champion on a candidate's test rows, if it takes such rows.

    A champion that is broken (it does not pass the check, or does not answer) is no bar for a
    candidate that is not.
    """
    from mlops.packaging import check_model_folder
    from registry.gates import same_interface

    folder = catalog.download(champion, _new_folder(private / "champion"))
    try:
        found = check_model_folder(folder)
        if not same_interface(found, spec):
            return found, None
        return found, _score(folder, found, dataset, metric)
    except (StructureError, ModelFailedError):
        return None


def _reject(
    catalog: Catalog, candidate: Candidate, serving: int | None, decision: Decision
) -> Promotion:
    catalog.note_decision(candidate, "rejected")
    return Promotion(
        "rejected", candidate.name, serving, candidate.version, decision.gates, decision.reason
    )


class ModelFailedError(MlopsError):
    """A model does not answer the rows that it is scored on."""


def _score(folder: Path, spec: ModelSpec, dataset: Dataset, metric: str) -> Score:
    """Scores a checked model folder on the stored test split, through its own scoring code.

    The model is asked as a client asks it: categories by name, sequences without padding.

    Raises:
        ModelFailedError: it cannot be loaded, or a row has no finite answer.
    """
    from mlops.evaluation import chance_elbo, score_classifier, score_vae
    from mlops.packaging import load_model

    try:
        answers = load_model(folder).predict(dataset.requests("test"))
    except Exception as err:
        first = str(err).strip().split("\n", 1)[0]
        raise ModelFailedError(first.split("; expected")[0].rstrip(".")) from err
    if spec.task == "classifier":
        return score_classifier(answers, dataset.labels("test"), metric)
    assert spec.likelihood is not None
    return score_vae(answers, chance_elbo(dataset, spec.likelihood))


def write_statement(
    folder: Path, release: Release, spec: ModelSpec, decision: Decision, previous: Release | None
) -> None:
    """Writes release.json into a model folder: what the release is, and the hash of each file.

    A later version of Podium signs the folder with this file in it; the signature binds bytes, the
    statement binds them to a name and a version.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    statement = {
        "format": STATEMENT_FORMAT,
        "name": release.name,
        "version": release.version,
        "run_id": release.run_id,
        "candidate": release.candidate,
        "created_at": datetime.now(UTC).isoformat(),
        "dataset": {"name": spec.dataset_name, "fingerprint": spec.dataset_fingerprint},
        "gates": [asdict(gate) for gate in decision.gates],
        "previous": None if previous is None else previous.version,
        "files": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.name not in (STATEMENT, "registered_model_meta")
        },
    }
    (folder / STATEMENT).write_text(json.dumps(statement, indent=2, sort_keys=True) + "\n")


def _new_folder(path: Path) -> Path:
    path.mkdir()
    return path


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    name: Annotated[str, tyro.conf.Positional]
    """The model to promote, for example digits-classifier."""
    version: int | None = None
    """The candidate to decide on; by default the best that is not decided on."""
    json: bool = False
    """Print the decision as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    settings = Settings.from_env()
    done = promote(options.name, version=options.version, settings=settings)
    if options.json:
        answer_json(done.to_json())
    else:
        answer(_in_words(done, settings))
    return 3 if done.decision == "rejected" else 0


def _in_words(done: Promotion, settings: Settings) -> str:
    from mlops.program import command_line

    if done.decision == "rejected":
        serving = (
            "there is no champion"
            if done.version is None
            else f"version {done.version} stays champion"
        )
        return (
            f"{done.name}: candidate {done.candidate_version} is rejected, {serving}: "
            f"{done.reason}."
        )
    if done.decision == "unchanged":
        return f"{done.name}: unchanged; {done.reason}."
    lines = [
        f"{done.name} version {done.version} is champion: candidate {done.candidate_version}, "
        f"{done.reason}.",
        "Serve it:",
        "  "
        + command_line(
            "mlflow",
            *("models", "serve", "-m", f"models:/{done.name}@champion"),
            *("--env-manager", "local", "--port", "5001"),
            env={
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_TRACKING_URI": settings.direct_uri,
            },
        ),
    ]
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.promote",
        description="Make the best candidate the champion, if every gate passes.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
