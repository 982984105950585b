"""Options of ``prepare`` and ``prepare chat``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from megatron_ultralong.data.pack.packing import Packing
from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.read.options import ChatReadOptions, ReadOptions
from megatron_ultralong.data.tokenize.chat_template import DATE, TemplateName
from megatron_ultralong.data.tokenize.tokenising import SeparatorInText, TokenizerEngine
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import INT64, UINT32, Range, check_ranges


@dataclass(frozen=True)
class PrepareConfig:
    """Documents to packed rows of exactly seq_length tokens, in Megatron's format."""

    source: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=PATH")
    ]
    """Documents: a file, a folder or a quoted glob pattern, under a name. JSONL, parquet, texts
    of one document each; .gz, .zst, .xz and .bz2 too. Repeatable."""
    tokenizer: Path
    """Folder with a tokenizer.json or a tokenizer.model (Llama 3's, or sentencepiece), or that
    file."""
    output: Path
    """Folder to write; it must not exist, or be empty."""
    seq_length: Annotated[int, Range(2, rule="a token, and its label")]
    """Tokens of a row."""
    separator: str = "<s>"
    """Text between documents, encoded alone; eos: the tokenizer's own; none: nothing."""
    separator_in_text: SeparatorInText = "keep"
    """Documents that hold the separator's ids themselves, where the model sees a boundary. keep:
    they are counted. drop: left out, and counted. split: these characters are encoded one by one,
    the same text in other ids, as tokenizers write the text of a special token."""
    valid_fraction: Annotated[float, Range(0, below=1, rule="the rest is the training split")] = (
        0.05
    )
    """Expected share of the documents held out in valid, each at most once; 0: no valid."""
    test_fraction: Annotated[float, Range(0, below=1, rule="the rest is the training split")] = 0.0
    """The same in test; 0: no test."""
    packing: Packing = "stream"
    """stream: documents one after the other, cut where a row ends. row-start: the same, but those
    of a row or more begin one. whole: none is cut unless longer than a row; rows are padded, and
    the manifest states by how much."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of the split, the sample and the order, each a hash of the document."""
    max_tokens: Annotated[int | None, Range(1, INT64)] = None
    """Tokens of the training split at most, to 1 in 1,000; every source keeps its share."""
    workers: Annotated[int, Range(1, 1024, rule="1 is this process alone")] = 1
    """Processes that read and tokenise; the output is the same with any number."""
    tokenizer_engine: TokenizerEngine = "auto"
    """auto: gigatoken where its ids equal the reference's, checked on a sample of every run, else
    the reference, with a note. reference: tokenizers, tiktoken or sentencepiece."""
    inspect: bool = False
    """Show the rows: lengths before and after as a table and in OUTPUT/lengths.png, and one row
    decoded. Of an output that is there already, without making it again."""
    sampling: Annotated[LengthSampling, tyro.conf.arg(name="")] = field(
        default_factory=LengthSampling
    )
    """Weights by length."""
    reading: Annotated[ReadOptions, tyro.conf.arg(name="")] = field(default_factory=ReadOptions)
    """How the files are read."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range, or the fields do not fit."""
        check_ranges(self)
        self.sampling.check()
        if self.test_fraction >= 1 - self.valid_fraction:
            raise InputError(
                f"test_fraction ({self.test_fraction}) must be under 1 less valid_fraction "
                f"({self.valid_fraction}): the rest is the training split; lower one of them"
            )
        if self.max_tokens is not None and self.max_tokens < self.seq_length:
            raise InputError(
                f"max_tokens ({self.max_tokens}) must be at least seq_length ({self.seq_length}), "
                "one row; raise the first or shorten the second"
            )


ChatPacking = Literal["whole", "none"]
TooLong = Literal["drop", "truncate"]


@dataclass(frozen=True)
class PrepareChatConfig:
    """Conversations to packed rows of exactly seq_length tokens, and what of them is learnt."""

    source: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=PATH")
    ]
    """Conversations: a file, a folder or a quoted glob pattern, under a name. JSONL or parquet;
    .gz and .zst too. Repeatable."""
    tokenizer: Path
    """Folder with a tokenizer.json or Llama 3's tokenizer.model, or that file."""
    output: Path
    """Folder to write; it must not exist, or be empty."""
    seq_length: Annotated[int, Range(2, rule="a token, and its label")] = 8192
    """Tokens of a row."""
    max_length: Annotated[int, Range(0)] = 0
    """Tokens of a conversation at most; 0: those of a row."""
    too_long: TooLong = "drop"
    """Longer conversations: drop, or truncate (their beginning is kept); counted in both."""
    packing: ChatPacking = "whole"
    """whole: as many conversations in a row as fit, none is cut; none: one in each. Rows are filled
    up with padding."""
    chat_template: TemplateName = "llama3.1"
    """llama3.1; llama3: without dates, system turn of its own and tools; plain: roles in words, for
    tokenizers without Llama 3's special tokens."""
    date_string: str = DATE
    """Today's date in llama3.1's system turn: a text such as 28 Nov 2026, or today, the day's when
    the run begins. The default is what engines write with Llama 3.1's template that are given none;
    with Llama 3.2's they write the day's."""
    check_template: bool = True
    """Compare with the chat template in the tokenizer's folder, where there is one, and learn what
    it marks with {% generation %}, where it does."""
    valid_fraction: Annotated[float, Range(0, below=1, rule="the rest is the training split")] = (
        0.02
    )
    """Expected share of the conversations held out in valid; 0: no valid."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of the split and the order, each a hash of the conversation."""
    tokenizer_engine: TokenizerEngine = "auto"
    """auto: gigatoken where its ids equal the reference's, else the reference, with a note."""
    reading: Annotated[ChatReadOptions, tyro.conf.arg(name="")] = field(
        default_factory=ChatReadOptions
    )
    """How the files are read."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range, or the fields do not fit."""
        check_ranges(self)
        if self.max_length > self.seq_length:
            raise InputError(
                f"max_length ({self.max_length}) must be at most seq_length ({self.seq_length}): a "
                "conversation stands whole in one row; lower the first or raise the second"
            )

    @property
    def limit(self) -> int:
        """Tokens that a conversation may have."""
        return self.max_length or self.seq_length
