"""A worker that imports nothing of weight."""

from __future__ import annotations

from typing import Any


def dask_setup(worker: Any) -> None:
    """Dask calls this when a worker process starts."""
