"""A worker that takes its share of a GPU and imports nothing of weight."""

from __future__ import annotations

import os
import time
from typing import Any

from experiments.workers.gpu_share import take_share

NAMES = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION", "TF_FORCE_GPU_ALLOW_GROWTH")


def dask_setup(worker: Any) -> None:
    """Dask calls this when a worker process starts."""
    take_share(worker.name)


def tell(wait_s: float) -> tuple[int, dict[str, str]]:
    """In a worker: waits, and returns the process and what it has of a GPU."""
    time.sleep(wait_s)
    return os.getpid(), {name: os.environ.get(name, "") for name in NAMES}
