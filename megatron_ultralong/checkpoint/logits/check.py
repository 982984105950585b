"""Comparison of what two models compute: logits of one prompt, by two programs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import psutil
import torch

import megatron_ultralong
from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.checkpoint.formats.tokenizer_files import load_fast
from megatron_ultralong.checkpoint.formats.weight_map import Weight, weight_map
from megatron_ultralong.checkpoint.logits.comparison import (
    DTYPES,
    LogitsComparison,
    compare_logits,
    compare_tiles,
    rounding_bound,
)
from megatron_ultralong.checkpoint.logits.layered_logits import POSITIONS, LayeredLogits
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_logits
from megatron_ultralong.config.convert import LogitsDtype, LogitsMethod
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import RopeScaling, describe, hf_rope_scaling
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError


def prompt(vocab_size: int, seq_length: int) -> torch.Tensor:
    """Random token ids [S], the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (seq_length,), generator=generator)


def text_prompt(tokenizer_file: Path, seq_length: int) -> torch.Tensor:
    """Token ids [S] of a text that is on every machine: the source files of this package.

    Random ids are no text: a model is far from its training there, and float32 rounding grows.
    Fewer than ``seq_length`` ids, where the tokenizer makes none of that text.

    Raises:
        InputError: the file is no tokenizer.
    """
    tokenizer = load_fast(tokenizer_file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens: list[int] = []
    files = sorted(Path(megatron_ultralong.__file__).parent.rglob("*.py"))
    while len(tokens) < seq_length:
        before = len(tokens)
        for file in files:
            tokens += tokenizer.encode(file.read_text("utf-8"), add_special_tokens=False).ids
            if len(tokens) >= seq_length:
                break
        if len(tokens) == before:
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
            if len(tokens_S) == seq_length and varied and int(tokens_S.max()) < vocab_size:
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
    A difference in float32 that is more than :func:`rounding_bound` may still be rounding, in a
    model that amplifies it: the prompt is computed again in float64, and that is what counts.

    Raises:
        InputError: they differ by more than rounding, are not finite, or do not fit in memory.
    """
    tokens_S = _prompt_for(a, seq_length)
    comparison = _comparison(a, b, tokens_S, dtype, method)
    if not comparison.equal and dtype == "fp32" and math.isfinite(comparison.max_difference):
        before = comparison.max_difference
        try:
            comparison = _comparison(a, b, tokens_S, "fp64", method)
        except InputError as error:
            raise InputError(
                f"{_difference(comparison)}; to judge it in float64: {error}"
            ) from error
        comparison = dataclasses.replace(comparison, float32_difference=before)
    if not comparison.equal:
        raise InputError(
            f"{_difference(comparison)}. Their weights are equal: compare config.json with the "
            "checkpoint's ultralong.json"
        )
    return comparison


def _comparison(
    a: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
    b: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
    tokens_S: torch.Tensor,
    dtype: LogitsDtype,
    method: LogitsMethod,
) -> LogitsComparison:
    layer_differences: tuple[float, ...] = ()
    if _by_layer(a.model, len(tokens_S), DTYPES[dtype].itemsize, method):
        layered = LayeredLogits(a, b, tokens_S, DTYPES[dtype])
        comparison = compare_tiles(layered.tiles())
        layer_differences = tuple(layered.layer_differences)
    else:
        comparison = compare_logits(
            *(model_logits(model, tokens_S, DTYPES[dtype]) for model in (a, b))
        )
    return dataclasses.replace(
        comparison,
        dtype=dtype,
        bound=rounding_bound(dtype, a.model.num_layers, comparison.max_logit),
        layer_differences=layer_differences,
    )


def _difference(comparison: LogitsComparison) -> str:
    """What a message says of logits that differ."""
    layer = comparison.parted_layer
    where = ""
    if layer is not None:
        where = (
            f"; the hidden states part in layer {layer}, by "
            f"{comparison.layer_differences[layer]:.2g} of their norm"
        )
    if not math.isfinite(comparison.max_difference):
        return f"the models compute logits that are no finite numbers{where}"
    return (
        f"the models compute different logits: in {comparison.dtype} the largest difference is "
        f"{comparison.max_difference:.3g} (rounding makes at most {comparison.bound:.3g}, for "
        f"logits up to {comparison.max_logit:.3g}), the largest KL divergence "
        f"{comparison.max_kl:.3g}{where}"
    )


def model_logits(
    model: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
    tokens_S: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Logits [S, vocabulary] of a model that is whole in memory."""
    if isinstance(model, MegatronCheckpoint):
        from megatron_ultralong.checkpoint.logits.megatron_model import megatron_logits

        return megatron_logits(model, tokens_S, dtype=dtype)
    return transformers_logits(model, tokens_S, dtype)


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


@dataclasses.dataclass(frozen=True)
class ExtendedModel:
    """The weights of ``source`` for the positions and the scaling of a :class:`RopeConfig`."""

    source: HuggingFaceFolder | MetaFolder
    rope: RopeConfig

    @property
    def format(self) -> str:
        """Name of its format."""
        return self.source.format

    @property
    def rope_scaling(self) -> RopeScaling:
        """What is done to the rotary frequencies."""
        return self.rope.scaling(self.source.rope_scaling)

    @property
    def model(self) -> ModelConfig:
        """Its shape."""
        model = self.source.model
        positions = self.rope.max_positions(model.max_position_embeddings, self.source.rope_scaling)
        return dataclasses.replace(model, max_position_embeddings=positions)

    @property
    def trained_seq_length(self) -> int | None:
        """Positions that the weights were trained for, where they are not the model's own."""
        if self.rope_scaling == self.source.rope_scaling:
            return None
        models = (self.source.model, self.model)
        return min(model.max_position_embeddings for model in models)

    def dtype(self, weight: Weight) -> torch.dtype:
        """Dtype that ``weight`` is stored in."""
        return self.source.dtype(weight)

    def read(self, weight: Weight) -> tuple[torch.Tensor, ...]:
        """The parts of ``weight``."""
        return self.source.read(weight)

    def check(self) -> None:
        """Say what becomes of the rotary embedding, where it changes.

        Raises:
            InputError: no rope block can express it, or the positions would be too many.
        """
        hf_rope_scaling(self.rope_scaling)
        self.model.check("--rope-scaling")
        source = self.source
        positions = source.model.max_position_embeddings
        if self.rope_scaling != source.rope_scaling:
            before = describe(source.rope_scaling, positions)
            after = describe(self.rope_scaling, self.model.max_position_embeddings)
            tell(f"rotary: {before} -> {after}; the weights are not trained for it")
        for line in self.rope.warnings(positions, source.rope_scaling):
            tell(line)
