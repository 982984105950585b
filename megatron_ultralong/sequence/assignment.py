"""Assignment of equal chunks of the sequence to the ranks of a context-parallel group.

The sequence is cut into ``chunks_per_rank * cp_size`` chunks of equal length; every rank holds
``chunks_per_rank`` of them, in ascending order, end to end. *Zigzag* (two chunks, ``r`` and
``2 * cp_size - 1 - r``) shares causal work evenly when every token may see the whole past.
*Balanced* shares it evenly when tokens see their own document alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.chunks import Chunks, balanced_chunks, zigzag_chunks


@dataclass(frozen=True)
class Assignment:
    """Chunk numbers of every rank, ascending: zigzag of two ranks is ``((0, 3), (1, 2))``."""

    chunks: Chunks

    def __post_init__(self) -> None:
        """Every chunk belongs to one rank, and every rank holds equally many."""
        held = [chunk for rank in self.chunks for chunk in rank]
        assert sorted(held) == list(range(len(held))), f"not a partition of chunks: {self.chunks}"
        assert len({len(rank) for rank in self.chunks}) == 1, f"unequal ranks: {self.chunks}"
        assert all(list(rank) == sorted(rank) for rank in self.chunks), f"order: {self.chunks}"

    @property
    def cp_size(self) -> int:
        """Number of ranks."""
        return len(self.chunks)

    @property
    def chunks_per_rank(self) -> int:
        """Number of chunks that each rank holds."""
        return len(self.chunks[0])

    @property
    def num_chunks(self) -> int:
        """Number of chunks that the sequence is cut into."""
        return self.cp_size * self.chunks_per_rank

    def chunk_length(self, seq_length: int) -> int:
        """Tokens of one chunk.

        Raises:
            InputError: the sequence does not divide into the chunks.
        """
        if seq_length % self.num_chunks:
            lower = seq_length // self.num_chunks * self.num_chunks
            raise InputError(
                f"seq_length ({seq_length}) must be divisible by the number of chunks "
                f"({self.num_chunks} = {self.chunks_per_rank} for each of {self.cp_size} "
                f"context-parallel ranks); use {lower + self.num_chunks}"
                + (f" or {lower}" if lower else "")
            )
        return seq_length // self.num_chunks

    def ranges(self, cp_rank: int, seq_length: int) -> list[tuple[int, int]]:
        """Tokens ``[start, stop)`` of a rank's chunks: zigzag, 2 ranks, rank 0, 8 -> 0:2, 6:8."""
        length = self.chunk_length(seq_length)
        return [(chunk * length, (chunk + 1) * length) for chunk in self.chunks[cp_rank]]

    def positions(self, cp_rank: int, seq_length: int) -> torch.Tensor:
        """Positions of a rank's tokens, int64 [s_local]: zigzag, 2 ranks, rank 0, 8 -> 0 1 6 7."""
        return torch.cat([torch.arange(*part) for part in self.ranges(cp_rank, seq_length)])

    def shard(self, x: torch.Tensor, cp_rank: int, dim: int) -> torch.Tensor:
        """Tokens of one rank: dimension ``dim`` goes from seq_length to s_local."""
        length = self.chunk_length(x.shape[dim])
        parts = [x.narrow(dim, chunk * length, length) for chunk in self.chunks[cp_rank]]
        return torch.cat(parts, dim) if len(parts) > 1 else parts[0]

    def unshard(self, shards: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """Whole sequence from the shards of all ranks, in rank order: inverse of :meth:`shard`."""
        assert len(shards) == self.cp_size, f"{len(shards)} shards of {self.cp_size} ranks"
        parts: dict[int, torch.Tensor] = {}
        for numbers, shard in zip(self.chunks, shards, strict=True):
            parts |= dict(zip(numbers, shard.chunk(self.chunks_per_rank, dim), strict=True))
        return torch.cat([parts[chunk] for chunk in range(self.num_chunks)], dim)


@lru_cache(maxsize=32)
def zigzag(cp_size: int) -> Assignment:
    """One early and one late chunk for each rank: ``2 -> ((0, 3), (1, 2))``, ``1 -> ((0,),)``."""
    return Assignment(zigzag_chunks(cp_size))


def balanced(cu_seqlens: Sequence[int], cp_size: int) -> Assignment:
    """Assignment that shares the work of ``document_mask: block`` evenly, at every hop of a ring.

    See :func:`~megatron_ultralong.sequence.chunks.balanced_chunks`.

    Raises:
        InputError: the sequence does not divide into the chunks of :func:`zigzag`.
    """
    zigzag(cp_size).chunk_length(int(cu_seqlens[-1]))
    return Assignment(balanced_chunks(cu_seqlens, cp_size))
