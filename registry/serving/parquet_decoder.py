"""The process that reads Parquet for a worker: with little memory, for a short time, and alone.

What a Parquet file says of its sizes need not be so: a few bytes may claim a million columns, a
page may hold a thousand times what the footer says, a text may stand for a million cells, and a
tree of columns may be too deep for the library's stack. So the library reads it here, where the
system says no, and where a crash ends nothing but this.

It is run by its path, so that it imports no more than it needs; `ParquetReader` starts it.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

TABLE, LARGE, BAD, READY = b"table", b"large", b"bad", b"ready"

OBJECT: Final = 8
"""How many cells a list, or bytes, count for: they become objects, of 140 bytes at most."""
_KEPT: Final = 32 * 2**20
"""Most bytes that stay with this process between two files."""
_NULLABLE: Final = {f"{sign}Int{n}" for sign in ("", "U") for n in (8, 16, 32, 64)} | {
    *("Float32", "Float64", "boolean")
}


def max_decoded(n_bytes: int) -> int:
    """Returns how many bytes the table of a file of `n_bytes` may have."""
    return 8 * n_bytes + 64 * 2**20


def max_memory(n_bytes: int) -> int:
    """Returns how many bytes reading a file of `n_bytes` may take: a page, the table, its copy."""
    return 4 * max_decoded(n_bytes)


class _TooLargeError(Exception):
    pass


def send(peer: socket.socket, part: Any) -> None:
    """Sends bytes, or a buffer of them, after their number."""
    view = memoryview(part)
    peer.sendall(struct.pack("<q", view.nbytes))
    peer.sendall(view)


def receive(peer: socket.socket, most: int | None = None) -> bytearray:
    """Returns what the other side sent at once.

    Raises:
        EOFError: it is gone, or sends more than `most` bytes.
    """
    (size,) = struct.unpack("<q", _receive(peer, 8))
    if most is not None and size > most:
        raise EOFError
    return _receive(peer, size)


def _receive(peer: socket.socket, size: int) -> bytearray:
    whole = bytearray(size)
    left = memoryview(whole)
    while left:
        n = peer.recv_into(left, 0, socket.MSG_WAITALL)
        if not n:
            raise EOFError
        left = left[n:]
    return whole


def decode(content: bytes | bytearray, max_cells: int) -> Any:
    """Returns a file's table as a stream of Arrow's, a buffer of `max_decoded` bytes at most.

    Args:
        content: The file.
        max_cells: Most cells of the table beyond the file's bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    most_cells = len(content) + max_cells
    if file.metadata.num_rows * max(1, file.metadata.num_columns) > most_cells:
        raise _TooLargeError  # as a file says that does not lie; the rest need not be read
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    table = _without_index(file.read(use_threads=False))
    n_cells, n_bytes = table.num_rows, 0
    for column in table.columns:
        for chunk in column.chunks:
            cells, size = _weigh(chunk)
            n_cells += cells
            n_bytes += size
    if n_cells > most_cells or n_bytes > max_decoded(len(content)):
        raise _TooLargeError
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    buffer = stream.getvalue()
    if buffer.size > max_decoded(len(content)):
        raise _TooLargeError
    return buffer


def _weigh(array: Any, is_within: bool = False) -> tuple[int, int]:
    """Returns how many cells an array has, and how many bytes.

    Args:
        array: One of Arrow's.
        is_within: Whether it is what lists hold: text becomes objects there.
    """
    import pyarrow as pa

    sort = array.type
    if isinstance(sort, pa.BaseExtensionType):
        return _weigh(array.storage, is_within)
    if pa.types.is_dictionary(sort):
        return _weigh(array.dictionary_decode(), is_within)  # as it may become of a model
    if pa.types.is_list(sort) or pa.types.is_large_list(sort) or pa.types.is_fixed_size_list(sort):
        cells, size = _weigh(array.values, True)
        return cells + OBJECT * len(array), size + OBJECT * len(array)
    if pa.types.is_nested(sort):
        raise ValueError("no model takes records within cells")
    is_text = pa.types.is_string(sort) or pa.types.is_large_string(sort)
    is_plain = (
        pa.types.is_integer(sort)
        or pa.types.is_floating(sort)
        or pa.types.is_boolean(sort)
        or (is_text and not is_within)
    )
    return len(array) * (1 if is_plain else OBJECT), array.nbytes


def _without_index(table: Any) -> Any:
    """Returns a table without what its rows are called, and without most of what pandas noted.

    That is followed to the letter when a frame is made, and may say to make an index of a column
    a thousand times. Kept is which columns have numbers or null, and that names are numbers.
    """
    noted = (table.schema.metadata or {}).get(b"pandas")
    table = table.replace_schema_metadata(None)
    if noted is None:
        return table
    said = json.loads(noted)
    index = {name for name in said["index_columns"] if isinstance(name, str)}
    names = table.column_names
    table = table.select([i for i, name in enumerate(names) if name not in index])
    kept = {
        one["field_name"]: {
            "name": one["field_name"],
            "field_name": one["field_name"],
            "pandas_type": "object",
            "numpy_type": one["numpy_type"],
        }
        for one in said["columns"]
        if one["numpy_type"] in _NULLABLE and one.get("field_name") in names
    }
    labels = [one["numpy_type"] for one in said.get("column_indexes", ())]
    is_numbered = labels == ["int64"] and all(name.isdecimal() for name in table.column_names)
    number = {"name": None, "pandas_type": "int64", "numpy_type": "int64"}
    notes = {
        "index_columns": [],
        "columns": list(kept.values()),
        "column_indexes": [number] if is_numbered else [],
    }
    return table.replace_schema_metadata({"pandas": json.dumps(notes)})


def _memory() -> int | None:
    """Returns how many bytes of addresses this process has; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return pages * resource.getpagesize()


def serve(peer: socket.socket, max_cells: int, timeout_s: float) -> None:
    """Answers files with their tables until nobody asks any more."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    # A first file, so that what is made once is not of the memory of the next one.
    first = pa.BufferOutputStream()
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [[1.0]], "b": ["a"]}), first, compression="zstd")
    decode(first.getvalue().to_pybytes(), max_cells)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    own = _memory()
    send(peer, READY)
    while True:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        try:
            content = receive(peer)
        except EOFError:
            return
        if own is not None:
            most = own + 2 * len(content) + max_memory(len(content))
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        signal.setitimer(signal.ITIMER_REAL, timeout_s)  # ends this process
        said, table = BAD, b""
        try:
            said, table = TABLE, decode(content, max_cells)
        except (_TooLargeError, MemoryError):
            said, table = LARGE, b""
        except Exception:  # of a file that is none the library raises many types
            said, table = BAD, b""
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(peer, said)
        if said == TABLE:
            send(peer, table)
        del content, table
        # Not after each file: to get memory again takes longer than to read a small one.
        if own is not None and (_memory() or 0) > own + _KEPT:
            pa.default_memory_pool().release_unused()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker says when: it may answer to the end
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]))
