"""Child processes that start in milliseconds: forked from one that has the slow imports made."""

from __future__ import annotations

import multiprocessing

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "tests.faults.children",
        "tests.faults.sweep",
        "tests.mlops.backup_children",
        "tests.registry.children",
    ]
)
