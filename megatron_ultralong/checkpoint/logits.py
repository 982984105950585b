"""Comparison of what two models compute: logits of one prompt, by two programs, in float32."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer

import megatron_ultralong
from megatron_ultralong.checkpoint.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.meta import MetaFolder
from megatron_ultralong.checkpoint.metadata import SOURCE_FOLDER
from megatron_ultralong.checkpoint.transformers_logits import transformers_logits
from megatron_ultralong.checkpoint.weight_map import weight_map
from megatron_ultralong.config import ModelConfig
from megatron_ultralong.errors import InputError

MAX_DIFFERENCE = 1e-4
MAX_KL = 1e-10
"""Float32 rounding moves a logit by some 1e-5 (two kernels of transformers itself are 5e-5 apart
on a model of three layers), a row of q and k that is in a wrong place by 1."""
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class LogitsComparison:
    """How far the logits of two models are apart."""

    seq_length: int
    """Tokens of the prompt."""
    max_difference: float
    """Largest absolute difference of two logits."""
    mean_kl: float
    """KL divergence of the next-token distributions, in nats, mean over positions."""
    max_kl: float
    """The same at the worst position."""

    @property
    def equal(self) -> bool:
        """Whether the differences are those of rounding."""
        return self.max_difference <= MAX_DIFFERENCE and self.max_kl <= MAX_KL


def prompt(vocab_size: int, seq_length: int) -> torch.Tensor:
    """Random token ids [S], the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (seq_length,), generator=generator)


def text_prompt(tokenizer_file: Path, seq_length: int) -> torch.Tensor:
    """Token ids [S] of a text that is on every machine: the source files of this package.

    Random ids are no text: a model is far from its training there, and float32 rounding grows.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokens: list[int] = []
    files = sorted(Path(megatron_ultralong.__file__).parent.rglob("*.py"))
    while len(tokens) < seq_length:
        for file in files:
            tokens += tokenizer.encode(file.read_text("utf-8"), add_special_tokens=False).ids
            if len(tokens) >= seq_length:
                break
    return torch.tensor(tokens[:seq_length])


def _prompt_for(
    model: HuggingFaceFolder | MetaFolder | MegatronCheckpoint, seq_length: int
) -> torch.Tensor:
    """Text where the model has a ``tokenizer.json`` that can write it, else random ids.

    A row of one id over and over would look the same whatever the rotary embedding.
    """
    root = model.path.parent if isinstance(model, MegatronCheckpoint) else model.folder
    vocab_size = model.model.vocab_size
    for folder in (root, root / SOURCE_FOLDER):
        file = folder / "tokenizer.json"
        if file.is_file():
            tokens_S = text_prompt(file, seq_length)
            varied = tokens_S.unique().numel() > 8 + seq_length // 100
            if varied and int(tokens_S.max()) < vocab_size:
                return tokens_S
    return prompt(vocab_size, seq_length)


def check_logits(
    a: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
    b: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
    seq_length: int,
) -> LogitsComparison:
    """Compare the logits of two models at every position of one prompt.

    Megatron checkpoints are computed by Megatron-Core, folders of weights by transformers.

    Raises:
        InputError: they differ by more than rounding, or do not fit in memory.
    """
    _check_memory(a.model, seq_length)
    tokens_S = _prompt_for(a, seq_length)
    comparison = compare_logits(*(_logits(model, tokens_S) for model in (a, b)))
    if not comparison.equal:
        raise InputError(
            f"the models compute different logits: largest difference "
            f"{comparison.max_difference:.3g} (at most {MAX_DIFFERENCE:g}), largest KL divergence "
            f"{comparison.max_kl:.3g} (at most {MAX_KL:g}). Their weights are equal: compare "
            "config.json with the checkpoint's ultralong.json"
        )
    return comparison


def compare_logits(a_SV: torch.Tensor, b_SV: torch.Tensor) -> LogitsComparison:
    """Differences of logits [S, V]; KL in float64, ``sum p_a (log p_a - log p_b)``."""
    difference, total, largest = 0.0, 0.0, 0.0
    for a, b in zip(a_SV.split(_CHUNK), b_SV.split(_CHUNK), strict=True):
        difference = max(difference, (a - b).abs().max().item())
        log_a, log_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergence_S = (log_a.exp() * (log_a - log_b)).sum(-1)
        total += divergence_S.sum().item()
        largest = max(largest, divergence_S.max().item())
    return LogitsComparison(len(a_SV), difference, total / len(a_SV), largest)


def _logits(
    model: HuggingFaceFolder | MetaFolder | MegatronCheckpoint, tokens_S: torch.Tensor
) -> torch.Tensor:
    if isinstance(model, MegatronCheckpoint):
        from megatron_ultralong.checkpoint.megatron_logits import megatron_logits

        return megatron_logits(model, tokens_S)
    return transformers_logits(model, tokens_S)


def _check_memory(model: ModelConfig, seq_length: int) -> None:
    """Weights in float32 with the files' own beside them, two sets of logits, activations."""
    parameters = sum(weight.numel for weight in weight_map(model))
    widest = model.hidden_size * 8 + model.ffn_hidden_size * 4
    needed = 6 * parameters + 4 * seq_length * (2 * model.vocab_size + widest)
    available = psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"--logits needs about {needed / 2**30:.1f} GiB of memory for this model and "
            f"{seq_length} tokens, {available / 2**30:.1f} GiB are available: take a larger "
            "machine, a shorter --logits-seq-length, or the bit comparison alone"
        )
