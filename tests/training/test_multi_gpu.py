"""Training over NCCL on two and four GPUs, against one GPU and against its own resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.sequence.document_mask import DocumentMask
from megatron_ultralong.training.verbs import pretrain
from tests.ranks import run_on_gpus
from tests.training.conftest import MakeConfig
from tests.training.job import losses

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
]
STEPS = 5
MASKS: tuple[DocumentMask, ...] = ("none", "block")
CP2, TP2, PP2 = (
    {f"{kind}_parallel_size": 2} for kind in ("context", "tensor_model", "pipeline_model")
)
LAYOUTS = {  # by the number of GPUs
    1: {"one": ParallelConfig()},
    2: {
        "cp2": ParallelConfig(**CP2),
        "cp2-gather": ParallelConfig(**CP2, cp_comm_type="all_gather"),
        "tp2-sp": ParallelConfig(**TP2, sequence_parallel=True),
        "pp2": ParallelConfig(**PP2),
        "dp2": ParallelConfig(),
    },
    4: {
        "cp4": ParallelConfig(context_parallel_size=4),
        "cp2-tp2-sp": ParallelConfig(**CP2, **TP2, sequence_parallel=True),
        "cp2-pp2": ParallelConfig(**CP2, **PP2),
        "cp2-dp2": ParallelConfig(**CP2),
    },
}
OFFLOADING = ("cp2", "tp2-sp", "dp2", "cp2-tp2-sp")
Log = list[tuple[float, float]]
"""Loss and gradient norm of every iteration."""


def train_all(configs: dict[str, PretrainConfig]) -> dict[str, Log]:
    """Run on every rank: one run after the other."""
    return {
        name: [(record.lm_loss, record.grad_norm) for record in pretrain(config)]
        for name, config in configs.items()
    }


def configs_of(
    make_config: MakeConfig, layouts: dict[str, ParallelConfig]
) -> dict[str, PretrainConfig]:
    """Runs by layout and mask."""
    return {
        f"{name} {mask}": dataclasses.replace(
            make_config(None, (1, 1), mask, train_iters=STEPS, save_interval=0),
            parallel=parallel,
            # Tiles, kept attention and offloading to pinned memory on two GPUs.
            memory=MemoryConfig(
                recompute_granularity="keep_attention",
                sequence_tile_size=24,
                loss_tile_size=40,
                offload_activations=name in OFFLOADING,
            )
            if name != "one"
            else MemoryConfig(recompute_granularity="none", loss_tile_size=0),
        )
        for name, parallel in layouts.items()
        for mask in MASKS
    }


@pytest.mark.parametrize("gpus", [2, 4])
def test_several_gpus_train_as_one(make_config: MakeConfig, gpus: int) -> None:
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"no {gpus} CUDA devices")
    one = run_on_gpus(1, train_all, configs_of(make_config, LAYOUTS[1]))[0]
    several = run_on_gpus(gpus, train_all, configs_of(make_config, LAYOUTS[gpus]))[0]
    for layout in LAYOUTS[gpus]:
        for mask in MASKS:
            actual, reference = several[f"{layout} {mask}"], one[f"one {mask}"]
            assert len(actual) == STEPS
            for each, expected in zip(actual, reference, strict=True):
                # float32 kernels, sums in another order.
                assert each == pytest.approx(expected, rel=1e-4), (layout, mask)


@pytest.mark.parametrize(("gpus", "layout"), [(2, "cp2"), (4, "cp2-tp2-sp")])
def test_a_resumed_run_over_nccl_is_bit_equal(
    make_config: MakeConfig, tmp_path: Path, gpus: int, layout: str
) -> None:
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"no {gpus} CUDA devices")

    def config(save: str, train_iters: int) -> PretrainConfig:
        return dataclasses.replace(
            make_config(tmp_path / save, mask="block", train_iters=train_iters),
            parallel=LAYOUTS[gpus][layout],
            precision="bf16",
            deterministic_mode=True,
        )

    runs = {"whole": config("whole", 6), "first": config("parts", 3), "then": config("parts", 6)}
    log = run_on_gpus(gpus, train_all, runs)[0]
    assert log["first"] + log["then"] == log["whole"]
    assert len(log["whole"]) == len(losses(tmp_path / "parts")) == 6
