"""Which params are proposed next, and which trials are ended early: Optuna's parts, by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from experiments.config import SweepConfig


def build_sampler(
    config: SweepConfig, seed: int, fixed: Mapping[str, Any] | None = None
) -> optuna.samplers.BaseSampler:
    """Returns the sampler of a resolved config.

    The grid is no sampler of Optuna's here: its cells are enqueued one by one (`Search.ask`), and a
    random one stands in for params that a cell does not hold, which are none.

    Args:
        config: Of which `sampler` is looked at.
        seed: 0 to 2**32 - 1.
        fixed: Params that are not proposed but given.
    """
    if fixed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.PartialFixedSampler(dict(fixed), build_sampler(config, seed))
    if config.sampler == "cmaes":
        # Hansen & Ostermeier 2001. Categorical params are drawn at random beside it.
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if config.sampler in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)  # Bergstra et al. 2011, section 4


def build_pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    """Returns the pruner of a resolved config."""
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    if config.pruner == "halving":  # Jamieson & Talwalkar 2016; asynchronous: Li et al. 2020
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=2)
    if config.pruner == "hyperband":  # Li et al. 2018
        return optuna.pruners.HyperbandPruner(min_resource=2, max_resource=config.epochs)
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
