"""The search: sweeps of Keras architectures with Optuna, on Dask, tracked in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.config import SweepConfig as SweepConfig
    from experiments.sweep import run_sweep as run_sweep

__all__ = ["SweepConfig", "run_sweep"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m experiments.sweep --help` imports nothing of this.
    if name == "run_sweep":
        from experiments.sweep import run_sweep

        return run_sweep
    if name == "SweepConfig":
        from experiments.config import SweepConfig

        return SweepConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
