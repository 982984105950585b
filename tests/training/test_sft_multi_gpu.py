"""Instruction tuning over NCCL on two GPUs, against one GPU and against its own resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import SftConfig
from megatron_ultralong.data.rows.stored import ChatRows
from megatron_ultralong.training.verbs import sft
from tests.data.chats import write_jsonl
from tests.ranks import run_on_gpus
from tests.training.chats import conversations, write_chat_model
from tests.training.test_sft import SEQ_LENGTH, make_config, prepare

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
]
STEPS = 4
LAYOUTS = {
    "cp2": ParallelConfig(context_parallel_size=2),
    "cp2-balanced": ParallelConfig(context_parallel_size=2, cp_assignment="balanced"),
    "tp2-sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "dp2": ParallelConfig(),
}
TILES = MemoryConfig(recompute_granularity="keep_attention", sequence_tile_size=96)
Log = list[tuple[float, float]]
"""Loss and gradient norm of every iteration."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and conversations packed to rows."""
    folder = tmp_path_factory.mktemp("sft")
    write_chat_model(folder, max_position_embeddings=SEQ_LENGTH)
    write_jsonl(folder / "chats.jsonl", conversations(40))
    prepare(folder, "packed", packing="whole")
    assert len(ChatRows(folder / "packed" / "train")) >= 4
    return folder


def run(folder: Path, parallel: ParallelConfig, **changes: object) -> SftConfig:
    config = make_config(folder, "packed", parallel, global_batch_size=2, train_iters=STEPS)
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def train_all(configs: dict[str, SftConfig]) -> dict[str, Log]:
    """Run on every rank: one run after the other."""
    return {
        name: [(record.lm_loss, record.grad_norm) for record in sft(config)]
        for name, config in configs.items()
    }


def test_two_gpus_tune_as_one(inputs: Path) -> None:
    one = run_on_gpus(1, train_all, {"one": run(inputs, ParallelConfig())})[0]["one"]
    configs = {name: run(inputs, layout, memory=TILES) for name, layout in LAYOUTS.items()}
    two = run_on_gpus(2, train_all, configs)[0]
    assert len(one) == STEPS
    assert one[-1][0] < one[0][0]
    for name, found in two.items():
        for actual, expected in zip(found, one, strict=True):
            # float32 kernels, sums in another order.
            assert actual == pytest.approx(expected, rel=1e-4), name


def test_a_resumed_run_over_nccl_is_bit_equal(inputs: Path, tmp_path: Path) -> None:
    def config(save: str, train_iters: int) -> SftConfig:
        return run(
            inputs,
            LAYOUTS["cp2"],
            save=str(tmp_path / save),
            train_iters=train_iters,
            precision="bf16",
            deterministic_mode=True,
        )

    runs = {"whole": config("whole", 4), "first": config("parts", 2), "then": config("parts", 4)}
    log = run_on_gpus(2, train_all, runs)[0]
    assert len(log["then"]) == 2
    assert log["first"] + log["then"] == log["whole"]
