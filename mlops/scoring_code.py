"""The scoring runtime as files: which they are, the one hash of them all, and which may run.

`mlops/scoring/` travels inside every packaged model as the folder `code/podium_scoring_<sha12>/`.
Nothing here imports it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

LOADER: Final = r"podium_scoring_[0-9a-f]{12}"
"""What the folder in a model is called."""
FILE: Final = r"[a-z_]{1,64}\.py"
"""What a file in that folder may be called: no bytecode, no extension module, nothing hidden."""
MOST_FILES: Final = 64

_OWN: Final = Path(__file__).with_name("scoring")
_HISTORY: Final = Path(__file__).with_name("scoring_history.txt")
_REVOKED: Final = Path(__file__).with_name("scoring_revoked.txt")


def read_own() -> dict[str, bytes]:
    """Returns what this Podium packages: the content of each file, by its name."""
    files = (path for path in _OWN.iterdir() if re.fullmatch(FILE, path.name))
    return {path.name: path.read_bytes() for path in files}


def hash_code(files: Mapping[str, bytes]) -> str:
    """Returns the SHA-256 of a runtime, from the content of each of its files by name."""
    return combine_hashes({name: hashlib.sha256(files[name]).hexdigest() for name in files})


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """Returns the SHA-256 of a runtime, from that of each of its files by name.

    It is that of one line `<SHA-256>  <name>` a file, in the order of the names, as
    `cd mlops/scoring && LC_ALL=C sha256sum *.py | sha256sum` prints it.
    """
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def loader_of(sha256: str) -> str:
    """Returns the name of the folder that a runtime lies in: MLflow imports it under that name."""
    return f"podium_scoring_{sha256[:12]}"


def find_fault(sha256: str, vouched: str | None = None) -> str | None:
    """Returns why a runtime may not run; None where it may.

    Args:
        sha256: The whole hash, not the twelve digits of the name: those can be forged.
        vouched: The hash of one that a verified signature vouches for.
    """
    if sha256 in _listed(_REVOKED):
        return "is a scoring runtime that was revoked; promote the model anew"
    if sha256 not in {vouched, hash_code(read_own()), *_listed(_HISTORY)}:
        return (
            "is not a scoring runtime this Podium knows; upgrade Podium or package the model again"
        )
    return None


def _listed(path: Path) -> set[str]:
    lines = (line.split("#", 1)[0].strip() for line in path.read_text("utf-8").splitlines())
    return set(filter(None, lines))
