"""How files of conversations are read: options of `prepare chat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from megatron_ultralong.data.read.bounded import MAX_DOCUMENT_BYTES
from megatron_ultralong.data.read.conversation_formats import ChatFormat
from megatron_ultralong.data.read.conversation_turns import Reasoning
from megatron_ultralong.program.ranges import Range


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
