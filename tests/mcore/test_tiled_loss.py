from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.nn import functional

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.batch import token_loss
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.tiled_loss import _TiledCrossEntropy, _Tiling
from megatron_ultralong.mcore.tiles import SequenceTiles
from tests.ranks import run_on_ranks
from tests.shapes import fill, llama_shape

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
    actual = [results[0][0], results[0][1], torch.cat([result[2] for result in results])]
    for own, exact in zip(actual, (losses, hidden.grad, weight.grad), strict=True):
        # float32 sums of 24 to 60 products of size one.
        torch.testing.assert_close(own.double(), exact, rtol=1e-5, atol=1e-5)


MODEL = llama_shape(layers=1, hidden=32, ffn=48, vocabulary=64, positions=96)
ROWS, LENGTH = 2, 96
MASKS = {
    "all": torch.ones(ROWS, LENGTH),
    "some": (torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(1)) > 0.6).float(),
    "one token": torch.zeros(ROWS, LENGTH).index_put_(
        (torch.tensor(1), torch.tensor(70)), torch.tensor(1.0)
    ),
    "one row": torch.stack((torch.zeros(LENGTH), torch.ones(LENGTH))),
}
Tensors = dict[str, torch.Tensor]


def mean_loss(
    groups: ProcessGroupCollection, parallel: ParallelConfig, tied: bool, mask: str, tile_size: int
) -> Tensors:
    """Losses that count, their mean, and its gradients, through Megatron's path or the tiles."""
    shape = dataclasses.replace(MODEL, untie_embeddings_and_output_weights=not tied)
    model = build_model(
        shape,
        transformer_config(shape, parallel, params_dtype=torch.float32),
        groups,
        seq_length=LENGTH,
        rope_scaling=None,
        loss_tile_size=tile_size,
    )
    fill(model, groups.tp.rank())
    tokens = torch.randint(64, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(9))
    losses = model(tokens[:, :-1], None, None, labels=tokens[:, 1:])
    total, count, _ = token_loss(MASKS[mask], losses)
    (total / count).backward()
    found = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {"losses": losses.detach() * MASKS[mask], "mean": total.detach() / count, **found}


def differences(parallel: ParallelConfig) -> dict[tuple[bool, str], float]:
    """Run on every rank: the largest relative difference of a tensor, by tying and mask."""
    worst = {}
    with parallel_groups(parallel, seed=1) as groups:
        for tied in (False, True):
            for mask in MASKS:
                plain, actual = (
                    mean_loss(groups, parallel, tied, mask, tile_size) for tile_size in (0, 28)
                )
                assert len(plain) == 2 + (2 if tied else 3) + 6, sorted(plain)
                worst[tied, mask] = max(
                    float((actual[name] - x).norm() / x.norm())
                    for name, x in plain.items()
                    if x.any()
                )
    return worst


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(),
        ParallelConfig(tensor_model_parallel_size=2),
        ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    ],
    ids=["tp1", "tp2", "tp2-sp"],
)
def test_it_is_megatrons_loss(parallel: ParallelConfig) -> None:
    for found in run_on_ranks(parallel.tensor_model_parallel_size, differences, parallel):
        for case, difference in found.items():
            logging.info("%s: %.1e", case, difference)
            assert difference <= 1e-6, case  # float32 sums in another order
