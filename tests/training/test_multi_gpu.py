"""Runs over NCCL, two GPUs under torchrun, against one GPU and against their own resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_ultralong.config import ParallelConfig, PretrainConfig
from megatron_ultralong.documents import DocumentMask
from megatron_ultralong.run_config import MemoryConfig
from tests.training.conftest import MakeConfig
from tests.training.job import TorchrunJob, losses

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
]
STEPS = 5
LAYOUTS = {
    "cp2": ParallelConfig(context_parallel_size=2),
    "cp2-gather": ParallelConfig(context_parallel_size=2, cp_comm_type="all_gather"),
    "tp2-sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "dp2": ParallelConfig(),
}
Losses = dict[int, tuple[float, float]]


def run(config: PretrainConfig, folder: Path, num_ranks: int) -> Losses:
    """Losses and gradient norms of a run under torchrun."""
    job = TorchrunJob.start(config, folder, num_ranks)
    try:
        job.until_gone(200.0)
        assert job.process.returncode == 0, job.text
    finally:
        job.kill()
    return losses(Path(config.save))


@pytest.fixture(scope="module")
def one_gpu(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Losses]:
    """Losses of one GPU by mask."""
    folder = tmp_path_factory.mktemp("one")
    masks: tuple[DocumentMask, ...] = ("none", "block")
    return {
        mask: run(
            make_config(folder / mask / "run", (1, 1), mask, train_iters=STEPS, save_interval=0),
            folder / mask,
            1,
        )
        for mask in masks
    }


@pytest.mark.parametrize("mask", ["none", "block"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_gpus_train_as_one(
    layout: str,
    mask: DocumentMask,
    one_gpu: dict[str, Losses],
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path / "run", (1, 1), mask, train_iters=STEPS, save_interval=0)
    # Tiles, kept attention and off-loading to pinned memory on every second layout.
    memory = MemoryConfig(
        recompute_granularity="keep_attention",
        sequence_tile_size=24,
        loss_tile_size=40,
        offload_activations=layout in ("cp2", "tp2-sp", "dp2"),
    )
    ours = run(
        dataclasses.replace(config, parallel=LAYOUTS[layout], memory=memory), tmp_path / "job", 2
    )
    assert list(ours) == list(one_gpu[mask]) == list(range(1, STEPS + 1))
    for iteration, figures in ours.items():
        # float32 kernels, sums in another order.
        assert figures == pytest.approx(one_gpu[mask][iteration], rel=1e-4)


def test_a_resumed_run_over_nccl_is_bit_equal(make_config: MakeConfig, tmp_path: Path) -> None:
    def config(save: str, train_iters: int) -> PretrainConfig:
        return dataclasses.replace(
            make_config(tmp_path / save, (1, 2), "block", train_iters=train_iters),
            precision="bf16",
            deterministic_mode=True,
        )

    whole = run(config("whole", 6), tmp_path / "job-0", 2)
    run(config("parts", 3), tmp_path / "job-1", 2)
    assert run(config("parts", 6), tmp_path / "job-2", 2) == whole
