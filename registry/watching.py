"""Shows a text again and again: in its place on a terminal, else one after another.

A look that fails later on is said in its place, and the next one is made all the same: who watches
wants to see that it is well again.
"""

from __future__ import annotations

import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mlops.errors import MlopsError, first_line
from mlops.program import answer


def watch(look: Callable[[], str], every_s: float, *, in_place: bool) -> int:
    """Shows what `look` returns until Ctrl-C, or a plain kill; returns the exit code.

    Args:
        look: Returns a text whose first line says when it is of.
        in_place: On the terminal's other screen; the last text stays on the first one.

    Raises:
        MlopsError: the first look failed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    text = ""
    try:
        text = look()
        with _open_screen(in_place) as screen:
            while True:
                _show(screen, text, every_s)
                time.sleep(every_s)
                try:
                    text = look()
                except MlopsError as err:
                    text = f"It cannot be seen how things stand\n\n{first_line(err)}"
    except KeyboardInterrupt:
        if in_place and text:
            answer(text)
    return 0


def _open_screen(in_place: bool) -> AbstractContextManager[Any]:
    if not in_place:
        return nullcontext()
    from rich.live import Live

    return Live(screen=True, auto_refresh=False)


def _show(screen: Any, text: str, every_s: float) -> None:
    if screen is None:
        answer(text)
        return
    from rich.text import Text

    size = shutil.get_terminal_size()
    first, _, rest = text.partition("\n")
    shown = fit(f"{first}, every {every_s:g} s; Ctrl-C ends\n{rest}", size.columns, size.lines)
    screen.update(Text(shown, no_wrap=True, overflow="crop", end=""), refresh=True)


def fit(text: str, columns: int, lines: int) -> str:
    """Returns a text as it fits on a screen: long lines go on in the next, and the end is cut."""
    found: list[str] = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        wrapped = textwrap.wrap(
            line, max(20, columns), subsequent_indent=indent, drop_whitespace=False
        )
        found += wrapped or [""]
    if len(found) <= lines:
        return "\n".join(found)
    kept = found[: max(0, lines - 1)]
    return "\n".join(
        [*kept, f"... {len(found) - len(kept)} more lines; a taller window shows them"]
    )


def can_redraw() -> bool:
    """Tells whether standard output is a terminal whose cursor can be moved."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    return not Console().is_dumb_terminal
