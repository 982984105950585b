"""Documents of the sources ``NAME=PATH`` on the command line, streamed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from megatron_ultralong.data.bounded import MAX_DOCUMENT_BYTES
from megatron_ultralong.data.compression import uncompressed_name
from megatron_ultralong.data.formats import FileFormat, file_size, read_records
from megatron_ultralong.data.record import Record, absolute_place
from megatron_ultralong.data.text_check import text_error
from megatron_ultralong.documents import document_id
from megatron_ultralong.errors import InputError
from megatron_ultralong.ranges import Range


@dataclass(frozen=True)
class Source:
    """A named set of files: ``NAME=PATH`` on the command line."""

    name: str
    """Name in tables and in the manifest; its share of the tokens is kept."""

    pattern: str
    """A file, a folder (all files below it) or a glob pattern (``**`` spans folders)."""


@dataclass(frozen=True)
class Document:
    """One document: whole, as it stands in its file."""

    text: str
    """The text."""

    source: str
    """Name of the source it counts for."""

    id: str
    """:func:`~megatron_ultralong.documents.document_id` of the text."""


@dataclass(frozen=True)
class ReadOptions:
    """How files are read."""

    text_key: str = "text"
    """Key (JSONL) or column (parquet) of the text; a.b is the key b inside a."""

    source_key: str | None = None
    """Key or column with the name of the source of every document, in place of NAME."""

    suffixes: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="suffix", metavar=".SUFFIX")
    ] = ()
    """Ending of the files wanted in a folder or pattern, such as .py; repeatable, all if none."""

    file_format: FileFormat = "auto"
    """Format of all files; auto goes by the name of each."""

    skip_bad: bool = False
    """Count and skip what cannot be read, instead of stopping there."""

    max_document_bytes: Annotated[int | None, Range(1, 2**40)] = None
    """Bytes of a line, of a text file or of a parquet row at most; a longer one is bad, and never
    held. None: what 2 GiB of memory are enough for, 80 MiB with gigatoken (five rows of 4M tokens),
    and of the references tiktoken 32, sentencepiece 16, tokenizers 8."""

    @property
    def limit(self) -> int:
        """Bytes of a document at most."""
        return MAX_DOCUMENT_BYTES if self.max_document_bytes is None else self.max_document_bytes


def parse_source(argument: str) -> Source:
    """The source that ``NAME=PATH`` names: ``"web=/data/*.jsonl" -> Source("web", ...)``.

    Raises:
        InputError: where a part is missing.
    """
    name, equals, pattern = argument.partition("=")
    if not (name and equals and pattern):
        raise InputError(
            f"--source {argument!r} must be NAME=PATH, a name for the table and a file, folder or "
            f"glob pattern; for example --source code={argument.strip('=') or '/data/code'}"
        )
    return Source(name, os.path.expanduser(pattern))


def source_files(source: Source, suffixes: Sequence[str] = ()) -> list[Path]:
    """Files of a source, sorted by path; those below folders too.

    Raises:
        InputError: where there are none.
    """
    if os.path.isfile(source.pattern):
        return [Path(source.pattern)]
    if os.path.isdir(source.pattern):
        found = [source.pattern]
    else:
        found = glob.glob(source.pattern, recursive=True)
    files = {path for entry in found for path in _files_below(Path(entry))}
    wanted = [path for path in files if not suffixes or _ends_with(path, tuple(suffixes))]
    if not wanted:
        among = f" ending in {' or '.join(suffixes)}" if suffixes else ""
        raise InputError(
            f"source {source.name!r}: no file{among} at {source.pattern} "
            f"({len(files)} files before that filter); check the path, the quotes around a "
            "pattern, and --suffix"
        )
    return sorted(wanted)


def _files_below(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        for folder, _, names in os.walk(path):
            yield from (Path(folder, name) for name in names)


def _ends_with(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.endswith(suffixes) or uncompressed_name(path).endswith(suffixes)


@dataclass(frozen=True)
class FilePart:
    """A file, or a part of one: bytes of plain JSONL, row groups of parquet."""

    path: Path
    """The file."""

    size: int
    """Bytes of the part on disk."""

    start: int = 0
    """First byte or row group."""

    stop: int | None = None
    """The one after the last; None: the end of the file."""


def whole_files(source: Source, options: ReadOptions) -> list[FilePart]:
    """All files of a source."""
    return [FilePart(path, file_size(path)) for path in source_files(source, options.suffixes)]


class DocumentReader:
    """The documents of parts of one source, in their order; iterate once.

    Empty texts are dropped and counted, and so are bad records under ``skip_bad``.

    Args:
        source: the source.
        options: how it is read.
        parts: what is read of it, see :func:`whole_files`.

    Raises:
        InputError: at a bad record (file, line and reason).
    """

    def __init__(self, source: Source, options: ReadOptions, parts: Sequence[FilePart]) -> None:
        self.source = source
        self.options = options
        self.parts = parts
        self.bytes_read = 0
        self.num_documents = self.num_empty = self.num_bad = 0

    def __iter__(self) -> Iterator[Document]:
        options = self.options
        keys = [options.text_key] + ([options.source_key] if options.source_key else [])
        columns = tuple(dict.fromkeys(k for key in keys for k in (key, key.partition(".")[0])))
        before = 0
        for part in self.parts:
            records = read_records(
                part.path, columns, options.file_format, part.start, part.stop, options.limit
            )
            for record in records:
                self.bytes_read = before + min(record.position, part.size)
                document = self._document(record)
                if document is not None:
                    self.num_documents += 1
                    yield document
            before += part.size
            self.bytes_read = before

    def _document(self, record: Record) -> Document | None:
        """The document of a record; None for one that is counted and skipped."""
        text = _value(record.fields, self.options.text_key)
        name: Any = self.source.name
        if self.options.source_key and not record.is_text_file:
            name = _value(record.fields, self.options.source_key)
        error = record.error or self._what_is_wrong(record, text, name)
        if error and not self.options.skip_bad:
            fix = "raise --max-document-bytes" if record.is_too_long else "fix it"
            raise InputError(
                f"source {self.source.name!r}: {absolute_place(record)}: {error}; {fix}, or "
                "skip and count such documents with --skip-bad"
            )
        if error:
            self.num_bad += record.num_records
            return None
        if not text or text.isspace():
            self.num_empty += 1
            return None
        return Document(text, name, document_id(text))

    def _what_is_wrong(self, record: Record, text: object, name: object) -> str:
        for key, value in ((self.options.text_key, text), (self.options.source_key, name)):
            if not isinstance(value, str):
                found = ", ".join(map(str, record.fields))[:300] or "nothing"
                kind = "no value" if value is None else f"a {type(value).__name__}"
                return f"key {key!r} has {kind}, where a text belongs (keys here: {found})"
        assert isinstance(text, str)
        return text_error(text)


def require_text(
    source: Source, num_documents: int, num_files: int, num_empty: int, num_bad: int
) -> None:
    """Refuse a source in which no document has any text."""
    if num_documents == 0:
        raise InputError(
            f"source {source.name!r} has no text: {source.pattern} ({num_files} files, {num_empty} "
            f"empty documents, {num_bad} bad ones skipped); leave this --source out or check its "
            "path and --text-key"
        )


def _value(fields: Mapping[str, Any], key: str) -> Any:
    """Value under a key, or under a path: ``({"a": {"b": 1}}, "a.b") -> 1``."""
    if key in fields:
        return fields[key]
    first, dot, rest = key.partition(".")
    inner = fields.get(first)
    return _value(inner, rest) if dot and isinstance(inner, Mapping) else None
