"""What is found out before a sweep makes anything: the data, the spaces, and what cannot be."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.built_in import architecture_path
from experiments.config import SweepConfig
from mlops.errors import UsageError, choose
from mlops.settings import Settings
from mlops.tracking import RELEASES

if TYPE_CHECKING:
    from experiments.architectures import Description
    from experiments.progress import Progress
    from experiments.workers.cluster import Workers
    from experiments.workers.packing import Packing
    from mlops.data import Dataset


def load_data(config: SweepConfig) -> Dataset:
    """Loads what a sweep searches on.

    Raises:
        DataError: it cannot be read.
        UsageError: its name cannot be an experiment's, and the config names no other.
    """
    from mlops.data import load_dataset

    dataset = load_dataset(
        config.dataset,
        kind=config.kind,
        label=config.label,
        categorical=config.categorical,
        sequence_id=config.sequence_id,
        image_size=config.image_size,
        data_dir=config.data_dir,
        split_seed=config.split_seed,
    )
    if config.experiment is None and dataset.name.endswith(RELEASES):
        raise UsageError(
            f"the dataset's name {dataset.name!r} ends in {RELEASES}, as experiments do that "
            "promotions write. Name another by --experiment."
        )
    return dataset


def check_cluster(config: SweepConfig, settings: Settings) -> None:
    """Refuses a cluster that cannot keep the sweep's record, before anything starts.

    Raises:
        UsageError: studies are kept in SQLite, or the scheduler's file is not there.
    """
    if config.cluster is None:
        return
    if settings.study_url.startswith("sqlite"):
        raise UsageError(
            "--cluster needs a study database that is a server; expected MLOPS_STUDY_URL as "
            "postgresql+psycopg://USER@HOST/studies, got SQLite, which workers of several hosts "
            "cannot share. Set it, or leave --cluster out to train on this machine."
        )
    if config.cluster.endswith(".json") and not Path(config.cluster).is_file():
        raise UsageError(
            f"--cluster: there is no scheduler file {config.cluster!r}; expected the one that "
            "`dask scheduler --scheduler-file FILE` wrote."
        )


def check_warm_start(config: SweepConfig, settings: Settings) -> None:
    """Refuses a `--warm-start` that names nothing, before anything starts.

    Raises:
        UsageError: names the studies that there are.
    """
    from experiments.storage import has_storage, open_storage
    from experiments.studies import find_studies

    wanted = str(config.warm_start)
    url = settings.study_url
    records = find_studies(open_storage(url)) if has_storage(url) else []
    names = list(dict.fromkeys(record.sweep for record in reversed(records)))
    if not names:
        raise UsageError(f"there is no study {wanted!r} to start from; no sweep has run here yet.")
    if not any(wanted in (record.name, record.sweep) for record in records):
        raise UsageError(
            f"there is no study {wanted!r} to start from; {choose(wanted, names[:20])}"
        )


def check_study(config: SweepConfig, settings: Settings, dataset: Dataset) -> None:
    """Refuses a `--study` that was begun with another dataset or config, before anything starts.

    Raises:
        UsageError: names the architectures that differ.
    """
    from experiments.storage import open_storage
    from experiments.studies import find_studies

    wanted = config.fingerprints(dataset.fingerprint)
    differ = [
        record.name
        for record in find_studies(open_storage(settings.study_url))
        if record.sweep == config.study
        and wanted.get(record.architecture_path, record.config_fingerprint)
        != record.config_fingerprint
    ]
    if differ:
        raise UsageError(
            f"{', '.join(differ)} was begun with another dataset or config. "
            "Give the same options, or another --study."
        )


def introduce(config: SweepConfig, dataset: Dataset, packing: Packing | None = None) -> str:
    """Returns what is searched on and where, in a sentence.

    Args:
        packing: How this machine's GPUs are shared; None without one.
    """
    counts = dataset.counts()
    where = f"Starting {packing or f'{config.n_workers} worker(s)'}."
    if config.cluster is not None:
        where = f"Using {config.workers or 'all'} worker(s) of {config.cluster}."
    return (
        f"{dataset.name}: {len(dataset.y)} {rows_in_words(dataset)}, "
        f"{len(dataset.class_names)} classes; {counts['train']} to train, "
        f"{counts['val']} to validate, {counts['test']} to test. "
        f"{where}"
    )


def rows_in_words(dataset: Dataset) -> str:
    """Returns what one row is, in the plural."""
    spec = dataset.input
    if spec.columns is not None:
        n_categories = sum(column.categories is not None for column in spec.columns)
        parts = f", {n_categories} of them categories" if n_categories else ""
        return f"rows of {len(spec.columns)} columns{parts}"
    if spec.ragged:
        return f"sequences of up to {spec.shape[0]} steps x {spec.shape[1] - 1}"
    return f"{spec.kind}s of " + " x ".join(str(size) for size in spec.shape)


def check_backend(config: SweepConfig) -> None:
    """Refuses what the backend that Keras runs on cannot do.

    Raises:
        UsageError: says what to type.
    """
    if config.xla == "off" and os.environ.get("KERAS_BACKEND") == "jax":
        raise UsageError(
            "--xla off cannot be with KERAS_BACKEND=jax: JAX compiles everything by XLA. "
            "Leave --xla out."
        )
    _check_private_backend(config)
    if config.population is None:
        return
    if util.find_spec("jax") is None:
        raise UsageError(
            "--population needs JAX, which is not installed. Type: "
            "python -m pip install 'podium-mlops[jax]'"
        )
    if os.environ.get("KERAS_BACKEND") != "jax":
        raise UsageError(
            "--population runs on JAX only. Put KERAS_BACKEND=jax before the same command."
        )


def _check_private_backend(config: SweepConfig) -> None:
    if config.dp_epsilon is None:
        return
    missing = [
        name for name in ("jax", "jax_privacy", "dp_accounting") if util.find_spec(name) is None
    ]
    if missing:
        raise UsageError(
            f"--dp-epsilon needs {' and '.join(missing)}, not installed here. Type: "
            "python -m pip install 'podium-mlops[privacy]'"
        )
    if os.environ.get("KERAS_BACKEND") != "jax":
        raise UsageError(
            "--dp-epsilon trains on JAX only. Put KERAS_BACKEND=jax before the same command."
        )


def describe_all(
    config: SweepConfig, dataset: Dataset, cluster: Workers, progress: Progress
) -> list[Description]:
    """Lets a worker describe each architecture, and narrows its space as the config says.

    Raises:
        UsageError: one cannot be imported or packaged, none takes the data, or the config asks for
            params or values that there are not; all of it at once.
    """
    from experiments.architectures import describe
    from experiments.config_check import refuse
    from experiments.numerics import check_device
    from experiments.privacy.space import describe_private, narrow_private
    from experiments.space import narrow_all

    if config.precision != "float32":
        cluster.call(check_device, config.precision)
    describe_one = describe if config.dp_epsilon is None else describe_private
    counts = tuple(dataset.class_counts("train"))
    found: list[Description] = []
    wrong: list[str] = []
    for name in config.architectures:
        try:
            one = cluster.call(
                describe_one, architecture_path(name), dataset.input, counts, config.metric
            )
        except UsageError as err:
            wrong.append(str(err).rstrip("."))
            continue
        if one.left_out is not None:
            progress.note(f"{one.name} is left out: it {one.left_out}.")
        found.append(one)
    fits = [one for one in found if one.left_out is None]
    narrowed, errors = narrow_all(
        {one.path: one.distributions() for one in fits}, config.space, config.fix
    )
    if config.dp_epsilon is not None:
        narrowed, not_private = narrow_private(narrowed)
        errors += not_private
    refuse([*wrong, *errors])
    fits = [_with_space(one, narrowed[one.path]) for one in fits]
    if not fits:
        raise UsageError(
            f"none of {', '.join(config.architectures)} takes {dataset.input.kind}s; "
            "give others with --architectures, or say what the rows are with --kind."
        )
    names = [one.name for one in fits]
    if len(set(names)) < len(names):
        raise UsageError(f"two architectures have one name: {', '.join(sorted(names))}.")
    return fits


def _with_space(description: Description, space: dict[str, Any]) -> Description:
    """Returns the description with another space, and its baseline moved into that."""
    from optuna.distributions import distribution_to_json

    from experiments.space import nearest

    return replace(
        description,
        space={name: distribution_to_json(one) for name, one in space.items()},
        baseline=nearest(space, description.baseline),
    )
