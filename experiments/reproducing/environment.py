"""Where a training ran: hardware, versions and code, by name. None of it is in its recipe.

It stands on each run as the tag `mlops.environment`. The same recipe in the same environment gives
the same weights on a CPU; where an entry differs, weights may.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from experiments.workers.same_code import hash_module, hash_sources

ENVIRONMENT: Final = "mlops.environment"
"""The tag."""
VERSIONS: Final = "mlops.versions"
"""The tag of the versions that the driver saw."""

NO_GPU: Final = "none"
PACKAGES: Final = ("keras", "tensorflow", "jax", "jaxlib", "numpy")
"""Those that compute."""
FLAGS: Final = (
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_DETERMINISTIC_OPS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
    "NVIDIA_TF32_OVERRIDE",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
)
"""Variables by which the parts round otherwise; named where they are set."""

_INSTRUCTIONS: Final = ("avx", "amx", "fma", "asimd", "sve")
"""How the sets of instructions are called that kernels are chosen by."""


def describe_environment(architecture: str) -> dict[str, str]:
    """Returns where this process trains, by name; imports nothing heavy.

    The GPU is named in a process that has Keras.

    Args:
        architecture: `module:Class`.
    """
    return {
        **_describe_machine(),
        **({"GPU": _name_gpu()} if "keras" in sys.modules else {}),
        "Python": platform.python_version(),
        **find_versions(PACKAGES),
        "Podium's code": hash_sources(),
        "the architecture's module": hash_module(architecture.partition(":")[0]),
        **{name: os.environ[name] for name in FLAGS if os.environ.get(name)},
    }


def find_versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def read_environment(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns what a run says of where it was trained; of an older version's, versions alone."""
    for tag in (ENVIRONMENT, VERSIONS):
        with contextlib.suppress(KeyError, ValueError, RecursionError, AttributeError):
            found = {str(name): str(value) for name, value in json.loads(tags[tag]).items()}
            if tag == ENVIRONMENT:
                return found
            return {
                "Python" if name == "python" else name: value
                for name, value in found.items()
                if name in ("python", *PACKAGES)
            }
    return {}


@functools.cache
def _describe_machine() -> dict[str, str]:
    about = _read_cpu(Path("/proc/cpuinfo"))
    libc = " ".join(platform.libc_ver()).strip()
    return {
        "CPU": about.get("model name") or platform.processor() or platform.machine(),
        "instructions": name_instructions(about.get("flags") or about.get("Features") or ""),
        "system": f"{platform.system()} {platform.machine()} {libc}".strip(),
    }


def name_instructions(flags: str) -> str:
    """Returns the sets of instructions among a CPU's flags that kernels are chosen by."""
    found = {one for one in flags.split() if one.startswith(_INSTRUCTIONS)}
    return " ".join(sorted(found)) or "not known"


def _read_cpu(path: Path) -> dict[str, str]:
    """Returns what Linux says of the first core."""
    try:
        first = path.read_text(errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


@functools.cache
def _name_gpu() -> str:
    """Returns the GPU that Keras computes on, which is the first."""
    from experiments.numerics import find_keras_gpus

    try:
        return next((name for name, _ in find_keras_gpus()), NO_GPU)
    except Exception as err:  # a driver that fails here fails the training too, with its own words
        return f"not known ({type(err).__name__})"
