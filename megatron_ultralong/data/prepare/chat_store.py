"""Every distinct conversation of the sources, tokenised once, on disk."""

from __future__ import annotations

import array
import collections
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.read.conversation import Conversation, ConversationError
from megatron_ultralong.data.read.reading import ConversationReader
from megatron_ultralong.data.read.record import text_error
from megatron_ultralong.data.read.sources import Source, check_names, check_unchanged
from megatron_ultralong.data.rows.indexed import token_dtype
from megatron_ultralong.data.rows.manifest import ChatLengths, ChatSource
from megatron_ultralong.data.store.documents import DocumentStore
from megatron_ultralong.data.store.shards import BATCH_CHARACTERS, summarise
from megatron_ultralong.data.tokenize import chat_encoder, chat_template
from megatron_ultralong.data.tokenize.chat_template import ChatTemplate, Piece
from megatron_ultralong.data.tokenize.engines import SAMPLE_CHARACTERS, FastTokenizer
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.progress import ProgressBar, progress
from megatron_ultralong.sequence.documents import document_id


def tokenise_chats(
    config: PrepareChatConfig,
    template: ChatTemplate,
    sources: Sequence[Source],
    tokenizer: DocumentTokenizer,
    folder: Path,
    its_template: FolderTemplate | None = None,
) -> ChatStore:
    """Tokenise all conversations into ``FOLDER/tokens.bin``.

    ``template``: how they are written. ``its_template``: of the tokenizer's folder, which writes
    the same; None: nothing is compared.

    Raises:
        InputError: at a conversation that cannot be trained on, or where a source has none.
        FastPathError: where the fast engine differs from the reference on a sample.
    """
    reading = dataclasses.replace(
        config.reading,
        max_document_bytes=config.reading.max_document_bytes or tokenizer.max_document_bytes,
    )
    readers = [ConversationReader(source, reading) for source in sources]
    check_names([part for reader in readers for part in reader.parts])
    for reader in readers:
        reader.check_first_records()
    num_bytes = sum(reader.num_bytes for reader in readers)
    with progress("Tokenizing", num_bytes, "B") as bar, open(folder / "tokens.bin", "wb") as file:
        store = ChatStore(config, template, tokenizer, folder, file.write, its_template)
        for reader in readers:
            store.add_source(reader, bar)
    return store


@dataclasses.dataclass
class ChatStore:
    """Examples, by number: taken in batch by batch, their tokens written."""

    config: PrepareChatConfig
    template: ChatTemplate
    tokenizer: DocumentTokenizer
    folder: Path
    write: Callable[[memoryview], object]
    """To the file of tokens in the folder."""
    its_template: FolderTemplate | None
    """Where it marks something, that is learnt."""
    sources: list[ChatSource] = dataclasses.field(default_factory=list)
    lengths: list[ChatLengths] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self.is_marked = self.its_template is not None and self.its_template.has_marks
        self.encoder = chat_encoder.ChatEncoder(self.template, self.tokenizer, self.is_marked)
        special, eos = self.template.special, self.tokenizer.eos_text
        marks = {eos() if name == chat_template.END else name for name in special}
        marks |= {*self.tokenizer.special_texts}
        self._marks = re.compile("|".join(map(re.escape, sorted(filter(None, marks)))))
        """Texts of special tokens, the template's and all others."""
        self._found: collections.Counter[str] = collections.Counter()
        """What is counted of the source, by the names of :class:`ChatSource`."""
        self._bins: dict[int, list[int]] = {}
        """Its conversations, their tokens and the too long ones, by doubling of the length."""
        self._seen: set[bytes] = set()
        self._ids: list[str] = []
        self._example_sources, self._example_lengths = array.array("q"), array.array("q")
        self._targets, self._target_ends = array.array("i"), array.array("q")

    def add_source(self, reader: ConversationReader, bar: ProgressBar) -> None:
        """Tokenise the conversations of one source."""
        self._found.clear()
        self._bins = collections.defaultdict(lambda: [0, 0, 0])
        batch: list[tuple[str, list[Piece]]] = []
        size = done = 0
        for record, conversation in reader:
            try:
                pieces, identity = self._rendered(conversation)
            except ConversationError as problem:
                reader.num_conversations -= 1
                reader.reject(record, problem)
                continue
            self._count(conversation)
            if not self._is_new(identity, pieces):
                self._found["num_duplicates"] += 1
                continue
            batch.append((identity, pieces))
            size += sum(len(piece.text) for piece in pieces)
            if size > BATCH_CHARACTERS:
                self._add(batch)
                batch, size = [], 0
                bar.advance(reader.bytes_read - done)
                done = reader.bytes_read
        self._add(batch)
        bar.advance(reader.num_bytes - done)
        self._close_source(reader)

    def _rendered(self, conversation: Conversation) -> tuple[list[Piece], str]:
        """A conversation's pieces, and the identity of what they say on any day.

        It decides what is held out: with ``--date-string today`` a model would be measured on what
        it has learnt in rows of the day before.
        """
        pieces = self.template.render(conversation, self.config.date_string)
        text = chat_template.rendered_text(pieces)
        if error := text_error(text):  # in a tool's result, or a call
            raise ConversationError("unreadable", f"it has {error}")
        its, date = self.its_template, self.config.date_string
        if its is not None and self.is_marked:
            pieces = chat_encoder.marked_pieces(pieces, conversation, its, date)
        elif its is not None and its.may_treat_otherwise(conversation):
            chat_encoder.checked_rendering(pieces, conversation, its, date)
        said = (
            text
            if date == chat_template.DATE
            else chat_template.rendered_text(self.template.render(conversation, chat_template.DATE))
        )
        return pieces, document_id(said)

    def targets(self, example: int) -> npt.NDArray[np.int32]:
        """Tokens ``[start, stop)`` of an example to be learnt, shape [num, 2]."""
        first = self._target_ends[example - 1] if example else 0
        ends = np.asarray(self._targets[2 * first : 2 * self._target_ends[example]], np.int32)
        return ends.reshape(-1, 2)

    @property
    def documents(self) -> DocumentStore:
        """Tokens, identities, lengths and sources of all that was taken in."""
        lengths = np.asarray(self._example_lengths, dtype=np.int64)
        return DocumentStore(
            folder=self.folder.parent,
            shard_names=[self.folder.name],
            dtype=self.dtype,
            ids=self._ids,
            sources=np.asarray(self._example_sources, dtype=np.int64),
            source_names=[source.name for source in self.sources],
            lengths=lengths,
            shards=np.zeros_like(lengths),
            offsets=np.cumsum(lengths) - lengths,
        )

    def _is_new(self, identity: str, pieces: list[Piece]) -> bool:
        """Whether no conversation came before that says this and has the same of it learnt."""
        learnt = "".join("+" if piece.is_target else "-" for piece in pieces)
        key = bytes.fromhex(document_id(identity + learnt))
        known = key in self._seen
        self._seen.add(key)
        return not known

    def _count(self, conversation: Conversation) -> None:
        """What was left out of a conversation that can be trained on."""
        at_start, at_end = conversation.num_cut_at_start, conversation.num_cut_at_end
        self._found["num_cut_at_start"] += bool(at_start)
        self._found["num_cut_at_end"] += bool(at_end)
        self._found["num_turns_cut"] += at_start + at_end
        self._found["num_turns_not_learnt"] += sum(
            message.role == "assistant" and not message.is_learnt
            for message in conversation.messages
        )
        self._found["num_with_reasoning"] += conversation.has_reasoning
        self._found["num_with_marks"] += any(
            self._marks.search(message.content)
            for message in conversation.messages
            if isinstance(message.content, str)
        )

    def _add(self, batch: list[tuple[str, list[Piece]]]) -> None:
        if not batch:
            return
        if isinstance(self.tokenizer, FastTokenizer):
            sample = "\n\n".join(p.text for p in batch[0][1] if not p.is_special)
            self.tokenizer.check([sample[:SAMPLE_CHARACTERS]])
        examples = self.encoder.encode([pieces for _, pieces in batch])
        for (identity, _), example in zip(batch, examples, strict=True):
            length = example.tokens.size
            self._found["longest"] = max(self._found["longest"], length)
            counts = self._bins[1 << (length.bit_length() - 1)]
            counts[0] += 1
            counts[1] += length
            if length > self.config.limit:
                counts[2] += 1
                if self.config.too_long == "drop":
                    self._found["num_too_long"] += 1
                    continue
                example = example.cut(self.config.limit)
            if not example.num_target_tokens:
                self._found["num_nothing_left"] += 1
                continue
            self._found["num_truncated"] += length > self.config.limit
            self._keep(identity, example)

    def _keep(self, identity: str, example: chat_encoder.Example) -> None:
        self._found["num_examples"] += 1
        self._found["num_tokens"] += example.tokens.size
        self._found["num_target_tokens"] += example.num_target_tokens
        self.write(np.ascontiguousarray(example.tokens, dtype=self.dtype).data)
        self._ids.append(identity)
        self._example_sources.append(len(self.sources))
        self._example_lengths.append(example.tokens.size)
        self._targets.extend(example.targets.ravel().tolist())
        self._target_ends.append(len(self._targets) // 2)

    def _nothing(self, source: ChatSource) -> str:
        """Why a source has no example: what there is of it, and the fix."""
        num_files, num_bad = len(source.files), sum(source.num_bad.values())
        files = f"{counted(num_files, 'file')} at {source.path}"
        begin = f"source {source.name!r} has nothing to train on: "
        if not source.num_conversations and not num_bad:
            holds = "holds" if num_files == 1 else "hold"
            return f"{begin}{files} {holds} no record at all; fill it, or leave this --source out"
        limit = f"{self.config.limit} tokens (the longest has {source.longest})"
        reasons = (
            (num_bad, "bad ones skipped"),
            (source.num_duplicates, "equal to earlier ones"),
            (source.num_too_long, f"longer than {limit}"),
            (source.num_nothing_left, "with nothing to learn"),
        )
        told = ", ".join(f"{number:,} {what}" for number, what in reasons if number)
        way_out = "raise --seq-length, " * bool(source.num_too_long) + "fix its files"
        return (
            f"{begin}{counted(source.num_conversations, 'conversation')} in {files}: {told}; "
            f"{way_out}, or leave this --source out"
        )

    def _close_source(self, reader: ConversationReader) -> None:
        known: dict[str, Any] = {
            "name": reader.source.name,
            "path": reader.source.pattern,
            "files": [summarise(part.path) for part in reader.parts],
            "counts": reader.counts,
            "num_cut_files": reader.num_cut_files,
            "bad": reader.bad,
            "refused_files": reader.refused_files,
            "num_conversations": reader.num_conversations,
            "num_bad": {str(problem): n for problem, n in sorted(reader.num_bad.items())},
            "unread_keys": dict(sorted(reader.unread_keys.items())),
            "num_kept_nulls": reader.num_kept_nulls,
        }
        others = {field.name for field in dataclasses.fields(ChatSource)} - known.keys()
        assert self._found.keys() <= others, self._found.keys() - others
        check_unchanged(reader.source, reader.parts)
        source = ChatSource(**known | {name: self._found[name] for name in others})
        if not source.num_examples:
            raise InputError(self._nothing(source))
        self.sources.append(source)
        self.lengths += [
            ChatLengths(source.name, least, *counts) for least, counts in sorted(self._bins.items())
        ]
