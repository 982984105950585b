"""The embedding in tiles of the sequence: no rank holds the vectors of tokens it does not keep.

Megatron's vocabulary-parallel embedding makes a vector for every token on every tensor-parallel
rank, zero where the token is another rank's, then sums and scatters them: 32 GiB for 4M tokens of
Llama 8B, of which a rank keeps an eighth.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ultralong.mcore.sequence_tiles import SequenceTiles


class TiledEmbedding:
    """Stands where a ``VocabParallelEmbedding`` has its forward pass."""

    def __init__(self, model: GPTModel, tile_size: int) -> None:
        """``tile_size``: tokens that are looked up at a time."""
        assert model.pre_process, "the embedding belongs to the first pipeline stage"
        self._words = model.embedding.word_embeddings
        self._forward = self._words.forward
        # Else the result is [b, s, h] on every rank, and is scattered later.
        self.scatters = bool(self._words.reduce_scatter_embeddings)
        runs = model.config.tensor_model_parallel_size if self.scatters else 1
        self.tiles = SequenceTiles(runs, tile_size)

    def install(self, model: GPTModel) -> None:
        """Put it into its place in ``model``."""
        model.embedding.word_embeddings.forward = self

    def __call__(self, tokens: Tensor) -> Tensor:
        """Vectors of tokens [b, s]: [s / tp, b, h] if they are scattered, else [b, s, h]."""
        if not torch.is_grad_enabled():
            return self.look_up(tokens)
        # The vectors depend on the weight, whose gradient backward adds tile by tile.
        anchor = torch.empty(0, device=tokens.device, requires_grad=True)
        vectors: Tensor = _TiledLookUp.apply(anchor, tokens, self)
        return vectors

    def look_up(self, tokens: Tensor) -> Tensor:
        """The forward pass."""
        whole: Tensor | None = None
        length = tokens.shape[1] // self.tiles.num_runs
        for tile in self.tiles.of(length):
            vectors = self.look_up_tile(tokens, tile)
            if whole is None:
                if tile.stop == length:
                    return vectors
                shape = list(vectors.shape)
                shape[0 if self.scatters else 1] = length
                whole = vectors.new_empty(shape)
            self.part(whole, tile).copy_(vectors)
        assert whole is not None
        return whole

    def look_up_tile(self, tokens: Tensor, tile: slice) -> Tensor:
        """Megatron's forward pass of a tile of the tokens."""
        some: Tensor = self.tiles.take(tokens.t(), tile).t()
        vectors: Tensor = self._forward(some)
        return vectors

    def part(self, vectors: Tensor, tile: slice) -> Tensor:
        """View of a tile's vectors."""
        return vectors[tile] if self.scatters else vectors[:, tile]


class _TiledLookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tokens: Tensor, embedding: TiledEmbedding) -> Tensor:
        ctx.tokens, ctx.embedding = tokens, embedding
        return embedding.look_up(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dvectors: Tensor) -> tuple[Tensor | None, ...]:
        embedding: TiledEmbedding = ctx.embedding
        for tile in embedding.tiles.of(ctx.tokens.shape[1] // embedding.tiles.num_runs):
            with torch.enable_grad():
                vectors = embedding.look_up_tile(ctx.tokens, tile)
            torch.autograd.backward(vectors, embedding.part(dvectors, tile))
        return None, None, None
