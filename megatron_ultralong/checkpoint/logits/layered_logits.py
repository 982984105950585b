"""What two models compute, layer by layer: one layer of each is in memory, not the models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.checkpoint.formats.weight_map import WeightSource, weight_map
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.program.progress import ProgressBar, progress

POSITIONS = 256
"""Positions whose logits are in memory at a time."""
_ROWS = 16_384
"""Rows of the output layer that are in the wide dtype at a time."""


class LayeredModel(Protocol):
    """A model in the hands of a program that computes one of its layers at a time."""

    def layer(self, number: int, hidden_SH: torch.Tensor) -> torch.Tensor:
        """Hidden states behind layer ``number`` of those before it."""

    def final_norm(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        """What the output layer is given of the last layer's hidden states."""


class LayeredLogits:
    """Logits of two models of one shape, tile by tile, and how their hidden states part.

    Each model goes on from its own hidden states, so the logits are those of the whole models.
    """

    def __init__(
        self,
        a: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
        b: HuggingFaceFolder | MetaFolder | MegatronCheckpoint,
        tokens_S: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._models = (a, b)
        self._tokens_S = tokens_S
        self._dtype = dtype
        self.layer_differences: list[float] = []
        """After each layer: ``|h_a - h_b| / |h_a|`` at the worst position."""

    @torch.no_grad()
    def tiles(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Both models' logits, [T, vocabulary] each, of some positions after the others."""
        shape = self._models[0].model
        weights = weight_map(shape)
        layer_size = sum(weight.numel for weight in weights if weight.layer == 0)
        head_size = weights[0].numel
        with progress(
            "logits", 2 * (shape.num_layers * layer_size + head_size), "parameters"
        ) as bar:
            states = self._hidden_states(layer_size, bar)
            heads = [_head(model) for model in self._models]
            for tiles in zip(*(hidden_SH.split(POSITIONS) for hidden_SH in states), strict=True):
                a, b = (_product(tile, head) for tile, head in zip(tiles, heads, strict=True))
                yield a, b
                bar.advance(2 * head_size * len(a) / len(self._tokens_S))

    def _hidden_states(self, layer_size: int, bar: ProgressBar) -> list[torch.Tensor]:
        """What the two output layers are given, [S, hidden] each."""
        with contextlib.ExitStack() as stack:
            programs = self._programs(stack)
            states = [_embedded(model, self._tokens_S).to(self._dtype) for model in self._models]
            for number in range(self._models[0].model.num_layers):
                for side, program in enumerate(programs):
                    states[side] = program.layer(number, states[side])
                    bar.advance(layer_size)
                self.layer_differences.append(relative_difference(*states))
            return [p.final_norm(hidden) for p, hidden in zip(programs, states, strict=True)]

    def _programs(self, stack: contextlib.ExitStack) -> list[LayeredModel]:
        """The program of each model; what Megatron-Core needs lives as long as ``stack``."""
        programs: list[LayeredModel] = []
        groups = None
        for model in self._models:
            if isinstance(model, MegatronCheckpoint):
                from megatron_ultralong.checkpoint.logits.megatron_model import MegatronLayers
                from megatron_ultralong.mcore.parallel import parallel_groups

                groups = groups or stack.enter_context(parallel_groups(ParallelConfig(), seed=1))
                programs.append(MegatronLayers(model, groups, len(self._tokens_S), self._dtype))
            else:
                from megatron_ultralong.checkpoint.logits.transformers_model import (
                    TransformersLayers,
                )

                programs.append(TransformersLayers(model, self._dtype))
        return programs


def relative_difference(a_SH: torch.Tensor, b_SH: torch.Tensor) -> float:
    """``|a - b| / |a|`` of the position where it is largest."""
    return float(((a_SH - b_SH).norm(dim=-1) / a_SH.norm(dim=-1)).max())


def _embedded(model: WeightSource, tokens_S: torch.Tensor) -> torch.Tensor:
    return model.read(weight_map(model.model)[0])[0][tokens_S]


def _head(model: WeightSource) -> torch.Tensor:
    weights = weight_map(model.model)
    tied = not model.model.untie_embeddings_and_output_weights
    return model.read(weights[0] if tied else weights[-1])[0]


def _product(hidden_TH: torch.Tensor, head_VH: torch.Tensor) -> torch.Tensor:
    parts = [F.linear(hidden_TH, rows.to(hidden_TH.dtype)) for rows in head_VH.split(_ROWS)]
    return torch.cat(parts, dim=-1)
