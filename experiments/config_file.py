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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from experiments.config import SweepConfig
from experiments.config_check import find_wrong, refuse
from mlops.errors import UsageError, choose
from mlops.toml_file import read_toml

FLAG = "--config"

_FIELDS = tuple(one.name for one in dataclasses.fields(SweepConfig))


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
        UsageError: As `mlops.toml_file.read_toml`.
    """
    return read_toml(path, "config file")


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
    said = {name: getattr(config, name) for name in ("timeout_s", "budget_gpu_hours", "gpu_price")}
    floats: Any = {name: float(value) for name, value in said.items() if value is not None}
    return dataclasses.replace(config, **floats)


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
