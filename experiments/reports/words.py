"""Numbers, times, params and ranges, as people read them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from experiments.finals import SeedSummary
from experiments.reports.facts import ParamRange


def show_value(value: float | None) -> str:
    """Returns a metric with four decimals; counts (bytes, weights) as whole numbers."""
    if value is None:
        return "-"
    is_count = abs(value) >= 10_000 or (abs(value) > 1 and float(value).is_integer())
    return f"{value:.0f}" if is_count else f"{value:.4f}"


def show_param(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_seeds(seeds: SeedSummary | None) -> str:
    """Returns mean and interval over seeds; says where there is but one value."""
    if seeds is None:
        return "one value, no interval"
    return f"{seeds.mean:.4f} [{seeds.low:.4f}, {seeds.high:.4f}], {seeds.n} seeds"


def show_duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def show_range(param: ParamRange) -> str:
    """Returns what was searched of a param, in words."""
    if param.is_fixed:
        value = param.choices[0] if param.choices else param.low
        return f"fixed at {show_param(value)}"
    if param.choices:
        return "one of " + ", ".join(map(show_param, param.choices))
    log = ", log" if param.log else ""
    step = f", in steps of {param.step:g}" if param.step is not None else ""
    return f"{param.low:g} to {param.high:g}{log}{step}"


def show_time(iso: str | None) -> str:
    """Returns a time of the facts, to the minute."""
    if iso is None:
        return "-"
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M} UTC"
