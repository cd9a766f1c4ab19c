"""What the machine offers: space on its disks, and a GPU that TensorFlow can use.

TensorFlow is not imported: that takes 15 s, and which libraries it lacks is known without it.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mlops.gpus import list_gpus
from mlops.program import command_line
from mlops.stores.store import Finding, Health

MIN_FREE_BYTES = 1 << 30
MIN_FREE_SHARE = 0.05
GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Space:
    """Space of a file system; `n_files` is 0 where it knows no limit of them.

    Attributes:
        device: What tells it from another.
    """

    device: int
    size_bytes: int
    free_bytes: int
    n_files: int
    n_files_free: int


def measure(folder: Path) -> Space:
    """Returns the space that a process without privileges has where a folder lies, or will lie."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return Space(
        device=folder.stat().st_dev,
        size_bytes=found.f_blocks * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        n_files=found.f_files,
        n_files_free=found.f_favail,
    )


def check_disk(folders: Iterable[Path], space_of: Callable[[Path], Space] = measure) -> Health:
    """Looks whether the file systems of some folders are nearly full, each once."""
    spaces: dict[int, tuple[Path, Space]] = {}
    for folder in folders:
        space = space_of(folder)
        spaces.setdefault(space.device, (folder, space))
    findings = [one for where in spaces.values() for one in _lacks(*where)]
    free = (f"{_in_words(space.free_bytes)} free" for _, space in spaces.values())
    return Health(", ".join(free), tuple(findings))


def _lacks(folder: Path, space: Space) -> Iterable[Finding]:
    show = f"du -xh -d 2 {shlex.quote(str(folder))} | sort -h"
    mend = f"Free some space there; what takes it is shown by: {show}"
    if space.free_bytes < max(MIN_FREE_BYTES, MIN_FREE_SHARE * space.size_bytes):
        yield Finding(
            "disk",
            f"the disk of {str(folder)!r} is nearly full; expected 1 GiB and 5 % to be free, got "
            f"{_in_words(space.free_bytes)} of {_in_words(space.size_bytes)}.",
            mend,
        )
    if space.n_files and space.n_files_free < MIN_FREE_SHARE * space.n_files:
        yield Finding(
            "disk",
            f"the disk of {str(folder)!r} can take few more files; expected 5 % of its inodes to "
            f"be free, got {space.n_files_free} of {space.n_files}.",
            mend.replace("du -xh", "du --inodes -xh"),
        )


def _in_words(size_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def check_gpu(
    find: Callable[[], list[str]] | None = None, find_lacking: Callable[[], list[str]] | None = None
) -> Health:
    """Looks whether TensorFlow has what it needs to use the GPU; none at all is no finding.

    Args:
        find: Returns the names of the GPUs; by default `find_gpu_names`.
        find_lacking: Returns the CUDA packages that are missing; by default `find_lacking_cuda`.
    """
    names = (find or find_gpu_names)()
    if not names:
        return Health("no GPU; trains on the CPU")
    lacking = (find_lacking or find_lacking_cuda)()
    says = ", ".join(sorted(set(names)))
    if not lacking:
        return Health(says)
    wrong = (
        f"there is a GPU ({says}), but TensorFlow lacks the CUDA libraries for it and trains on "
        f"the CPU; {len(lacking)} packages are missing, {lacking[0]} among them."
    )
    return Health(says, (Finding("gpu", wrong, _install_cuda()),))


def find_gpu_names() -> list[str]:
    """Returns the names of the NVIDIA GPUs that this process may use."""
    return [gpu.name for gpu in list_gpus()] or _ask_proc()


def _ask_proc(folder: Path = GPUS) -> list[str]:
    found = []
    for path in sorted(folder.glob("*/information")):
        with contextlib.suppress(OSError):
            model = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
            found.append(model[1].strip() if model else "NVIDIA GPU")
    return found


def find_lacking_cuda() -> list[str]:
    """Returns the packages of `tensorflow[and-cuda]` that are missing.

    None where the system has CUDA libraries of its own, and none for another build of TensorFlow,
    which is somebody's own choice.
    """
    try:
        requires = metadata.requires("tensorflow") or []
    except metadata.PackageNotFoundError:
        return []
    if ctypes.util.find_library("cudnn") and ctypes.util.find_library("cudart"):
        return []
    wanted = [
        re.split(r"[\s<>=!~;\[]", one, maxsplit=1)[0] for one in requires if "and-cuda" in one
    ]
    return [name for name in wanted if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(name))
    return False


def _install_cuda() -> str:
    version = ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = f"=={metadata.version('tensorflow')}"
    return command_line("python", "-m", "pip", "install", f"tensorflow[and-cuda]{version}")
