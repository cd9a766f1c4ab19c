"""The training that is to be made again: which run it is, and what MLflow knows of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from experiments.reproducing.recipe import Recipe, read_recipe
from mlops.errors import MlopsError, UsageError, choose
from mlops.tracking import CANDIDATES, MODEL_PATH

if TYPE_CHECKING:
    from mlops.settings import Settings
    from registry.catalog import Catalog, Release

_RUN_ID: Final = re.compile("[0-9a-f]{32}")
_NAMED: Final = re.compile(r"(?P<name>[^/@:]+)(?:/(?P<version>\d{1,9})|@(?P<alias>[^/@:]+))")
_EPOCH_METRIC: Final = re.compile("(train|val)_|learning_rate$|epoch_s$")
NETWORK: Final = "data/model.keras"


@dataclass(frozen=True, slots=True)
class Target:
    """What a user named: a run, or a version of a model, or what holds an alias of it."""

    text: str
    run_id: str | None = None
    name: str = ""
    version: int | None = None
    alias: str | None = None

    @property
    def kind(self) -> Literal["run", "candidate", "release"]:
        if self.run_id is not None:
            return "run"
        return "candidate" if self.name.endswith(CANDIDATES) else "release"


def parse_target(text: str) -> Target:
    """Reads NAME/VERSION, NAME@alias, NAME-candidates/VERSION, or the id of an MLflow run.

    Raises:
        UsageError: it is none of them.

    Example:
        >>> parse_target("digits-classifier/3").version
        3
    """
    if _RUN_ID.fullmatch(text):
        return Target(text, run_id=text)
    named = _NAMED.fullmatch(text)
    if named is None or (named["alias"] and named["name"].endswith(CANDIDATES)):
        raise UsageError(
            "expected a release (NAME/VERSION or NAME@champion), a candidate "
            f"(NAME-candidates/VERSION) or the 32 digits of an MLflow run, got {text!r}."
        )
    version = None if named["version"] is None else int(named["version"])
    return Target(text, name=named["name"], version=version, alias=named["alias"])


@dataclass(frozen=True, slots=True)
class Original:
    """A training that came to its end, as its run has it.

    Attributes:
        name: Of the run.
        weights_sha256: Of the best epoch's weights; "" where the run does not say.
        best_epoch: From 0; None of a refit.
        history: Metrics by epoch and name.
        model: The packaged model's folder, checked; None where the run has none.
    """

    run_id: str
    name: str
    recipe: Recipe
    tags: Mapping[str, str]
    weights_sha256: str
    best_epoch: int | None
    history: Mapping[int, Mapping[str, float]]
    model: Path | None

    @property
    def trained_s(self) -> float:
        """Seconds that its epochs took."""
        return sum(metrics.get("epoch_s", 0.0) for metrics in self.history.values())


def find_original(
    target: Target, client: Any, catalog: Catalog, settings: Settings, scratch: Path
) -> Original:
    """Returns the training behind what a user named.

    A release is verified first: what is compared with is what was signed.

    Args:
        client: An `MlflowClient` of the same server as the catalog's.
        scratch: A folder of this process's own, for the model.

    Raises:
        UsageError: there is no such thing, or no training that could be made again.
        UnverifiedError: the release is not what was signed.
        StructureError: the model's folder holds what Podium did not write.
        MlopsError: the server does not answer.
    """
    run_id, model = _locate(target, catalog, settings, scratch)
    run = _get_run(client, run_id)
    refuse_unfit(run_id, run.info.status, run.info.lifecycle_stage, run.data.tags)
    refuse_private(run_id, run.data.params)
    recipe = read_recipe(run.data.tags, run.data.params, run.data.metrics)
    if model is None:
        model = _fetch_model(client, run_id, scratch)
    weights = run.data.tags.get("mlops.weights_sha256", "")
    if not weights and model is None:
        raise UsageError(
            f"the run {run_id} holds neither the hash of its weights nor a model: there is nothing "
            "to compare with. Name another."
        )
    best = run.data.metrics.get("best_epoch")
    return Original(
        run_id=run_id,
        name=run.info.run_name or run_id,
        recipe=recipe,
        tags=run.data.tags,
        weights_sha256=weights,
        best_epoch=None if best is None else int(best),
        history=_read_history(client, run_id, run.data.metrics),
        model=model,
    )


def refuse_unfit(run_id: str, status: str, stage: str, tags: Mapping[str, str]) -> None:
    """Refuses a run that is no training, or none that came to its end.

    Raises:
        UsageError: says what it is, and what to name instead.
    """
    if stage != "active":
        raise UsageError(
            f"the run {run_id} is deleted. Restore it (mlflow runs restore --run-id {run_id}), or "
            "name another."
        )
    if "mlops.sweep" not in tags:
        raise UsageError(
            f"the run {run_id} was not made by a sweep; expected one of a trial, or a model of one."
        )
    if "mlops.trial" not in tags and "mlops.final" not in tags:
        raise UsageError(
            f"the run {run_id} is that of a whole study, {tags.get('mlops.study', '')}; name one "
            "of its trials."
        )
    if tags.get("mlops.pruned") == "true":
        raise UsageError(
            f"the run {run_id} is of a trial that was pruned, because of how others stood then; "
            "name one that was complete."
        )
    if status == "RUNNING":
        raise UsageError(f"the run {run_id} is still under way; name it when it has ended.")
    if status != "FINISHED":
        why = tags.get("mlops.failure") or "it was interrupted"
        raise UsageError(f"the run {run_id} did not come to its end ({why}); name another.")


def refuse_private(run_id: str, params: Mapping[str, str]) -> None:
    """Refuses a training by DP-SGD.

    Raises:
        UsageError: it is one.
    """
    if "dp_epsilon" in params:
        raise UsageError(
            f"the run {run_id} is of a private training: its noise is drawn anew each time, and "
            "kept by nobody, so it cannot be made again. Name another."
        )


def _locate(
    target: Target, catalog: Catalog, settings: Settings, scratch: Path
) -> tuple[str, Path | None]:
    """Returns the run behind a target, and the model's folder where that is a release's."""
    if target.run_id is not None:
        return target.run_id, None
    if target.kind == "candidate":
        return _find_candidate(catalog, target.name.removesuffix(CANDIDATES), target.version), None
    from registry.releases import fetch_release

    release = _find_release(target, catalog)
    verified = fetch_release(catalog, release, scratch, settings.public_keys)
    name, _, number = verified.statement.candidate.rpartition("/")
    version = int(number) if number.isdecimal() else None
    return _find_candidate(catalog, name.removesuffix(CANDIDATES), version), verified.folder


def _find_candidate(catalog: Catalog, name: str, version: int | None) -> str:
    found = catalog.find_candidates(name)
    for one in found:
        if one.version == version and one.run_id:
            return one.run_id
    versions = ", ".join(str(one.version) for one in found[:20])
    raise UsageError(f"{name}{CANDIDATES} has no version {version}; expected one of {versions}.")


def _find_release(target: Target, catalog: Catalog) -> Release:
    if target.version is not None:
        return catalog.get_release(target.name, target.version)
    assert target.alias is not None
    release = catalog.find_alias(target.name, target.alias)
    if release is not None:
        return release
    aliases = catalog.find_aliases(target.name)
    if aliases:
        raise UsageError(
            f"{target.name} has no alias {target.alias!r}; {choose(target.alias, sorted(aliases))}"
        )
    versions = catalog.find_releases(target.name)
    known = f"{target.name}/{versions[0].version}" if versions else f"{target.name}{CANDIDATES}/1"
    raise UsageError(
        f"nothing holds {target.alias} of {target.name}. Name a version, as in {known}."
    )


def _get_run(client: Any, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    from mlops.errors import first_line

    try:
        return client.get_run(run_id)
    except MlflowException as err:
        if err.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UsageError(
                f"there is no run {run_id}; expected the id of one, as MLflow's pages show it."
            ) from err
        raise MlopsError(f"the tracking server does not answer: {first_line(err)}") from err


def _fetch_model(client: Any, run_id: str, scratch: Path) -> Path | None:
    """Returns the packaged model of a run, checked; None where it has none."""
    from mlops.packaging import check_model_folder

    files = {item.path for item in client.list_artifacts(run_id, MODEL_PATH)}
    if f"{MODEL_PATH}/MLmodel" not in files:
        return None
    folder = Path(client.download_artifacts(run_id, MODEL_PATH, str(scratch)))
    check_model_folder(folder)
    return folder


def _read_history(
    client: Any, run_id: str, names: Mapping[str, float]
) -> dict[int, dict[str, float]]:
    history: dict[int, dict[str, float]] = {}
    for name in filter(_EPOCH_METRIC.match, names):
        for one in client.get_metric_history(run_id, name):
            history.setdefault(one.step, {})[name] = one.value
    return dict(sorted(history.items()))
