"""How files of documents and of conversations are read: options, apart from what reads."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from megatron_ultralong.program.fields import TEXT, Range
from megatron_ultralong.program.quantity import BYTES

FileFormat = Literal["auto", "jsonl", "json", "parquet", "text"]
ChatFormat = Literal["auto", "messages", "sharegpt", "prompt-completion", "alpaca"]
Reasoning = Literal["drop", "keep"]
Suffixes = Annotated[
    tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="suffix", metavar=".SUFFIX")
]


@dataclass(frozen=True)
class ReadOptions:
    """How files are read."""

    source_key: Annotated[str | None, TEXT] = None
    """Key or column with the name of each document's source, instead of NAME."""
    suffixes: Suffixes = ()
    """Suffix of the files to read in a folder or pattern, such as .py; repeatable. Default: all."""
    file_format: FileFormat = "auto"
    """Format of all files; auto: by the name and the first bytes of each file. json: one array of
    records."""
    skip_bad: bool = False
    """Count and skip documents that cannot be read, instead of stopping."""
    max_document_bytes: Annotated[int | None, Range(1, 2**40), BYTES] = None
    """Largest number of bytes of a line, record of a JSON array, text file or parquet row; a longer
    one is a bad document and never held in memory. Default: what fits into 2 GiB of memory: 80 MiB
    with gigatoken (five rows of 4M tokens), 32 with tiktoken, 16 with sentencepiece, 8 with
    tokenizers."""


@dataclass(frozen=True)
class ChatReadOptions:
    """How files of conversations are read."""

    file_format: ClassVar[FileFormat] = "auto"
    chat_format: ChatFormat = "auto"
    """messages, sharegpt, prompt-completion or alpaca; auto: by the keys of every record."""
    reasoning: Reasoning = "drop"
    """What to do with reasoning (reasoning_content, reasoning or thinking in a turn). drop: as
    Llama's templates do. keep: train on it, in <think> and </think> before the answer."""
    ignore_keys: Annotated[tuple[str, ...], TEXT] = ()
    """Keys inside a turn to ignore; any other unknown key is an error. Of the keys of a record,
    those that would refuse it can be ignored, such as label, weight, images and chosen."""
    suffixes: Suffixes = ()
    """Suffix of the files to read in a folder or pattern, such as .jsonl; repeatable. Default:
    all."""
    skip_bad: bool = False
    """Count and skip conversations that cannot be used, instead of stopping."""
    max_document_bytes: Annotated[int | None, Range(1, 2**40), BYTES] = None
    """Largest number of bytes of a line, record of a JSON array or parquet row; a longer one is bad
    and never held in memory. Default: what fits into 2 GiB of memory, 80 MiB with gigatoken."""
