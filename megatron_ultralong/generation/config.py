"""Configuration of ``generate``; its flags are generated from it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_ultralong.config import ParallelConfig
from megatron_ultralong.errors import InputError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0: the likeliest token (greedy); else logits are divided by it: 1 as the model says, lower
    is surer."""
    top_k: int = 0
    """Choose among the k likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that make up this share of the probability."""
    seed: int = 1234
    """Determines the choices, whatever the layout and the batch."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range, or has no effect."""
        if not self.temperature >= 0:
            raise InputError(f"temperature must be at least 0, not {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be at least 0, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise InputError(
                f"top_k ({self.top_k}) and top_p ({self.top_p}) choose among several tokens, and "
                "temperature 0 always takes the likeliest: give --temperature 1, or leave them out"
            )


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How prompts are read and continued."""

    prefill_chunk_size: int = 32768
    """Tokens of a prompt in one forward pass, over all context-parallel ranks: what memory for
    activations depends on."""
    max_batch_size: int = 16
    """Prompts that are continued together, at most; fewer where their keys and values do not
    fit."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range."""
        for field in ("prefill_chunk_size", "max_batch_size"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, not {getattr(self, field)}")


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Continue prompts with a Megatron checkpoint, in any layout."""

    load: str = ""
    """Megatron checkpoint."""
    prompt: tuple[str, ...] = ()
    """Texts to continue; several make a batch."""
    prompt_file: tuple[str, ...] = ()
    """Text files to continue, each one prompt; behind those of --prompt."""
    chat: bool = False
    """Each prompt is a user's message, put into the tokenizer's own chat template."""
    system: str = ""
    """With --chat: the system message."""
    add_bos: bool = True
    """Begin a plain prompt as the tokenizer begins a text (Llama 3: <|begin_of_text|>)."""
    max_new_tokens: int = 128
    """Tokens to write, at most."""
    ignore_eos: bool = False
    """Write on where the model ends its text."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights, activations, keys and values."""
    verify_checksums: bool = True
    """Compare the checkpoint's bytes with its checksums.json."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        if not self.load:
            raise InputError("--load is needed: a Megatron checkpoint")
        if not self.prompt and not self.prompt_file:
            raise InputError("--prompt TEXT or --prompt-file FILE is needed: what to continue")
        if self.system and not self.chat:
            raise InputError(
                "--system is a message of a chat, and without --chat prompts are plain text: "
                "give --chat, or put the text before the prompt"
            )
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        self.sampling.check()
        self.decoding.check()
