"""``ultralong generate``: what a checkpoint writes behind a prompt, and how fast."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER, load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.config.generate import GenerateConfig
from megatron_ultralong.data.read.bounded import read_text
from megatron_ultralong.generation.continuation import Continuation, TextStream, open_decoder
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.generation.prompts import ChatPrompt, check_prompts
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, harmless
from megatron_ultralong.program.progress import progress
from megatron_ultralong.program.ranks import is_main_rank

LONG_PROMPT = 16384
"""Tokens from which on reading shows its progress."""


def generate(config: GenerateConfig) -> list[str]:
    """Print what the checkpoint writes behind each prompt; every rank gets the texts.

    A single prompt's continuation appears token by token where standard output is a terminal.
    Speed and memory go to standard error.

    Raises:
        InputError: a field, a file or a tokenizer that does not fit, see the messages.
    """
    config.check()
    folder = Path(config.load)
    metadata = load_metadata(folder)
    model = metadata.model
    config.parallel.check_model(model)
    tokenizer = PromptTokenizer(folder / SOURCE_FOLDER)
    stop_ids = frozenset() if config.ignore_eos else tokenizer.stop_ids()
    if config.chat:
        chat = ChatPrompt(folder / SOURCE_FOLDER)
        prompts = [chat.encode(text, config.system) for text in _texts(config)]
        stop_ids |= frozenset() if config.ignore_eos else chat.end_ids()
    else:
        begin = tokenizer.begin_ids if config.add_bos else []
        prompts = [[*begin, *tokenizer.encode(text).tolist()] for text in _texts(config)]
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
        with _reading(sum(map(len, prompts))) as (advance, stop_bar):
            streams = len(prompts) == 1 and is_main_rank() and sys.stdout.isatty()
            stream = TextStream(tokenizer.decode, _print)

            def on_token(prompt: int, token: int) -> None:
                if streams:
                    stop_bar()
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


def _texts(config: GenerateConfig) -> Iterator[str]:
    yield from config.prompt
    for name in config.prompt_file:
        try:
            yield read_text(Path(name))
        except ValueError as error:
            raise InputError(
                f"--prompt-file {name} cannot be read ({error}): name a text file in UTF-8"
            ) from error


@contextlib.contextmanager
def _reading(num_tokens: int) -> Iterator[tuple[Callable[[float], None], Callable[[], None]]]:
    """What counts the tokens read, on the main rank in a bar if there are many; what stops it."""
    if num_tokens < LONG_PROMPT or not is_main_rank():
        yield lambda amount: None, lambda: None
        return
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress("Reading", num_tokens, "tokens"))
        yield bar.advance, stack.close


def _print(text: str) -> None:
    # A terminal obeys what a model writes; a file gets it as it is.
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
