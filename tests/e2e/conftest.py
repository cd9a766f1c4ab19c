"""The five-minute path, typed once for all end-to-end tests: sweep, promote, serve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops.settings import Settings


@dataclass(frozen=True, slots=True)
class Swept:
    """A home in which the sweep program has run, and what it printed."""

    settings: Settings
    env: dict[str, str]
    cwd: Path
    stdout: str
    stderr: str

    def printed_command(self, word: str) -> str:
        """The one line of the result that names a program, as a person would copy it."""
        (line,) = [line.strip() for line in self.stdout.splitlines() if word in line]
        return line

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        """Types a printed line into a shell."""
        return subprocess.run(
            command, shell=True, env=self.env, cwd=self.cwd, capture_output=True, text=True
        )


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    cwd = tmp_path_factory.mktemp("e2e")
    env = {**os.environ, "MLOPS_HOME": str(cwd / "home"), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "experiments.sweep", "--architectures", "cnn", "dnn"]
    command += ["--trials", "2", "--epochs", "8", "--workers", "2"]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = Settings.from_env({"MLOPS_HOME": env["MLOPS_HOME"]})
    yield Swept(settings, env, cwd, done.stdout, done.stderr)
