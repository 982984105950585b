"""Options of ``prepare`` and ``prepare chat``."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from megatron_ultralong.config.flags import given_flags
from megatron_ultralong.data.pack.packing import Packing
from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.read.options import ChatReadOptions, ReadOptions
from megatron_ultralong.data.rows import manifest
from megatron_ultralong.data.tokenize.chat_template import DATE, TemplateName
from megatron_ultralong.data.tokenize.tokenising import SeparatorInText, TokenizerEngine
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import INT64, TEXT, UINT32, Range, check_ranges
from megatron_ultralong.program.names import with_home
from megatron_ultralong.program.quantity import LENGTH, TOKENS

Sources = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=PATH")]
HeldOut = Annotated[float, Range(0, below=1, rule="the rest is the training split")]


@dataclass(frozen=True)
class PrepareConfig:
    """Pack documents into rows of exactly seq_length tokens, in Megatron's format."""

    source: Sources
    """Documents, with a name: a file, a folder or a quoted glob pattern. JSONL, JSON arrays,
    parquet, or text files of one document each; also .gz, .zst, .xz and .bz2. Repeatable."""
    tokenizer: Path
    """Folder with a tokenizer.json or a tokenizer.model (Llama 3 or sentencepiece), or the file
    itself."""
    output: Path
    """New or empty folder to write."""
    seq_length: Annotated[int, Range(2, rule="a token, and its label"), LENGTH]
    """Tokens per row."""
    text_key: Annotated[
        tuple[str, ...], TEXT, tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[NAME=]KEY")
    ] = ()
    """Key (JSON) or column (parquet) of the text, of all sources or of the source NAME; a.b is key
    b inside a. Repeatable. Default: text."""
    separator: Annotated[str, TEXT] = "<s>"
    """Text between documents, encoded alone. eos: the tokenizer's EOS. none: nothing."""
    separator_in_text: SeparatorInText = "keep"
    """What to do with documents that contain the separator's ids, which look like boundaries to the
    model. keep: count them. drop: drop and count them. split: encode the separator's characters one
    by one: the same text with other ids."""
    valid_fraction: HeldOut = 0.05
    """Expected share of the documents held out in valid; 0: no valid."""
    test_fraction: HeldOut = 0.0
    """Expected share of the documents held out in test; 0: no test."""
    packing: Packing = "stream"
    """stream: concatenate documents and cut them at the end of a row. row-start: the same, but
    documents as long as a row start a new row. whole: cut only documents longer than a row, and pad
    rows; the manifest states the padding."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of split, sample and order, which are hashes of the documents."""
    max_tokens: Annotated[int | None, Range(1, INT64), TOKENS] = None
    """Largest number of tokens of the training split, to 1 in 1,000; sources keep their shares.
    valid and test do not depend on it."""
    workers: Annotated[int, Range(1, 1024, rule="1 is this process alone")] = 1
    """Processes that read and tokenize; the output does not depend on it."""
    tokenizer_engine: TokenizerEngine = "auto"
    """auto: gigatoken if its ids equal the reference's (checked on a sample in every run),
    otherwise the reference. reference: tokenizers, tiktoken or sentencepiece."""
    inspect: bool = False
    """Show lengths before and after as a table and in OUTPUT/lengths.png, and one decoded row. An
    existing output is shown without preparing it again; it needs --output alone."""
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


def of_existing_rows(words: Sequence[str]) -> PrepareConfig | None:
    """The flags that ``--inspect`` of rows that are there can do without; None: it is another job.

    Args:
        words: of the command line, behind the verb.

    Raises:
        InputError: there are no rows, and nothing to prepare any from.
    """
    if "--inspect" not in words:
        return None
    for word, behind in itertools.pairwise([*words, ""]):
        flag, is_one, value = word.partition("=")
        output = Path(with_home(value if is_one else behind))
        if flag != "--output":
            continue
        if not {"--source", "--tokenizer"} & {*given_flags(words)}:
            manifest.load_manifest(output)
        if (output / manifest.FILE_NAME).is_file():
            return PrepareConfig(source=(), tokenizer=Path(), output=output, seq_length=2)
    return None


ChatPacking = Literal["whole", "none"]
TooLong = Literal["drop", "truncate"]


@dataclass(frozen=True)
class PrepareChatConfig:
    """Pack conversations into rows of exactly seq_length tokens, with masks of the tokens to train
    on.
    """

    source: Sources
    """Conversations, with a name: a file, a folder or a quoted glob pattern. JSONL, JSON arrays or
    parquet; also .gz, .zst, .xz and .bz2. Repeatable."""
    tokenizer: Path
    """Folder with a tokenizer.json or Llama 3's tokenizer.model, or the file itself."""
    output: Path
    """New or empty folder to write."""
    seq_length: Annotated[int, Range(2, rule="a token, and its label"), LENGTH] = 8192
    """Tokens per row."""
    max_length: Annotated[int, Range(0), LENGTH] = 0
    """Largest number of tokens of a conversation; 0: seq_length."""
    too_long: TooLong = "drop"
    """What to do with longer conversations: drop them, or truncate their end. Both are counted."""
    packing: ChatPacking = "whole"
    """whole: as many whole conversations per row as fit. none: one per row. Rows are padded."""
    chat_template: TemplateName = "llama3.1"
    """llama3.1: that of Llama 3.1 Instruct. llama3: without dates, default system turn and tools.
    chatml: turns in <|im_start|> and <|im_end|>, after the default system turn of the template in
    the tokenizer's folder, if it has one. qwen2.5, qwen3: those of Qwen, without tools. plain:
    roles as words, for tokenizers without special tokens of turns."""
    date_string: Annotated[str, TEXT] = DATE
    """Current date in llama3.1's system turn: a text such as 28 Nov 2026, or today for the day on
    which the run begins. The default is the date that engines write with Llama 3.1's template if
    they get none; with Llama 3.2's template they write the current date."""
    check_template: bool = True
    """Compare with the chat template in the tokenizer's folder, if there is one, and train on the
    text that it marks with {% generation %}, if any."""
    valid_fraction: HeldOut = 0.02
    """Expected share of the conversations held out in valid; 0: no valid."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of split and order, which are hashes of the conversations."""
    tokenizer_engine: TokenizerEngine = "auto"
    """auto: gigatoken if its ids equal the reference's, otherwise the reference."""
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
