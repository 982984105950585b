"""``chat_manifest.json`` beside rows of conversations: what they are made of."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ultralong.data.read.sources import FileCount
from megatron_ultralong.data.rows import manifest

FORMAT_VERSION = 2
FILE_NAME = manifest.CHAT_FILE_NAME


@dataclass(frozen=True)
class ChatSource(manifest.Record):
    """What was found at one ``--source``."""

    name: str
    path: str
    files: list[manifest.FileSummary]
    counts: list[FileCount]
    """All files that stand there, read and left out, by suffix and reason."""
    num_cut_files: int
    """Files of which the rest, from a bad record on, could not be read."""
    bad: list[str]
    """Where the first bad conversations stand, and what is wrong with them."""
    num_conversations: int
    """Conversations that can be trained on, duplicates and too long ones included."""
    num_bad: dict[str, int]
    """Conversations skipped under ``--skip-bad``, by what is wrong with them."""
    num_duplicates: int
    """Dropped: an equal one came before, in this source or an earlier one."""
    num_too_long: int
    """Dropped under ``too_long: drop``."""
    num_truncated: int
    """Cut under ``too_long: truncate``."""
    num_nothing_left: int
    """Dropped: no token to be learnt, cut short or with a weight of 0 in every turn."""
    num_cut_at_start: int
    """Conversations without the turns before the first of the user's, which answer nothing."""
    num_cut_at_end: int
    """Conversations without the turns behind the last of the assistant's."""
    num_turns_cut: int
    """Turns that these two left out."""
    num_turns_not_learnt: int
    """Turns of the assistant's that are read but not learnt: of weight 0, or in a prompt."""
    num_with_reasoning: int
    """Conversations with the assistant's reasoning, see ``reasoning``."""
    num_kept_nulls: int
    """Nulls of ``default`` and ``const`` in tools that came from Arrow's structs and were kept."""
    num_examples: int
    """Conversations in the rows."""
    num_tokens: int
    """Their tokens."""
    num_target_tokens: int
    """Of these, tokens to be learnt."""
    longest: int
    """Tokens of the longest conversation found, before any was dropped or cut."""
    unread_keys: dict[str, int]
    """Keys of records that are not read, and how many records have them."""
    refused_files: dict[str, str] = field(default_factory=dict, repr=False)
    """Files of which no conversation could be read: where the first stands, and what is wrong."""
    num_with_marks: int = field(default=0, repr=False)
    """Conversations that have texts of special tokens, which are written as text."""


@dataclass(frozen=True)
class ChatLengths(manifest.Record):
    """Conversations of one source of ``min_length`` up to twice as many tokens, as found."""

    source: str
    min_length: int
    """A power of two."""
    num_conversations: int
    num_tokens: int
    num_too_long: int
    """Of them, above the limit: dropped or cut."""


@dataclass(frozen=True)
class ChatSplit(manifest.Record):
    """One pair of ``.bin`` and ``.idx``."""

    num_examples: int
    num_rows: int
    num_tokens: int
    """Without padding."""
    num_target_tokens: int
    num_padding_tokens: int
    longest: int
    """Tokens of its longest conversation."""
    checksums: dict[str, str] = field(default_factory=dict, repr=False)
    """As those of :class:`~megatron_ultralong.data.rows.manifest.SplitSummary`; also of targets."""


@dataclass(frozen=True)
class ChatManifest(manifest.Record):
    """Everything that determined the rows; equal input gives an equal manifest and equal rows."""

    format_version: int
    seq_length: int
    max_length: int
    too_long: str
    packing: str
    chat_template: str
    date_string: str
    """The date in the conversations, ``today`` resolved."""
    folder_template_checked: bool
    """The tokenizer's folder has a template, and it writes the same."""
    folder_template_date: str
    """The date that it writes where engines give it none: ``same``, another ``fixed`` one,
    ``today``; empty where there is none, or it was not looked at."""
    learnt: str
    """``assistant``: its turns and their ends; ``marked``: what the folder's template marks."""
    reasoning: str
    """``drop`` or ``keep``."""
    valid_fraction: float
    seed: int
    tokenizer_sha256: str
    tokenizer_engine: str
    tokenizer_engine_reason: str
    """Why it was not gigatoken; empty if it was."""
    vocab_size: int
    """Largest id + 1."""
    sources: list[ChatSource]
    lengths: list[ChatLengths]
    splits: dict[str, ChatSplit]
    versions: dict[str, str]
    chat_template_sha256: str = ""
    """SHA-256 of the template's text; empty: the rows are of a version that did not state it."""


def load_chat_manifest(folder: str | Path) -> ChatManifest:
    """Read ``FOLDER/chat_manifest.json``.

    Raises:
        InputError: where it is missing, broken or of another format version.
    """
    file = Path(folder) / FILE_NAME
    return manifest.read_manifest(file, FORMAT_VERSION, ChatManifest, _way_out(file))


def _way_out(file: Path) -> str:
    folder = file.parent
    if folder.is_file():
        return (
            "that is a file, not a folder of rows; make one with `ultralong prepare chat --source "
            f"NAME={shlex.quote(str(folder))}`"
        )
    if (folder / manifest.FILE_NAME).is_file():
        return (
            "these are rows of documents; conversations are made into rows by `ultralong prepare "
            "chat`"
        )
    return "give the output folder of `ultralong prepare chat`"
