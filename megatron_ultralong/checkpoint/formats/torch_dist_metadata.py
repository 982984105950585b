"""What a torch_dist folder says it holds, checked: shapes, places in files, and the files' sizes.

``.metadata`` is a pickle of plain data classes, and whoever writes it may put anything into their
fields. What leaves this module is made again from checked numbers and names.
"""

import math
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, check_inside, is_plain_name
from megatron_ultralong.checkpoint.formats.pickles import read_metadata
from megatron_ultralong.program.aside import files_in
from megatron_ultralong.program.errors import InputError, named
from megatron_ultralong.program.json_file import read_json

Kind = TypeVar("Kind")

METADATA_FILE = ".metadata"
_SMALL_METADATA = 16 * 2**20
"""Bytes that ``.metadata`` of any checkpoint may have; Python takes up to 64 times as much."""
MAX_OBJECT_BYTES = 16 * 2**20
"""Of a record that is not a tensor: states of random generators have 20 kB."""


def read_torch_dist_metadata(folder: Path) -> dcp.Metadata:
    """The checked contents of a ``release`` or ``iter_XXXXXXX`` folder.

    Raises:
        InputError: it is not a torch_dist checkpoint, not a complete one, or what it says of its
            tensors cannot be.
    """
    for name in (FORMAT_FILE, METADATA_FILE):
        check_inside(folder / name, folder)
    _check_format(folder)
    path = folder / METADATA_FILE
    # it describes the other files, and is small beside them
    num_bytes = sum(file.stat().st_size for file in files_in(folder, "*.distcp"))
    found = read_metadata(path, max(_SMALL_METADATA, num_bytes // 64))
    try:
        metadata = dcp.Metadata(
            state_dict_metadata={
                _exactly(str, key, "a name is"): _entry(value)
                for key, value in found.state_dict_metadata.items()
            },
            storage_data={_index(key): _place(value) for key, value in found.storage_data.items()},
            storage_meta=dcp.StorageMeta(),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): copy the checkpoint again") from error
    _check_places(folder, metadata)
    _check_sizes(folder, metadata)
    return metadata


def place_of(metadata: dcp.Metadata, key: str, chunk: dcp.ChunkStorageMetadata | None) -> Any:
    """Where the record of an object, or of a chunk of a tensor, stands; None: nowhere."""
    return metadata.storage_data.get(dcp.MetadataIndex(key, chunk.offsets if chunk else None))


def _check_format(folder: Path) -> None:
    path = folder / FORMAT_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no metadata.json: it is not a finished checkpoint")
    values = read_json(path)
    backend = values.string("sharded_backend")
    if backend != "torch_dist":
        raise InputError(
            f"{path}: sharded_backend is {backend!r}, 'torch_dist' is read: save it with "
            "`--ckpt-format torch_dist`"
        )
    if values.string("common_backend", "torch") != "torch":
        raise values.wrong("common_backend", "'torch'")
    for key in ("sharded_backend_version", "common_backend_version"):
        values.integer(key, 1, minimum=1, maximum=1)


def _check_places(folder: Path, metadata: dcp.Metadata) -> None:
    ends: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        if not is_plain_name(info.relative_path):
            raise InputError(
                f"{folder / METADATA_FILE} places {index.fqn} in {info.relative_path!r}, which is "
                "not a file of its own folder: the checkpoint is damaged, or meant to harm"
            )
        ends[info.relative_path] = max(info.offset + info.length, ends.get(info.relative_path, 0))
    for name, end in sorted(ends.items()):
        path = folder / name
        check_inside(path, folder)
        size = path.stat().st_size if path.is_file() else 0
        if size < end:
            state = f"has {size} bytes" if path.is_file() else "is missing"
            raise InputError(
                f"{path} {state}, the checkpoint needs {end} bytes of it: it was not copied "
                "or written completely; copy it again"
            )


def _check_sizes(folder: Path, metadata: dcp.Metadata) -> None:
    """A tensor has no more elements than there are bytes for it: memory is bounded by files."""
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, dcp.BytesStorageMetadata):
            place = place_of(metadata, key, None)
            if place is not None and place.length > MAX_OBJECT_BYTES:
                raise InputError(
                    f"{folder / METADATA_FILE} says that object {key} has {place.length:,} bytes, "
                    f"at most {MAX_OBJECT_BYTES:,} are read"
                )
            continue
        for chunk in entry.chunks:
            place = place_of(metadata, key, chunk)
            size = math.prod(chunk.sizes) * entry.properties.dtype.itemsize
            if place is not None and not place.transform_descriptors and place.length < size:
                raise InputError(
                    f"{folder / METADATA_FILE} says that {size:,} bytes of tensor {key}, of shape "
                    f"{list(entry.size)}, stand in {place.length:,} bytes of "
                    f"{place.relative_path}: the checkpoint is damaged"
                )


def _entry(value: Any) -> dcp.BytesStorageMetadata | dcp.TensorStorageMetadata:
    if type(value) is dcp.BytesStorageMetadata:
        return dcp.BytesStorageMetadata()
    value = _exactly(dcp.TensorStorageMetadata, value, "a tensor is described by")
    size = _size(value.size)
    chunks = [dcp.ChunkStorageMetadata(_size(c.offsets), _size(c.sizes)) for c in value.chunks]
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(size) or any(
            offset + count > whole
            for offset, count, whole in zip(chunk.offsets, chunk.sizes, size, strict=True)
        ):
            raise ValueError(f"a chunk at {list(chunk.offsets)} is outside shape {list(size)}")
    dtype = _exactly(torch.dtype, value.properties.dtype, "a dtype is")
    return dcp.TensorStorageMetadata(dcp.TensorProperties(dtype=dtype), size, chunks)


def _index(value: Any) -> dcp.MetadataIndex:
    value = _exactly(dcp.MetadataIndex, value, "a place is under")
    offset = None if value.offset is None else _size(value.offset)
    return dcp.MetadataIndex(_exactly(str, value.fqn, "a name is"), offset)


def _place(value: Any) -> _StorageInfo:
    value = _exactly(_StorageInfo, value, "a place is")
    descriptors = getattr(value, "transform_descriptors", None) or ()
    names = [_exactly(str, each, "a name is") for each in (value.relative_path, *descriptors)]
    offset, length = value.offset, value.length
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise ValueError(f"a record stands at {offset!r} and has {length!r} bytes")
    # fields of before torch 2.7 too
    return _StorageInfo(names[0], offset, length, *([names[1:]] if descriptors else []))


def _size(value: Any) -> torch.Size:
    if not isinstance(value, tuple) or not all(type(c) is int and 0 <= c < 2**62 for c in value):
        raise ValueError(f"a shape is {value!r:.60}")
    return torch.Size(value)


def _exactly(kind: type[Kind], value: Any, what: str) -> Kind:
    """``value``, which is of ``kind`` and of no class under it."""
    if type(value) is not kind:
        raise TypeError(f"{what} {named(type(value).__name__)}")
    return value
