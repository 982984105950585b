"""Reader of Megatron torch_dist checkpoints, one tensor at a time, in one process.

It reads what any parallel layout wrote, with or without optimizer state, and needs neither the
process group that wrote it nor Megatron-Core.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_ultralong.checkpoint.page_cache import announce
from megatron_ultralong.errors import InputError

_CLASS_MODULES = {
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.checkpoint.filesystem",
    "megatron.core.dist_checkpointing.strategies.torch",
}
_NAMES = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
}


class TorchDistReader:
    """Tensors of one torch_dist folder (``release/`` or ``iter_XXXXXXX/``), by key."""

    def __init__(self, folder: Path) -> None:
        """Read what the folder holds, no tensor yet.

        Raises:
            InputError: it is not a torch_dist checkpoint, or not a complete one.
        """
        self.folder = Path(folder)
        _check_format(self.folder)
        self.metadata = _read_metadata(self.folder / ".metadata")
        self._reader = FileSystemReader(self.folder)
        self._reader.set_up_storage_reader(self.metadata, True)
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in self.metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._check_files()

    def read(self, key: str, start: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """The region of tensor ``key`` that begins at ``start`` and has ``shape``.

        Raises:
            InputError: the bytes of it are damaged.
        """
        entry = self.tensors[key]
        items = [item for chunk in entry.chunks for item in _overlap(key, chunk, start, shape)]
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
        place = self.metadata.storage_data[item.storage_index]
        try:
            with (self.folder / place.relative_path).open("rb") as file:
                announce(file, place.offset, place.length)
                # a window over the record, or a decoder where a torch extension compressed it
                stream = self._reader.transforms.transform_load_stream(
                    item,
                    getattr(place, "transform_descriptors", None) or (),
                    cast(IO[bytes], _create_file_view(file, place.offset, place.length)),
                )
                if not stream.seekable():
                    stream = io.BytesIO(stream.read())
                record = torch.load(stream, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{self.folder}: tensor {item.storage_index.fqn} cannot be read ({error}): a file "
                "is truncated or damaged; write the checkpoint again"
            ) from error
        part: torch.Tensor = record[_slices(item.storage_offsets, item.lengths)]
        return part

    def _check_files(self) -> None:
        ends: dict[str, int] = {}
        for info in self.metadata.storage_data.values():
            end = info.offset + info.length
            ends[info.relative_path] = max(end, ends.get(info.relative_path, 0))
        for name, end in sorted(ends.items()):
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size < end:
                state = f"has {size} bytes" if path.is_file() else "is missing"
                raise InputError(
                    f"{path} {state}, the checkpoint needs {end} bytes of it: it was not copied "
                    "or written completely; copy it again"
                )


def _slices(begins: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(begin, begin + length) for begin, length in zip(begins, lengths, strict=True)
    )


def _overlap(
    key: str, chunk: ChunkStorageMetadata, start: Sequence[int], shape: Sequence[int]
) -> Iterator[ReadItem]:
    """The piece of ``chunk`` inside the region at ``start`` with ``shape``, if there is one."""
    begins = [max(o, s) for o, s in zip(chunk.offsets, start, strict=True)]
    ends = [
        min(o + c, s + n)
        for o, c, s, n in zip(chunk.offsets, chunk.sizes, start, shape, strict=True)
    ]
    if all(begin < end for begin, end in zip(begins, ends, strict=True)):
        yield ReadItem(
            type=LoadItemType.TENSOR,
            dest_index=MetadataIndex(key),
            dest_offsets=torch.Size(b - s for b, s in zip(begins, start, strict=True)),
            storage_index=MetadataIndex(key, chunk.offsets),
            storage_offsets=torch.Size(b - o for b, o in zip(begins, chunk.offsets, strict=True)),
            lengths=torch.Size(e - b for b, e in zip(begins, ends, strict=True)),
        )


def _check_format(folder: Path) -> None:
    path = folder / "metadata.json"
    try:
        backend = json.loads(path.read_text(encoding="utf-8"))["sharded_backend"]
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no metadata.json: it is not a finished checkpoint"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r})") from error
    if backend != "torch_dist":
        raise InputError(
            f"{folder} has format {backend!r}, 'torch_dist' is read: save it with "
            "`--ckpt-format torch_dist`"
        )


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles the plain data classes of torch.distributed.checkpoint, and nothing that acts."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in _CLASS_MODULES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's metadata")


def _read_metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            return _unpickle(file)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the checkpoint was not written completely") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): the file is damaged") from error


def _unpickle(file: IO[bytes]) -> Metadata:
    metadata = _MetadataUnpickler(file).load()
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}, not Metadata")
    return metadata
