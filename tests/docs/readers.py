"""What a page's command says to the program that it names: read, and not run.

Podium's programs read it by their own options, Dask's by their own parser. Of others it is looked
at whether what they name is there: jobs of the Makefile, services of the stack, files.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import itertools
import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import tyro
import yaml

from experiments.podium import PROGRAMS
from tests.docs.pages import ROOT, Command, heredoc_of, programs_of

SHELL = re.compile("base64|cat|cp|cut|echo|head|mkdir|printf|rm|sha256sum|sleep|tar|tr")
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
    elif not SHELL.fullmatch(name) and name not in NOT_READ:
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
    args = [PLACEHOLDERS.get(word, word) for word in args]
    if args[-1:] == ["--watch"] and module == "registry.status":
        args.append("5")  # which may be left out there
    options = parts_of(module)
    part = args.pop(0) if module == "mlops.init" else ""
    if module == "registry.status":
        args = importlib.import_module(module).with_seconds(args)
    code, said = _parse(options[part], args)
    if code:
        raise WrongError(" ".join(said.split()))


def options_of(module: str) -> set[str]:
    """Returns the names of a program's options, as its help has them."""
    helps = [_parse(part, ["--help"])[1] for part in parts_of(module).values()]
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(helps)))


def parts_of(module: str) -> dict[str, Any]:
    """Returns a program's options, by the name of its part where it has parts."""
    found = importlib.import_module(module)
    if module == "mlops.init":
        return {name: options for name, (options, _, _) in found.PARTS.items()}
    return {"": getattr(found, "Options", None) or found.ServerOptions}


def _parse(options: Any, args: list[str]) -> tuple[int, str]:
    """Returns how the parser ended, and what it said; nothing is run."""
    said = io.StringIO()
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)  # as run_program has it
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            tyro.cli(options, args=args, config=config)
    except SystemExit as err:
        return int(err.code or 0), said.getvalue()
    return 0, said.getvalue()


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
    for option, value in itertools.pairwise(args):
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
