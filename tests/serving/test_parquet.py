"""A Parquet file makes no more than its bytes allow, whatever it says of itself."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.serving import invocations
from registry.serving.invocations import PARQUET, Answering, Loaded, answer
from registry.serving.metrics import Meter
from registry.serving.parquet import ParquetReader, UnreadParquetError
from registry.serving.parquet_decoder import max_memory

MIB = 2**20
HERE = 40 * MIB
"""Most that a file that is refused may take in this process."""
LARGE, BAD = (400, "too_many_rows"), (400, "bad_parquet")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[ParquetReader]:
    made = ParquetReader(invocations.MAX_CELLS)
    monkeypatch.setattr(invocations, "_parquet_reader", lambda: made)
    made.read(written(pa.table({"a": [1]})))
    yield made
    made.close()


def written(table: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


# Files that lie: Thrift's compact protocol, by hand.


def varint(number: int, width: int = 1) -> bytes:
    """A number, on `width` bytes at least."""
    out = bytearray()
    while number > 127 or len(out) + 1 < width:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def number(of: int) -> bytes:
    return varint(of << 1 if of >= 0 else (-of << 1) - 1)


def text(of: str) -> bytes:
    return varint(len(of)) + of.encode()


def listed(sort: int, items: list[bytes], claimed: int | None = None) -> bytes:
    size = len(items) if claimed is None else claimed
    return bytes([0xF0 | sort]) + varint(size) + b"".join(items)


I32, I64, BYTES, LIST, STRUCT = 5, 6, 8, 9, 12


def record(*fields: tuple[int, int, bytes]) -> bytes:
    out, last = b"", 0
    for place, sort, value in fields:
        out += bytes([(place - last) << 4 | sort]) + value
        last = place
    return out + b"\0"


def whole(footer: bytes, pages: bytes = b"") -> bytes:
    return b"PAR1" + pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def nulls(in_page: int, in_chunk: int, in_group: int, in_file: int) -> bytes:
    """A file of one column without a number in it, which counts its rows in four places."""
    levels = varint(in_page << 1) + b"\0"  # one run
    page = struct.pack("<I", len(levels)) + levels
    counted = record((1, I32, number(in_page)), *((k, I32, number(e)) for k, e in PLAIN))
    size = (I32, number(len(page)))
    header = record((1, I32, number(0)), (2, *size), (3, *size), (5, STRUCT, counted))
    n_bytes = number(len(header + page))
    chunk = record(
        (1, I32, number(2)),
        (2, LIST, listed(I32, [number(0)])),
        (3, LIST, listed(BYTES, [text("a")])),
        (4, I32, number(0)),
        (5, I64, number(in_chunk)),
        (6, I64, n_bytes),
        (7, I64, n_bytes),
        (9, I64, number(4)),
    )
    group = record(
        (1, LIST, listed(STRUCT, [record((2, I64, number(4)), (3, STRUCT, chunk))])),
        (2, I64, n_bytes),
        (3, I64, number(in_group)),
    )
    root = record((4, BYTES, text("r")), (5, I32, number(1)))
    column = record((1, I32, number(2)), (3, I32, number(1)), (4, BYTES, text("a")))
    footer = record(
        (1, I32, number(2)),
        (2, LIST, listed(STRUCT, [root, column])),
        (3, I64, number(in_file)),
        (4, LIST, listed(STRUCT, [group])),
    )
    return whole(footer, header + page)


PLAIN = ((2, 0), (3, 3), (4, 3))
"""The encodings of a page's values and of its levels."""


def deep(n: int) -> bytes:
    group = record((3, I32, number(0)), (4, BYTES, text("r")), (5, I32, number(1)))
    leaf = record((1, I32, number(2)), (3, I32, number(0)), (4, BYTES, text("r")))
    schema = listed(STRUCT, [group] * n + [leaf])
    rows = (3, I64, number(0)), (4, LIST, listed(STRUCT, []))
    return whole(record((1, I32, number(2)), (2, LIST, schema), *rows))


def claims_columns(n: int) -> bytes:
    root = record((4, BYTES, text("r")), (5, I32, number(0)))
    columns = bytes([1 << 4 | LIST]) + listed(STRUCT, [], n)
    return whole(
        record(
            (1, I32, number(2)),
            (2, LIST, listed(STRUCT, [root])),
            (3, I64, number(0)),
            (4, LIST, listed(STRUCT, [columns])),
        )
    )


def zeros(n_bytes: int) -> bytes:
    """A file of one cell."""
    offsets = pa.py_buffer(struct.pack("<ii", 0, n_bytes))
    cell = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(bytes(n_bytes))])
    options = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    return written(pa.table({"a": cell}), compression="zstd", data_page_size=2**31 - 1, **options)


def with_a_lying_footer(content: bytes) -> bytes:
    """The file, with 50 for each size of what it holds."""
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = content[-8 - length : -8]
    group = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    for size in {group.total_byte_size, group.column(0).total_uncompressed_size}:
        true = number(size)
        assert true in footer
        footer = footer.replace(true, varint(50 << 1, len(true)))
    return content[: -8 - length] + footer + content[-8:]


def repeated(word: str, n: int) -> Any:
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [word])


def lists(depth: int, n: int) -> Any:
    """As many empty lists of lists."""
    array = pa.array([], pa.int8())
    for _ in range(depth):
        array = pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), array[:0])
    return array


MANY = 2**31 - 1
FILES: dict[str, tuple[Callable[[], bytes], tuple[int, str]]] = {
    "a cell that the footer hides": (lambda: with_a_lying_footer(zeros(200 * MIB)), LARGE),
    "a larger one": (lambda: with_a_lying_footer(zeros(600 * MIB)), LARGE),
    "a cell": (lambda: zeros(100 * MIB), LARGE),
    "a text a million times": (
        lambda: written(pa.table({"a": repeated("a" * MIB, 1_000_000)}), store_schema=False),
        LARGE,
    ),
    "a text a million times that stays one": (
        lambda: written(pa.table({"a": repeated("a" * MIB, 1_000_000)})),
        LARGE,
    ),
    "a run without end": (lambda: nulls(MANY, MANY, MANY, MANY), LARGE),
    "a run that the file's count hides": (lambda: nulls(MANY, MANY, MANY, 1), LARGE),
    "a run that the footer hides": (lambda: nulls(MANY, 1, 1, 1), (200, "")),
    "rows that are not there": (lambda: nulls(1, 2**62, 2**62, 1), BAD),
    "empty lists": (lambda: written(pa.table({"a": lists(1, 3_000_000)})), LARGE),
    "empty lists of lists": (lambda: written(pa.table({"a": lists(20, 3_000_000)})), LARGE),
    "a list of numbers": (
        lambda: written(pa.table({"a": pa.array([np.zeros(50_000_000, np.int8)])})),
        LARGE,
    ),
    "a million columns": (lambda: claims_columns(1_000_000), BAD),
    "a deep tree": (lambda: deep(200_000), BAD),
    "records": (lambda: written(pa.table({"a": [{"b": 1}]})), BAD),
    "two columns of one name": (lambda: written(pa.table([[1], [2]], names=["a", "a"])), BAD),
    "none": (lambda: b"PAR1", BAD),
}


def peak(pid: int | str) -> int:
    """The most memory that a process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


class Peaks:
    here = there = 0


@contextmanager
def watched(reader: ParquetReader) -> Iterator[Peaks]:
    """Gives how much memory this process and the reader's took beyond what they had."""
    pid, peaks, is_done = reader.pid, Peaks(), threading.Event()
    assert pid is not None
    for one in (pid, os.getpid()):
        Path(f"/proc/{one}/clear_refs").write_text("5")
    before = peak(pid), peak("self")

    def look() -> None:
        try:
            while not is_done.is_set():
                peaks.there = max(peaks.there, peak(pid) - before[0])
                time.sleep(0.0005)
        except (ProcessLookupError, FileNotFoundError):
            pass  # it died of the file

    looking = threading.Thread(target=look)
    looking.start()
    yield peaks
    peaks.here = peak("self") - before[1]
    is_done.set()
    looking.join()


def asked(content: bytes) -> tuple[int, str]:
    meter = Meter(*[lambda *_: None] * 4)
    model = Loaded(1, lambda rows, params: [len(rows)], meter)
    reply = answer(content, PARQUET, Answering(model))
    said = json.loads(reply.body)
    assert reply.status == 200 or set(said) == {"code", "message", "field"}
    return reply.status, said.get("code", "")


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")


@linux
@pytest.mark.parametrize("name", FILES)
def test_no_file_takes_more_memory_than_its_size_allows(name: str, reader: ParquetReader) -> None:
    make, expected = FILES[name]
    content = make()
    with watched(reader) as peaks:
        began = time.monotonic()
        assert asked(content) == expected
        assert time.monotonic() - began < 20
    assert peaks.there < max_memory(len(content)) + 2 * len(content)
    assert peaks.here < HERE + 2 * len(content)
    assert asked(written(pa.table({"a": [1]})))[0] == 200


@linux
def test_an_index_that_is_one_column_again_and_again_is_not_made(reader: ParquetReader) -> None:
    notes = {"index_columns": ["a"] * 5000, "columns": [{"name": "a", "field_name": "a"}]}
    for one in notes["columns"]:
        one |= {"numpy_type": "int64", "pandas_type": "int64"}
    table = pa.table({"a": np.zeros(1_000_000, np.int64), "b": np.zeros(1_000_000, np.int8)})
    content = written(table.replace_schema_metadata({"pandas": json.dumps(notes)}))
    with watched(reader) as peaks:
        assert list(reader.read(content).columns) == ["b"]
    assert peaks.here < HERE


def test_a_file_that_takes_long_is_refused_and_the_next_one_is_read() -> None:
    reader = ParquetReader(invocations.MAX_CELLS, timeout_s=0.001)
    content = written(pa.table({"a": np.random.default_rng(0).random(500_000)}))
    with pytest.raises(UnreadParquetError, match="large"):
        reader.read(content)
    reader.close()


def test_a_file_waits_for_the_one_before_it_and_not_for_ever(reader: ParquetReader) -> None:
    impatient = ParquetReader(invocations.MAX_CELLS, timeout_s=0.05)
    with impatient._lock, pytest.raises(UnreadParquetError, match="busy"):
        impatient.read(b"")
    reader._lock.acquire()
    threading.Timer(0.1, reader._lock.release).start()
    assert len(reader.read(written(pa.table({"a": [1]})))) == 1


def test_another_process_reads_where_the_first_has_died(reader: ParquetReader) -> None:
    first = reader.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert len(reader.read(written(pa.table({"a": [1]})))) == 1
    assert reader.pid != first


def test_files_are_read_from_many_threads(reader: ParquetReader) -> None:
    wrong: list[int] = []

    def read(k: int) -> None:
        for n in range(k + 1, k + 20):
            frame = reader.read(written(pa.table({"a": np.full(n, k)})))
            if frame["a"].tolist() != [k] * n:
                wrong.append(k)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_what_is_allowed_is_read_after_much_that_is_not(reader: ParquetReader) -> None:
    # Random bytes, so that the file is as large as its cells.
    cells = [np.random.default_rng(0).bytes(8 * MIB)] * 7
    allowed = written(pa.table({"a": cells}), use_dictionary=False, compression="zstd")
    for _ in range(5):
        for size in (70, 200):
            assert asked(zeros(size * MIB)) == LARGE
        assert asked(allowed)[0] == 200


# What anybody writes is read as pandas reads it.

ROWS = np.random.default_rng(0).random((32, 48)).astype(np.float32)
FRAMES: dict[str, Any] = {
    "numbers": pd.DataFrame({"a": [1.5, None, 2.0], "b": [1, 2, 3], "c": [True, False, True]}),
    "text": pd.DataFrame({"a": ["x", None, "z" * 50], "b": ["", "y", "y"]}),
    "lists": pd.DataFrame({"a": list(ROWS)}),
    "lists of lists": pd.DataFrame({"a": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]]}),
    "bytes": pd.DataFrame({"a": [row.tobytes() for row in ROWS]}),
    "columns that are numbered": pd.DataFrame(ROWS),
    "columns that are numbered otherwise": pd.DataFrame(ROWS[:, :2], columns=[3, 1]),
    "rows that have names": pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="id")),
    "rows that have numbers": pd.DataFrame({"a": [1, 2, 3]})[1:],
    "integers or none": pd.DataFrame({"a": pd.array([1, None, 3], "Int64")}),
    "true or none": pd.DataFrame({"a": pd.array([True, None], "boolean")}),
    "categories": pd.DataFrame({"a": pd.Categorical(["x", "y", None])}),
    "times": pd.DataFrame({"a": pd.to_datetime(["2020-01-01", "2021-01-01"]).tz_localize("UTC")}),
    "no rows": pd.DataFrame({"a": np.zeros(0), "b": np.zeros(0, str)}),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"compression": "zstd"},
    {"compression": "gzip"},
    {"compression": "brotli", "use_dictionary": False},
    {"compression": None, "data_page_version": "2.0"},
    {"row_group_size": 1},
]


@pytest.mark.parametrize("name", FRAMES)
def test_an_ordinary_file_is_read_as_pandas_reads_it(name: str, reader: ParquetReader) -> None:
    for options in OPTIONS:
        file = io.BytesIO()
        FRAMES[name].to_parquet(file, **options)
        expected = pd.read_parquet(file).reset_index(drop=True)
        read = reader.read(file.getvalue())
        pd.testing.assert_frame_equal(read, expected, check_column_type=False)
        assert list(read.columns) == list(expected.columns)
        # Without what pandas notes, as other programs write it.
        plain = pq.read_table(file).replace_schema_metadata(None)
        pd.testing.assert_frame_equal(reader.read(written(plain)), plain.to_pandas())
