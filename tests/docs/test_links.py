"""Each link between the pages leads to a file and a heading that are there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT, blocks_of

LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
ONLINE = ("http://", "https://", "mailto:")


def text_of(page: Path) -> str:
    """Returns a page's text without its blocks and code."""
    text = page.read_text("utf-8")
    for block in blocks_of(page):
        text = text.replace(block.text, "")
    return re.sub(r"`[^`\n]*`", lambda found: "x" * len(found[0]), text)


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Returns the names that GitHub gives to a page's headings."""
    text = page.read_text("utf-8")
    for block in blocks_of(page):
        text = text.replace(block.text, "")
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*$", text, re.MULTILINE):
        bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", bare.lower()).replace(" ", "-")
        seen[name] = seen.get(name, -1) + 1
        found.add(name if not seen[name] else f"{name}-{seen[name]}")
    return frozenset(found)


def broken_links(page: Path) -> list[str]:
    wrong = []
    for target in LINK.findall(text_of(page)):
        if target.startswith(ONLINE):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or not there.is_relative_to(ROOT):
            wrong.append(f"{target}: there is no such file")
        elif anchor and there.suffix == ".md" and anchor not in anchors_of(there):
            wrong.append(f"{target}: there is no such heading")
    return wrong


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.mark.parametrize("page", named(PAGES))
def test_each_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_a_file_or_a_heading_that_is_not_there_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "made-up-for-this-test.md"
    page.write_text("[a](nowhere.md) [b](operations.md#nowhere) [c](#here)\n\n# Here\n")
    try:
        wrong = broken_links(page)
    finally:
        page.unlink()
    assert wrong == [
        "nowhere.md: there is no such file",
        "operations.md#nowhere: there is no such heading",
    ]


def test_each_page_of_docs_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        for target in LINK.findall(text_of(page)):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.is_dir():
                found = list(there.glob("*.md"))
            else:
                found = [there] if there.suffix == ".md" and there.exists() else []
            for one in found:
                if one not in reached:
                    reached.add(one)
                    ahead.append(one)
    assert set(PAGES) - reached == set()
