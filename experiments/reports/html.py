"""A page as one HTML file that needs nothing else: no script, no address, no font, no image file.

Its Content-Security-Policy lets a browser load nothing at all and allows one style sheet, by its
hash: if some text were ever taken for markup, nothing would come of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape

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
from experiments.reports.style import STYLE


def to_html(page: Page) -> str:
    """Returns the page."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(part for block in page.blocks for part in _write(block))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(page.title)}</h1>
{body}
<footer>{escape(page.made)}</footer>
</main>
</body>
</html>
"""


def _line(line: Line) -> str:
    return "".join(
        f"<code>{escape(one.text)}</code>" if isinstance(one, Code) else escape(one)
        for one in parts_of(line)
    )


def _write(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Paragraph():
            yield f"<p{' class=stands-out' * block.stands_out}>{_line(block.line)}</p>"
        case Figures():
            yield f'<dl class="figures">{"".join(map(_figure, block.entries))}</dl>'
        case Table():
            yield _table(block)
        case Picture():
            yield f"<figure>{block.svg}<figcaption>{escape(block.caption)}</figcaption></figure>"
        case Pictures():
            inside = "".join(part for one in block.pictures for part in _write(one))
            yield f'<div class="pictures">{inside}</div>'
        case Listing():
            yield f"<pre>{escape(block.text)}</pre>"
        case Hint():
            yield _hint(block)


def _figure(entry: tuple[str, str, str]) -> str:
    label, value, note = map(escape, entry)
    return f"<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>"


def _table(table: Table) -> str:
    def row(cells: Iterator[str], tag: str) -> str:
        inside = "".join(
            f"<{tag}{' class=n' * (at in table.numeric)}>{cell}</{tag}>"
            for at, cell in enumerate(cells)
        )
        return f"<tr>{inside}</tr>"

    has_head = any(table.head)
    head = f"<thead>{row(map(escape, table.head), 'th')}</thead>" if has_head else ""
    body = "".join(row(map(_line, one), "td") for one in table.rows)
    # A wide table scrolls in its own place, and the page does not.
    return (
        f'<div class="wide" tabindex="0"><table{"" if has_head else " class=pairs"}>'
        f"{head}<tbody>{body}</tbody></table></div>"
    )


def _hint(hint: Hint) -> str:
    about = "" if hint.about is None else f'<span class="about">{escape(hint.about)}</span> '
    listing = f"<pre>{escape(hint.listing)}</pre>" if hint.listing else ""
    return (
        f'<section class="hint"><p>{about}<strong>{escape(hint.text)}</strong></p>'
        f"<p>{escape(hint.evidence)}</p>{listing}</section>"
    )
