"""The errors that Podium raises on purpose.

Each message is one sentence or two for a tired person: what is wrong, what was expected,
what was found, what to do. A program prints it in one line and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import ClassVar, NoReturn


class MlopsError(Exception):
    """Something Podium can name went wrong; ends a program with exit code 1."""

    exit_code: ClassVar[int] = 1


class UsageError(MlopsError):
    """The command line or the settings ask for what cannot be; exit code 2."""

    exit_code: ClassVar[int] = 2


class DataError(MlopsError):
    """A dataset cannot be used; exit code 2, because the user's input is at fault."""

    exit_code: ClassVar[int] = 2


class StructureError(MlopsError):
    """A model folder holds what Podium did not write, and is not loaded."""


class TrackingError(MlopsError):
    """The tracking server or the local journal cannot do what is asked."""


class ServerError(MlopsError):
    """The embedded tracking server cannot be started or joined."""


def refuse_model(file: str, wrong: str, err: BaseException | None = None) -> NoReturn:
    """Raises StructureError: the file's name, and what is wrong, which goes on from the name."""
    raise StructureError(f"{file} {wrong}. The model is not loaded.".replace("\n", " ")) from err


def first_line(err: Exception) -> str:
    """Returns an error's first line for a message of ours; passwords in URLs are left out."""
    return without_passwords(str(err).strip().split("\n", 1)[0])[:300]


def without_passwords(text: str) -> str:
    """Returns the text with `user:password@` cut out of its URLs."""
    return re.sub(r"://[^@/\s]+@", "://", text)


def choose(word: str, valid: Iterable[str]) -> str:
    """Returns the valid choices, and the one nearest to `word`, as the end of a message.

    Example:
        >>> choose("cn", ["cnn", "dnn"])
        "expected one of cnn, dnn; did you mean 'cnn'?"
    """
    names = list(valid)
    nearest = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"expected one of {', '.join(names)}{hint}"
