from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mlops.data import load_dataset
from mlops.errors import DataError
from mlops.rows import Rows
from mlops.sources.archives import CHECKSUMS, IDX, read_archive
from mlops.sources.named import named_rows

KERAS_NAMES = ("cifar-10-batches-py-target_archive", "cifar-10-batches-py.tar.gz")
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905


def images_of(shape: tuple[int, ...], n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def arrays_of(shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """What `keras.datasets` would give: 100 training rows and 20 test rows."""
    return {
        "x_train": images_of(shape, 100, seed),
        "y_train": (np.arange(100) % 10).astype(np.uint8),
        "x_test": images_of(shape, 20, seed + 1),
        "y_test": (np.arange(20) % 10).astype(np.uint8),
    }


def checksums_of(
    name: str, folder: Path, files: dict[str, str] | None = None
) -> dict[str, dict[str, str]]:
    """The checksums of what lies in the folder; `files` says what a file is called there."""
    sums = {}
    for file, published in CHECKSUMS[name].items():
        path = folder / (files or {}).get(file, file)
        algorithm = "sha256" if len(published) == 64 else "md5"
        if path.exists():
            sums[file] = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    return {name: sums}


def same_rows(one: Rows, other: Rows) -> bool:
    assert one.is_test is not None
    return (
        np.array_equal(one.x, other.x)
        and one.x.dtype == other.x.dtype
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.is_test, other.is_test)
    )


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    return message


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes bytes as Python 2 wrote its strings, and names numpy's modules as they were then."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def save_text(self, value: str) -> None:
        self.save_string(value.encode())

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = "numpy.core.multiarray" if value.__module__ == "numpy._core.multiarray" else None
        line = f"{module or value.__module__}\n{name or value.__qualname__}\n"
        self.write(pickle.GLOBAL + line.encode())

    dispatch[bytes] = save_string
    dispatch[str] = save_text


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def batches_of(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Names of the six batches, in an order as odd as the published one, and what they hold."""
    parts = dict.fromkeys(["data_batch_4", "test_batch", "data_batch_3"])
    parts |= dict.fromkeys(["data_batch_2", "data_batch_5", "data_batch_1"])
    batches = {}
    for name in parts:
        key = "test" if name == "test_batch" else "train"
        rows = slice(None) if key == "test" else slice(20 * int(name[-1]) - 20, 20 * int(name[-1]))
        x = arrays[f"x_{key}"][rows].transpose(0, 3, 1, 2).reshape(20, -1)
        batches[name] = (np.ascontiguousarray(x), arrays[f"y_{key}"][rows])
    return batches


def write_cifar_python(
    path: Path, arrays: dict[str, np.ndarray], dump: Callable[[Any], bytes] = python2_pickle
) -> None:
    members = {"cifar-10-batches-py/readme.html": b"<html>"}
    for name, (x, y) in batches_of(arrays).items():
        batch = {"data": x, "labels": y.tolist(), "batch_label": b"training batch"}
        members[f"cifar-10-batches-py/{name}"] = dump(batch)
    write_tar(path, members)


def write_cifar_binary(path: Path, arrays: dict[str, np.ndarray]) -> None:
    members = {
        f"cifar-10-batches-bin/{name}.bin": np.column_stack([y, x]).tobytes()
        for name, (x, y) in batches_of(arrays).items()
    }
    write_tar(path, members)


def write_idx(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    for file, array in zip(IDX, arrays.values(), strict=True):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / file).write_bytes(gzip.compress(header + array.tobytes(), 1))


# The same rows from every form, and from Keras


@pytest.mark.parametrize("file", ["cifar-10-python.tar.gz", *KERAS_NAMES])
def test_cifar10_is_read_from_the_pickles_of_python_2_under_each_of_its_names(
    tmp_path: Path, file: str
) -> None:
    arrays = arrays_of((32, 32, 3))
    write_cifar_python(tmp_path / file, arrays)
    checksums = checksums_of("cifar10", tmp_path, {"cifar-10-python.tar.gz": file})
    rows = read_archive("cifar10", tmp_path, checksums)
    assert same_rows(rows, named_rows("cifar10", "", "", arrays))
    assert (rows.name, rows.source) == ("cifar10", file)
    assert rows.x.shape == (120, 32, 32, 3)
    assert rows.x.dtype == np.uint8
    assert rows.labels[:10].tolist() == CIFAR
    assert np.flatnonzero(rows.is_test).tolist() == list(range(100, 120))
    assert [path.name for path in tmp_path.iterdir()] == [file]  # nothing was extracted


def test_cifar10_is_read_from_pickles_of_python_3_and_from_the_binary_archive(
    tmp_path: Path,
) -> None:
    arrays = arrays_of((32, 32, 3))
    expected = named_rows("cifar10", "", "", arrays)
    for write, file in (
        (lambda path: write_cifar_python(path, arrays, pickle.dumps), "cifar-10-python.tar.gz"),
        (lambda path: write_cifar_binary(path, arrays), "cifar-10-binary.tar.gz"),
    ):
        folder = tmp_path / file[:15]
        folder.mkdir()
        write(folder / file)
        rows = read_archive("cifar10", folder, checksums_of("cifar10", folder))
        assert same_rows(rows, expected)
        assert rows.source == file


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_give_the_rows_of_keras(tmp_path: Path, name: str) -> None:
    arrays = arrays_of((28, 28))
    write_idx(tmp_path, arrays)
    rows = read_archive(name, tmp_path, checksums_of(name, tmp_path))
    assert same_rows(rows, named_rows(name, "", "", arrays))
    assert rows.x.shape == (120, 28, 28, 1)
    classes = rows.labels[:10].tolist()
    assert classes == (list(range(10)) if name == "mnist" else FASHION)


def test_mnist_is_read_from_the_file_that_keras_keeps(tmp_path: Path) -> None:
    arrays = arrays_of((28, 28))
    np.savez(tmp_path / "mnist.npz", **arrays)
    rows = read_archive("mnist", tmp_path, checksums_of("mnist", tmp_path))
    assert same_rows(rows, named_rows("mnist", "", "", arrays))
    assert rows.source == "mnist.npz"


# Refusals


def write_all(folder: Path) -> None:
    write_cifar_python(folder / "cifar-10-python.tar.gz", arrays_of((32, 32, 3)))
    write_idx(folder, arrays_of((28, 28)))


@pytest.mark.parametrize(
    ("name", "file", "algorithm"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "SHA256"),
        ("mnist", IDX[0], "MD5"),
        ("fashion_mnist", IDX[0], "MD5"),
    ],
)
def test_other_content_than_the_published_one_is_refused_by_name(
    tmp_path: Path, name: str, file: str, algorithm: str
) -> None:
    write_all(tmp_path)
    message = refusal(lambda: load_dataset(name, data_dir=tmp_path))
    assert message.startswith(f"{str(tmp_path / file)!r} is truncated, or is not the file that was")
    assert f"its {algorithm} differs; expected {CHECKSUMS[name][file]}, got " in message
    assert message.endswith("Download it anew.")


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_truncated_archive_is_refused_before_it_is_parsed(tmp_path: Path, name: str) -> None:
    write_all(tmp_path)
    checksums = checksums_of(name, tmp_path)
    file = "cifar-10-python.tar.gz" if name == "cifar10" else IDX[3]
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[:-1])
    message = refusal(lambda: read_archive(name, tmp_path, checksums))
    assert f"{str(tmp_path / file)!r} is truncated, or is not" in message


def test_the_files_of_the_other_mnist_are_called_so(tmp_path: Path) -> None:
    for name, seed in (("mnist", 0), ("fashion_mnist", 5)):
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name, arrays_of((28, 28), seed))
    checksums = {
        **checksums_of("mnist", tmp_path / "mnist"),
        **checksums_of("fashion_mnist", tmp_path / "fashion_mnist"),
    }
    message = refusal(lambda: read_archive("mnist", tmp_path / "fashion_mnist", checksums))
    assert (
        "is the file of fashion_mnist, which has the same name; expected that of mnist" in message
    )
    assert "Ask for fashion_mnist, or name the folder of mnist by --data-dir." in message
    message = refusal(lambda: read_archive("fashion_mnist", tmp_path / "mnist", checksums))
    assert "is the file of mnist, which has the same name" in message


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("cifar10", ("cifar-10-python.tar.gz", *KERAS_NAMES, "cifar-10-binary.tar.gz")),
        ("mnist", ("mnist.npz", *IDX)),
        ("fashion_mnist", IDX),
    ],
)
def test_a_missing_archive_is_answered_with_what_was_looked_for_and_where(
    tmp_path: Path, name: str, names: tuple[str, ...]
) -> None:
    message = refusal(lambda: load_dataset(name, data_dir=tmp_path))
    assert f"{str(tmp_path)!r} holds no archive of {name}; expected " in message
    assert "got none of them" in message
    for file in names:
        assert file in message


def test_what_is_there_of_four_files_is_said(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays_of((28, 28)))
    (tmp_path / IDX[2]).unlink()
    message = refusal(lambda: load_dataset("fashion_mnist", data_dir=tmp_path))
    assert f"got only '{IDX[0]}', '{IDX[1]}', '{IDX[3]}'. Download what is missing" in message


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    message = refusal(lambda: load_dataset("mnist", data_dir=tmp_path / "no"))
    assert message == f"there is no folder {str(tmp_path / 'no')!r} for --data-dir."


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def with_harm(folder: Path) -> bytes:
    return pickle.dumps({"data": Harm(folder / "harm"), "labels": []})


@pytest.mark.parametrize(
    ("member", "content", "fragment"),
    [
        ("test_batch", with_harm, "its pickle asks for pathlib.Path.touch"),
        ("test_batch", lambda _: b"junk", "cannot be read ("),
        ("other_batch", lambda _: b"", "it lacks 'cifar-10-batches-py/test_batch'"),
    ],
)
def test_a_batch_that_is_not_arrays_is_refused_whatever_its_checksum(
    tmp_path: Path, member: str, content: Callable[[Path], bytes], fragment: str
) -> None:
    batches = batches_of(arrays_of((32, 32, 3)))
    members = {
        f"cifar-10-batches-py/{name}": pickle.dumps({"data": x, "labels": y.tolist()})
        for name, (x, y) in batches.items()
        if name != "test_batch"
    }
    members[f"cifar-10-batches-py/{member}"] = content(tmp_path)
    write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    checksums = checksums_of("cifar10", tmp_path)
    message = refusal(lambda: read_archive("cifar10", tmp_path, checksums))
    assert fragment in message
    assert not (tmp_path / "harm").exists()


def test_an_idx_file_of_another_kind_is_refused_whatever_its_checksum(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays_of((28, 28)))
    (tmp_path / IDX[0]).write_bytes((tmp_path / IDX[1]).read_bytes())
    checksums = checksums_of("mnist", tmp_path)
    message = refusal(lambda: read_archive("mnist", tmp_path, checksums))
    assert "cannot be read (its magic number is not that of unsigned bytes of rank 3)" in message


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    arrays = arrays_of((28, 28))
    arrays["y_train"] = np.where(arrays["y_train"] == 9, 17, arrays["y_train"])
    arrays["y_test"] %= 9
    message = refusal(lambda: named_rows("fashion_mnist", "", "fashion_mnist", arrays))
    assert "fashion_mnist: y has labels beyond its 10 classes: 10 of 120" in message
