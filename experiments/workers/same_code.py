"""Whether two processes run the same code: Podium's own, a user's architectures, the packages."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

VERSIONS = ("tensorflow", "jax", "keras", "numpy", "optuna", "mlflow", "distributed")
SOURCES = ("mlops", "experiments")
"""Podium's packages that a trial runs."""


def describe_code(own: Iterable[str] = ()) -> dict[str, str]:
    """Returns what decides how a trial goes in this process, by name; imports nothing heavy.

    Args:
        own: Modules of a user's own architectures.
    """
    return {
        "Podium's code": hash_sources(),
        "Python": "{}.{}".format(*sys.version_info),
        **{name: _version(name) for name in VERSIONS},
        "KERAS_BACKEND": os.environ.get("KERAS_BACKEND") or "tensorflow",
        **{name: hash_module(name) for name in own},
    }


def find_difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Returns the end of a sentence that names what differs; None if nothing does."""
    differ = [
        f"{name} is {found.get(name, 'missing')} instead of {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    return ", ".join(differ) or None


@functools.cache
def hash_sources() -> str:
    """Returns 12 hex digits of Podium's sources, as they were when this was first asked.

    A process that runs on while its files are replaced runs the old ones: ask early.
    """
    digest = hashlib.sha256()
    for package in SOURCES:
        root = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(root.rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{package}/{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


@functools.cache
def hash_module(name: str) -> str:
    """Returns 12 hex digits of a module's file; finds it without importing it or its packages."""
    folders: list[str] | None = None
    file = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), folders)
        if spec is None:
            return "missing"
        folders, file = list(spec.submodule_search_locations or ()), spec.origin
    if file is None or not Path(file).is_file():
        return "missing"
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
