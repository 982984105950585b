"""Reader of Megatron torch_dist checkpoints: one tensor at a time, and records of objects.

It reads what any parallel layout wrote, with or without optimizer state, and needs neither the
process group that wrote it nor Megatron-Core.

They are read, by a reader that runs nothing, before Megatron-Core reads them by the same.
"""

import bisect
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_ultralong.checkpoint.disk.folder import (
    LATEST_FILE,
    RELEASE,
    check_inside,
    iteration_folder,
    named_iteration,
)
from megatron_ultralong.checkpoint.disk.large_files import Window, announce
from megatron_ultralong.checkpoint.disk.stored_iteration import COMMON_FILE
from megatron_ultralong.checkpoint.disk.stored_iteration import MAX_BYTES as MAX_COMMON_BYTES
from megatron_ultralong.checkpoint.formats import pickles, torch_dist_metadata
from megatron_ultralong.program.errors import InputError, named
from megatron_ultralong.program.json_file import read_bounded

_COMMON_OBJECT = "common_state/shard_0_1"
_EXTRA_STATE = "_extra_state"


def check_objects(folder: Path, metadata: dcp.Metadata) -> None:
    """Check that everything in ``folder`` that is not a tensor is a plain value.

    Raises:
        InputError: a file or record of it is damaged, or would run code.
    """
    if (folder / COMMON_FILE).is_file():  # Megatron-Core 0.19 keeps it with the other objects
        _read_common(folder / COMMON_FILE)
    places: dict[tuple[str, int, int], str] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, dcp.BytesStorageMetadata):
            place = torch_dist_metadata.place_of(metadata, key, None)
            if place is None:
                continue
            if getattr(place, "transform_descriptors", None):
                raise InputError(
                    f"{folder / place.relative_path}: object {key} is compressed, which "
                    "Megatron-Core never does: use a checkpoint from a source that you trust"
                )
            # empty states of many modules are one record
            places.setdefault((place.relative_path, place.offset, place.length), key)
    for (name, offset, length), key in sorted(places.items()):
        _read_object(folder / name, offset, length, key)


def common_state(folder: Path, metadata: dcp.Metadata | None = None) -> dict[str, Any] | None:
    """What Megatron-Core 0.19 keeps with the other objects, instead of ``common.pt``; or None.

    ``metadata``: of the folder, where they have been read.

    Raises:
        InputError: it is damaged, or would run code.
    """
    metadata = metadata or torch_dist_metadata.read_torch_dist_metadata(folder)
    place = torch_dist_metadata.place_of(metadata, _COMMON_OBJECT, None)
    if place is None:
        return None
    path = folder / place.relative_path
    (state,) = _read_object(path, place.offset, place.length, _COMMON_OBJECT)
    return dict(state)


def _read_object(path: Path, offset: int, length: int, key: str) -> Any:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    return check_object(data, key, path)


def check_object(data: bytes, key: str, path: Path) -> Any:
    """The value of object ``key``, whose record in ``path`` is ``data``.

    Raises:
        InputError: it is damaged, or would run code.
    """
    try:
        value = pickles.read_saved(io.BytesIO(data))
        if _EXTRA_STATE in key:
            for state in value if isinstance(value, list) else [value]:
                pickles.check_extra_state(state)
    except pickles.UnsafeError as error:
        raise _refused(f"{path}: object {key} is not a plain value", error) from error
    is_one_dict = isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict)
    if key == _COMMON_OBJECT and not is_one_dict:  # Megatron-Core 0.19 takes the first of it
        kind = named(type(value).__name__)
        raise InputError(f"{path}: object {key} must be a list of one dict, not {kind}")
    return value


def _refused(what: str, error: pickles.UnsafeError) -> InputError:
    return InputError(
        f"{what} ({error}): the checkpoint is damaged or would run code; use one from a source "
        "that you trust"
    )


def check_iteration(folder: Path, metadata: dcp.Metadata | None = None) -> None:
    """Compare the name of an ``iter_XXXXXXX`` folder with the iteration that was saved in it.

    A ``release`` is weights without a run, whatever run they are from. ``metadata``: of the folder,
    where they have been read.

    Raises:
        InputError: it holds another one, is damaged, or would run code.
    """
    number = named_iteration(folder.name)
    if not number:
        return
    path = folder / COMMON_FILE
    common = _read_common(path) if path.is_file() else common_state(folder, metadata) or {}
    stored = common.get("iteration")
    if type(stored) is int and stored != number:
        right, latest = iteration_folder(folder.parent, stored), folder.parent / LATEST_FILE
        way_out = f"name it {right.name} again"
        if right.exists():
            way_out = f"{right.name} is there, too: move {folder.name} away"
        if latest.is_file() and read_bounded(latest, 100).strip() == str(number).encode():
            way_out += f", and write {stored or RELEASE} into {latest}"
        raise InputError(
            f"{folder} is named after iteration {number}, and iteration {stored} was saved in "
            f"it: {way_out}"
        )


def _read_common(path: Path) -> dict[str, Any]:
    check_inside(path, path.parent)
    if path.stat().st_size > MAX_COMMON_BYTES:
        raise InputError(f"{path} has more than {MAX_COMMON_BYTES:,} bytes")
    try:
        value = pickles.read_saved(path)
    except pickles.UnsafeError as error:
        raise _refused(f"{path} is not a file of plain values", error) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a dict, not {named(type(value).__name__)}")
    return value


class ChunkIndex:
    """Chunks by where they begin: what a region needs is found without a look at the others.

    A stack of a model's layers has a chunk for each of them at least; to look at all for each
    would take steps by the square of the layers.
    """

    def __init__(self, chunks: Sequence[dcp.ChunkStorageMetadata]) -> None:
        self.sizes = {chunk.offsets: chunk.sizes for chunk in chunks}
        """Of the chunk that begins there."""
        self._chunks = sorted(chunks, key=lambda chunk: tuple(chunk.offsets))
        self._begins = [_first(chunk.offsets) for chunk in self._chunks]
        self._longest = max((_first(chunk.sizes) for chunk in chunks), default=0)

    def near(
        self, start: Sequence[int], shape: Sequence[int]
    ) -> Sequence[dcp.ChunkStorageMetadata]:
        """Chunks that may reach into the region, in their order; others do not."""
        if not len(start):
            return self._chunks
        low = bisect.bisect_right(self._begins, start[0] - self._longest)
        return self._chunks[low : bisect.bisect_left(self._begins, start[0] + shape[0])]


def _first(sizes: torch.Size) -> int:
    return sizes[0] if len(sizes) else 0


_SPARE = 2**20
"""Bytes that a record has over those of its tensor, at most."""


class TorchDistReader:
    """Tensors of one torch_dist folder (``release/`` or ``iter_XXXXXXX/``), by key."""

    def __init__(self, folder: Path) -> None:
        """Read what the folder holds, no tensor yet.

        Raises:
            InputError: it is not a torch_dist checkpoint, or not a complete one.
        """
        self.folder = Path(folder)
        self.metadata = torch_dist_metadata.read_torch_dist_metadata(self.folder)
        self._reader = FileSystemReader(self.folder)
        self._reader.set_up_storage_reader(self.metadata, True)
        self._indexes: dict[str, ChunkIndex] = {}
        self._complete: set[str] = set()  # tensors that were looked at: layers share them
        self.tensors: dict[str, dcp.TensorStorageMetadata] = {
            key: entry
            for key, entry in self.metadata.state_dict_metadata.items()
            if isinstance(entry, dcp.TensorStorageMetadata)
        }

    def check_complete(self, key: str) -> None:
        """Check that the folder holds all elements of tensor ``key``.

        Raises:
            InputError: it does not.
        """
        if key in self._complete:
            return
        entry = self.tensors[key]
        held = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if held < math.prod(entry.size):
            raise InputError(
                f"{self.folder}: tensor {key} of shape {list(entry.size)} has {held:,} of its "
                f"{math.prod(entry.size):,} elements: the checkpoint is not complete"
            )
        self._complete.add(key)

    def read(self, key: str, start: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """The region of tensor ``key`` that begins at ``start`` and has ``shape``.

        Raises:
            InputError: the bytes of it are damaged.
        """
        entry = self.tensors[key]
        near = [c for c in self._index(key).near(start, shape) if 0 not in c.sizes]
        wanted = dcp.ChunkStorageMetadata(torch.Size(start), torch.Size(shape))
        held = dcp.TensorStorageMetadata(entry.properties, entry.size, near)
        items = create_read_items_for_chunk_list(key, held, [wanted])
        covered = sum(torch.Size(item.lengths).numel() for item in items)
        if covered != torch.Size(shape).numel():
            raise InputError(
                f"{self.folder}: tensor {key} holds {covered} of the {torch.Size(shape).numel()} "
                f"elements from {list(start)} of shape {list(shape)}: the checkpoint is not "
                "complete"
            )
        if len(items) == 1:  # not copied: the largest tensor of a model decides on the memory
            return self._load(items[0])
        target = torch.empty(tuple(shape), dtype=entry.properties.dtype)
        for item in items:
            target[_slices(item.dest_offsets, item.lengths)] = self._load(item)
        return target

    def _load(self, item: ReadItem) -> torch.Tensor:
        """The wanted part of one record."""
        key = item.storage_index.fqn
        place = self.metadata.storage_data[item.storage_index]
        path = self.folder / place.relative_path
        try:
            with path.open("rb") as file:
                announce(file, place.offset, place.length)
                record = pickles.read_saved(self._stream(file, item, place))
        except pickles.UnsafeError as error:
            raise InputError(
                f"{path}: tensor {key} cannot be read ({error}): the file is truncated or "
                "damaged; write the checkpoint again"
            ) from error
        properties, sizes = self.tensors[key].properties, self._sizes(item)
        if not pickles.is_plain_tensor(record, properties.dtype, sizes):
            raise InputError(
                f"{path}: tensor {key} is not of dtype {properties.dtype} and shape "
                f"{list(sizes)}, as .metadata says: the files belong to different checkpoints"
            )
        part: torch.Tensor = record[_slices(item.storage_offsets, item.lengths)]
        return part

    def _stream(self, file: IO[bytes], item: ReadItem, place: Any) -> IO[bytes]:
        """A window over the record, or its bytes where a torch extension compressed it."""
        window = cast(IO[bytes], Window(file, place.offset, place.length))
        descriptors = getattr(place, "transform_descriptors", None)
        if not descriptors:
            return window
        dtype = self.tensors[item.storage_index.fqn].properties.dtype
        limit = math.prod(self._sizes(item)) * dtype.itemsize + _SPARE
        try:
            stream = self._reader.transforms.transform_load_stream(item, descriptors, window)
            data = stream.read(limit + 1)
        except Exception as error:  # each decoder has its own
            raise pickles.UnsafeError(f"{error}") from error
        if len(data) > limit:
            raise pickles.UnsafeError(f"it unpacks to more than the {limit:,} bytes of its tensor")
        return io.BytesIO(data)

    def _sizes(self, item: ReadItem) -> torch.Size:
        offset = item.storage_index.offset
        assert offset is not None
        return self._index(item.storage_index.fqn).sizes[offset]

    def _index(self, key: str) -> ChunkIndex:
        if key not in self._indexes:
            self._indexes[key] = ChunkIndex(self.tensors[key].chunks)
        return self._indexes[key]


def _slices(begins: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(begin, begin + length) for begin, length in zip(begins, lengths, strict=True)
    )
