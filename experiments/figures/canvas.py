"""What all figures share: a canvas without a window, names that cannot break it, the saving."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

DPI: Final = 110
MOST_CHARACTERS: Final = 22
BLUE: Final = "tab:blue"
ORANGE: Final = "tab:orange"
GREY: Final = "0.6"


def new_canvas(width: float, height: float) -> Any:
    """Returns a matplotlib `Figure` of so many inches, which knows nothing of pyplot."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(canvas: Any, path: Path) -> None:
    """Writes a figure as a PNG; a character that no font has is drawn as a box, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.savefig(path, dpi=DPI)


def label(name: object, most: int = MOST_CHARACTERS) -> str:
    """Returns a name as figures show it: in one short line, and never read as a formula.

    Of a long one the middle is left out: names that begin alike often end differently.
    """
    text = " ".join(str(name).split()) or "(empty)"
    if len(text) > most:
        end = (most - 1) // 2
        text = f"{text[: most - 1 - end]}…{text[-end:]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out what begins so


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), "utf-8")
