"""Which byte strings stand in which files; read by a process of its own.

A process that closes any descriptor of a file loses all its POSIX locks on that file (fcntl(2)).
Read in the process that asks, a SQLite database that it has open would lose the locks that keep
other writers out.

The child runs this file alone, so it knows nothing but the standard library.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 24


def find_in_files(
    paths: Iterable[Path], wanted: Iterable[bytes]
) -> dict[Path, tuple[int, frozenset[bytes]]]:
    """Reads files from begin to end.

    Args:
        paths: Absolute. A file that is gone by the time it is read is left out.
        wanted: What is looked for; none is empty.

    Returns:
        The size in bytes of each file, and what stands in it.

    Raises:
        OSError: a file cannot be read, or the child cannot be started or was killed.
    """
    files, texts = list(paths), list(wanted)
    question = {"paths": [str(one) for one in files], "wanted": [one.hex() for one in texts]}
    child = subprocess.run(
        [sys.executable, "-I", __file__],
        input=json.dumps(question).encode(),
        capture_output=True,
        check=False,
    )
    if child.returncode != 0:
        raise OSError(f"the search ended with {child.returncode}: {child.stderr.decode()[-300:]}")
    found: dict[Path, tuple[int, frozenset[bytes]]] = {}
    for file, answer in zip(files, json.loads(child.stdout), strict=True):
        if answer is None:
            continue
        if "error" in answer:
            raise OSError(answer["errno"], answer["error"], str(file))
        found[file] = answer["size"], frozenset(texts[one] for one in answer["found"])
    return found


def _find_in_file(path: str, wanted: Mapping[int, bytes]) -> dict[str, Any] | None:
    """Read and not mapped: who shortens a mapped file meanwhile ends the process that looks."""
    overlap = max(map(len, wanted.values())) - 1
    size, found, tail = 0, set[int](), b""
    try:
        with Path(path).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                size += len(block)
                content = tail + block
                found |= {key for key, one in wanted.items() if one in content}
                tail = content[-overlap:] if overlap else b""
    except FileNotFoundError:
        return None
    except OSError as err:
        return {"errno": err.errno, "error": err.strerror}
    return {"size": size, "found": sorted(found)}


def _main() -> None:
    question = json.load(sys.stdin)
    wanted = {key: bytes.fromhex(one) for key, one in enumerate(question["wanted"])}
    json.dump([_find_in_file(path, wanted) for path in question["paths"]], sys.stdout)


if __name__ == "__main__":
    _main()
