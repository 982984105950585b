"""Tiles of a sequence with sequence parallelism, and the embedding in them.

Under sequence parallelism each of ``R`` tensor-parallel ranks holds one run of the sequence. A tile
is the same slice of every run, so that gathering it takes one all-gather and no whole sequence is
ever on one rank. Of 12 tokens on 2 ranks, tile ``[1:3]`` holds tokens 1, 2 and 7, 8.

Megatron's vocabulary-parallel embedding makes a vector for every token on every tensor-parallel
rank, zero where the token is another rank's, then sums and scatters them: 32 GiB for 4M tokens of
Llama 8B, of which a rank keeps an eighth.
"""

import dataclasses
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.autograd.function import once_differentiable


def tiles(length: int, tile_size: int) -> list[slice]:
    """Tiles of a sequence, one if ``tile_size`` is 0: ``5, 2 -> [0:2, 2:4, 4:5]``."""
    step = tile_size or max(length, 1)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@dataclasses.dataclass(frozen=True)
class SequenceTiles:
    """How tensors over a sequence are cut.

    ``whole`` tensors are [R * n, ...], all tokens; ``local`` ones [n, ...], this rank's run of
    them. Without sequence parallelism R is 1 and both are the same.
    """

    num_runs: int
    """R: tensor-parallel ranks that share the sequence, or 1."""
    tile_size: int
    """Tokens of a gathered tile, at most; 0: one tile."""

    def of(self, length: int) -> list[slice]:
        """Slices of a local tensor of ``length`` tokens."""
        size = max(1, self.tile_size // self.num_runs) if self.tile_size else 0
        return tiles(length, size)

    def take(self, whole: Tensor, tile: slice) -> Tensor:
        """Tokens of a gathered tile, [R * len(tile), ...]; a view where one run is all."""
        if self.num_runs == 1:
            return whole[tile]
        return self.runs(whole)[:, tile].flatten(0, 1)

    def put(self, whole: Tensor, tile: slice, values: Tensor) -> None:
        """Overwrite the tokens of a gathered tile."""
        self.runs(whole)[:, tile] = self.runs(values)

    def runs(self, whole: Tensor) -> Tensor:
        """The runs beside each other, a view [R, n, ...]."""
        runs: Tensor = whole.unflatten(0, (self.num_runs, -1))
        return runs


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
