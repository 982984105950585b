"""A transport with one rank of a group and nobody else: that rank's work, time and memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ultralong.sequence.transport import Transfer


class LoneRank:
    """What the others would send is random; nothing is ever in flight."""

    def __init__(self, size: int, rank: int):
        self.size = size
        self.ranks: Sequence[int] = [rank]
        self.bytes_sent = 0

    def exchange(self, transfers: Sequence[Sequence[Transfer]]) -> LoneRank:
        """Fill what is received."""
        for each in transfers[0]:
            if each.kind == "receive":
                each.tensor.normal_()
            else:
                self.bytes_sent += each.tensor.nbytes
        return self

    def wait(self) -> None:
        """Nothing to wait for."""

    def all_gather(self, shards: Sequence[Tensor]) -> list[list[Tensor]]:
        """Random shards."""
        return [[torch.randn_like(shards[0]) for _ in range(self.size)]]

    def reduce_scatter(self, shards: Sequence[list[Tensor]]) -> list[Tensor]:
        """The part of the rank itself."""
        return [shards[0][self.ranks[0]]]
