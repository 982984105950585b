"""Rows of parquet files, decoded in batches of bounded size.

A row group says how many bytes it holds, but not how many it becomes: one text of a dictionary may
stand for millions of cells, and a run of a few bytes for a list of a thousand million values.
So batches are small by what the file says, decoded under a limit of memory in case it lies, and
measured before they become Python's objects.
"""

import contextlib
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron_ultralong.data.read.arrow_values import is_json, python_rows
from megatron_ultralong.data.read.record import Record, bytes_outside_strings, unreadable

BATCH_ROWS = 64
BATCH_BYTES = 32 << 20
"""Of a batch, by the averages of its row group; more rows than :data:`BATCH_ROWS` gain nothing."""

DECODE_BYTES = 768 << 20
"""Memory that decoding a batch may take: a page is decompressed whole, and may hold 1,024 rows."""

MAX_OBJECT_BYTES = 256 << 20
"""Of Python's objects for one row, without its texts."""

JSON_OBJECT_BYTES = 30
"""Of Python's objects for each byte of JSON around its texts."""

MAX_REPEATED_BYTES, MAX_REPETITION = 1 << 30, 100
"""What the texts of a row group may become beyond what it says it holds: so many bytes, and as many
times of the first 4 MiB. Texts that repeat are stored once: a file of a kilobyte may be the work
of a year."""

_UNREADABLE = (ValueError, OverflowError, pa.ArrowException)
"""Of a value that Python cannot hold: no UTF-8, a nanosecond, the year 10,000."""


def read_parquet(
    path: Path, keys: tuple[str, ...], limit: int, start: int, stop: int | None
) -> Iterator[Record]:
    """Records of a file; see :func:`~megatron_ultralong.data.read.formats.read_records`."""
    row = 0
    try:
        # opened here: Arrow takes no names that are not UTF-8; small reads: by default a whole row
        # group, it may be gigabytes, is held at once
        with (
            open(path, "rb") as raw,
            pq.ParquetFile(
                raw, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
            ) as file,
        ):
            sizes, rows = _row_groups(file.metadata)
            groups = range(start, len(sizes) if stop is None else stop)
            before = row = sum(rows[:start])
            size, num_rows = sum(sizes[i] for i in groups), sum(rows[i] for i in groups)
            names = tuple(file.schema_arrow.names)
            columns = [key for key in keys if key in names]
            lacks = () if len(columns) == len(keys) else names
            texts = tuple(
                field.name for field in file.schema_arrow if lacks and _is_text(field.type)
            )
            if twice := [name for name in columns if names.count(name) > 1]:
                what = f"{names.count(twice[0])} columns {twice[0]!r}, and other programs read"
                error = f"the file has {what} another one: remove those that are not meant"
                yield Record(str(path), size, {}, error, num_records=num_rows)
                return
            for group in groups:
                for found in _group_rows(file, group, columns, limit):
                    place, at = f"{path}:{row + 1}", size * (row + 1 - before) // max(num_rows, 1)
                    row += found.num_records
                    yield found._replace(place=place, position=at, keys=lacks, text_columns=texts)
    except (OSError, pa.ArrowException) as error:
        yield unreadable(f"{path}:{row + 1}", error)


def _is_text(kind: Any) -> bool:
    """Whether a column is of texts."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view")


def row_group_sizes(path: Path) -> list[int]:
    """Bytes on disk of a parquet file's row groups, each readable without those before it.

    None where the file cannot be read: reading it says why.
    """
    with contextlib.suppress(OSError, pa.ArrowException), open(path, "rb") as raw:
        return _row_groups(pq.read_metadata(raw))[0]
    return []


def _row_groups(metadata: Any) -> tuple[list[int], list[int]]:
    """Bytes on disk and rows of every row group."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    sizes = [sum(g.column(i).total_compressed_size for i in range(g.num_columns)) for g in groups]
    return sizes, [group.num_rows for group in groups]


def _group_rows(file: Any, group: int, columns: list[str], limit: int) -> Iterator[Record]:
    """Rows of a row group, their places left empty; where a batch is too large, one by one."""
    metadata = file.metadata.row_group(group)
    size = _size(metadata, columns)
    most = size + MAX_REPEATED_BYTES + MAX_REPETITION * min(size, 4 << 20)
    done = num_bytes = 0
    for batch_rows in (max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // size)), 1):
        try:
            skip = done
            for batch in _batches(file, group, columns, batch_rows):
                wanted = batch.slice(skip)
                skip -= batch.num_rows - wanted.num_rows
                num_bytes += _total(map(_cost, wanted.columns)).texts
                if num_bytes > most:
                    what = f"would take {most:,} bytes and more: texts repeat there"
                    yield _lost(metadata.num_rows - done, what)
                    return
                for row in _rows(wanted, limit):
                    done += 1
                    yield row
            if done < metadata.num_rows:
                yield _lost(metadata.num_rows - done, "is not there: is the file damaged?")
            return
        except MemoryError:
            if batch_rows > 1:
                continue
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            what = f"cannot be read ({error}): is the file damaged? Copy it again"
            yield _lost(metadata.num_rows - done, what)
            return
    what = f"cannot be decoded in {DECODE_BYTES:,} bytes of memory: write smaller row groups"
    yield _lost(metadata.num_rows - done, what)


def _lost(num_rows: int, what: str) -> Record:
    """What stands for the rows of a row group that are not read."""
    those = (
        "this row"
        if num_rows == 1
        else f"this row and the {num_rows - 1:,} behind it in its row group"
    )
    return Record("", 0, {}, f"{those} {what}", num_records=num_rows)


def _size(metadata: Any, columns: list[str]) -> int:
    """Bytes of the columns of a row group before compression, as it says."""
    chunks = [metadata.column(i) for i in range(metadata.num_columns)]
    first = tuple(f"{name}." for name in columns)  # a name may have a dot itself
    own = [c for c in chunks if f"{c.path_in_schema}.".startswith(first)]
    return max(1, sum(int(chunk.total_uncompressed_size) for chunk in own))


def _batches(file: Any, group: int, columns: list[str], batch_rows: int) -> Iterator[Any]:
    """Batches of a row group, each decoded under the limit of memory, by this thread alone."""
    batches = file.iter_batches(batch_rows, [group], columns, use_threads=False)
    while True:
        with _limited_memory(DECODE_BYTES):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextlib.contextmanager
def _limited_memory(num_bytes: int) -> Iterator[None]:
    """Let this process take so many bytes more at most; beyond that a MemoryError is raised.

    Exact with ``ARROW_DEFAULT_MEMORY_POOL=system``, which the command line sets: Arrow's own pool
    takes a gigabyte of addresses ahead, which no limit gets back.

    Does nothing where the system does not say how much it has taken (outside Linux).
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + num_bytes
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _rows(batch: Any, limit: int) -> Iterator[Record]:
    """The rows of a batch as Python's objects, one at a time unless all are small."""
    cost = _total(map(_cost, batch.columns))
    if cost.texts <= min(BATCH_BYTES, limit) and cost.objects <= BATCH_BYTES:
        with contextlib.suppress(*_UNREADABLE):
            yield from [Record("", 0, fields) for fields in python_rows(batch)]
            return
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        cost = _total(map(_cost, row.columns))
        fields, error, is_too_long = {}, "", cost.texts > limit
        if is_too_long:
            error = f"{cost.texts:,} bytes, and {limit:,} is the longest that is read"
        elif cost.objects > MAX_OBJECT_BYTES:
            error = f"values that take {cost.objects:,} bytes, and {MAX_OBJECT_BYTES:,} is the most"
            error += " that is read"
        else:
            try:
                (fields,) = python_rows(row)
            except _UNREADABLE as caught:
                error = f"cannot be read ({type(caught).__name__}: {caught})"
        yield Record("", 0, fields, error, is_too_long=is_too_long)


class _Cost(NamedTuple):
    """What an array becomes in Python."""

    objects: int
    """Bytes of objects, without what is in texts."""
    texts: int
    """Bytes of texts, in UTF-8."""


def _total(costs: Iterable[_Cost]) -> _Cost:
    found = list(costs)
    return _Cost(sum(cost.objects for cost in found), sum(cost.texts for cost in found))


def _cost(array: Any) -> _Cost:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        cost = _cost(array.storage)
        if is_json(kind):
            texts = (text.as_py() for text in array.storage)
            signs = sum(bytes_outside_strings(text.encode()) for text in texts if text)
            cost = cost._replace(objects=cost.objects + JSON_OBJECT_BYTES * signs)
        return cost
    if pa.types.is_dictionary(kind):
        sizes = pc.take(_text_sizes(array.dictionary), array.indices)
        return _Cost(64 * len(array), pc.sum(sizes).as_py() or 0)
    if pa.types.is_struct(kind):
        fields = array.flatten()
        inner = _total(map(_cost, fields))
        return _Cost((240 + 16 * len(fields)) * len(array) + inner.objects, inner.texts)
    if pa.types.is_map(kind):  # which has no flatten
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        entries = _cost(array.values.slice(first, last - first))
        return _Cost(64 * len(array) + entries.objects, entries.texts)
    if hasattr(array, "flatten"):  # lists of any kind
        values = _cost(array.flatten())
        return _Cost(64 * len(array) + values.objects, values.texts)
    return _Cost(64 * len(array), pc.sum(_text_sizes(array)).as_py() or 0)


def _text_sizes(array: Any) -> Any:
    """Bytes of every text of an array; of other values none."""
    if array.type in (pa.string_view(), pa.binary_view()):
        return _view_sizes(array)
    try:
        return pc.cast(pc.binary_length(array), pa.int64())
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return pa.nulls(len(array), pa.int64())


def _view_sizes(array: Any) -> Any:
    """The same of views, for which Arrow has no function: a view begins with its text's size."""
    first, stop = array.offset, array.offset + len(array)
    views = np.frombuffer(array.buffers()[1] or b"", np.int32).reshape(-1, 4)
    return pa.array(views[first:stop, 0], pa.int64(), mask=array.is_null().to_numpy(False))
