"""A page as Markdown (GitHub's, with tables); no text of a user's becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterator

from experiments.reports.document import (
    Block,
    Code,
    Figures,
    Heading,
    Hint,
    Line,
    Listing,
    Page,
    Paragraph,
    Picture,
    Pictures,
    Table,
    parts_of,
)


def to_markdown(page: Page) -> str:
    """Returns the page; in the place of pictures stand the tables that say the same."""
    parts = [f"# {escape(page.title)}", *(part for one in page.blocks for part in _write(one))]
    return "\n\n".join([*parts, escape(page.made)]) + "\n"


def escape(text: str) -> str:
    """Returns a text as Markdown that shows it: one line, no markup, no HTML, no entity, no link.

    A backslash before each sign of ASCII's that could mean something; `&` and `<` as entities,
    since not all renderers heed a backslash before those. Addresses are cut by an entity, because
    GitHub makes links of bare ones.
    """
    flat = " ".join(text.split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(r"([\\`*_{}\[\]()#+!|~$^=])", r"\\\1", flat)
    flat = re.sub(r"^-", r"\\-", flat)
    flat = re.sub(r"^(\d+)\.(?=\s|$)", r"\1\\.", flat)  # it would begin a list
    flat = re.sub(r"(?i)\b(https?|ftp|mailto|www)(?=[:.])", _cut, flat)
    return flat.replace("@", "&#64;")


def _cut(found: re.Match[str]) -> str:
    return f"{found[0][:-1]}&#{ord(found[0][-1])};"


def code(text: str) -> str:
    """Returns a text as a code span, between more backticks than stand in it."""
    flat = " ".join(text.split())
    if not flat:
        return ""
    fence = "`" * (1 + _longest_ticks(flat))
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def _longest_ticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _cell(line: Line) -> str:
    """Writes a cell; a table is cut at its bars before anything else, those in code too."""
    return "".join(
        code(one.text).replace("|", r"\|") if isinstance(one, Code) else _spaced(one)
        for one in parts_of(line)
    )


def _line(line: Line) -> str:
    return "".join(
        code(one.text) if isinstance(one, Code) else _spaced(one) for one in parts_of(line)
    )


def _spaced(text: str) -> str:
    """Escapes a part of a line, which may begin and end with a space."""
    before = " " if text[:1].isspace() else ""
    after = " " if text[-1:].isspace() and text.strip() else ""
    return f"{before}{escape(text)}{after}"


def _write(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"{'#' * block.level} {escape(block.text)}"
        case Paragraph():
            yield f"> **{_line(block.line)}**" if block.stands_out else _line(block.line)
        case Figures():
            rows = tuple((label, value, note) for label, value, note in block.entries)
            yield _table(Table(("", "", ""), rows))
        case Table():
            yield _table(block)
        case Picture():
            if block.table is not None:
                yield escape(block.caption)
                yield _table(block.table)
        case Pictures():
            for one in block.pictures:
                yield from _write(one)
        case Listing():
            yield _fenced(block.text)
        case Hint():
            about = "" if block.about is None else f"{code(block.about)}: "
            yield f"- {about}**{escape(block.text)}** {escape(block.evidence)}"
            if block.listing:
                yield _fenced(block.listing)


def _table(table: Table) -> str:
    rule = ["---:" if at in table.numeric else "---" for at in range(len(table.head))]
    rows = [map(escape, table.head), rule, *(map(_cell, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + _longest_ticks(text))
    return f"{fence}\n{text}\n{fence}"
