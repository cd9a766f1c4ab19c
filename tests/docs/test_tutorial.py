"""The tutorial, typed from its first command to its last in an empty home, as a reader does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, commands_of
from tests.docs.terminal import Terminal, first_missing, open_terminal, two_free_ports

TUTORIAL = ROOT / "docs" / "tutorial.md"
NOT_TYPED = {
    "make setup": "the tests have an environment",
    ". .venv/bin/activate": "the tests have an environment",
    "python -m pip install": "the tests have the package",
    "cp .env.example": "for Docker",
    "docker compose": "there is no Docker engine; test_stack.py runs the same services",
}


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A shell in a clone of what the tutorial needs, with Podium on the path."""
    cwd, port = tmp_path / "podium", two_free_ports()
    shutil.copytree(ROOT / "examples", cwd / "examples")
    shutil.copy(ROOT / ".gitignore", cwd)
    ask = cwd / "examples" / "ask.py"
    ask.write_text(ask.read_text().replace("5001", str(port)))
    author = ["-c", "user.name=ada", "-c", "user.email=ada@example.com"]
    for git in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "A clone"]):
        subprocess.run(["git", *git], cwd=cwd, check=True)
    environment = Path(sys.executable).parent
    env = {
        **{name: text for name, text in os.environ.items() if not name.startswith("MLOPS_")},
        "PATH": os.pathsep.join([str(environment), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "VIRTUAL_ENV": str(environment.parent),
        "PYTHONUNBUFFERED": "1",
    }
    with open_terminal(cwd, env, port) as terminal:
        yield terminal


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_tutorial_can_be_followed_to_the_letter(terminal: Terminal, tmp_path: Path) -> None:
    typed = []
    transcript = tmp_path / "transcript.txt"  # what to paste into the page when it changes
    for command in commands_of(TUTORIAL):
        if not command.text.startswith(tuple(NOT_TYPED)):
            said = terminal.type(command)
            typed.append(command.text)
            with transcript.open("a") as out:
                out.write(f"$ {command.text}\n{said}\n")
    assert len(typed) > 20


def test_a_line_that_is_not_printed_is_found(tmp_path: Path) -> None:
    said = "version 7 is champion: 0.93 on 60 rows\nquality  0.93  at least 0.9  warn\nEnd of 3.\n"
    shown = ["version 1 is champion: 0.9833 on 61 rows", "quality  1.0  at least 0.9  pass", "..."]
    assert first_missing(shown, said, tmp_path) is None
    assert first_missing([*shown, "Beginning."], said, tmp_path) == "Beginning."
    assert first_missing(["End of 3.", "version 1..."], said, tmp_path) == "version 1..."
    assert first_missing(["version 1..."], said, tmp_path) is None
