"""Rows, files and what is said of them, for the tests of datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.errors import MlopsError

DIGITS = "f50af8048f6be94d5c36dcb37bfa9e7c446eedd471dc98c08058936786de88fc"
"""Golden: where this changes, so does the split or the format, and stored datasets are orphans."""

N = 120


def rows_of(shape: tuple[int, ...] = (4,), n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape))


def labels_of(n: int = N, n_classes: int = 2) -> np.ndarray:
    return np.arange(n) % n_classes


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def four(**others: Any) -> dict[str, Any]:
    return {
        "x_train": rows_of(),
        "y_train": labels_of(),
        "x_test": rows_of(n=30, seed=1),
        "y_test": labels_of(30),
        **others,
    }


def refusal(error: type[MlopsError], load: Callable[[], object]) -> str:
    with pytest.raises(MlopsError) as caught:
        load()
    message = str(caught.value)
    assert type(caught.value) is error
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert len(message) < 600
    return message


def csv_of(header: str, row: Callable[[int], str], n: int = N) -> str:
    return "\n".join([header, *(row(i) for i in range(n))]) + "\n"


def plain(i: int) -> str:
    return f"{i / 8},{i % 7},{i % 3 == 0},{'ja' if i % 2 else 'nein'}"


PLAIN = csv_of("width,height,round,answer", plain)


def except_at(row: int, text: str) -> str:
    lines = PLAIN.splitlines()
    lines[row + 1] = text
    return "\n".join(lines)


def csv_file(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


COLOURS = ("red", "green", "blue", "Ünder")


def mixed_line(i: int) -> str:
    """A line of a mixed table: numbers, missing numbers, bools, categories, missing categories."""
    size = "" if i % 11 == 3 else f"{i * i % 97 / 8}"
    shape = "" if i % 7 == 5 else ("round", "square")[i // 3 % 2]
    return f"{i / 8},{size},{i % 3 == 0},{COLOURS[i // 3 % 4]},{shape},{'ja' if i % 2 else 'no'}"


MIXED_COLUMNS = "weight,size,ripe,colour,shape,answer"
MIXED = csv_of(MIXED_COLUMNS, mixed_line)


def lines_of_sequences(lengths: list[int], seed: int = 0) -> str:
    """A table of steps: three numbers each, and the identifier and the label of a sequence."""
    rng = np.random.default_rng(seed)
    lines = [
        f"s{i},{','.join(f'{value:.4f}' for value in rng.normal(size=3))},{'ab'[i % 2]}"
        for i, length in enumerate(lengths)
        for _ in range(length)
    ]
    return "\n".join(["recording,u,v,w,answer", *lines]) + "\n"
