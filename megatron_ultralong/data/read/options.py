"""How files of documents and of conversations are read: options, apart from what reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from megatron_ultralong.program.fields import Range

FileFormat = Literal["auto", "jsonl", "parquet", "text"]
ChatFormat = Literal["auto", "messages", "sharegpt", "prompt-completion", "alpaca"]
Reasoning = Literal["drop", "keep"]


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
    """Format of all files; auto goes by the name of each and by what stands at its beginning."""
    skip_bad: bool = False
    """Count and skip what cannot be read, instead of stopping there."""
    max_document_bytes: Annotated[int | None, Range(1, 2**40)] = None
    """Bytes of a line, of a text file or of a parquet row at most; a longer one is bad, and never
    held. None: what 2 GiB of memory are enough for, 80 MiB with gigatoken (five rows of 4M tokens),
    and of the references tiktoken 32, sentencepiece 16, tokenizers 8."""


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
