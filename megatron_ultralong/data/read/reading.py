"""Documents and conversations of the sources ``NAME=PATH`` on the command line, streamed."""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ultralong.data.read import (
    arrow_values,
    beside_turns,
    conversation_formats,
    file_kind,
    formats,
)
from megatron_ultralong.data.read.conversation import Conversation, ConversationError, Problem
from megatron_ultralong.data.read.conversation_formats import CHOSEN, KEYS, SPELLINGS
from megatron_ultralong.data.read.options import ChatReadOptions, ReadOptions
from megatron_ultralong.data.read.record import (
    MAX_DOCUMENT_BYTES,
    BadRecordError,
    Record,
    absolute_place,
    text_error,
)
from megatron_ultralong.data.read.sources import FilePart, Source, check_unchanged, find_files
from megatron_ultralong.program.errors import InputError, counted, named, nearest
from megatron_ultralong.sequence.documents import document_id

FIRST_RECORD_BYTES = 4 << 20
"""Of a JSON record that is looked at before the work starts: some milliseconds a file."""

MAX_BAD_SHOWN = 5
"""Bad documents that are told one by one."""

MAX_REASON = 500
"""Characters of what is told of one."""


@dataclass(frozen=True)
class Document:
    """One document: whole, as it stands in its file."""

    text: str
    source: str
    """Name of the source it counts for."""
    id: str
    """:func:`~megatron_ultralong.sequence.documents.document_id` of the text."""


class _SourceReader:
    """Records of parts of one source, in their order, and the bad ones among them."""

    kind: str
    """What a record is, in messages."""
    columns: tuple[str, ...]
    """Top-level keys that are read."""

    def __init__(
        self, source: Source, options: ReadOptions | ChatReadOptions, parts: Sequence[FilePart]
    ) -> None:
        self.source = source
        self.parts = parts
        self.bytes_read = self.num_cut_files = 0
        self.bad: list[str] = []
        """Of the first bad records, where they stand and why they are bad."""
        self.refused_files: dict[str, str] = {}
        """Of each file of which no record was kept, where the first stands and why it was not."""
        self.kept_files: list[str] = []
        """Files of which some were."""
        self._bad_here: list[str] = []
        """``bad`` of the file that is read."""
        self._skip_bad = options.skip_bad
        self._limit = options.max_document_bytes or MAX_DOCUMENT_BYTES

    @property
    def num_kept(self) -> int:
        """Records read so far that are not bad."""
        raise NotImplementedError

    def check_first_records(self) -> None:
        """Look at the first record of every file: a wrong key is told before the work starts.

        Raises:
            InputError: at a bad one, as reading it does.
        """
        for part in self.parts:
            if self._skip_bad or part.problem or part.file_format == "text":
                continue
            limit = self._limit
            if part.file_format != "parquet":
                limit = min(limit, FIRST_RECORD_BYTES)
            records = formats.read_records(part.path, self.columns, part.file_format, limit=limit)
            record = next(records, None)
            if record is None or (record.is_too_long and limit < self._limit):
                continue
            try:
                self._parsed(record)
            except BadRecordError as error:
                self._pass_over(record, error)

    def _parsed(self, record: Record) -> Any:
        """What a record holds; BadRecordError says why it is bad."""
        raise NotImplementedError

    def _records(self) -> Iterator[tuple[FilePart, Record]]:
        before = 0
        for part in self.parts:
            num_kept, self._bad_here = self.num_kept, []
            records: Iterator[Record] = iter([Record(str(part.path), 0, {}, part.problem)])
            if not part.problem:
                records = formats.read_records(
                    part.path, self.columns, part.file_format, part.start, part.stop, self._limit
                )
            for record in records:
                self.bytes_read = before + min(record.position, part.size)
                yield part, record
            before += part.size
            self.bytes_read = before
            if self.num_kept > num_kept:
                self.kept_files.append(str(part.path))
                self.bad += self._bad_here[: MAX_BAD_SHOWN - len(self.bad)]
            elif self._bad_here:
                self.refused_files[str(part.path)] = self._bad_here[0]

    def _pass_over(self, record: Record, error: BadRecordError) -> None:
        """Tell of a bad record.

        Raises:
            InputError: it is not to be skipped, or its file has changed since it was found.
        """
        if not self._skip_bad:
            check_unchanged(self.source, self.parts)  # a line that is not whole yet
            fix = "raise --max-document-bytes" if record.is_too_long else "fix it"
            raise InputError(
                f"source {self.source.name!r}: {absolute_place(record)}: {error.reason}; {fix}, or "
                f"skip and count such {self.kind} with --skip-bad"
            )
        self.num_cut_files += record.is_rest_lost
        if len(self._bad_here) < MAX_BAD_SHOWN:
            self._bad_here.append(f"{absolute_place(record)}: {error.reason}"[:MAX_REASON])


class DocumentReader(_SourceReader):
    """The documents of parts of one source, in their order; iterate once.

    Empty texts are dropped and counted, and so are bad records under ``skip_bad``.

    Raises:
        InputError: at a bad record (file, line and reason).
    """

    kind = "documents"

    def __init__(self, source: Source, options: ReadOptions, parts: Sequence[FilePart]) -> None:
        super().__init__(source, options, parts)
        self.options = options
        self.num_documents = self.num_empty = self.num_bad = 0
        keys = [source.text_key] + ([options.source_key] if options.source_key else [])
        self.columns = tuple(dict.fromkeys(k for key in keys for k in (key, key.partition(".")[0])))

    @property
    def num_kept(self) -> int:
        """Documents with and without text."""
        return self.num_documents + self.num_empty

    def __iter__(self) -> Iterator[Document]:
        for _, record in self._records():
            try:
                text, name = self._parsed(record)
            except BadRecordError as error:
                self._pass_over(record, error)
                self.num_bad += record.num_records
                continue
            if not text or text.isspace():
                self.num_empty += 1
            else:
                self.num_documents += 1
                yield Document(text, name, document_id(text))

    def _parsed(self, record: Record) -> tuple[str, str]:
        """A record's text and the name of its source."""
        if record.error:
            raise BadRecordError(record.error)
        source, source_key = self.source, self.options.source_key
        text, name = _value(record.fields, source.text_key), source.name
        if source_key and not record.is_text_file:
            name = _value(record.fields, source_key)
        wanted = (
            (f"--text-key {source.name}=", source.text_key, text),
            ("--source-key ", source_key, name),
        )
        for flag, key, value in wanted:
            if not isinstance(value, str):
                keys = record.keys or tuple(map(str, record.fields))
                raise BadRecordError(_key_error(flag, str(key), value, keys, _texts(record)))
        if record.is_text_file and self.options.file_format == "auto" and "\0" in text:
            raise BadRecordError(file_kind.nul_problem(text.index("\0")))
        if error := text_error(text):
            raise BadRecordError(error)
        return text, name


def _texts(record: Record) -> list[str]:
    """Keys of a record that have texts; of a parquet file, columns of texts."""
    return [*record.text_columns] or [
        key for key, value in record.fields.items() if isinstance(value, str)
    ]


def _key_error(
    flag: str, key: str, value: object, keys: Sequence[str], texts: Sequence[str]
) -> str:
    """What is said of a key under which there is no text; ``flag`` begins the one that names it.

    ``texts``: those of the keys that have one.
    """
    found = ", ".join(keys)[:300] or "none"
    kind = "no value" if value is None else f"{named(type(value).__name__)}, not a text"
    near = nearest(key, keys)
    hint = f"; perhaps you meant {flag}{near}" if near and near != key else ""
    if not hint and key not in keys:
        hint = f"; {flag}{texts[0] if len(texts) == 1 else 'KEY'} names another"
        if flag.startswith("--text-key"):
            hint += (
                f" for all files of the source: where some have {key!r}, give those with another "
                "one a folder and a --source NAME=FOLDER of their own, with --text-key NAME=KEY"
            )
    if key not in keys and {"messages", "conversations"} & {*keys}:
        hint = "; conversations are packed by `ultralong prepare chat`"
    return f"key {key!r} has {kind} (keys here: {found}){hint}"


def require_text(
    source: Source, num_documents: int, num_files: int, num_empty: int, num_bad: int
) -> None:
    """Refuse a source in which no document has any text."""
    if num_documents == 0:
        raise InputError(
            f"source {source.name!r} has no text: {source.pattern} "
            f"({counted(num_files, 'file')}, {num_empty} "
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


_COLUMNS = tuple(
    dict.fromkeys(itertools.chain(*KEYS.values(), *SPELLINGS.values(), beside_turns.KEYS, [CHOSEN]))
)

MAX_UNREAD_KEYS = 1000
OTHER_KEYS = "(other keys)"
"""Where unread keys are counted beyond so many: each record may have new ones."""


class ConversationReader(_SourceReader):
    """The conversations of one source, in their order; iterate once.

    Raises:
        InputError: where there is no file, or one of another format; while iterating at a
            conversation that cannot be trained on (file, line and reason), unless ``skip_bad``.
    """

    kind = "conversations"
    columns = _COLUMNS

    def __init__(self, source: Source, options: ChatReadOptions) -> None:
        found = find_files(source, options)
        super().__init__(source, options, found.files)
        self.options = options
        ignored = {*options.ignore_keys} & {*beside_turns.KEYS}  # pictures may be large
        self.columns = tuple(key for key in _COLUMNS if key not in ignored)
        self.counts = found.counts
        """All files that stand there, read and left out."""
        self.num_conversations = 0
        self.num_bad: collections.Counter[Problem] = collections.Counter()
        self.unread_keys: collections.Counter[str] = collections.Counter()
        """Keys (in parquet columns) that are not read, and how many records have them."""
        self.num_kept_nulls = 0
        """Nulls of tools in Arrow's structs that were kept."""
        for part in found.files:
            if part.file_format == "text" and not part.problem:
                raise InputError(
                    f"source {source.name!r}: {part.path} is neither JSON nor parquet: give JSONL, "
                    "a JSON array or parquet, or name the files wanted with --suffix"
                )

    @property
    def num_kept(self) -> int:
        """Conversations."""
        return self.num_conversations

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(part.size for part in self.parts)

    def __iter__(self) -> Iterator[tuple[Record, Conversation]]:
        for part, record in self._records():
            try:
                if not record.error:
                    self._count_unread(record)
                conversation = self._parsed(record)
            except ConversationError as error:
                self.reject(record, error)
                continue
            self.num_conversations += 1
            if part.file_format == "parquet":
                # a text of JSON, which is none of Arrow's structs, has no keys
                self.num_kept_nulls += arrow_values.num_kept_nulls(record.fields.get("tools"))
            yield record, conversation

    def reject(self, record: Record, error: ConversationError) -> None:
        """Count a bad conversation.

        Raises:
            InputError: it is not to be skipped.
        """
        self._pass_over(record, error)
        self.num_bad[error.problem] += record.num_records

    def _count_unread(self, record: Record) -> None:
        read = conversation_formats.keys_read(record.fields, self.options.chat_format)[1].values()
        unread = [
            key
            for key, value in record.fields.items()
            if key not in read and (value is not None or key not in _COLUMNS)
        ]
        unread += (column for column in record.keys if column not in record.fields)
        for key in unread:
            known = key in self.unread_keys or len(self.unread_keys) < MAX_UNREAD_KEYS
            self.unread_keys[key if known else OTHER_KEYS] += 1

    def _parsed(self, record: Record) -> Conversation:
        if record.error:
            raise ConversationError("unreadable", record.error)
        options = self.options
        return conversation_formats.parse_conversation(
            record.fields, options.chat_format, options.ignore_keys, options.reasoning
        )
