"""The pages that people read, and the commands and code in them.

A fenced block says what it is: `sh` commands, `console` commands after `$ ` with what they print,
`text` what a program prints or a file holds, and the names of languages. Tests take commands from
here, never from a copy.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
LANGUAGES = {"sh", "console", "text", "python", "toml", "json"}
INLINE = re.compile(r"(?<!`)`((?:python -m|podium|make|docker compose|kubectl|dask) [^`]+)`")
SYNTAX = ("do", "then", "else")
"""Words of the shell that a command may follow."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of its first line after the fence, from 1.
    """

    page: Path
    line: int
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page, with its here-documents.

    Attributes:
        shown: The lines that the page says it prints.
        inline: Whether it stands in a sentence, where a program may be only named.
    """

    page: Path
    line: int
    text: str
    shown: tuple[str, ...] = ()
    inline: bool = False

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Returns a page's fenced blocks, in order."""
    blocks: list[Block] = []
    fence, language, first, inside = "", "", 0, []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        found = re.match(r"\s*(`{3,})(\w*)\s*$", line)
        if fence and line.strip() == fence:
            blocks.append(Block(page, first, language, "\n".join(inside)))
            fence = ""
        elif fence:
            inside.append(line)
        elif found:
            fence, language, first, inside = found[1], found[2], number + 1, []
    assert not fence, f"{page}: the block of line {first} does not end"
    return blocks


def commands_of(page: Path) -> list[Command]:
    """Returns the commands of a page's blocks, in order."""
    return [
        command
        for block in blocks_of(page)
        if block.language in ("sh", "console")
        for command in _read(block)
    ]


def _read(block: Block) -> list[Command]:
    lines = block.text.splitlines()
    commands = []
    at = 0
    while at < len(lines):
        first = at
        begins = block.language == "sh" or lines[at].startswith("$ ")
        assert begins, f"{block.page}:{block.line + at}: what prints this?"
        words = [lines[at].removeprefix("$ ") if block.language == "console" else lines[at]]
        at += 1
        heredoc = re.search(r"<<'(\w+)'", words[0])
        while heredoc and words[-1] != heredoc[1] and at < len(lines):
            words.append(lines[at])
            at += 1
        while words[-1].endswith("\\"):
            words.append(lines[at].removeprefix("> "))
            at += 1
        shown = []
        while block.language == "console" and at < len(lines) and not lines[at].startswith("$ "):
            shown.append(lines[at])
            at += 1
        text = "\n".join(words)
        if text.strip() and not text.lstrip().startswith("#"):
            commands.append(Command(block.page, block.line + first, text, tuple(shown)))
    return commands


def inline_commands_of(page: Path) -> list[Command]:
    """Returns the commands that stand in a page's sentences and tables."""
    text = _without_blocks(page.read_text("utf-8"))
    commands = []
    for span in INLINE.finditer(text):
        line = text[: span.start()].count("\n") + 1
        words = " ".join(span[1].split()).replace("\\|", "|")
        words = re.sub(r"\[[^\]]*\]", "", words)  # what may be left out
        if "..." not in words and "<" not in words:
            commands.append(Command(page, line, words, inline=True))
    return commands


def _without_blocks(text: str) -> str:
    """Returns a page's text with empty lines in place of its blocks."""
    return re.sub(
        r"^(\s*```+)\w*\n.*?^\1\s*$",
        lambda found: "\n" * found[0].count("\n"),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


def programs_of(command: Command) -> list[list[str]]:
    """Returns the programs that a command runs, each with its arguments.

    Redirections, assignments and the shell's own words are left out.
    """
    text = re.sub(r"(<<'(\w+)'[^\n]*)\n.*\n\2$", r"\1", command.text, flags=re.DOTALL)
    text = text.replace("\\\n", " ")
    text = _without_comments(text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, lexer.commenters = True, ""
    programs: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if set(word) <= set("();|&"):
            programs.append([])
        elif set(word) <= set("<>&"):
            next(words, None)
        else:
            programs[-1].append(word)
    return [found for one in programs if (found := _bare(one))]


def _without_comments(text: str) -> str:
    kept, quote, skipping = [], "", False
    for before, char in zip(" " + text, text, strict=False):
        if char == "\n":
            skipping = False
        elif not skipping and char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        elif char == "#" and not quote and before.isspace():
            skipping = True
        if not skipping:
            kept.append(char)
    return "".join(kept)


def _bare(words: list[str]) -> list[str]:
    while words and (words[0] in SYNTAX or re.match(r"\w+=", words[0])):
        words = words[1:]
    return [] if words and words[0] in ("for", "done", "fi") else words


def heredoc_of(command: Command) -> str:
    """Returns the text between `<<'END'` and END; nothing where there is none."""
    found = re.search(r"<<'(\w+)'[^\n]*\n(.*)\n\1$", command.text, re.DOTALL)
    return found[2] if found else ""
