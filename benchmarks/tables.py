"""How every benchmark prints: Markdown tables, with data, hardware, date and command, and aims."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path


def hardware() -> str:
    """Returns the machine in one line: processor, cores, Python."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )


def print_heading(title: str, data: str, command: str) -> None:
    """Prints what was measured, on what, when and how."""
    print(f"### {title}\n")
    print(f"Data: {data}. Hardware: {hardware()}. Date: {datetime.now(UTC):%Y-%m-%d}.")
    print(f"Command: `{command}`.\n")


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; floats with four digits, None as an empty cell."""
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for row in rows:
        print(f"| {' | '.join(map(_cell, row))} |")
    print(flush=True)


def print_table(
    title: str, data: str, command: str, unit: str, rows: Mapping[str, Sequence[float]]
) -> None:
    """Prints measurements; the first row is what the others are compared with."""
    first = statistics.median(next(iter(rows.values())))
    print_heading(title, data, command)
    print_rows(
        ("what", "n", f"median {unit}", "least", "most", "ratio to the first"),
        [
            (name, len(values), median, min(values), max(values), f"{median / first:.2f}")
            for name, values in rows.items()
            for median in [statistics.median(values)]
        ],
    )


def print_aim(
    what: str, found: float | None, most: float | None = None, *, least: float | None = None
) -> None:
    """Prints an aim, `most` or `least`, and whether it was hit; None could not be measured."""
    limit = most if least is None else least
    aim = f"aim at {'most' if least is None else 'least'} {limit:g}"
    if found is None or limit is None:
        print(f"- {what}: {aim}, not measured.", flush=True)
        return
    hit = found <= limit if least is None else found >= limit
    print(f"- {what}: {found:.3g}; {aim}: {'hit' if hit else 'missed'}.", flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
