"""How every program of Podium starts and ends.

Result on stdout, log and progress on stderr. Exit code 0 done, 1 an error in one line, 2 usage,
3 a gate said no, 130 interrupted. `--debug` shows the traceback. `--json` makes the last line of
stdout one JSON object.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mlops.errors import MlopsError, first_line, without_passwords
from mlops.settings import SETTINGS, quiet


class Options(Protocol):
    """What every program's options hold."""

    @property
    def debug(self) -> bool: ...


O = TypeVar("O", bound=Options)  # noqa: E741


def run_program(
    options_type: type[O],
    main: Callable[[O], int],
    *,
    prog: str,
    description: str,
    args: Sequence[str] | None = None,
    read_defaults: Callable[[Sequence[str]], tuple[O, list[str]]] | None = None,
) -> int:
    """Parses `args` into `options_type`, runs `main`, and returns the exit code.

    Args:
        read_defaults: Takes the arguments and returns the options' defaults and the arguments that
            are left: what a config file says.
    """
    import tyro  # parsing comes first, everything heavy after it

    quiet()
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    try:
        defaults: dict[str, Any] = {}
        if read_defaults is not None:
            defaults["default"], given = read_defaults(given)
        options = tyro.cli(
            options_type,
            prog=prog,
            description=description,
            args=given,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            **defaults,
        )
        return main(options)
    except MlopsError as err:
        if debug:
            traceback.print_exc()
        say(f"{prog}: {without_passwords(' '.join(str(err).split()))}")
        return err.exit_code
    except KeyboardInterrupt:
        say(f"{prog}: interrupted.")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as err:
        if debug:
            raise
        say(f"{prog}: {type(err).__name__}: {first_line(err)} (--debug shows where)")
        return 1


def say(line: str) -> None:
    """Writes a line for the person at the terminal: log and progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def answer(result: str) -> None:
    """Writes the program's result, on stdout."""
    print(result, flush=True)


def answer_json(result: dict[str, Any]) -> None:
    """Writes the result as one JSON line, the last on stdout. NaN and infinity become null."""
    answer(json_line(result))


def json_line(result: dict[str, Any]) -> str:
    """Returns a result as `answer_json` writes it."""
    return json.dumps(_plain(result), allow_nan=False)


def command_line(program: str, *args: str, env: Mapping[str, str] | None = None) -> str:
    """Returns a command complete, as a person must type it in the shell this was started from.

    That is with the settings that were given here (one that holds a password by its name only), and
    with this environment's programs first on the path where the shell has not activated it.
    """
    given = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    if "MLOPS_HOME" in given:
        given["MLOPS_HOME"] = str(Path(given["MLOPS_HOME"]).expanduser().absolute())
    given = given if program == "python" else {}
    words = [
        f'{name}="${name}"' if "@" in value else f"{name}={shlex.quote(value)}"
        for name, value in {**given, **(env or {})}.items()
    ]
    # Not asked of PATH: this very process may have been typed with another one than the shell's.
    active = (os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"))
    if sys.prefix not in active and sys.prefix != sys.base_prefix:
        words.append(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    return " ".join([*words, shlex.join([program, *args])])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
