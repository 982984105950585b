"""Layers of Transformer Engine over NCCL on two GPUs, its own context parallelism among them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import LayerConfig, MemoryConfig
from megatron_ultralong.mcore.compat import has_transformer_engine
from tests.ranks import run_on_gpus
from tests.transformer_engine.comparison import (
    FP8_LOSS,
    FP8_NORM,
    LOSS,
    NORM,
    STATES_LOSS,
    STATES_NORM,
    assert_close,
    distance,
)
from tests.transformer_engine.wide import (
    BLOCKWISE,
    FULL,
    KEEP_ALL,
    LOWER,
    STEPS,
    TE,
    TE_ATTENTION,
    TENSORWISE,
    TILES,
    Log,
    logits,
    make_run,
    train_all,
)

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
    pytest.mark.skipif(not has_transformer_engine(), reason="no Transformer Engine"),
]
PARALLEL = {
    "cp2": ParallelConfig(context_parallel_size=2),
    "tp2": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "dp2": ParallelConfig(),
}
LAYOUTS: dict[str, tuple[LayerConfig, str, MemoryConfig]] = {
    "te cp2": (TE, "cp2", TILES),
    "te tp2": (TE, "tp2", TILES),
    "attention cp2": (TE_ATTENTION, "cp2", KEEP_ALL),
    "attention cp2, recomputed": (TE_ATTENTION, "cp2", FULL),
    "attention tp2": (TE_ATTENTION, "tp2", FULL),
    "ring cp2": (TE, "cp2", FULL),
    "tensorwise cp2": (TENSORWISE, "cp2", TILES),
    "tensorwise tp2": (TENSORWISE, "tp2", TILES),
    "blockwise dp2": (BLOCKWISE, "dp2", TILES),
}


@pytest.fixture(scope="module")
def on_two(wide: Path) -> dict[str, Log]:
    configs = {
        name: make_run(wide, layers, memory=memory, parallel=PARALLEL[parallel])
        for name, (layers, parallel, memory) in LAYOUTS.items()
    }
    gather = dataclasses.replace(PARALLEL["cp2"], cp_comm_type="all_gather")
    configs["attention cp2, gather"] = make_run(wide, TE_ATTENTION, parallel=gather)
    configs["lower dp2"] = make_run(wide, TE, optimizer=LOWER["bf16"])
    return run_on_gpus(2, train_all, configs)[0]


@pytest.mark.parametrize("name", [*LAYOUTS, "attention cp2, gather", "lower dp2"])
def test_layouts_train_like_one_gpu(
    on_two: dict[str, Log], local: dict[str, Log], name: str
) -> None:
    assert len(on_two[name]) == STEPS
    bounds = (LOSS, NORM)
    if "wise" in name:
        bounds = (FP8_LOSS, FP8_NORM)
    elif "lower" in name:
        bounds = (STATES_LOSS, STATES_NORM)
    assert_close(name, on_two[name], local["none"], *bounds)


def test_fp8_over_tensor_parallel_ranks_rounds_no_more(trained: Path, exact: torch.Tensor) -> None:
    one = distance("FP8, one GPU", logits(trained, TENSORWISE), exact)
    two = run_on_gpus(2, logits, trained, TENSORWISE, torch.bfloat16, PARALLEL["tp2"])
    assert torch.equal(*two)
    # Maxima of the parts of a matrix are no larger than its own; partial sums travel in bf16.
    assert distance("FP8, TP 2", two[0], exact) <= 1.2 * one
