"""Where rows come from: named datasets, arrays, tables, folders of images.

Only what is asked for is read, and pickles are never opened. Errors of the parts become one line
that names the file. What rows must be, mlops/rows.py says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mlops.errors import UsageError, choose
from mlops.rows import Rows
from mlops.sources.reading import Reading

NAMED: Final = ("digits", "cifar10", "mnist", "fashion_mnist")


def read_rows(name: str, reading: Reading | None = None) -> Rows:
    """Reads a named dataset, or the file or folder at a path.

    Raises:
        UsageError: No such dataset or column, or an option that says nothing about this source.
        DataError: The file is not there or cannot be used.
    """
    reading = reading or Reading()
    for takes, (fits, read, options) in _SOURCES.items():
        if fits(name):
            _refuse_others(name, reading, takes, options)
            return read(name, reading)
    raise UsageError(
        f"there is no dataset {name!r}; {choose(name, NAMED)} The name of a file must end in "
        ".csv, .parquet or .npz; a folder holds pictures, one subfolder a class."
    )


def _refuse_others(name: str, reading: Reading, takes: str, options: tuple[str, ...]) -> None:
    """Refuses an option that the source would not look at."""
    for option in Reading.__slots__:
        if option not in options and getattr(reading, option) not in (None, ()):
            kinds = " or ".join(kind for kind, (_, _, known) in _SOURCES.items() if option in known)
            raise UsageError(
                f"--{option.replace('_', '-')} is for {kinds}, and {name!r} is {takes}. "
                "Leave it out."
            )


def _read_digits(name: str, reading: Reading) -> Rows:
    from mlops.sources.named import read_digits

    return read_digits()


def _read_named(name: str, reading: Reading) -> Rows:
    if reading.data_dir is not None:
        from mlops.sources.archives import read_archive

        return read_archive(name, reading.data_dir)
    from mlops.sources.named import read_keras

    return read_keras(name)


def _read_table(name: str, reading: Reading) -> Rows:
    from mlops.sources.tables import read_table

    return read_table(Path(name), reading)


def _read_arrays(name: str, reading: Reading) -> Rows:
    from mlops.sources.arrays import read_npz

    return read_npz(Path(name))


def _read_images(name: str, reading: Reading) -> Rows:
    from mlops.sources.images import read_images

    return read_images(Path(name), reading.image_size)


def _ends_in(*suffixes: str) -> Callable[[str], bool]:
    return lambda name: name.lower().endswith(suffixes)


_SOURCES: Final[
    dict[str, tuple[Callable[[str], bool], Callable[[str, Reading], Rows], tuple[str, ...]]]
] = {
    "scikit-learn's digits": (lambda name: name == "digits", _read_digits, ()),
    "a named archive": (lambda name: name in NAMED, _read_named, ("data_dir",)),
    "a table": (
        _ends_in(".csv", ".parquet"),
        _read_table,
        ("label", "categorical", "sequence_id"),
    ),
    "an .npz archive": (_ends_in(".npz"), _read_arrays, ()),
    "a folder of pictures": (lambda name: Path(name).is_dir(), _read_images, ("image_size",)),
}
"""For each kind of source: whether a name is one, its reader, and the options it looks at."""
