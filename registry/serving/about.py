"""What answers now, as the page `/model` tells clients: what it takes, and which class is which."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from registry.serving.follower import Accepted


def describe_release(held: Accepted, alias: str, since: datetime | None) -> dict[str, Any]:
    """Returns plain JSON values on a release that answers.

    Args:
        alias: What it is called in the registry.
        since: When all workers had it.
    """
    spec = _read_spec(held.folder)
    return {
        "name": held.name,
        "alias": alias,
        "version": held.version,
        "since": None if since is None else since.isoformat(timespec="seconds"),
        "statement_sha256": held.statement_sha256,
        "task": spec.get("task"),
        "input": _describe_input(spec.get("input")),
        "class_names": spec.get("class_names"),
    }


def _describe_input(value: Any) -> dict[str, Any] | None:
    """Returns what a client must know to send a row; None where the release does not say."""
    if not isinstance(value, dict):
        return None
    keys = ("kind", "shape", "dtype", "columns", "ragged")
    return {key: value[key] for key in keys if key in value}


def _read_spec(folder: Path) -> dict[str, Any]:
    """What MLmodel says of a verified release; {} where it cannot be read any more."""
    try:
        found = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))["metadata"]["podium"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
