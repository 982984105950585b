"""Shards tokenised in this process or by several, each result in place when it is whole."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from megatron_ultralong.data.read.reading import ReadOptions
from megatron_ultralong.data.read.sources import Source
from megatron_ultralong.data.store.shards import Shard, tokenise_shard
from megatron_ultralong.data.tokenize.engines import TokenizerEngine, choose_tokenizer
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.errors import InputError

Advance = Callable[[int], None]


@dataclass(frozen=True)
class ShardJob:
    """All that a process needs to know to tokenise any shard."""

    sources: tuple[Source, ...]
    """The inputs."""

    options: ReadOptions
    """How they are read."""

    tokenizer_path: Path
    """As given on the command line."""

    engine: TokenizerEngine
    """``gigatoken`` or ``reference``: decided before, so that all processes agree."""

    separator_ids: tuple[int, ...]
    """Ids of the separator, to count the documents that hold them."""

    split_separators: bool
    """Write documents that hold them in other ids."""

    folder: Path
    """Where the results go."""

    def run(self, shard: Shard, tokenizer: DocumentTokenizer, advance: Advance) -> None:
        """Tokenise one shard."""
        source = self.sources[shard.input]
        tokenise_shard(
            shard,
            source,
            self.options,
            tokenizer,
            self.separator_ids,
            self.folder,
            advance,
            split=self.split_separators,
        )


class WorkerLostError(InputError):
    """A worker ended without a word; finished shards stay."""


def tokenise_shards(
    shards: Sequence[Shard],
    job: ShardJob,
    tokenizer: DocumentTokenizer,
    num_workers: int,
    advance: Advance,
) -> None:
    """Tokenise the shards that are not finished yet; ``advance`` is told the bytes done.

    Raises:
        InputError: at a document that cannot be read: of several, the first in order of reading.
        FastPathError: where the fast engine differs from the reference.
        WorkerLostError: where a worker was killed.
    """
    left = [shard for shard in shards if not (job.folder / shard.name).is_dir()]
    advance(sum(shard.num_bytes for shard in shards) - sum(shard.num_bytes for shard in left))
    num_workers = min(num_workers, len(left))
    if num_workers < 2:
        for shard in left:
            job.run(shard, tokenizer, advance)
        return
    # spawned, not forked: the libraries' threads do not survive a fork
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), _start_worker, (job,)
    )
    try:
        futures = [pool.submit(_run_shard, shard) for shard in left]
        for shard, future in zip(left, futures, strict=True):
            future.result()
            advance(shard.num_bytes)
    except BrokenProcessPool as error:
        raise WorkerLostError(
            f"one of {num_workers} workers was killed, for want of memory it may be; run the same "
            "command again: finished parts are kept, and fewer --workers take less memory"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_job: ShardJob
_tokenizer: DocumentTokenizer


def _start_worker(job: ShardJob) -> None:
    """Open the tokenizer once a process; end with the process that started this one."""
    global _job, _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _job, _tokenizer = job, choose_tokenizer(job.tokenizer_path, job.engine).tokenizer


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """A killed run must not leave workers behind, that write what its continuation writes."""
    parent.join()
    os._exit(1)


def _run_shard(shard: Shard) -> None:
    _job.run(shard, _tokenizer, lambda _: None)
