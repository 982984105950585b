"""A sharded state as it was at one moment, which a thread can write while training continues.

Megatron-Core plans who writes what (torch_dist format). Its own way to write forks a process for
every file, and a manager process that passes results on: killed ranks leave those behind, and a
fork copies the page tables of the whole process while communication threads hold locks. Here every
rank copies its tensors to host memory and writes one file from a thread, which ends with it.
"""

import io
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from megatron_ultralong.checkpoint.disk.checksums import Checksum, checksum
from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE
from megatron_ultralong.checkpoint.disk.large_files import HashingThreads, let_go, sync
from megatron_ultralong.checkpoint.formats.torch_dist_writer import append
from megatron_ultralong.mcore.host_memory import PinnedMemory
from megatron_ultralong.program.aside import whole

_SENT_BYTES = 2**26
"""Sent to the disk at a time, while the next are copied to the page cache."""
Staging = Mapping[bool, PinnedMemory]
"""Memory for copies of tensors, by whether they are on a GPU."""


class Written(NamedTuple):
    """What a rank has written: how the pieces can be found, and its files."""

    results: list[WriteResult]
    files: dict[str, Checksum]

    def as_text(self) -> str:
        """For another rank; :meth:`of_text` reads it."""
        places = [
            (each.index.fqn, each.index.offset, each.index.index, *_place(each))
            for each in self.results
        ]
        return json.dumps({"places": places, "files": self.files})

    @classmethod
    def of_text(cls, text: str) -> "Written":
        """What a rank of this job has made by :meth:`as_text`."""
        values = json.loads(text)
        results = [
            WriteResult(
                MetadataIndex(name, None if offset is None else torch.Size(offset), index),
                length,
                _StorageInfo(file, begin, length),
            )
            for name, offset, index, file, begin, length in values["places"]
        ]
        files = {
            name: Checksum(size, sha256, tuple(pieces))
            for name, (size, sha256, pieces) in values["files"].items()
        }
        return cls(results, files)


def _place(result: WriteResult) -> tuple[str, int, int]:
    place = result.storage_data
    return place.relative_path, place.offset, place.length


class _Writer(FileSystemWriterAsync):
    """Takes copies of what Megatron's plan gives this rank."""

    items: Sequence[tuple[WriteItem, Any]] = ()
    prefix = ""
    copies = True
    staging: Staging

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), thread_count=1)
        self.staged: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing: the folder is there."""
        return plan

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Copy the tensors, whose training continues."""
        self.prefix = plan.storage_data.prefix
        # Bytes before tensors, as torch writes them.
        items = sorted(plan.items, key=lambda item: item.type != WriteItemType.BYTE_IO)
        data = [(item, planner.resolve_data(item)) for item in items]
        copied = [x for _, x in data if isinstance(x, torch.Tensor) and self._is_copied(x)]
        for on_gpu, memory in self.staging.items():
            memory.reserve(x.nbytes for x in copied if x.is_cuda == on_gpu)
        self.items = [(item, self._kept(value)) for item, value in data]
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies have arrived

    def _is_copied(self, value: torch.Tensor) -> bool:
        return self.copies or value.is_cuda

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        if not self._is_copied(value):
            return value
        buffer = self.staging[value.is_cuda].take(value.shape, value.dtype)
        self.staged[value.is_cuda].append(buffer)
        return buffer.copy_(value, non_blocking=True)


class Snapshot:
    """The part of a checkpoint that this rank writes. Every rank makes one at the same time."""

    def __init__(
        self,
        state: dict[str, Any],
        folder: Path,
        staging: Staging,
        *,
        validate: bool,
        copies: bool = True,
    ) -> None:
        """Plan, and copy.

        Args:
            state: sharded state; plain values in it are stored once, by rank 0.
            folder: where the files will be; it exists.
            staging: for the copies.
            validate: check that the ranks' shards cover every tensor once.
            copies: tensors in host memory too; without, they must not change until they are
                written.
        """
        self._folder = folder
        sharded, common = save_preprocess(state, validate)
        keyed, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
        self._writer = _Writer(folder)
        self._writer.copies, self._writer.staging = copies, staging
        (_, self._metadata, _), *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(keyed, False),
            self._writer,
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
        self._is_dropped = False
        self._common: bytes | None = None
        if dist.get_rank() == 0:
            buffer = io.BytesIO()
            torch.save(common, buffer)
            self._common = buffer.getvalue()

    def write(self, texts: Mapping[str, str]) -> Written:
        """Write this rank's files through to the disk; no other rank is waited for.

        Args:
            texts: small files that rank 0 adds, by name.

        Raises:
            Exception: a file could not be written.
        """
        files: dict[str, Checksum] = {}
        results: list[WriteResult] = []
        if self._writer.items:
            name = f"{self._writer.prefix}0.distcp"
            results, files[name] = self._write_items(name)
        if self._common is not None:
            small = {COMMON_STATE_FNAME: self._common}
            small.update({name: text.encode() for name, text in texts.items()})
            for name, content in small.items():
                with whole(self._folder / name) as aside:
                    aside.write_bytes(content)
                files[name] = checksum(self._folder / name)
        return Written(results, files)

    def drop(self) -> None:
        """Let :meth:`write`, in whichever thread, end soon, with an error."""
        self._is_dropped = True

    def release(self) -> None:
        """Let go of the copies, which nothing writes any more."""
        for on_gpu, buffers in self._writer.staged.items():
            for buffer in buffers:
                self._writer.staging[on_gpu].give_back(buffer)
            buffers.clear()
        self._writer.items = ()

    def finish(self, written: list[Written]) -> dict[str, Checksum]:
        """Write what makes the files a checkpoint, on rank 0; returns all files.

        Raises:
            OSError: a file could not be written.
        """
        assert self._metadata is not None, "rank 0 finishes"
        self._writer.finish(self._metadata, [part.results for part in written])
        save_config(CheckpointingConfig("torch_dist", 1), str(self._folder))
        files = {name: entry for part in written for name, entry in part.files.items()}
        for name in (".metadata", FORMAT_FILE):
            files[name] = checksum(self._folder / name)
        return files

    def _write_items(self, name: str) -> tuple[list[WriteResult], Checksum]:
        """Write and hash each byte once; where they are, and what the file must be."""
        results: list[WriteResult] = []
        end = sent = 0
        try:
            with (self._folder / name).open("wb") as file, HashingThreads() as hashing:
                for item, value in self._writer.items:
                    if self._is_dropped:
                        raise InterruptedError("nobody needs it any more")
                    place = append(value, file, end, hashing)
                    results.append(WriteResult(item.index, place[1], _StorageInfo(name, *place)))
                    end = sum(place)
                    if end - sent >= _SENT_BYTES:
                        let_go(file, sent, end)
                        sent = end
                sync(file)
                return results, hashing.checksum()
        except Exception as error:
            # The frames of a write that failed hold each other and torch's half-written file: where
            # Python's collector found them (3.12 did), that file's end was a segmentation fault.
            traceback.clear_frames(error.__traceback__)
            raise
