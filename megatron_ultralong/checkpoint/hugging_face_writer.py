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

from megatron_ultralong.checkpoint.hugging_face import INDEX_FILE, SINGLE_FILE
from megatron_ultralong.checkpoint.tensor_file import DTYPES, TensorInfo

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class SafetensorsWriter:
    """Writes the tensors that were announced, in their order, into one file or several."""

    def __init__(
        self, folder: Path, tensors: Sequence[tuple[str, TensorInfo]], max_shard_size: int
    ) -> None:
        """Plan the shards.

        ``tensors`` are all names in the order of writing; a shard is at most ``max_shard_size``
        bytes, or one tensor.
        """
        self._folder = folder
        self._shards = _shards(tensors, max_shard_size)
        self._order = [name for shard in self._shards for name, _ in shard]
        self._infos = dict(tensors)
        self._written = 0
        self._file: IO[bytes] | None = None
        self._starts: dict[str, int] = {shard[0][0]: i for i, shard in enumerate(self._shards)}

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append tensor ``name``, the next in order."""
        info = self._infos[name]
        assert name == self._order[self._written], f"{name} is out of order"
        assert (tensor.dtype, tuple(tensor.shape)) == (info.dtype, info.shape), name
        if name in self._starts:
            self._open_shard(self._starts[name])
        assert self._file is not None
        self._file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        self._written += 1

    def finish(self) -> None:
        """Close the last shard and write the index, where there are several."""
        assert self._written == len(self._order), "not every tensor was written"
        self._close_shard()
        if len(self._shards) > 1:
            places = {
                name: self._shard_name(i)
                for i, shard in enumerate(self._shards)
                for name, _ in shard
            }
            size = sum(_num_bytes(info) for info in self._infos.values())
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            text = json.dumps(index, indent=2) + "\n"
            (self._folder / INDEX_FILE).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Close the open shard, complete or not."""
        if self._file is not None:
            self._file.close()

    def _open_shard(self, number: int) -> None:
        self._close_shard()
        self._file = (self._folder / self._shard_name(number)).open("wb")
        self._file.write(_header(self._shards[number]))

    def _close_shard(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

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
