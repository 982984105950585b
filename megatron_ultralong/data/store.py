"""Every distinct document of the sources, tokenised once: sampling and packing choose from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.indexed import IndexedReader, IndexedWriter, token_dtype
from megatron_ultralong.data.manifest import InputSummary
from megatron_ultralong.data.reading import Document, DocumentReader, ReadOptions, Source
from megatron_ultralong.data.tokenising import DocumentTokenizer
from megatron_ultralong.documents import document_boundaries
from megatron_ultralong.progress import ProgressBar, progress

BATCH_CHARACTERS = 1 << 20
"""Text tokenised at a time: the library takes up to a hundred bytes a character while it works."""


@dataclass(frozen=True)
class DocumentStore:
    """Distinct documents with their tokens."""

    ids: list[str]
    """Identity of every document."""

    sources: npt.NDArray[np.int64]
    """Index of its source, shape [num_documents]."""

    source_names: list[str]
    """Names of the sources, in the order in which they were met."""

    tokens: IndexedReader
    """Its tokens, on disk."""

    inputs: list[InputSummary]
    """What was found where."""

    num_with_separator: int
    """Documents with the separator among their own tokens, where it will read as a boundary."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every document, shape [num_documents]."""
        return self.tokens.lengths.astype(np.int64)

    def documents(self, order: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int32]]:
        """Tokens of the documents with these indices, one after the other."""
        return (self.tokens[index].astype(np.int32) for index in order.tolist())


def tokenise_sources(
    sources: Sequence[Source],
    options: ReadOptions,
    tokenizer: DocumentTokenizer,
    separator_ids: Sequence[int],
    prefix: Path,
) -> DocumentStore:
    """Read and tokenise all sources; the tokens go to ``PREFIX.bin`` and ``PREFIX.idx``.

    Raises:
        InputError: for a source without text and for documents that cannot be read.
    """
    readers = [DocumentReader(source, options) for source in sources]
    megabytes = sum(reader.num_bytes for reader in readers) / 1e6
    with (
        IndexedWriter(prefix, token_dtype(tokenizer.vocab_size)) as writer,
        progress("Tokenising", megabytes, "MB") as bar,
    ):
        builder = _StoreBuilder(tokenizer, separator_ids, writer)
        inputs = [builder.add_input(reader, bar) for reader in readers]
    return DocumentStore(
        ids=builder.ids,
        sources=np.asarray(builder.sources, dtype=np.int64),
        source_names=list(builder.source_numbers),
        tokens=IndexedReader(prefix),
        inputs=inputs,
        num_with_separator=builder.num_with_separator,
    )


class _StoreBuilder:
    """Collects the documents of one input after the other."""

    def __init__(
        self, tokenizer: DocumentTokenizer, separator_ids: Sequence[int], writer: IndexedWriter
    ) -> None:
        self.tokenizer = tokenizer
        self.separator_ids = separator_ids
        self.writer = writer
        self.seen: set[str] = set()
        self.ids: list[str] = []
        self.sources: list[int] = []
        self.source_numbers: dict[str, int] = {}
        self.num_with_separator = 0
        self._num_duplicates = 0
        self._hash = hashlib.sha256()

    def add_input(self, reader: DocumentReader, bar: ProgressBar) -> InputSummary:
        """Tokenise the documents of one input."""
        self._num_duplicates, self._hash = 0, hashlib.sha256()
        num_without_tokens = bytes_done = 0
        for batch in _batches(self._distinct(reader)):
            arrays = self.tokenizer.encode_documents([document.text for document in batch])
            for document, tokens in zip(batch, arrays, strict=True):
                if tokens.size:
                    self._add(document, tokens)
                else:
                    num_without_tokens += 1
            bar.advance((reader.bytes_read - bytes_done) / 1e6)
            bytes_done = reader.bytes_read
        bar.advance((reader.num_bytes - bytes_done) / 1e6)
        return InputSummary(
            name=reader.source.name,
            path=reader.source.pattern,
            num_files=len(reader.files),
            num_bytes=reader.num_bytes,
            num_documents=reader.num_documents,
            num_duplicates=self._num_duplicates,
            num_empty=reader.num_empty + num_without_tokens,
            num_bad=reader.num_bad,
            ids_sha256=self._hash.hexdigest(),
        )

    def _distinct(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self._hash.update(bytes.fromhex(document.id))
            if document.id in self.seen:
                self._num_duplicates += 1
                continue
            self.seen.add(document.id)
            yield document

    def _add(self, document: Document, tokens: npt.NDArray[np.int32]) -> None:
        self.writer.add(tokens)
        self.ids.append(document.id)
        number = self.source_numbers.setdefault(document.source, len(self.source_numbers))
        self.sources.append(number)
        self.num_with_separator += document_boundaries(tokens, self.separator_ids).size > 2


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Consecutive documents of about :data:`BATCH_CHARACTERS` in all; a longer one stands alone."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        if batch and size + len(document.text) > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    if batch:
        yield batch
