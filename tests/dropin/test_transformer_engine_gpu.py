"""Megatron-LM's own loop with ``ring_te_spec`` on two GPUs does what our loop does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_ultralong.config.run import LayerConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.compat import has_transformer_engine
from megatron_ultralong.training.verbs import pretrain
from tests.dropin.megatron_lm import EXAMPLE, TRANSFORMER_ENGINE, flags, run
from tests.ranks import run_on_gpus
from tests.standing_ranks import StandingRanks
from tests.training.conftest import MakeConfig

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
    pytest.mark.skipif(not has_transformer_engine(), reason="no Transformer Engine"),
]


def reference(config: PretrainConfig, folder: Path) -> list[float]:
    """Run on every rank: Megatron-LM's loop, by the example."""
    words = flags(config, TRANSFORMER_ENGINE)
    return run(EXAMPLE, words, folder / f"said-{dist.get_rank()}")


def actual(config: PretrainConfig) -> list[float]:
    """Run on every rank: our loop."""
    layers = LayerConfig(transformer_impl="transformer_engine", apply_rope_fusion=True)
    return [record.lm_loss for record in pretrain(dataclasses.replace(config, layers=layers))]


@pytest.mark.parametrize("mask", ["none", "block"])
def test_losses_are_those_of_our_loop(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron-LM asks for it on Hopper
    config = make_config(None, (1, 2), mask, train_iters=4)
    expected = run_on_gpus(2, actual, config)[0]
    own = StandingRanks("nccl")  # Megatron-LM leaves its globals and its groups behind
    try:
        found = own.run(2, reference, config, tmp_path)[1]
    finally:
        own.end()
    assert len(found) == 4
    # The same kernels, in TensorFloat-32 (eleven bits); their activation is fused, ours is not.
    assert found == pytest.approx(expected, rel=1e-4)
