"""Writer of Megatron torch_dist checkpoints: no model, no process group, one weight in memory.

The records are those of torch.distributed.checkpoint's own file writer, ``torch.save`` of one
weight each, but made one at a time and in a fixed order, so that a killed writer can continue
after the last one. Megatron-Core's ``dist_checkpointing`` reads the result at any parallel layout.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch.distributed.checkpoint import default_planner, filesystem, planner
from torch.distributed.checkpoint import metadata as dcp

from megatron_ultralong.checkpoint.disk import large_files
from megatron_ultralong.checkpoint.disk.checksums import checksum, write_checksums
from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE
from megatron_ultralong.checkpoint.disk.stored_iteration import COMMON_FILE
from megatron_ultralong.checkpoint.formats import torch_dist_metadata, weight_map
from megatron_ultralong.checkpoint.formats.tensor_file import read_ahead
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import Journal


def megatron_args(model: ModelConfig) -> argparse.Namespace:
    """The shape of a model in the words of Megatron-LM's command line.

    Megatron-LM reads the parallel sizes without asking whether they are there, and takes the
    model's shape over under ``--use-checkpoint-args``.
    """
    shape = dataclasses.asdict(model)
    del shape["vocab_size"], shape["model_type"]
    return argparse.Namespace(
        **shape,
        padded_vocab_size=model.vocab_size,
        world_size=1,
        data_parallel_size=1,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        context_parallel_size=1,
        group_query_attention=model.num_query_groups != model.num_attention_heads,
        position_embedding_type="rope",
        rotary_percent=1.0,
        normalization="RMSNorm",
        swiglu=True,
        add_bias_linear=False,
        add_qkv_bias=model.family.add_qkv_bias,
        **({"qk_layernorm": True} if model.family.qk_layernorm else {}),
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )


_DATA_FILE = "__0_0.distcp"
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""What ``metadata.json`` says."""


def write_torch_dist(
    folder: Path,
    source: weight_map.WeightSource,
    journal: Journal,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write all weights of ``source`` into ``folder`` as a torch_dist checkpoint.

    Weights that ``journal`` has are left as they are. ``advance`` is told the bytes of every
    other one.

    Raises:
        InputError: the layers of ``source`` have different dtypes, or it cannot be read.
    """
    weights = weight_map.model_weights(source.model)
    _check_dtypes(weights, source)
    folder.mkdir(exist_ok=True)
    items = [_tensor_item(weight, source) for weight in weights]
    empty = (planner.WriteItemType.BYTE_IO, planner.BytesIOWriteData(0))
    keys = weight_map.extra_state_keys(source.model)
    objects = [planner.WriteItem(dcp.MetadataIndex(key), *empty) for key in keys]
    plan = planner.SavePlan([*items, *objects])
    plans, metadata = default_planner.create_default_global_save_plan([plan])
    path = folder / _DATA_FILE
    path.touch()
    with path.open("r+b") as file, large_files.HashingThreads() as hashing:
        places = _write_weights(file, weights, source, journal, advance, hashing)
        places += [append([None], file, sum(places[-1]), hashing)]
        # all the empty objects are one
        places += places[-1:] * (len(objects) - 1)
        file.truncate(sum(places[-1]))
        large_files.sync(file)
    metadata.storage_data = {
        item.index: filesystem._StorageInfo(_DATA_FILE, offset, length)
        for item, (offset, length) in zip(plans[0].items, places, strict=True)
    }
    metadata.version = filesystem.CURRENT_DCP_VERSION
    metadata.storage_meta = dcp.StorageMeta()
    (folder / torch_dist_metadata.METADATA_FILE).write_bytes(pickle.dumps(metadata))
    common = {
        "args": megatron_args(source.model),
        "checkpoint_version": 3.0,
        "iteration": 0,
        # how the layers are keyed: stacked, not one by one
        "content_metadata": {"singleton_local_shards": False},
    }
    large_files.save_values(common, folder / COMMON_FILE)
    (folder / FORMAT_FILE).write_text(json.dumps(_FORMAT), encoding="utf-8")
    small = (torch_dist_metadata.METADATA_FILE, COMMON_FILE, FORMAT_FILE)
    checksums = {name: checksum(folder / name) for name in small}
    write_checksums(folder, {**checksums, _DATA_FILE: hashing.checksum()})


def _write_weights(
    file: IO[bytes],
    weights: Sequence[weight_map.Weight],
    source: weight_map.WeightSource,
    journal: Journal,
    advance: Callable[[int], None],
    hashing: large_files.HashingThreads,
) -> list[tuple[int, int]]:
    """Offset and length of every weight in ``file``, one behind the other."""
    done = list(itertools.takewhile(lambda weight: weight.label in journal.entries, weights))
    places: list[tuple[int, int]] = [tuple(journal.entries[w.label]["place"]) for w in done]
    end = sum(places[-1]) if places else 0
    hashing.read(file, end)  # what a killed conversion has written
    left = weights[len(done) :]
    for weight, tensor in read_ahead(left, lambda weight: weight.fuse(source.read(weight))):
        shaped = tensor.reshape(weight.stacked(1)[1])
        places.append(append(shaped, file, end, hashing))
        hashing.wait()
        large_files.let_go(file)
        end = sum(places[-1])
        advance(tensor.nbytes)
        note = {"place": places[-1]}
        journal.add(weight.label, note, lambda: large_files.sync(file), tensor.nbytes)
        del tensor, shaped
    journal.flush(lambda: large_files.sync(file))
    return places


def append(
    value: object, file: IO[bytes], offset: int, hashing: large_files.HashingThreads
) -> tuple[int, int]:
    """Write a record at ``offset``, the end of ``file``: its place, as offset and length.

    ``value`` is for ``torch.save``, or its bytes; a tensor's must not change before
    ``hashing.wait()``.
    """
    if isinstance(value, torch.Tensor):
        value = _alone(value)
    file.seek(offset)
    record = _Record(file, value, hashing)
    if isinstance(value, io.BytesIO):  # saved before
        record.write(value.getvalue())
    else:
        with _without_crc32():
            torch.save(value, cast(IO[bytes], record))
    return offset, file.tell() - offset


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements in a storage of their own: torch.save writes all of a view's."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    if not tensor.is_contiguous() or not tensor.nbytes:
        return tensor.clone(memory_format=torch.contiguous_format)
    memory = tensor.view(-1).view(torch.uint8).numpy().data
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


class _Record(large_files.ChunkedFile):
    """A file for ``torch.save``, whose bytes are hashed too: those of a tensor where they are."""

    def __init__(self, file: IO[bytes], value: object, hashing: large_files.HashingThreads) -> None:
        super().__init__(file)
        self._hashing = hashing
        self._address, self._bytes = 0, memoryview(b"")
        if isinstance(value, torch.Tensor) and value.nbytes:
            stored = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
            self._address, self._bytes = stored.data_ptr(), stored.numpy().data

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``, of which torch lends everything but the tensor's own bytes."""
        view = np.frombuffer(data, np.uint8)
        is_own = view.ctypes.data == self._address and view.nbytes == self._bytes.nbytes
        self._hashing.update(self._bytes if is_own else bytes(data))
        return super().write(data)


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    """``torch.load`` does not look at the sums, and they take a third of the processor's time."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _tensor_item(weight: weight_map.Weight, source: weight_map.WeightSource) -> planner.WriteItem:
    offset, shape, whole = weight.stacked(source.model.num_layers)
    chunk = dcp.ChunkStorageMetadata(offset, shape)
    properties = dcp.TensorProperties(dtype=source.dtype(weight))
    data = planner.TensorWriteData(chunk, properties, whole)
    index = dcp.MetadataIndex(weight.key, offset)
    return planner.WriteItem(index, planner.WriteItemType.SHARD, tensor_data=data)


def _check_dtypes(weights: Sequence[weight_map.Weight], source: weight_map.WeightSource) -> None:
    dtypes: dict[str, tuple[torch.dtype, weight_map.Weight]] = {}
    for weight in weights:
        dtype = source.dtype(weight)
        first, other = dtypes.setdefault(weight.key, (dtype, weight))
        if dtype != first:
            raise InputError(
                f"{weight.names[0]} is {dtype}, {other.names[0]} is {first}: Megatron stacks the "
                "layers of a weight in one tensor of one dtype; convert the source to one dtype"
            )
