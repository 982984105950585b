"""Configuration of ``generate``; its flags are generated from it."""

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import TEXT, UINT32, Range, Required, check_fields
from megatron_ultralong.program.quantity import LENGTH


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    temperature: Annotated[float, Range(1e-6, 1_000_000, or_zero=True)] = 0.0
    """0: the most likely token (greedy). Otherwise logits are divided by it: 1 is the model's own
    distribution, lower values are more certain."""
    top_k: Annotated[int, Range(0)] = 0
    """Sample from the k most likely tokens; 0: from all."""
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    """Sample from the most likely tokens that make up this share of the probability."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of the samples; the result does not depend on layout and batch."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range, or has no effect."""
        check_fields(self)
        given = [f"--top-k {self.top_k}"] * bool(self.top_k)
        given += [f"--top-p {self.top_p:g}"] * (self.top_p < 1)
        if self.temperature == 0 and given:
            raise InputError(
                f"{' and '.join(given)}: for a choice among several tokens, and temperature 0 "
                "always takes the likeliest; give --temperature 1, or leave "
                f"{'them' if len(given) > 1 else 'it'} out"
            )


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How prompts are processed."""

    prefill_chunk_size: Annotated[int, Range(1), LENGTH] = 32768
    """Tokens of a prompt in one forward pass, over all context-parallel ranks; determines the
    memory for activations."""
    max_batch_size: Annotated[int, Range(1)] = 16
    """Largest number of prompts that are continued together; fewer if their keys and values do not
    fit."""


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Continue prompts with a Megatron checkpoint, in any layout."""

    load: Annotated[str, Required("a Megatron checkpoint")] = ""
    """Megatron checkpoint."""
    prompt: Annotated[tuple[str, ...], TEXT] = ()
    """Texts to continue; several make a batch."""
    prompt_file: tuple[str, ...] = ()
    """Text files to continue, each one prompt; they follow those of --prompt. -: standard input."""
    chat: bool = False
    """Treat each prompt as a user's message, and put it into the tokenizer's chat template."""
    system: Annotated[str, TEXT] = ""
    """System message; needs --chat."""
    add_bos: bool = True
    """Begin a plain prompt as the tokenizer begins a text (Llama 3: <|begin_of_text|>)."""
    max_new_tokens: Annotated[int, Range(1), LENGTH] = 128
    """Largest number of tokens to write."""
    ignore_eos: bool = False
    """Continue after the model ends its text."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Type of weights, activations, keys and values."""
    verify_checksums: bool = True
    """Compare the checkpoint with its checksums.json."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        check_fields(self)
        if not self.prompt and not self.prompt_file:
            raise InputError("--prompt TEXT or --prompt-file FILE is needed: what to continue")
        if self.system and not self.chat:
            raise InputError(
                "--system is a message of a chat, and without --chat prompts are plain text: "
                "give --chat, or put the text before the prompt"
            )
        self.sampling.check()
