"""Comparison of what two models compute: logits of one prompt, by two programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer

import megatron_ultralong
from megatron_ultralong.checkpoint.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.layered_logits import POSITIONS, LayeredLogits
from megatron_ultralong.checkpoint.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.meta import MetaFolder
from megatron_ultralong.checkpoint.metadata import SOURCE_FOLDER
from megatron_ultralong.checkpoint.transformers_logits import transformers_logits
from megatron_ultralong.checkpoint.weight_map import weight_map
from megatron_ultralong.config import ModelConfig
from megatron_ultralong.convert_config import LogitsDtype, LogitsMethod
from megatron_ultralong.errors import InputError

MAX_DIFFERENCE: dict[LogitsDtype, float] = {"fp32": 1e-4, "fp64": 1e-9}
MAX_KL: dict[LogitsDtype, float] = {"fp32": 1e-10, "fp64": 1e-13}
"""Float32 rounding moves a logit by some 1e-5 (two kernels of transformers itself are 5e-5 apart
on a model of three layers), float64 rounding by 1e-14 to 1e-12, and the sums of a divergence by
1e-15; a row of q and k that is in a wrong place moves it by 1."""
_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
_PARTED = 1e-3
"""Relative difference of hidden states that no rounding makes."""


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
    dtype: LogitsDtype = "fp32"
    """What both programs computed in."""
    layer_differences: tuple[float, ...] = ()
    """Computed layer by layer: ``|h_a - h_b| / |h_a|`` behind each, at the worst position."""

    @property
    def equal(self) -> bool:
        """Whether the differences are those of rounding."""
        return (
            self.max_difference <= MAX_DIFFERENCE[self.dtype] and self.max_kl <= MAX_KL[self.dtype]
        )


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
    dtype: LogitsDtype = "fp32",
    method: LogitsMethod = "auto",
) -> LogitsComparison:
    """Compare the logits of two models at every position of one prompt.

    Megatron checkpoints are computed by Megatron-Core, folders of weights by transformers: both
    models as a whole, or one layer of each after the other. ``auto`` takes what fits in memory.

    Raises:
        InputError: they differ by more than rounding, or do not fit in memory.
    """
    by_layer = _by_layer(a.model, seq_length, _DTYPES[dtype].itemsize, method)
    tokens_S = _prompt_for(a, seq_length)
    if by_layer:
        layered = LayeredLogits(a, b, tokens_S, _DTYPES[dtype])
        comparison = compare_tiles(layered.tiles())
        differences = tuple(layered.layer_differences)
        comparison = dataclasses.replace(comparison, dtype=dtype, layer_differences=differences)
    else:
        both = (model_logits(model, tokens_S, _DTYPES[dtype]) for model in (a, b))
        comparison = dataclasses.replace(compare_logits(*both), dtype=dtype)
    if not comparison.equal:
        raise InputError(
            f"the models compute different logits: largest difference "
            f"{comparison.max_difference:.3g} (at most {MAX_DIFFERENCE[dtype]:g}), largest KL "
            f"divergence {comparison.max_kl:.3g} (at most {MAX_KL[dtype]:g})"
            f"{_where(comparison)}. Their weights are equal: compare config.json with the "
            "checkpoint's ultralong.json"
        )
    return comparison


def model_logits(
    model: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
    tokens_S: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Logits [S, vocabulary] of a model that is whole in memory."""
    if isinstance(model, MegatronCheckpoint):
        from megatron_ultralong.checkpoint.megatron_logits import megatron_logits

        return megatron_logits(model, tokens_S, dtype=dtype)
    return transformers_logits(model, tokens_S, dtype)


def compare_logits(a_SV: torch.Tensor, b_SV: torch.Tensor) -> LogitsComparison:
    """Differences of logits [S, V]."""
    return compare_tiles(zip(a_SV.split(POSITIONS), b_SV.split(POSITIONS), strict=True))


def compare_tiles(tiles: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> LogitsComparison:
    """Differences of logits [T, V] at some positions after the others.

    KL is computed in float64, ``sum p_a (log p_a - log p_b)``.
    """
    length, difference, total, largest = 0, 0.0, 0.0, 0.0
    for a, b in tiles:
        length += len(a)
        difference = max(difference, (a - b).abs().max().item())
        log_a, log_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergence_S = (log_a.exp() * (log_a - log_b)).sum(-1)
        total += divergence_S.sum().item()
        largest = max(largest, divergence_S.max().item())
    return LogitsComparison(length, difference, total / length, largest)


def _where(comparison: LogitsComparison) -> str:
    for number, difference in enumerate(comparison.layer_differences):
        if difference > _PARTED:
            return f"; the hidden states part in layer {number}, by {difference:.2g} of their norm"
    return ""


def _by_layer(model: ModelConfig, seq_length: int, itemsize: int, method: LogitsMethod) -> bool:
    """Whether to compute layer by layer.

    Raises:
        InputError: there is too little memory for ``method``.
    """
    weights = weight_map(model)
    parameters = sum(weight.numel for weight in weights)
    layer = sum(weight.numel for weight in weights if weight.layer == 0)
    activations = itemsize * seq_length * (8 * model.hidden_size + 4 * model.ffn_hidden_size)
    # the weights with the files' own beside them, and both sets of logits
    whole = (itemsize + 2) * parameters + itemsize * seq_length * 2 * model.vocab_size + activations
    # a layer of each, both output layers as they are in the files, and a tile of logits
    head = 2 * 2 * weights[0].numel + 8 * 4 * POSITIONS * model.vocab_size
    layers = 2 * itemsize * layer + head + activations
    available = psutil.virtual_memory().available
    if method == "auto":
        method = "whole" if whole <= available else "layers"
    needed = whole if method == "whole" else layers
    if needed > available:
        raise InputError(
            f"--logits needs about {needed / 2**30:.1f} GiB of memory for this model and "
            f"{seq_length} tokens ({method}; {layers / 2**30:.1f} GiB layer by layer), "
            f"{available / 2**30:.1f} GiB are available: take a larger machine, a shorter "
            "--logits-seq-length, or the bit comparison alone"
        )
    return method == "layers"
