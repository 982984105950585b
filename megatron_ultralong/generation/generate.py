"""``ultralong generate``: what a checkpoint writes behind a prompt, and how fast."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.config.generate import GenerateConfig
from megatron_ultralong.data.rows.indexed import unknown_id, why_unknown
from megatron_ultralong.generation import early_checks
from megatron_ultralong.generation.continuation import Continuation, TextStream, open_decoder
from megatron_ultralong.generation.folder_tokenizer import FolderTokenizer
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, harmless
from megatron_ultralong.program.progress import progress
from megatron_ultralong.program.ranks import is_main_rank, world_size


def check_prompts(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, vocab_size: int, name: str
) -> None:
    """Check what checkpoint ``name`` is given to continue.

    Raises:
        InputError: an empty prompt, an id that the model does not know, or ``max_new_tokens``
            below one.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(
                f"prompt {number} has no tokens: a model continues at least one, and none is put "
                "before the text (the tokenizer puts no BOS there, or --no-add-bos is given); give "
                "some text, a line break at least; a variable of the shell that is not set is empty"
            )
        unknown = unknown_id(np.asarray(prompt), vocab_size)
        if unknown is not None:
            why = why_unknown(unknown[1], vocab_size, f"checkpoint '{name}'")
            raise InputError(
                f"prompt {number} has at position {unknown[0]} {why}: the tokenizer does not fit "
                "the model; use the one that the checkpoint was imported with"
            )


_ANSWER = "ultralong"
"""Stands for the assistant's answer where the template is asked what follows one."""


class ChatPrompt:
    """Renders messages as transformers does, from the template in ``folder``.

    Raises:
        InputError: transformers is not installed, or the folder has no chat template, or one that
            cannot be rendered.
    """

    def __init__(self, folder: Path) -> None:
        early_checks.check_template(folder, early_checks.WITHOUT_CHAT)
        what = "--chat renders the tokenizer's template"
        self._tokenizer = FolderTokenizer(folder, what, "leave --chat out")

    def encode(self, message: str, system: str = "") -> list[int]:
        """Ids up to where the assistant's answer begins."""
        return self._tokenizer.encode(self._render(message, system, is_answered=False))

    def end_ids(self) -> frozenset[int]:
        """The special token that the template puts behind an answer: ``<|eot_id|>``; or nothing."""
        whole = self._render("?", "", is_answered=True)
        _, found, behind = whole.rpartition(_ANSWER)
        ids = self._tokenizer.encode(behind if found else "")
        added = self._tokenizer.tokenizer.added_tokens_decoder
        return frozenset(token for token in ids[:1] if token in added and added[token].special)

    def _render(self, message: str, system: str, *, is_answered: bool) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": message})
        if is_answered:
            messages.append({"role": "assistant", "content": _ANSWER})
        return self._tokenizer.render(messages, add_generation_prompt=not is_answered)


LONG_PROMPT = 16384
"""Tokens from which on reading shows its progress."""


def generate(config: GenerateConfig) -> list[str]:
    """Print what the checkpoint writes behind each prompt; every rank gets the texts.

    A single prompt's continuation appears token by token where standard output is a terminal.
    Speed and memory go to standard error.

    Raises:
        InputError: a field, a file or a tokenizer that does not fit, see the messages.
    """
    early, folder = early_checks.check_generation(config, world_size()), Path(config.load)
    metadata, tokenizer, messages = early.metadata, early.tokenizer, early.messages
    model = metadata.model
    stop_ids = frozenset() if config.ignore_eos else tokenizer.stop_ids()
    if config.chat:
        chat = ChatPrompt(folder / SOURCE_FOLDER)
        prompts = [chat.encode(text, config.system) for text in messages]
        stop_ids |= frozenset() if config.ignore_eos else chat.end_ids()
    else:
        begin = tokenizer.begin_ids if config.add_bos else []
        prompts = [[*begin, *tokenizer.encode(text).tolist()] for text in messages]
    if (note := tokenizer.not_applied()) and is_main_rank():
        tell(f"warning: {note}")
    check_prompts(prompts, config.max_new_tokens, model.vocab_size, folder.name)
    longest = max(map(len, prompts))
    if longest + config.max_new_tokens > metadata.trained_positions and is_main_rank():
        tell(
            f"warning: a prompt of {longest} tokens with {config.max_new_tokens} new ones is "
            f"beyond the {metadata.trained_positions} positions that {folder.name} was trained "
            "for: expect the text to degrade from there on"
        )
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with parallel_groups(config.parallel, seed=0) as groups:
        checkpoint = MegatronCheckpoint(folder, verify_checksums=config.verify_checksums)
        decoder = open_decoder(checkpoint, config.parallel, groups, dtype)
        writer = Continuation(decoder, config.sampling, config.decoding)
        num_tokens = sum(map(len, prompts))
        with contextlib.ExitStack() as bar:
            advance: Callable[[float], None] = lambda amount: None  # noqa: E731
            if num_tokens >= LONG_PROMPT and is_main_rank():
                advance = bar.enter_context(progress("Reading", num_tokens, "tokens")).advance
            streams = len(prompts) == 1 and is_main_rank() and sys.stdout.isatty()
            stream = TextStream(tokenizer.decode, _print)

            def on_token(prompt: int, token: int) -> None:
                if streams:
                    bar.close()
                    stream.add(token)

            written = writer.generate(
                prompts, config.max_new_tokens, stop_ids, on_token=on_token, advance=advance
            )
        texts = [tokenizer.decode(ids) for ids in written]
        if is_main_rank():
            if streams:
                stream.finish()
                _print("\n")
            for number, text in enumerate(() if streams else texts):
                _print((f"--- {number}\n" if len(texts) > 1 else "") + f"{text}\n")
            tell(f"{writer.speed}; keys and values {decoder.cache_bytes / 2**20:,.1f} MiB a rank")
    return texts


def _print(text: str) -> None:
    # A terminal obeys what a model writes; a file gets it as it is.
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
