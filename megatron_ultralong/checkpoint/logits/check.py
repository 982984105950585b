"""Comparison of what two models compute: logits of one prompt, by two programs."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F

import megatron_ultralong
from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER
from megatron_ultralong.checkpoint.formats import tokenizer_files
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.models import DiskModel
from megatron_ultralong.checkpoint.formats.weight_map import WeightSource, model_weights
from megatron_ultralong.checkpoint.logits import comparison as compared
from megatron_ultralong.checkpoint.logits import transformers_model
from megatron_ultralong.config.convert import LogitsDtype, LogitsMethod
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.model.shape import ModelConfig, layer_parameters, num_parameters
from megatron_ultralong.program.available_memory import available_memory
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.progress import ProgressBar, progress
from megatron_ultralong.program.quantity import different, quantity

Pair = tuple[DiskModel, DiskModel]
_ROWS = 16_384
"""Rows of the output layer that are in the wide dtype at a time."""


def prompt(vocab_size: int, seq_length: int) -> torch.Tensor:
    """Random token ids [S], the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (seq_length,), generator=generator)


def text_prompt(tokenizer_file: Path, seq_length: int) -> torch.Tensor:
    """Token ids [S] of a text that is on every machine: the source files of this package.

    Random ids are no text: a model is far from its training there, and float32 rounding grows.
    Fewer than ``seq_length`` ids, where the tokenizer makes none of that text.

    Raises:
        InputError: the file is not a tokenizer.
    """
    tokenizer = tokenizer_files.load_fast(tokenizer_file)
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


def _prompt_for(model: DiskModel, seq_length: int) -> torch.Tensor:
    """Text where the model has a ``tokenizer.json`` that can write it, else random ids.

    A row of one id over and over would look the same whatever the rotary embedding.
    """
    root = model.root if isinstance(model, MegatronCheckpoint) else model.folder
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
    models: Pair, seq_length: int, dtype: LogitsDtype = "fp32", method: LogitsMethod = "auto"
) -> compared.LogitsComparison:
    """Compare the logits of two models at every position of one prompt.

    Megatron checkpoints are computed by Megatron-Core, folders of weights by transformers: both
    models as a whole, or one layer of each after the other. ``auto`` takes what fits in memory.
    A difference in float32 that is more than :func:`rounding_bound` may still be rounding, in a
    model that amplifies it: the prompt is computed again in float64, and that is what counts.

    Raises:
        InputError: they differ by more than rounding, are not finite, or do not fit in memory.
    """
    tokens_S = _prompt_for(models[0], seq_length)
    comparison = _comparison(models, tokens_S, dtype, method)
    if not comparison.equal and dtype == "fp32" and math.isfinite(comparison.max_difference):
        before = comparison.max_difference
        try:
            comparison = _comparison(models, tokens_S, "fp64", method)
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
    models: Pair, tokens_S: torch.Tensor, name: LogitsDtype, method: LogitsMethod
) -> compared.LogitsComparison:
    dtype, shape = compared.DTYPES[name], models[0].model
    differences: list[float] = []
    if _by_layer(shape, len(tokens_S), dtype.itemsize, method):
        layered = LayeredLogits(models, tokens_S, dtype)
        comparison = compared.compare_tiles(layered.tiles())
        differences = layered.layer_differences
    else:
        logits = (model_logits(model, tokens_S, dtype) for model in models)
        comparison = compared.compare_logits(*logits)
    return dataclasses.replace(
        comparison,
        dtype=name,
        bound=compared.rounding_bound(name, shape.num_layers, comparison.max_logit),
        layer_differences=tuple(differences),
    )


def _difference(comparison: compared.LogitsComparison) -> str:
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


def model_logits(model: DiskModel, tokens_S: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Logits [S, vocabulary] of a model that is whole in memory."""
    if isinstance(model, MegatronCheckpoint):
        from megatron_ultralong.checkpoint.logits.megatron_model import megatron_logits

        return megatron_logits(model, tokens_S, dtype=dtype)
    return transformers_model.transformers_logits(model, tokens_S, dtype)


def _by_layer(model: ModelConfig, seq_length: int, itemsize: int, method: LogitsMethod) -> bool:
    """Whether to compute layer by layer.

    Raises:
        InputError: there is too little memory for ``method``.
    """
    words = model.vocab_size * model.hidden_size
    activations = itemsize * seq_length * (8 * model.hidden_size + 4 * model.ffn_hidden_size)
    # the weights with the files' own beside them, and both sets of logits
    whole = (itemsize + 2) * num_parameters(model) + activations
    whole += itemsize * seq_length * 2 * model.vocab_size
    # a layer of each, both output layers as they are in the files, and a tile of logits
    head = 2 * 2 * words + 8 * 4 * compared.POSITIONS * model.vocab_size
    layers = 2 * itemsize * layer_parameters(model) + head + activations
    available = available_memory()
    if method == "auto":
        method = "whole" if whole <= available else "layers"
    needed = whole if method == "whole" else layers
    if needed > available:
        wanted, has = different(needed, available, "B")
        raise InputError(
            f"--logits needs about {wanted} of memory for this model and {seq_length} tokens "
            f"({method}; {quantity(layers, 'B')} layer by layer), {has} are available: take a "
            "larger machine, a shorter --logits-seq-length, or the bit comparison alone"
        )
    return method == "layers"


class LayeredModel(Protocol):
    """A model in the hands of a program that computes one of its layers at a time."""

    def layer(self, number: int, hidden_SH: torch.Tensor) -> torch.Tensor:
        """Hidden states behind layer ``number`` of those before it."""

    def final_norm(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        """What the output layer is given of the last layer's hidden states."""


@dataclasses.dataclass(frozen=True)
class LayeredLogits:
    """Logits of two models of one shape, tile by tile, and how their hidden states part.

    One layer of each is in memory, not the models. Each model continues from its own hidden states,
    so the logits are those of the whole models.
    """

    models: Pair
    tokens: torch.Tensor
    """Of the prompt, [S]."""
    dtype: torch.dtype
    layer_differences: list[float] = dataclasses.field(default_factory=list)
    """After each layer: ``|h_a - h_b| / |h_a|`` at the worst position."""

    @torch.no_grad()
    def tiles(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Both models' logits, [T, vocabulary] each, of some positions after the others."""
        shape = self.models[0].model
        head_size = shape.vocab_size * shape.hidden_size
        size = 2 * (shape.num_layers * layer_parameters(shape) + head_size)
        with progress("logits", size, "parameters") as bar:
            states = self._hidden_states(bar)
            heads = [_head(model) for model in self.models]
            split = (hidden_SH.split(compared.POSITIONS) for hidden_SH in states)
            for tiles in zip(*split, strict=True):
                a, b = (_product(tile, head) for tile, head in zip(tiles, heads, strict=True))
                yield a, b
                bar.advance(2 * head_size * len(a) / len(self.tokens))

    def _hidden_states(self, bar: ProgressBar) -> list[torch.Tensor]:
        """What the two output layers are given, [S, hidden] each."""
        with contextlib.ExitStack() as stack:
            programs = self._programs(stack)
            shape = self.models[0].model
            states = [
                model.read(model_weights(shape)[0])[0][self.tokens].to(self.dtype)
                for model in self.models
            ]
            for number in range(shape.num_layers):
                for side, program in enumerate(programs):
                    states[side] = program.layer(number, states[side])
                    bar.advance(layer_parameters(shape))
                a_SH, b_SH = states
                relative_S = (a_SH - b_SH).norm(dim=-1) / a_SH.norm(dim=-1)
                self.layer_differences.append(float(relative_S.max()))
            return [p.final_norm(hidden) for p, hidden in zip(programs, states, strict=True)]

    def _programs(self, stack: contextlib.ExitStack) -> list[LayeredModel]:
        """The program of each model; what Megatron-Core needs lives as long as ``stack``."""
        programs: list[LayeredModel] = []
        groups = None
        for model in self.models:
            if isinstance(model, MegatronCheckpoint):
                from megatron_ultralong.checkpoint.logits.megatron_model import MegatronLayers
                from megatron_ultralong.mcore.parallel import parallel_groups

                groups = groups or stack.enter_context(parallel_groups(ParallelConfig(), seed=1))
                programs.append(MegatronLayers(model, groups, len(self.tokens), self.dtype))
            else:
                programs.append(transformers_model.TransformersLayers(model, self.dtype))
        return programs


def _head(model: WeightSource) -> torch.Tensor:
    weights = model_weights(model.model)
    tied = not model.model.untie_embeddings_and_output_weights
    return model.read(weights[0] if tied else weights[-1])[0]


def _product(hidden_TH: torch.Tensor, head_VH: torch.Tensor) -> torch.Tensor:
    parts = [F.linear(hidden_TH, rows.to(hidden_TH.dtype)) for rows in head_VH.split(_ROWS)]
    return torch.cat(parts, dim=-1)
