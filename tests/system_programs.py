"""Says which system program the system tests miss, with the line to type."""

from __future__ import annotations

import shutil
import sys

PROGRAMS = {"chromium": "apt-get install chromium"}


def main() -> int:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    for name in missing:
        sys.stderr.write(f"make test-system needs {name}; type: {PROGRAMS[name]}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
