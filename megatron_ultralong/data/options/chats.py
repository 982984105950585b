"""Options of `ultralong prepare chat`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from megatron_ultralong.data.read.chat_read_options import ChatReadOptions
from megatron_ultralong.data.tokenize.chat_date import DATE
from megatron_ultralong.data.tokenize.chat_template import TemplateName
from megatron_ultralong.data.tokenize.engines import TokenizerEngine
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranges import UINT32, Range, check_ranges

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
