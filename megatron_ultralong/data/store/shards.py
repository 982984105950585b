"""Shards: the parts of the input that are tokenised one by one, and their results on disk.

A shard's result is a folder ``shard-00003`` of ``tokens.bin`` (the tokens of its documents, one
after the other), ``table.npy`` (a line for each document) and ``counts.json``. It gets its name
when it is whole, so that a run that was killed continues after its finished shards. The plan
depends only on the input: any number of workers gives the same shards.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read import formats, parquet
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.reading import Document, DocumentReader, require_text
from megatron_ultralong.data.read.sources import FilePart, FoundFiles, Source, check_unchanged
from megatron_ultralong.data.rows.indexed import token_dtype
from megatron_ultralong.data.rows.manifest import FileSummary
from megatron_ultralong.data.tokenize import engines, tokenising
from megatron_ultralong.program.errors import InputError

SHARD_BYTES, LEAST_SHARD_BYTES = 64 << 20, 4 << 20
"""Input of a shard of a large input, and of a small one: what a killed run does again."""

NUM_SHARDS = 256
"""Of an input between the two, so that many workers have a part of it, and end together."""

BATCH_CHARACTERS = 1 << 20
"""Text tokenised at a time: the library takes up to a hundred bytes a character while it works."""

TABLE = np.dtype([("id", "V16"), ("source", "<i4"), ("num_tokens", "<i8"), ("with_separator", "?")])
"""A document: identity, number of its source in the shard, tokens (-1: equal to an earlier one)."""

Advance = Callable[[int], None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """One part of the input."""

    number: int
    """Its place in the order of reading."""
    input: int
    """Index of the ``--source`` it belongs to."""
    parts: tuple[FilePart, ...]
    """Files, or a range of one."""
    is_whole_input: bool = False
    """No other shard is of this ``--source``: that it has no text is known at its end."""

    @property
    def name(self) -> str:
        """Name of its result."""
        return f"shard-{self.number:05}"

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.size for part in self.parts)


def shard_bytes_of(num_bytes: int) -> int:
    """Input of a shard, where there are ``num_bytes`` in all.

    4 MiB of 1 GiB, 16 MiB of 4 GiB, 64 MiB from 16 GiB on.
    """
    return min(SHARD_BYTES, max(LEAST_SHARD_BYTES, num_bytes // NUM_SHARDS))


def plan_shards(found: Sequence[FoundFiles], shard_bytes: int = 0) -> list[Shard]:
    """Shards of about ``shard_bytes`` (0: :func:`shard_bytes_of` the input), in reading order.

    Small files share one, plain JSONL is cut at lines and parquet between row groups; a larger file
    of another kind is one shard, because its middle cannot be read without what stands before it.
    """
    shard_bytes = shard_bytes or shard_bytes_of(
        sum(part.size for source in found for part in source.files)
    )
    shards: list[Shard] = []
    for index, source in enumerate(found):
        pieces = (piece for part in source.files for piece in _cut(part, shard_bytes))
        groups = list(_groups(pieces, attrgetter("size"), shard_bytes))
        for parts in groups:
            shards.append(Shard(len(shards), index, tuple(parts), len(groups) == 1))
    return shards


def _cut(part: FilePart, shard_bytes: int) -> Iterator[FilePart]:
    is_large = part.size > shard_bytes and not part.problem
    if is_large and formats.is_plain_jsonl(part.path, part.file_format):
        for start in range(0, part.size, shard_bytes):
            stop = min(start + shard_bytes, part.size)
            yield replace(part, size=stop - start, start=start, stop=stop)
        return
    sizes = parquet.row_group_sizes(part.path) if is_large and part.file_format == "parquet" else []
    row_groups = [replace(part, size=n, start=i, stop=i + 1) for i, n in enumerate(sizes)]
    for run in _groups(row_groups, attrgetter("size"), shard_bytes):
        yield replace(run[0], size=sum(p.size for p in run), stop=run[-1].stop)
    if not row_groups:
        yield part


def _groups(
    items: Iterable[Item], size_of: Callable[[Item], int], limit: int
) -> Iterator[list[Item]]:
    """Consecutive items of about ``limit`` in all; a larger one stands alone."""
    group: list[Item] = []
    size = 0
    for item in items:
        if group and size + size_of(item) > limit:
            yield group
            group, size = [], 0
        group.append(item)
        size += size_of(item)
    if group:
        yield group


def summarise(path: Path) -> FileSummary:
    """Size and hash of a file, read once more: all but a large file comes from the page cache."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError:  # the reader has named it, or counted it as bad
        return FileSummary(str(path), 0, "")
    return FileSummary(str(path), size, digest.hexdigest())


@dataclass
class _ShardResult:
    """The table of a shard, made batch by batch."""

    tokenizer: tokenising.DocumentTokenizer
    separator_ids: Sequence[int]
    split: bool
    sources: dict[str, int] = field(default_factory=dict)
    table: list[tuple[bytes, int, int, bool]] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def add(self, batch: Sequence[Document]) -> Iterator[npt.NDArray[np.integer]]:
        """Tokens of the documents that no earlier one of this shard is equal to."""
        new = list({d.id: d for d in reversed(batch) if d.id not in self._seen}.values())[::-1]
        self._seen.update(document.id for document in new)
        if isinstance(self.tokenizer, engines.FastTokenizer) and new:
            self.tokenizer.check([new[0].text[: engines.SAMPLE_CHARACTERS]])
        dtype = token_dtype(self.tokenizer.vocab_size)
        arrays = self.tokenizer.encode_documents([document.text for document in new])
        tokens_of = {document.id: tokens for document, tokens in zip(new, arrays, strict=True)}
        for document in batch:
            source = self.sources.setdefault(document.source, len(self.sources))
            tokens = tokens_of.pop(document.id, None)
            identity = bytes.fromhex(document.id)
            if tokens is None:
                self.table.append((identity, source, -1, False))
                continue
            within = tokenising.holds_separator(tokens, self.separator_ids)
            if within and self.split:
                tokens = tokenising.split_separators(tokens, self.separator_ids, self.tokenizer)
            self.table.append((identity, source, tokens.size, within))
            yield np.ascontiguousarray(tokens, dtype=dtype)


@dataclass(frozen=True)
class ShardJob:
    """All that a process needs to know to tokenise any shard."""

    sources: tuple[Source, ...]
    options: ReadOptions
    tokenizer_path: Path
    """As given on the command line."""
    engine: tokenising.TokenizerEngine
    """``gigatoken`` or ``reference``: decided before, so that all processes agree."""
    separator_ids: tuple[int, ...]
    """Ids of the separator, to count the documents that hold them."""
    split_separators: bool
    """Write documents that hold them in other ids."""
    folder: Path

    def is_done(self, shard: Shard) -> bool:
        """Whether its result is there."""
        return (self.folder / shard.name).is_dir()

    def run(self, shard: Shard, tokenizer: tokenising.DocumentTokenizer, advance: Advance) -> None:
        """Write ``FOLDER/shard-NNNNN``; ``advance`` is told the bytes read.

        Raises:
            InputError: at a document that cannot be read; a file has changed since it was found.
            FastPathError: where the fast engine differs from the reference on a sample of it.
        """
        aside = self.folder / f"{shard.name}.partial-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        source = self.sources[shard.input]
        reader = DocumentReader(source, self.options, shard.parts)
        result = _ShardResult(tokenizer, self.separator_ids, self.split_separators)
        done = 0
        with open(aside / "tokens.bin", "wb") as file:
            for batch in _groups(reader, lambda document: len(document.text), BATCH_CHARACTERS):
                for tokens in result.add(batch):
                    file.write(tokens.data)
                advance(reader.bytes_read - done)
                done = reader.bytes_read
            if shard.is_whole_input:
                num_files, empty, bad = len(shard.parts), reader.num_empty, reader.num_bad
                require_text(source, reader.num_documents, num_files, empty, bad)
            file.flush()
            os.fsync(file.fileno())
        advance(shard.num_bytes - done)
        counts = {
            "sources": list(result.sources),
            "num_empty": reader.num_empty,
            "num_bad": reader.num_bad,
            "num_cut_files": reader.num_cut_files,
            "bad": reader.bad,
            "refused_files": reader.refused_files,
            "kept_files": reader.kept_files,
            # of a file in several shards, the first one has it
            "files": [asdict(summarise(part.path)) for part in shard.parts if part.start == 0],
        }
        check_unchanged(source, shard.parts)
        (aside / "counts.json").write_text(json.dumps(counts))
        np.save(aside / "table.npy", np.array(result.table, dtype=TABLE))
        os.replace(aside, self.folder / shard.name)


class WorkerLostError(InputError):
    """A worker ended without a word; finished shards stay."""


def tokenise_shards(
    shards: Sequence[Shard],
    job: ShardJob,
    tokenizer: tokenising.DocumentTokenizer,
    num_workers: int,
    advance: Advance,
) -> None:
    """Tokenise the shards that are not finished yet; ``advance`` is told the bytes of these.

    Raises:
        InputError: at a document that cannot be read: of several, the first in order of reading.
        FastPathError: where the fast engine differs from the reference.
        WorkerLostError: where a worker was killed.
    """
    left = [shard for shard in shards if not job.is_done(shard)]
    num_workers = min(num_workers, len(left))
    if num_workers < 2:
        for shard in left:
            job.run(shard, tokenizer, advance)
        return
    # spawned, not forked: the libraries' threads do not survive a fork
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, spawn, _start_worker, (job,))
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
_tokenizer: tokenising.DocumentTokenizer


def _start_worker(job: ShardJob) -> None:
    """Open the tokenizer once a process; end with the process that started this one."""
    global _job, _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _job, _tokenizer = job, engines.choose_tokenizer(job.tokenizer_path, job.engine).tokenizer


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """A killed run must not leave workers behind, that write what its continuation writes."""
    parent.join()
    os._exit(1)


def _run_shard(shard: Shard) -> None:
    _job.run(shard, _tokenizer, lambda _: None)
