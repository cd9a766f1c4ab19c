"""A TOML file that a user wrote, with one sentence for whatever is wrong with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from mlops.errors import UsageError

_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Returns what a TOML file says, by key. A byte order mark before it is allowed.

    Args:
        what: What messages call such a file, as in "config file".

    Raises:
        UsageError: It is not there, cannot be read, is not UTF-8 or not TOML (says line and
            column), or gives a key twice (says which).
    """
    try:
        content = path.read_bytes()
    except IsADirectoryError as err:
        raise UsageError(f"{str(path)!r} is a folder; expected a TOML file.") from err
    except FileNotFoundError as err:
        raise UsageError(f"there is no {what} {str(path)!r}.") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise UsageError(f"the {what} {str(path)!r} cannot be read: {reason}.") from err
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content[: err.start].count(b"\n") + 1
        raise UsageError(f"{str(path)!r} is not UTF-8, in line {line}. Save it as UTF-8.") from err
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        _refuse_text(str(path), text, err)
    except ValueError as err:  # a number of thousands of digits; Python does not say where
        raise UsageError(f"{str(path)!r} is not TOML: a number has too many digits.") from err
    except RecursionError as err:
        raise UsageError(f"{str(path)!r} is no {what}: its values nest too deep.") from err


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
