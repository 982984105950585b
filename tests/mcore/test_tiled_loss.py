from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from megatron_ultralong.mcore.sequence_tiles import SequenceTiles
from megatron_ultralong.mcore.tiled_loss import _TiledCrossEntropy, _Tiling
from tests.ranks import run_on_ranks

TOKENS, HIDDEN, VOCABULARY = 37, 24, 60


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight, labels, and the weight of every token's loss (some are masked)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, labels, (torch.rand(TOKENS, generator=generator) > 0.3).float()


def tiled(tile_size: int) -> list[torch.Tensor]:
    """Run on every rank: losses, gradient of the hidden states and of this rank's weight."""
    hidden, weight, labels, mask = inputs()
    group = dist.group.WORLD
    assert group is not None
    part = weight.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden.requires_grad_()
    tiling = _Tiling(SequenceTiles(1, tile_size), group)
    losses = _TiledCrossEntropy.apply(hidden[:, None], part, labels[:, None], tiling)[:, 0]
    (losses * mask).sum().backward()
    assert hidden.grad is not None
    return [losses.detach(), hidden.grad, part.grad]


@pytest.mark.parametrize(("ranks", "tile_size"), [(1, 1), (1, 10), (2, 10), (2, 64)])
def test_losses_and_gradients_are_those_of_the_full_logits(ranks: int, tile_size: int) -> None:
    hidden, weight, labels, mask = inputs()
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    losses = functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    (losses * mask).sum().backward()
    results = run_on_ranks(ranks, tiled, tile_size)
    ours = [results[0][0], results[0][1], torch.cat([result[2] for result in results])]
    for mine, exact in zip(ours, (losses, hidden.grad, weight.grad), strict=True):
        # float32 sums of 24 to 60 products of size one.
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)
