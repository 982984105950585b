"""Megatron-LM's own loop over our rows does what our loop does.

``megatron.training`` is in the wheels from 0.17 on: ``make test-matrix`` runs this with each.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_ultralong.config import PretrainConfig
from megatron_ultralong.training.pretrain import pretrain
from tests.dropin.megatron_lm import flags, run
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

pytest.importorskip(
    "megatron.training", reason="the wheel of Megatron-Core 0.16 has no Megatron-LM"
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_gpt_ultralong.py"


def theirs(config: PretrainConfig, folder: Path, *more: str) -> list[float]:
    """Run on every rank: Megatron-LM's loop, by the example."""
    return run(EXAMPLE, [*flags(config), *more], folder / f"said-{dist.get_rank()}")


def ours(config: PretrainConfig) -> list[float]:
    """Run on every rank: our loop."""
    return [record.lm_loss for record in pretrain(config)]


@pytest.mark.parametrize("mask", ["none", "block"])
def test_losses_are_those_of_our_loop(make_config: MakeConfig, tmp_path: Path, mask: str) -> None:
    config = make_config(None, (1, 2), mask, train_iters=4)
    if mask == "block":
        parallel = dataclasses.replace(config.parallel, cp_assignment="balanced")
        config = dataclasses.replace(config, parallel=parallel)
    expected = run_on_ranks(2, ours, config)[0]
    tiles = ("--ultralong-recompute-granularity", "keep_attention")
    tiles += ("--ultralong-sequence-tile-size", "24", "--ultralong-loss-tile-size", "40")
    found = run_on_ranks(2, theirs, config, tmp_path, *(tiles if mask == "block" else ()))[1]
    assert len(found) == 4
    # float32 sums in another order
    assert found == pytest.approx(expected, rel=1e-5)
