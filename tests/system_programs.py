"""Says which system programs the system tests miss, with the line to type."""

from __future__ import annotations

import os
import shutil
import sys

PROGRAMS = {"chromium": "apt-get install chromium", "haproxy": "apt-get install haproxy"}


def find_program(name: str) -> str | None:
    """Returns the path of a program; Debian keeps some out of the sight of plain users."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def main() -> int:
    missing = [name for name in PROGRAMS if find_program(name) is None]
    for name in missing:
        sys.stderr.write(f"make test-system needs {name}; type: {PROGRAMS[name]}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
