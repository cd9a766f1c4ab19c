"""Rows from local copies of the archives of CIFAR-10, MNIST and Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

from mlops.rows import Rows


def read_archive(name: str, folder: Path) -> Rows:
    raise NotImplementedError
