"""What is to be sent of a run in one call: params, metrics and tags of several journals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlops.drain import Part
from mlops.journal import Record

Point = tuple[str, float, int, int]
"""A metric's name, value, time in milliseconds and step."""


@dataclass(slots=True)
class Batch:
    """What one part of a journal says of one run."""

    metrics: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    part: Part | None = None
    _places: list[int] = field(default_factory=list)

    def add(self, place: int, record: Record) -> None:
        """Adds the record at a place of the part."""
        fields = record.fields
        self._places.append(place)
        if record.kind == "create":
            self.params.update(fields["params"])
        elif record.kind == "tags":
            self.tags.update(fields["values"])
        else:
            for name, value in fields["values"].items():
                # MLflow stores infinity as 1.8e308; not-a-number says the same and is shown so.
                value = value if math.isfinite(value) else math.nan
                self.metrics.append((name, value, fields["at_ms"], fields["step"]))

    def let_go(self) -> None:
        """Says that it is sent."""
        if self.part is not None:
            self.part.held.difference_update(self._places)


class Batches:
    """What is kept back, by run and, within a run, by part, in the order in which it came."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Batch]] = {}

    def add(self, part: Part, place: int, record: Record) -> None:
        batches = self._waiting.setdefault(record.run, [])
        if not batches or batches[-1].part is not part:
            batches.append(Batch(part=part))
        batches[-1].add(place, record)
        part.held.add(place)

    def pop(self, run: str) -> list[Batch]:
        return self._waiting.pop(run, [])

    def runs(self) -> list[str]:
        return list(self._waiting)


def merge(batches: Iterable[Batch]) -> Batch:
    """Returns all in one; of two tags with one name the later one counts."""
    merged = Batch()
    for batch in batches:
        merged.metrics += batch.metrics
        merged.params |= batch.params
        merged.tags |= batch.tags
    return merged
