"""``manifest.json`` or ``chat_manifest.json`` beside packed rows: what their reader must know."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from megatron_ultralong.data.read.sources import FileCount
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.inner_folders import one_inside
from megatron_ultralong.program.json_file import MAX_ROWS_BYTES, read_json

Contents = TypeVar("Contents")
_HALF = re.compile("[\ud800-\udfff]")

FORMAT_VERSION, CHAT_FORMAT_VERSION = 4, 2
FILE_NAME, CHAT_FILE_NAME = "manifest.json", "chat_manifest.json"
"""Beside rows of documents, and beside rows of conversations."""
TOKENIZER_FOLDER = "tokenizer"


class Record:
    """A dataclass that is written as JSON; what is read has its fields and no others."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class FileSummary(Record):
    """One file that was read."""

    path: str
    """Its path, as the pattern found it."""
    num_bytes: int
    """Its size on disk."""
    sha256: str
    """Its hash; empty where it could not be read, under ``--skip-bad``."""


@dataclasses.dataclass(frozen=True)
class InputSummary(Record):
    """What was found at one ``--source``."""

    name: str
    """Name given on the command line."""
    path: str
    """Path or pattern given there."""
    files: list[FileSummary]
    """Files read, in this order."""
    num_documents: int
    """Documents with text, duplicates included."""
    num_duplicates: int
    """Documents dropped because an equal one came before, in this input or an earlier one."""
    num_empty: int
    """Documents without text or tokens, dropped."""
    num_bad: int
    """Documents that could not be read, dropped under ``--skip-bad``."""
    num_cut_files: int
    """Files of which the rest, from such a document on, could not be read: nobody knows how many
    documents stood there."""
    bad: list[str]
    """Where the first of these documents stand, and what is wrong with them."""
    counts: list[FileCount]
    """All files that stand there, read and left out, by suffix and reason."""
    ids_sha256: str
    """SHA-256 over the ids of the documents, in the order of reading."""
    text_key: str = dataclasses.field(default="", repr=False)
    """Key or column of the texts, unless they are whole files; empty: of an earlier version. Not in
    what runs record of their rows: the ids above are."""
    refused_files: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """Files of which no document could be read: where the first stands, and what is wrong."""


@dataclasses.dataclass(frozen=True)
class BinSummary(Record):
    """The documents of one source in one length bin, before and after sampling."""

    source: str
    length_bin: str
    """Tokens of a document: ``<4096``, ``4096-8191`` or ``>=8192``."""
    weight: float
    """Expected number of copies of a document of the training split."""
    num_documents: int
    """Distinct documents found."""
    num_tokens: int
    """Their tokens, separators not counted."""
    num_documents_sampled: int
    """Documents packed in ``train``, each copy counted."""
    num_tokens_sampled: int
    """Their tokens, separators not counted."""


@dataclasses.dataclass(frozen=True)
class SourceShare(Record):
    """What part of the training tokens one source has."""

    source: str
    share_asked: float
    """Its share of all tokens found, which sampling keeps but under ``none``."""
    share: float
    """Its share of the tokens packed in ``train``, separators not counted."""
    warning: str
    """Why it is not met, and what can be done; empty where it is met to 1 in 100."""


@dataclasses.dataclass(frozen=True)
class LengthCount(Record):
    """The documents of one source of ``min_length`` up to twice as many tokens, counted as in
    :class:`BinSummary`.
    """

    source: str
    min_length: int
    """Smallest length counted here, a power of two."""
    num_documents: int
    num_tokens: int
    num_documents_sampled: int
    """Documents packed in ``train``, each copy counted."""
    num_tokens_sampled: int


@dataclasses.dataclass(frozen=True)
class SplitSummary(Record):
    """One pair of ``.bin`` and ``.idx``."""

    num_documents: int
    """Documents packed, each copy counted."""
    num_repeats_dropped: int
    """Copies left out because they would have shared a row with the copy before them."""
    num_rows: int
    """Rows of exactly ``seq_length`` tokens."""
    num_tokens: int
    """Tokens of all rows, separators included."""
    num_dropped_tokens: int
    """Tokens of the incomplete row at the end."""
    num_documents_cut: int
    """Copies that stand in more than one row."""
    num_padding_tokens: int
    """Tokens that only fill rows up, the waste of packing ``whole``."""
    checksums: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """CRC-32 of the files ``.crc32`` of the rows and of what stands beside them, by the end of the
    name, ``{"boundaries.crc32": "0a1b2c3d"}``: all are of one run. Empty: of an earlier version."""


@dataclasses.dataclass(frozen=True)
class Manifest(Record):
    """Everything that determined the rows; equal input gives an equal manifest and equal rows."""

    format_version: int
    """:data:`FORMAT_VERSION` of the writer."""
    seq_length: int
    """Tokens of a row."""
    separator: str
    """Separator asked for: a text, ``eos`` or ``none``."""
    separator_ids: list[int]
    """Its ids, as they stand between documents."""
    tokenizer_sha256: str
    """SHA-256 of the file that defines the ids; the tokenizer lies in ``tokenizer/``."""
    tokenizer_engine: str
    """Package that found the ids of the documents."""
    tokenizer_engine_reason: str
    """Why it was not gigatoken; empty if it was."""
    vocab_size: int
    """Largest id + 1."""
    seed: int
    """Seed of the split, the sample and the order."""
    valid_fraction: float
    """Expected share of the documents in ``valid``."""
    test_fraction: float
    """Expected share of the documents in ``test``."""
    packing: str
    """``stream``, ``row-start`` or ``whole``."""
    max_tokens: int | None
    """Budget of the training split asked for."""
    length_sampling: dict[str, Any]
    """Fields of :class:`~megatron_ultralong.data.pack.sampling.LengthSampling`."""
    separator_in_text: str
    """What was done with documents that hold the separator's ids."""
    num_documents_with_separator: int
    """Documents found with the separator among their own tokens; under ``keep`` it reads as a
    boundary in the rows."""
    inputs: list[InputSummary]
    """One for each ``--source``."""
    bins: list[BinSummary]
    """One for each source and length bin."""
    shares: list[SourceShare]
    """One for each source."""
    lengths: list[LengthCount]
    """One for each source and doubling of the length that has documents."""
    splits: dict[str, SplitSummary]
    """``train`` and, unless their fraction is 0, ``valid`` and ``test``."""
    versions: dict[str, str]
    """Versions of Python and of the packages that the ids and rows depend on."""

    @property
    def separators_tell_all(self) -> bool:
        """Whether the documents of the rows can be found again by their separators alone."""
        holds = self.num_documents_with_separator if self.separator_in_text == "keep" else 0
        return bool(self.separator_ids and self.packing != "whole" and not holds)


def load_manifest(folder: str | Path) -> Manifest:
    """Read ``FOLDER/manifest.json``.

    Raises:
        InputError: where it is missing, broken or of another format version.
    """
    way_out = (
        f"give the output folder of `prepare`, which holds train.bin, train.idx and {FILE_NAME}"
    )
    if (Path(folder) / CHAT_FILE_NAME).is_file():
        way_out = "these are rows of conversations, which `sft` trains on; " + way_out
    return read_manifest(Path(folder) / FILE_NAME, FORMAT_VERSION, Manifest, way_out)


def write_manifest(file: Path, contents: Any) -> None:
    r"""A dataclass as a JSON file.

    Names of files may be no UTF-8: what Python has for such a byte, half a character, is written
    out as text, ``\udcff``, for no JSON may hold it.
    """
    text = json.dumps(dataclasses.asdict(contents), indent=2, ensure_ascii=False)
    whole = _HALF.sub(lambda found: rf"\\u{ord(found[0]):x}", text)
    file.write_text(whole + "\n", encoding="utf-8")


def read_manifest(file: Path, format_version: int, kind: type[Contents], way_out: str) -> Contents:
    """The dataclass ``kind`` in the JSON file; ``way_out``: from a file that is absent.

    Raises:
        InputError: where it is missing, broken or of another format version.
    """
    if not file.is_file():
        inside = one_inside(file.parent, (file.name,))
        raise InputError(f"cannot read {file} (No such file or directory): {way_out}{inside}")
    data = read_json(file, max_bytes=MAX_ROWS_BYTES, hint="prepare the rows again")
    version = data.get("format_version")
    if version != format_version:
        raise InputError(
            f"{file} has format_version {version}, where this program reads {format_version}: "
            "prepare the rows again, or use the program that made them"
        )
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = "" if first["type"] == "missing" else f" is {first['input']!r:.60}"
        raise InputError(
            f"{file} lacks a field or has an unknown one (field {place}{what}: {first['msg']}); "
            "prepare the rows again"
        ) from error


@dataclasses.dataclass(frozen=True)
class ChatSource(Record):
    """What was found at one ``--source``."""

    name: str
    path: str
    files: list[FileSummary]
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
    refused_files: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """Files of which no conversation could be read: where the first stands, and what is wrong."""
    num_with_marks: int = dataclasses.field(default=0, repr=False)
    """Conversations that have texts of special tokens, which are written as text."""


@dataclasses.dataclass(frozen=True)
class ChatLengths(Record):
    """Conversations of one source of ``min_length`` up to twice as many tokens, as found."""

    source: str
    min_length: int
    """A power of two."""
    num_conversations: int
    num_tokens: int
    num_too_long: int
    """Of them, above the limit: dropped or cut."""


@dataclasses.dataclass(frozen=True)
class ChatSplit(Record):
    """One pair of ``.bin`` and ``.idx``."""

    num_examples: int
    num_rows: int
    num_tokens: int
    """Without padding."""
    num_target_tokens: int
    num_padding_tokens: int
    longest: int
    """Tokens of its longest conversation."""
    checksums: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """As those of :class:`~megatron_ultralong.data.rows.manifest.SplitSummary`; also of targets."""


@dataclasses.dataclass(frozen=True)
class ChatManifest(Record):
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
    folder = Path(folder)
    way_out = "give the output folder of `ultralong prepare chat`"
    if folder.is_file():
        way_out = (
            "that is a file, not a folder of rows; make one with `ultralong prepare chat --source "
            f"NAME={shlex.quote(str(folder))}`"
        )
    elif (folder / FILE_NAME).is_file():
        way_out = (
            "these are rows of documents; conversations are made into rows by `ultralong prepare "
            "chat`"
        )
    return read_manifest(folder / CHAT_FILE_NAME, CHAT_FORMAT_VERSION, ChatManifest, way_out)
