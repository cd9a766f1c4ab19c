"""Each command of README, docs/ and examples/ is read by the program that it names.

Options, positional arguments and types are the program's own; nothing is run. What the tutorial
says is run as well (test_tutorial.py), and so is much of the README (tests/e2e).
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

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

COMING = {"experiments.report", "experiments.reproduce", "registry.status"}
"""Programs that pages tell of and that are not here yet. One that is here leaves this list."""
SHELL = {"cat", "cp", "cut", "echo", "base64", "mkdir", "printf", "rm", "sha256sum", "tar", "tr", "head"}
"""Programs of every system, which the tutorial runs or whose words say nothing of Podium."""
NOT_READ = {
    "git": "nothing of Podium's",
    "openssl": "nothing of Podium's",
    "kubectl": "needs a cluster; the manifests are held by test_cluster_examples.py",
    "wget": "of another image",
}
PLACEHOLDERS = {"VERSION": "1", "PART": "accounts", "FINGERPRINT": "0" * 64}
OWN = ("experiments", "registry", "mlops", "benchmarks", "tests")


class WrongError(Exception):
    """Says what is wrong with a command."""


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


def test_a_program_that_pages_tell_of_is_here_or_named_as_coming() -> None:
    here = {module for module in COMING if importlib.util.find_spec(module)}
    assert not here, f"take {here} out of COMING: they are here"


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


def read(program: list[str], command: Command) -> None:
    """Reads one program's words.

    Raises:
        WrongError: The program would not take them.
    """
    name, args = program[0], program[1:]
    folder = command.page.parent
    if name.startswith("./") or name == ".":
        path = name if name != "." else args[0]
        if "activate" not in path and not (folder / path).is_file():
            raise WrongError(f"there is no file {path}")
    elif name in READERS:
        READERS[name](args, command)
    elif name not in SHELL and name not in NOT_READ:
        raise WrongError("say in this test how it is checked")


def read_python(args: list[str], command: Command) -> None:
    if args[:1] == ["-m"]:
        read_module(args[1], args[2:], command)
    elif args[:1] == ["-c"]:
        ast.parse(args[1])
    elif args[:1] == ["-"]:
        ast.parse(heredoc_of(command))
    elif not any((place / args[0]).is_file() for place in (command.page.parent, ROOT)):
        raise WrongError(f"there is no file {args[0]}")


def read_module(module: str, args: list[str], command: Command) -> None:
    if module in COMING and not importlib.util.find_spec(module):
        return
    if module == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"podium-mlops\[(\w+)\]", " ".join(args)):
            if extra not in extras["optional-dependencies"]:
                raise WrongError(f"there is no extra {extra}")
    elif module not in {found for found, _ in PROGRAMS.values()}:
        if module.split(".")[0] not in OWN or not importlib.util.find_spec(module):
            raise WrongError(f"there is no program {module}")
    elif args or not command.inline:
        read_options(module, args)


def read_podium(args: list[str], command: Command) -> None:
    if args[0] not in PROGRAMS and args[0] not in ("--help", "PROGRAM"):
        raise WrongError(f"there is no program {args[0]}")
    if args[0] in PROGRAMS:
        read_module(PROGRAMS[args[0]][0], args[1:], command)


def read_options(module: str, args: list[str]) -> None:
    """Has a program's own options read the arguments."""
    found = importlib.import_module(module)
    args = [PLACEHOLDERS.get(word, word) for word in args]
    if module == "mlops.init":
        options, args = found.PARTS[args[0]][0], args[1:]
    else:
        options = getattr(found, "Options", None) or found.ServerOptions
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            tyro.cli(
                options,
                args=args,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as err:
        if err.code:
            raise WrongError(" ".join(said.getvalue().split())) from err


def read_make(args: list[str], command: Command) -> None:
    jobs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in args:
        if "=" not in word and word not in jobs:
            raise WrongError(f"there is no job {word}")


def read_docker(args: list[str], command: Command) -> None:
    """Reads the services of `docker compose`, and the program that one runs."""
    services = set(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
    if args[:1] != ["compose"]:
        raise WrongError("only docker compose is known")
    verb, *rest = _without_options(args[1:])
    inside = rest[1:] if verb in ("run", "exec") else []
    for service in rest[:1] if verb in ("run", "exec") else rest:
        if service not in services:
            raise WrongError(f"there is no service {service}")
    if inside[:2] == ["sh", "-c"]:
        for program in programs_of(Command(command.page, command.line, inside[2])):
            read(program, command)
    elif inside:
        read(inside, command)


def _without_options(words: list[str]) -> list[str]:
    """Leaves out options before the program that a service runs."""
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-s", "--build-arg", "--profile"):
            rest.pop(0)
        elif not word.startswith("-"):
            found.append(word)
            if found[0] in ("run", "exec") and len(found) == 2:
                return found + rest
    return found


def read_curl(args: list[str], command: Command) -> None:
    for option, value in zip(args, args[1:], strict=False):
        if option not in ("-d", "--data-binary"):
            continue
        if value.startswith("@examples/") and not (ROOT / value[1:]).is_file():
            raise WrongError(f"there is no file {value[1:]}")
        if not value.startswith("@"):
            try:
                json.loads(value)
            except ValueError as err:
                raise WrongError(f"its body is no JSON: {err}") from err


def read_dask(args: list[str], command: Command) -> None:
    import click
    from distributed.cli import dask_scheduler, dask_worker

    main = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[args[0]]
    try:
        main.make_context(f"dask {args[0]}", list(args[1:]))
    except click.ClickException as err:
        raise WrongError(err.format_message()) from err


READERS: dict[str, Callable[[list[str], Command], None]] = {
    "python": read_python,
    "podium": read_podium,
    "make": read_make,
    "docker": read_docker,
    "curl": read_curl,
    "dask": read_dask,
}


PYTHON = [block for page in PAGES for block in blocks_of(page) if block.language == "python"]


@pytest.mark.parametrize("block", [pytest.param(one, id=f"{one.page.name}:{one.line}") for one in PYTHON])
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
