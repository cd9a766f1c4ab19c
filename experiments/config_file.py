"""The config as a TOML file, with the same field names as the command line.

A flag goes before the file, and the file before the default. Paths in it are as on the command
line: from the folder in which the command is typed.

    dataset = "wine.csv"
    label = "quality"
    architectures = ["dnn"]
    fix = ["batch_size=32"]

    [space.dnn]
    learning_rate = {low = 1e-4, high = 1e-2}
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from experiments.config import SweepConfig
from experiments.config_check import find_wrong, refuse
from mlops.errors import UsageError, choose

FLAG = "--config"

_FIELDS = tuple(one.name for one in dataclasses.fields(SweepConfig))
_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def with_config_file(args: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """Finds `--config FILE` on a command line and reads the file.

    Returns:
        What the file says, or the defaults where there is none; and the other arguments, for a
        parser that takes the first as its default. A bare flag that says again what the file says
        (`--refit`) is left out of them: the parser then knows only its opposite.

    Raises:
        UsageError: The file cannot be used; all that is wrong in it at once.
    """
    path, rest = _take_flag(args)
    if {"-h", "--help"} & set(args):
        return SweepConfig(), rest
    config = SweepConfig() if path is None else read_options(load_config(path), repr(str(path)))
    switches = [name for name in _FIELDS if isinstance(getattr(config, name), bool)]
    said = {f"--{'' if getattr(config, name) else 'no-'}{name}" for name in switches}
    return config, [arg for arg in rest if arg not in said]


def _take_flag(args: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Splits a command line into the config file and the rest."""
    paths, rest = [], []
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name != FLAG:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("--"):
            raise UsageError(f"{FLAG} needs a file, as {FLAG} sweep.toml.")
        paths.append(Path(value))
    if len(paths) > 1:
        raise UsageError(f"{FLAG} is given {len(paths)} times; expected one file.")
    return (paths[0] if paths else None), rest


def load_config(path: Path) -> dict[str, Any]:
    """Returns what a TOML file says, by key; `read_options` tells whether that is a config.

    Raises:
        UsageError: It is not there, or not TOML; says line and column.
    """
    try:
        content = path.read_bytes()
    except IsADirectoryError as err:
        raise UsageError(f"{str(path)!r} is a folder; expected a TOML file.") from err
    except FileNotFoundError as err:
        raise UsageError(f"there is no config file {str(path)!r}.") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise UsageError(f"the config file {str(path)!r} cannot be read: {reason}.") from err
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content[: err.start].count(b"\n") + 1
        raise UsageError(f"{str(path)!r} is not UTF-8, in line {line}. Save it as UTF-8.") from err
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        _refuse_text(str(path), text, err)
    except RecursionError as err:
        raise UsageError(f"{str(path)!r} is not a config: its values nest too deep.") from err


def _refuse_text(path: str, text: str, err: tomllib.TOMLDecodeError) -> NoReturn:
    """Raises a UsageError that says where the text is no TOML, or names a key twice."""
    reason = _POSITION.sub("", str(err))
    found = _POSITION.search(str(err))
    lines = text.rstrip().splitlines() or [""]
    if found is None or found[1] is None:
        line, column = len(lines), len(lines[-1]) + 1
    else:
        line, column = int(found[1]), int(found[2])
    if reason.startswith(("Cannot", "Duplicate")):
        written = lines[min(line, len(lines)) - 1]
        key = written.split("=")[0].strip() if "=" in written else written.strip()
        raise UsageError(
            f"{path!r} gives {key!r} a second time, in line {line}. Leave one of them out."
        ) from err
    raise UsageError(
        f"{path!r} is not TOML: {reason[:1].lower()}{reason[1:]}, line {line}, column {column}."
    ) from err


def read_options(options: Mapping[str, Any], where: str) -> SweepConfig:
    """Returns the config that the keys of a file mean; keys that are missing are defaults.

    Args:
        options: As `load_config` gives them.
        where: What messages call the file.

    Raises:
        UsageError: Names every key that is unknown and every value that cannot be.
    """
    wrong = [
        f"unknown key {key!r}; {choose(key, _FIELDS)}" for key in options if key not in _FIELDS
    ]
    known = {key: _as_field(value) for key, value in options.items() if key in _FIELDS}
    config = SweepConfig(**known)
    refuse([*wrong, *find_wrong(config, spell=str)], f"{where}: ")
    if config.timeout_s is not None:
        config = dataclasses.replace(config, timeout_s=float(config.timeout_s))
    return config


def _as_field(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def write_config(config: SweepConfig, path: Path) -> None:
    """Writes a config so that a sweep can be given it: what "auto" stands for in its place.

    The file means an equal config with the same fingerprints.
    """
    options = {
        name: value for name, value in config.resolved().to_json().items() if value is not None
    }
    path.write_bytes(tomli_w.dumps(options).encode())
