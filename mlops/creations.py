"""Which runs have a creation that waits in a journal for its delivery."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mlops.journal import find_journals, read_lines, read_sent


@dataclass(slots=True)
class Creations:
    """Finds the undelivered creations in a folder's journals, reading each record but once.

    A run is created before a worker hears of it. So a record of a run that no journal is about to
    create is one of a run that a server knows, or that nobody knows.
    """

    folder: Path
    _read: dict[Path, int] = field(default_factory=dict)
    _waiting: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def is_waiting(self, key: str) -> bool:
        """Tells whether the creation of the run with this key stands undelivered in a journal."""
        if key not in self._waiting:
            self._read_on()
        path, end = self._waiting.get(key, (self.folder, 0))
        return _size(path) >= end > read_sent(path)

    def _read_on(self) -> None:
        sizes = {path: _size(path) for path in find_journals(self.folder)}
        # One that has shrunk was mended: a line was taken out, and nothing stands where it stood.
        self._read = {path: end for path, end in self._read.items() if end <= sizes.get(path, -1)}
        sent = {path: read_sent(path) for path in {path for path, _ in self._waiting.values()}}
        self._waiting = {
            key: (path, end)
            for key, (path, end) in self._waiting.items()
            if path in self._read and end > sent[path]
        }
        for path, size in sizes.items():
            if size > self._read.get(path, 0):
                self._read_journal(path)

    def _read_journal(self, path: Path) -> None:
        end = max(self._read.get(path, 0), read_sent(path))
        for record in read_lines(path, end):
            # A damaged creation holds up no one: it will never be delivered.
            end = end if record is None else record.end
            if record is not None and record.kind == "create":
                self._waiting[record.run] = (path, record.end)
        self._read[path] = end


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
