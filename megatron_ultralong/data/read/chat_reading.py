"""Conversations of the sources ``NAME=PATH`` on the command line, streamed."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import tyro

from megatron_ultralong.data.read.arrow_values import num_kept_nulls
from megatron_ultralong.data.read.bounded import MAX_DOCUMENT_BYTES
from megatron_ultralong.data.read.conversation import Conversation, ConversationError, Problem
from megatron_ultralong.data.read.conversation_formats import KEYS, ChatFormat, parse_conversation
from megatron_ultralong.data.read.conversation_turns import Reasoning
from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.data.read.reading import MAX_BAD_SHOWN, MAX_REASON
from megatron_ultralong.data.read.record import Record, absolute_place
from megatron_ultralong.data.read.sources import FilePart, Source, find_files
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range


@dataclass(frozen=True)
class ChatReadOptions:
    """How files of conversations are read."""

    chat_format: ChatFormat = "auto"
    """messages, sharegpt, prompt-completion or alpaca; auto goes by the keys of every record."""

    reasoning: Reasoning = "drop"
    """What the assistant thought (reasoning_content, reasoning or thinking in a turn): drop, as
    Llama's templates do, or keep, in <think> and </think> before the answer, and learnt."""

    ignore_keys: tuple[str, ...] = ()
    """Keys inside a turn that mean nothing here; any other unknown key is an error."""

    suffixes: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="suffix", metavar=".SUFFIX")
    ] = ()
    """Ending of the files wanted in a folder or pattern, such as .jsonl; repeatable, all if
    none."""

    skip_bad: bool = False
    """Count and skip conversations that cannot be trained on, instead of stopping there."""

    max_document_bytes: Annotated[int | None, Range(1, 2**40)] = None
    """Bytes of a line or of a parquet row at most; a longer one is bad, and never held. None:
    what 2 GiB of memory are enough for, 80 MiB with gigatoken."""

    @property
    def limit(self) -> int:
        """Bytes of a conversation at most."""
        return MAX_DOCUMENT_BYTES if self.max_document_bytes is None else self.max_document_bytes


_COLUMNS = tuple(dict.fromkeys(key for keys in KEYS.values() for key in keys))

MAX_UNREAD_KEYS = 1000
OTHER_KEYS = "(other keys)"
"""Where unread keys are counted beyond so many: each record may have new ones."""


class ConversationReader:
    """The conversations of one source, in their order; iterate once.

    Args:
        source: the source.
        options: how it is read.

    Raises:
        InputError: where there is no file, or one of another format; while iterating at a
            conversation that cannot be trained on (file, line and reason), unless ``skip_bad``.
    """

    def __init__(self, source: Source, options: ChatReadOptions) -> None:
        self.source = source
        self.options = options
        found = find_files(source, options.suffixes, skip_bad=options.skip_bad)
        self.files = found.files
        self.counts = found.counts
        """All files that stand there, read and left out."""
        self.bytes_read = 0
        self.num_conversations = self.num_cut_files = 0
        self.bad: list[str] = []
        """Of the first bad conversations, where they stand and why they are bad."""
        self.num_bad: collections.Counter[Problem] = collections.Counter()
        self.unread_keys: collections.Counter[str] = collections.Counter()
        """Keys of records that are not read, and how many records have them (of JSONL)."""
        self.num_kept_nulls = 0
        """Nulls of tools in Arrow's structs that were kept."""
        for part in self.files:
            _require_records(source, part)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(part.size for part in self.files)

    def __iter__(self) -> Iterator[tuple[Record, Conversation]]:
        before = 0
        for part in self.files:
            is_arrow = part.file_format == "parquet"
            for record in _records(part, self.options.limit):
                self.bytes_read = before + min(record.position, part.size)
                conversation = self._conversation(record)
                if conversation is not None:
                    self.num_conversations += 1
                    if is_arrow:  # a text of JSON, which is none of Arrow's structs, has no keys
                        self.num_kept_nulls += num_kept_nulls(record.fields.get("tools"))
                    yield record, conversation
            before += part.size
            self.bytes_read = before

    def reject(self, record: Record, error: ConversationError) -> None:
        """Count a bad conversation.

        Raises:
            InputError: it is not to be skipped.
        """
        if not self.options.skip_bad:
            fix = "raise --max-document-bytes" if record.is_too_long else "fix it"
            raise InputError(
                f"source {self.source.name!r}: {absolute_place(record)}: {error.problem}: {error}; "
                f"{fix}, or skip and count such conversations with --skip-bad"
            ) from error
        self.num_bad[error.problem] += record.num_records
        self.num_cut_files += record.is_rest_lost
        if len(self.bad) < MAX_BAD_SHOWN:
            place = f"{absolute_place(record)}: {error.problem}: {error}"
            self.bad.append(place[:MAX_REASON])

    def _conversation(self, record: Record) -> Conversation | None:
        """The conversation of a record; None for one that is counted and skipped."""
        try:
            if record.error:
                raise ConversationError("unreadable", record.error)
            for key in record.fields:
                if key not in _COLUMNS:
                    known = key in self.unread_keys or len(self.unread_keys) < MAX_UNREAD_KEYS
                    self.unread_keys[key if known else OTHER_KEYS] += 1
            options = self.options
            return parse_conversation(
                record.fields, options.chat_format, options.ignore_keys, options.reasoning
            )
        except ConversationError as error:
            self.reject(record, error)
            return None


def _records(part: FilePart, limit: int) -> Iterator[Record]:
    if part.problem:
        return iter([Record(str(part.path), 0, {}, part.problem)])
    return read_records(part.path, _COLUMNS, part.file_format, limit=limit)


def _require_records(source: Source, part: FilePart) -> None:
    if part.file_format != "text" or part.problem:
        return
    raise InputError(
        f"source {source.name!r}: {part.path} is neither JSONL nor parquet: give JSONL or parquet, "
        "or name the files wanted with --suffix"
    )
