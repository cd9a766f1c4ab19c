"""Reading: how a source is to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reading:
    """How a source is to be read, where the source alone does not say it.

    Attributes:
        label: The column of a table that holds the classes.
        categorical: Columns of a table to take as categories although they hold numbers.
        sequence_id: The column of a table that says which sequence a line belongs to.
        image_size: (height, width) in pixels that the pictures of a folder are brought to.
        data_dir: The folder that holds the archives of a named dataset.
    """

    label: str | None = None
    categorical: tuple[str, ...] = ()
    sequence_id: str | None = None
    image_size: tuple[int, int] | None = None
    data_dir: Path | None = None
