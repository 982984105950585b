"""Megatron-LM's own loop over our rows does what our loop does.

``megatron.training`` is in the wheels from 0.17 on: ``make test-matrix`` runs this with each.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint
from megatron_ultralong.config.convert import ExportConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.training.verbs import pretrain
from tests.dropin.megatron_lm import EXAMPLE, flags, needs_megatron_lm, run
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

needs_megatron_lm()


def reference(config: PretrainConfig, folder: Path, *more: str) -> list[float]:
    """Run on every rank: Megatron-LM's loop, by the example."""
    return run(EXAMPLE, [*flags(config), *more], folder / f"said-{dist.get_rank()}")


def actual(config: PretrainConfig) -> list[float]:
    """Run on every rank: our loop."""
    return [record.lm_loss for record in pretrain(config)]


@pytest.mark.parametrize("mask", ["none", "block"])
def test_losses_are_those_of_our_loop(make_config: MakeConfig, tmp_path: Path, mask: str) -> None:
    config = make_config(None, (1, 2), mask, train_iters=4)
    if mask == "block":
        parallel = dataclasses.replace(config.parallel, cp_assignment="balanced")
        config = dataclasses.replace(config, parallel=parallel)
    expected = run_on_ranks(2, actual, config)[0]
    tiles = ("--ultralong-recompute-granularity", "keep_attention")
    tiles += ("--ultralong-sequence-tile-size", "24", "--ultralong-loss-tile-size", "40")
    found = run_on_ranks(2, reference, config, tmp_path, *(tiles if mask == "block" else ()))[1]
    assert len(found) == 4
    # float32 sums in another order
    assert found == pytest.approx(expected, rel=1e-5)


def own(layout: tuple[int, int], base: Path, folder: Path, described: bool) -> list[float]:
    """Run on every rank: a script of a user's own, with its own data and step."""
    if described:
        os.environ["OWN_SCRIPT_DESCRIBES_MODEL"] = "1"
    config = PretrainConfig(
        load=str(base),
        train_iters=8,
        global_batch_size=2,
        optimizer=OptimizerConfig(lr=1e-3),
        rope=RopeConfig(
            rope_scaling="yarn", rope_scaling_factor=2.0, original_max_position_embeddings=64
        ),
        parallel=ParallelConfig(
            tensor_model_parallel_size=layout[0], context_parallel_size=layout[1]
        ),
    )
    words = [*flags(config), "--calculate-per-token-loss", "--num-workers", "0"]
    return run(Path(__file__).with_name("own_pretrain_gpt.py"), words, folder / "said")


def test_a_script_of_ones_own_needs_no_edit(tiny: Path, tmp_path: Path) -> None:
    [expected] = run_on_ranks(1, own, (1, 1), tiny / "base", tmp_path, False)
    assert len(expected) == 8
    assert max(expected[-3:]) < min(expected[:3])  # rows differ, and so do losses of neighbours
    shapes = {False}
    if "model_provider" not in inspect.signature(theirs_pretrain()).parameters or (
        inspect.signature(theirs_pretrain()).parameters["model_provider"].default is None
    ):
        shapes.add(True)
    for described in shapes:
        found = run_on_ranks(2, own, (1, 2), tiny / "base", tmp_path, described)[1]
        # The local chunks have the angles of their places in the row; float32 in another order.
        assert found == pytest.approx(expected, rel=1e-5), described


def theirs_pretrain() -> Callable[..., None]:
    from megatron.training import pretrain as found

    return found


def test_checkpoints_go_both_ways(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "ours", (1, 2), train_iters=3)
    run_on_ranks(2, actual, config)
    config = dataclasses.replace(config, save=str(tmp_path / "theirs"))
    run_on_ranks(2, reference, config, tmp_path)
    for name in ("ours", "theirs"):
        export_checkpoint(ExportConfig(tmp_path / name, tmp_path / f"{name}-hf"))
    for ours_weight, theirs_weight in zip(
        *(weights(tmp_path / f"{name}-hf") for name in ("ours", "theirs")), strict=True
    ):
        # Three steps of Adam at 1e-3 from equal weights; a gradient near zero may turn its sign.
        torch.testing.assert_close(theirs_weight, ours_weight, atol=1e-4, rtol=0)
    assert config_of(tmp_path / "ours-hf") == config_of(tmp_path / "theirs-hf")

    # Each continues from the other's weights, with Adam's moments at zero.
    def begin_with(folder: str) -> PretrainConfig:
        rope = dataclasses.replace(config.rope, rope_scaling="keep")
        return dataclasses.replace(config, load=str(tmp_path / folder), save="", rope=rope)

    fresh = ("--finetune", "--no-load-optim", "--no-load-rng")
    for folder in ("ours", "theirs"):
        expected = run_on_ranks(2, actual, begin_with(folder))[0]
        found = run_on_ranks(2, reference, begin_with(folder), tmp_path, *fresh)[1]
        assert found == pytest.approx(expected, rel=1e-5), folder  # float32 in another order


def undistributed(config: PretrainConfig, folder: Path, *more: str) -> list[float]:
    """Run on every rank: Megatron-LM's loop with its plain optimizer."""
    words = [word for word in flags(config) if word != "--use-distributed-optimizer"]
    return run(EXAMPLE, [*words, *more], folder / f"said-{dist.get_rank()}")


@pytest.mark.parametrize("loop", [reference, undistributed])
def test_a_run_of_theirs_goes_on_with_the_next_rows(
    make_config: MakeConfig, tmp_path: Path, loop: Callable[..., list[float]]
) -> None:
    config = make_config(None, (1, 2), "block", train_iters=4)
    whole = run_on_ranks(2, loop, config, tmp_path)[1]
    begun = dataclasses.replace(config, save=str(tmp_path / "run"))
    run_on_ranks(2, loop, begun, tmp_path, "--exit-interval", "2")
    # It need not say again how its rotary embedding is scaled.
    rope = dataclasses.replace(config.rope, rope_scaling="keep")
    resumed = dataclasses.replace(config, load=str(tmp_path / "run"), rope=rope)
    rest = run_on_ranks(2, loop, resumed, tmp_path)[1]
    assert rest == pytest.approx(whole[2:], rel=1e-6)  # the same sums


def weights(folder: Path) -> list[torch.Tensor]:
    """All weights of a Hugging Face folder, by name."""
    tensors = load_file(folder / "model.safetensors")
    return [tensors[name] for name in sorted(tensors)]


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())
