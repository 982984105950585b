"""Tiles of a sequence, with sequence parallelism: which tokens a gathered tile holds.

Under sequence parallelism each of ``R`` tensor-parallel ranks holds one run of the sequence. A tile
is the same slice of every run, so that gathering it takes one all-gather and no whole sequence is
ever on one rank. Of 12 tokens on 2 ranks, tile ``[1:3]`` holds tokens 1, 2 and 7, 8.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor


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
        return self._runs(whole)[:, tile].flatten(0, 1)

    def put(self, whole: Tensor, tile: slice, values: Tensor) -> None:
        """Overwrite the tokens of a gathered tile."""
        self._runs(whole)[:, tile] = self._runs(values)

    def _runs(self, whole: Tensor) -> Tensor:
        runs: Tensor = whole.unflatten(0, (self.num_runs, -1))
        return runs
