"""How every benchmark prints: a Markdown table of medians, spreads and ratios."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
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


def print_table(
    title: str, data: str, command: str, unit: str, rows: dict[str, Sequence[float]]
) -> None:
    """Prints measurements; the first row is what the others are compared with."""
    first = statistics.median(next(iter(rows.values())))
    print(f"### {title}\n")
    print(f"Data: {data}. Hardware: {hardware()}. Date: {datetime.now(UTC):%Y-%m-%d}.")
    print(f"Command: `{command}`.\n")
    print(f"| what | n | median {unit} | least | most | ratio to the first |")
    print("|---|---|---|---|---|---|")
    for name, values in rows.items():
        median = statistics.median(values)
        print(
            f"| {name} | {len(values)} | {median:.4g} | {min(values):.4g} | {max(values):.4g} "
            f"| {median / first:.2f} |"
        )
    print(flush=True)
