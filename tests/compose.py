"""docker-compose.yml as Docker's own compose reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROFILES = ("gpu", "observability", "tools")
COMPOSE = Path(sys.executable).parent / "docker-compose"
ONCE = ("secrets", "databases", "accounts")
TOOLS = ("trainer", "promoter", "admin")


def run_compose(
    *words: str, env_file: Path = ROOT / ".env.example", cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    # Nothing of this shell: compose prefers its variables to those of the file.
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    command = [str(COMPOSE), "--env-file", str(env_file), *words]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)


@cache
def rendered() -> Mapping[str, Any]:
    """The whole file, with all profiles and the settings of .env.example."""
    done = run_compose("--profile", "*", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    value: Mapping[str, Any] = json.loads(done.stdout)
    return value


def services() -> Mapping[str, Any]:
    found: Mapping[str, Any] = rendered()["services"]
    return found


def example_settings() -> dict[str, str]:
    """The settings of .env.example, each with the comment before it."""
    found: dict[str, str] = {}
    comment = ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.match(r"([A-Z_]+)=", line):
            found[match[1]] = comment
            continue
        comment = f"{comment} {line.removeprefix('#').strip()}".strip() if line else ""
    return found
