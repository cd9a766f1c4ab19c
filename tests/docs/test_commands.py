"""Each command of README, docs/ and examples/ is read by the program that it names.

Options, positional arguments and types are the program's own; nothing is run. What the tutorial
says is run as well (test_tutorial.py), and so is much of the README (tests/e2e).
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from experiments.podium import PROGRAMS
from tests.docs.pages import (
    LANGUAGES,
    PAGES,
    ROOT,
    Block,
    Command,
    blocks_of,
    commands_of,
    heredoc_of,
    inline_commands_of,
    programs_of,
)
from tests.docs.readers import WrongError, options_of, read


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.mark.parametrize("page", named(PAGES))
def test_each_command_is_one_that_its_program_takes(page: Path) -> None:
    wrong = []
    for command in [*commands_of(page), *inline_commands_of(page)]:
        try:
            for program in programs_of(command):
                read(program, command)
        except WrongError as err:
            wrong.append(f"{command.place}: {command.text!r}: {err}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", named(PAGES))
def test_each_block_says_what_it_is(page: Path) -> None:
    wrong = [
        f"{block.page.relative_to(ROOT)}:{block.line} is {block.language or 'nothing'!r}"
        for block in blocks_of(page)
        if block.language not in LANGUAGES
    ]
    assert not wrong, f"expected ```sh, console, text, python, toml or json: {wrong}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("python -m experiments.sweep --trails 3", "--trails"),
        ("python -m experiments.sweep --trials three", "three"),
        ("python -m registry.rollback", "Required"),
        ("python -m experiments.swep", "no program"),
        ("podium swep", "no program"),
        ("make swep", "no job"),
        ("docker compose up -d postgress", "no service"),
        ("docker compose run --rm admin python -m mlops.backup", "Required"),
        ("curl -s http://x/invocations -d @examples/none.json", "no file"),
        ("curl -s http://x/invocations -d '{inputs: []}'", "no JSON"),
        ("dask worker tcp://x:1 --threads 2", "--threads"),
        ("frobnicate", "how it is checked"),
    ],
)
def test_a_command_that_is_wrong_is_found(text: str, said: str) -> None:
    command = Command(ROOT / "README.md", 1, text)
    with pytest.raises(WrongError, match=re.escape(said)):
        for program in programs_of(command):
            read(program, command)


OTHERS = {
    "--nthreads": "dask",
    "--nworkers": "dask",
    "--worker-port": "dask",
    "--nanny-port": "dask",
    "--no-dashboard": "dask",
    "--preload": "dask",
    "--profile": "docker compose",
    "--app-name": "mlflow server",
    "--env-manager": "mlflow models serve",
    "--no-deps": "pip",
}
"""Options of other programs that pages name, and whose."""


def test_each_option_that_a_page_names_is_an_option_of_a_program() -> None:
    known = set(OTHERS) | {"--help"}
    for module, _ in PROGRAMS.values():
        known |= options_of(module)
    wrong = []
    for page in PAGES:
        for span in re.findall(r"`(--[^`]+)`", page.read_text("utf-8")):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span):
                if option not in known:
                    wrong.append(f"{page.relative_to(ROOT)}: {option}")
    assert not wrong, wrong


PYTHON = [block for page in PAGES for block in blocks_of(page) if block.language == "python"]


@pytest.mark.parametrize(
    "block", [pytest.param(one, id=f"{one.page.name}:{one.line}") for one in PYTHON]
)
def test_python_on_a_page_compiles_and_what_it_imports_is_there(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("page", named(PAGES))
def test_toml_and_json_on_a_page_can_be_read(page: Path) -> None:
    for block in blocks_of(page):
        if block.language in ("toml", "json"):
            (tomllib.loads if block.language == "toml" else json.loads)(block.text)
    for command in commands_of(page):
        if ".toml <<" in command.text:
            assert tomllib.loads(heredoc_of(command)), command.place
