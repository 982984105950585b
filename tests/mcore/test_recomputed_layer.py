"""Layers that recompute, keep, offload and work in tiles have the gradients of plain layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.host_memory import HostMemory
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.plan.job import in_pages
from tests.ranks import run_on_ranks
from tests.shapes import fill, llama_shape

SEQ_LENGTH, VOCABULARY = 96, 64
MODEL = llama_shape(layers=3, hidden=32, ffn=48, vocabulary=VOCABULARY, positions=SEQ_LENGTH)
TP2 = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
ONE = ParallelConfig()
Gradients = dict[str, torch.Tensor]


def gradients(
    groups: ProcessGroupCollection,
    parallel: ParallelConfig,
    recomputation: Recomputation | None,
    loss_tile_size: int = 0,
    *,
    megatron_recomputes: bool = False,
) -> Gradients:
    """Losses and gradients of all parameters of this rank, of two passes with the same store."""
    config = transformer_config(MODEL, parallel, params_dtype=torch.float32)
    if megatron_recomputes:
        config.recompute_granularity, config.recompute_method = "full", "uniform"
        config.recompute_num_layers = 1
    model = build_model(
        MODEL,
        config,
        groups,
        seq_length=SEQ_LENGTH,
        rope_scaling=None,
        recomputation=recomputation,
        loss_tile_size=loss_tile_size,
    )
    fill(model, groups.tp.rank())
    rows = torch.randint(
        VOCABULARY, (2, SEQ_LENGTH + 1), generator=torch.Generator().manual_seed(9)
    )
    for _ in range(2):
        losses = model(rows[:, :-1], None, None, labels=rows[:, 1:])
        losses.square().sum().backward()
    found = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {"losses": losses.detach(), **found}


def run(parallel: ParallelConfig) -> dict[str, Gradients]:
    """Run on every rank: every way to keep and to recompute."""
    with parallel_groups(parallel, seed=1) as groups:

        def of(recomputation: Recomputation | None, **options: Any) -> Gradients:
            return gradients(groups, parallel, recomputation, **options)

        store = HostMemory(max_bytes=2**22)
        found = {
            "plain": of(None),
            "megatron": of(None, megatron_recomputes=True),
            "keep": of(Recomputation()),
            "full": of(Recomputation(keep_attention=False)),
            "offload": of(Recomputation(store=store)),
            "tiles": of(Recomputation(tile_size=20), loss_tile_size=28),
            "tiles, full": of(Recomputation(keep_attention=False, tile_size=20), loss_tile_size=28),
            "tiles, offload": of(
                Recomputation(tile_size=20, store=HostMemory(2**22)), loss_tile_size=28
            ),
        }
        # The second pass took the buffers of the first one.
        elements = 2 * SEQ_LENGTH // parallel.tensor_model_parallel_size
        hidden_out = 32 * elements if parallel.sequence_parallel else 32 * 2 * SEQ_LENGTH
        kept = sum(in_pages(4 * size) for size in (hidden_out, 32 * elements, 4 * elements))
        assert store.memory.num_bytes == MODEL.num_layers * kept
        return found


@pytest.mark.parametrize(("ranks", "parallel"), [(1, ONE), (2, TP2)])
def test_gradients_are_those_of_plain_layers(ranks: int, parallel: ParallelConfig) -> None:
    for found in run_on_ranks(ranks, run, parallel):
        plain = found["plain"]
        assert len(plain) == 1 + 3 + 6 * MODEL.num_layers, sorted(plain)

        def same(a: str, b: str, found: dict[str, Gradients] = found) -> None:
            assert all(torch.equal(x, found[b][name]) for name, x in found[a].items())

        # The same operations on the same tensors: the same bits.
        for way in ("megatron", "keep", "full", "offload"):
            same(way, "plain")
        for way in ("tiles, full", "tiles, offload"):
            same(way, "tiles")
        for name, exact in plain.items():
            # Gradients of weights are sums over tokens, here in another order.
            error = (found["tiles"][name] - exact).norm() / exact.norm()
            assert error <= 1e-6, (name, error)


def test_tied_weights_get_both_gradients() -> None:
    found = run_on_ranks(2, run_tied)
    for plain, tiled in found:
        for name, exact in plain.items():
            assert (tiled[name] - exact).norm() <= 1e-6 * exact.norm(), name


def run_tied() -> tuple[Gradients, Gradients]:
    """Run on every rank: embedding and output layer are one weight."""
    global MODEL  # the model of this process alone
    MODEL = dataclasses.replace(MODEL, untie_embeddings_and_output_weights=False)
    with parallel_groups(TP2, seed=1) as groups:
        return (
            gradients(groups, TP2, None),
            gradients(groups, TP2, Recomputation(tile_size=20), loss_tile_size=28),
        )
