"""A page as blocks, which `html` and `markdown` write: what stands on it, and not how it looks.

All texts are plain: whoever writes a block escapes them. Only the SVG of a `Picture` is markup,
and `pictures` has escaped what stands in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A name or a value as a program knows it."""

    text: str


Line = tuple[str | Code, ...] | str | Code
"""A text, or parts of one."""


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; one that `stands_out` must not be overlooked."""

    line: Line
    stands_out: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """A few numbers that are seen first: label, value, and what is to be known of it."""

    entries: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a head.

    Attributes:
        numeric: Columns that are aligned to the right.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, and the table that says the same where none can be shown."""

    svg: str
    caption: str
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures that stand side by side where there is room."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Lines to be typed or copied as they are."""

    text: str


@dataclass(frozen=True, slots=True)
class Hint:
    """What to try, why, and how."""

    about: str | None
    text: str
    evidence: str
    listing: str = ""


Block = Heading | Paragraph | Figures | Table | Picture | Pictures | Listing | Hint


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page; `made` says below when and by what it was made."""

    title: str
    blocks: tuple[Block, ...]
    made: str


def parts_of(line: Line) -> tuple[str | Code, ...]:
    return line if isinstance(line, tuple) else (line,)
