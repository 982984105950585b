"""Writer of a Hugging Face model folder: safetensors shards, streamed tensor by tensor.

The safetensors library writes a file from all of its tensors at once; the format (eight bytes of
header length, a JSON header, the bytes) lets a file be written as its tensors come, so that memory
does not depend on the size of a shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch

from megatron_ultralong.checkpoint.disk.large_files import write_tensor
from megatron_ultralong.checkpoint.formats.tensor_file import DTYPES, TensorInfo
from megatron_ultralong.checkpoint.formats.weight_files import INDEX_FILE, SINGLE_FILE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class SafetensorsWriter:
    """Writes the tensors that were announced, each to its place in one file or several."""

    def __init__(
        self, folder: Path, tensors: Sequence[tuple[str, TensorInfo]], max_shard_size: int
    ) -> None:
        """Plan the shards.

        ``tensors`` are all names in the order of writing; a shard is at most ``max_shard_size``
        bytes, or one tensor. Files that are there already are continued: the same plan made them.
        """
        self._folder = folder
        self._shards = _shards(tensors, max_shard_size)
        self._infos = dict(tensors)
        self._places: dict[str, tuple[int, int]] = {}
        """Shard and offset of each tensor."""
        for number, shard in enumerate(self._shards):
            offset = len(_header(shard))
            for name, info in shard:
                self._places[name] = (number, offset)
                offset += _num_bytes(info)
        self._file: IO[bytes] | None = None
        self._open = -1

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write tensor ``name``."""
        info = self._infos[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (info.dtype, info.shape), name
        number, offset = self._places[name]
        write_tensor(self._open_shard(number), offset, tensor)

    def sync(self) -> None:
        """Wait until the disk has everything."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Close the last shard and write the index, where there are several."""
        self.close()
        if len(self._shards) > 1:
            places = {name: self._shard_name(number) for name, (number, _) in self._places.items()}
            size = sum(_num_bytes(info) for info in self._infos.values())
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            text = json.dumps(index, indent=2) + "\n"
            (self._folder / INDEX_FILE).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Close the open shard, complete or not."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None
            self._open = -1

    def _open_shard(self, number: int) -> IO[bytes]:
        if self._file is None or number != self._open:
            self.close()
            path = self._folder / self._shard_name(number)
            path.touch()
            self._file, self._open = path.open("r+b"), number
            self._file.write(_header(self._shards[number]))
        return self._file

    def _shard_name(self, number: int) -> str:
        count = len(self._shards)
        return SINGLE_FILE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _num_bytes(info: TensorInfo) -> int:
    return torch.Size(info.shape).numel() * info.dtype.itemsize


def _shards(
    tensors: Sequence[tuple[str, TensorInfo]], max_shard_size: int
) -> list[list[tuple[str, TensorInfo]]]:
    shards: list[list[tuple[str, TensorInfo]]] = []
    size = 0
    for name, info in tensors:
        if not shards or size + _num_bytes(info) > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append((name, info))
        size += _num_bytes(info)
    return shards


def _header(shard: Sequence[tuple[str, TensorInfo]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in shard:
        end = offset + _num_bytes(info)
        entries[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # spaces after the header keep the tensors aligned
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
