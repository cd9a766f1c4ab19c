from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.data import Dataset, load_dataset
from mlops.dataset_store import DatasetStore, open_dataset_store
from mlops.errors import DataError, UsageError
from mlops.settings import Settings
from tests.mlops.table_files import (
    DIGITS,
    MIXED,
    PLAIN,
    csv_file,
    four,
    labels_of,
    lines_of_sequences,
    refusal,
    rows_of,
    save,
)


def at(url: str) -> DatasetStore:
    return open_dataset_store(Settings.from_env({"MLOPS_DATASETS_URL": url}))


def same(one: Dataset, other: Dataset) -> bool:
    arrays = ("x", "y", "split")
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in Dataset.__slots__}
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() if name in arrays else a == b
        for name, (a, b) in pairs.items()
        if name != "notes"  # which are not stored
    )


def test_a_stored_dataset_comes_back_as_it_was(tmp_path: Path) -> None:
    sequences = lines_of_sequences([3 + i % 5 for i in range(60)])
    store = DatasetStore(tmp_path / "deep" / "store")
    for dataset in (
        load_dataset("digits"),
        load_dataset(csv_file(tmp_path / "a.csv", PLAIN), label="answer"),
        load_dataset(csv_file(tmp_path / "b.csv", MIXED), label="answer"),
        load_dataset(
            csv_file(tmp_path / "c.csv", sequences), label="answer", sequence_id="recording"
        ),
        load_dataset(save(tmp_path / "a.npz", **four(y_test=labels_of(30))), split_seed=9),
    ):
        assert not store.has(dataset.fingerprint)
        store.put(dataset)
        assert store.has(dataset.fingerprint)
        back = store.get(dataset.fingerprint)
        assert same(back, dataset)
        assert isinstance(back.x, np.memmap)
        assert not back.x.flags.writeable
        assert all(
            np.array_equal(a, b)
            for part in ("train", "val", "test")
            for a, b in zip(back.part(part), dataset.part(part), strict=True)
        )


def test_the_layout_of_the_store_is_four_files_a_fingerprint(tmp_path: Path) -> None:
    DatasetStore(tmp_path).put(load_dataset("digits"))
    assert [path.name for path in tmp_path.iterdir()] == [DIGITS]
    assert sorted(path.name for path in (tmp_path / DIGITS).iterdir()) == [
        "dataset.json",
        "split.npy",
        "x.npy",
        "y.npy",
    ]
    record = json.loads((tmp_path / DIGITS / "dataset.json").read_text())
    assert record["format"] == 1


def test_a_second_put_changes_nothing(tmp_path: Path) -> None:
    store = at(tmp_path.as_uri())
    store.put(load_dataset("digits"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / DIGITS).iterdir()}
    store.put(store.get(DIGITS))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / DIGITS).iterdir()} == before
    assert len(list(tmp_path.iterdir())) == 1


PUT = """
import sys
from mlops.data import load_dataset
from pathlib import Path
from mlops.dataset_store import DatasetStore
dataset, store = load_dataset(sys.argv[1]), DatasetStore(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    store.put(dataset)
    assert store.get(dataset.fingerprint).x.shape == (5_000, 8)
"""


def big(folder: Path) -> str:
    return save(folder / "big.npz", x=rows_of((8,), n=5_000), y=labels_of(5_000))


def test_of_two_processes_that_put_one_dataset_both_succeed(tmp_path: Path) -> None:
    pipe, store = subprocess.PIPE, tmp_path / "store"
    command = [sys.executable, "-c", PUT, big(tmp_path), str(store)]
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=60)
    assert [racer.returncode for racer in racers] == [0, 0]
    assert [path.name for path in store.iterdir()] == [load_dataset(big(tmp_path)).fingerprint]


class Interleaved(Dataset):
    """A dataset during whose writing another writer finishes: the race, at its worst moment."""

    __slots__ = ("rival",)

    def __getattribute__(self, name: str) -> Any:
        if name == "split":
            object.__getattribute__(self, "rival")()
        return object.__getattribute__(self, name)


def test_the_writer_that_comes_second_leaves_the_first_ones_dataset(tmp_path: Path) -> None:
    digits, store = load_dataset("digits"), DatasetStore(tmp_path)
    late = Interleaved(**{name: getattr(digits, name) for name in Dataset.__slots__})
    object.__setattr__(late, "rival", lambda: store.put(digits))
    store.put(late)
    assert [path.name for path in tmp_path.iterdir()] == [DIGITS]
    assert same(store.get(DIGITS), digits)


def put_under_limit(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Puts a dataset in a process that may write 64 KiB a file: it fails or is killed midway."""
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.{how})
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{PUT}"""
    return subprocess.run(
        [sys.executable, "-c", code, big(folder), str(folder / "store")],
        input="\n",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_writer_killed_midway_leaves_nothing_that_is_taken_for_a_dataset(tmp_path: Path) -> None:
    killed = put_under_limit(tmp_path, "SIG_DFL")
    assert killed.returncode == -signal.SIGXFSZ
    (left,) = (tmp_path / "store").iterdir()
    assert left.name.startswith(".writing-")
    assert (left / "x.npy").stat().st_size > 0
    dataset, store = load_dataset(big(tmp_path)), DatasetStore(tmp_path / "store")
    assert not store.has(dataset.fingerprint)
    assert "has no dataset" in refusal(DataError, lambda: store.get(dataset.fingerprint))
    store.put(dataset)
    assert same(store.get(dataset.fingerprint), dataset)


def test_a_store_that_cannot_be_written_is_said_so_and_left_clean(tmp_path: Path) -> None:
    failed = put_under_limit(tmp_path, "SIG_IGN")
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert f"MlopsError: the dataset store {str(tmp_path / 'store')!r} cannot be written: " in last
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("fingerprint", ["0" * 64, "", "..", "../store", DIGITS.upper()])
def test_an_absent_fingerprint_is_said_with_the_store_and_what_to_do(
    tmp_path: Path, fingerprint: str
) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "dataset.json").write_text("{}")
    store = DatasetStore(tmp_path / "store")
    assert not store.has(fingerprint)
    message = refusal(DataError, lambda: store.get(fingerprint))
    assert f"{str(tmp_path / 'store')!r} has no dataset {fingerprint!r}" in message
    assert "Set MLOPS_DATASETS_URL" in message


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "fragment"),
    [
        (lambda folder: rewrite(folder, format=2), "(ValueError: format; expected 1, got 2)"),
        (lambda folder: rewrite(folder, fingerprint="0" * 64), "Podium (fingerprint"),
        (lambda folder: rewrite(folder, shape=[5]), "expected (5,), got (1797, 8, 8, 1)"),
        (lambda folder: rewrite(folder, shape=[]), "Podium (ValueError: not enough values"),
        (lambda folder: rewrite(folder, categories=3), "Podium (TypeError"),
        (lambda folder: rewrite(folder, input={}), "not an input specification"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "Podium (JSONDecodeError"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), "Podium (KeyError"),
        (lambda folder: (folder / "x.npy").unlink(), "Podium (FileNotFoundError"),
        (lambda folder: os.truncate(folder / "x.npy", 5_000), "Podium (ValueError"),
        (lambda folder: os.truncate(folder / "y.npy", 0), "Podium (EOFError"),
        (lambda folder: np.save(folder / "y.npy", labels_of()), "(shape of y; expected"),
        (lambda folder: np.save(folder / "y.npy", np.zeros(1797)), "(dtype of y; expected"),
        (lambda folder: np.save(folder / "split.npy", labels_of()), "(shape of split"),
        (
            lambda folder: np.save(folder / "y.npy", np.array([print]), allow_pickle=True),
            "Podium (ValueError: Object arrays cannot be loaded",
        ),
    ],
)
def test_a_damaged_dataset_is_not_handed_out(
    tmp_path: Path, harm: Callable[[Path], object], fragment: str
) -> None:
    store = DatasetStore(tmp_path)
    store.put(load_dataset("digits"))
    harm(tmp_path / DIGITS)
    message = refusal(DataError, lambda: store.get(DIGITS))
    assert fragment in message
    assert DIGITS in message


@pytest.mark.parametrize(
    "url", ["s3://user:secret@bucket/key", "file://datasets", "http://x:secret@y"]
)
def test_a_store_that_is_neither_folder_nor_bucket_is_refused_without_showing_its_url(
    url: str,
) -> None:
    message = refusal(UsageError, lambda: at(url))
    assert message.startswith("MLOPS_DATASETS_URL ")
    assert "s3://bucket/prefix" in message
    assert "secret" not in message


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    message = refusal(UsageError, lambda: at(str(tmp_path / "store")))
    assert "MLOPS_DATASETS_URL names the file" in message
    assert "expected a folder" in message


def test_a_store_is_a_path_or_a_file_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    DatasetStore(folder).put(load_dataset("digits"))
    monkeypatch.chdir(tmp_path)
    for url in (folder.as_uri(), "a b", f"file://localhost{folder.as_uri()[7:]}"):
        store = at(url)
        assert store.has(DIGITS)
    assert re.search(r"%20", folder.as_uri())
