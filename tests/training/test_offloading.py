from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.mcore.host_memory import PinnedMemory
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.plan.job import pinned_bytes
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.quantity import quantity
from megatron_ultralong.training import state
from megatron_ultralong.training.inputs import check_offloading, host_bytes
from megatron_ultralong.training.verbs import pretrain
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

MODEL = MODELS["llama3.1-8b"]
RUN = PretrainConfig(
    global_batch_size=8,
    parallel=ParallelConfig(tensor_model_parallel_size=8, sequence_parallel=True),
    data=DataConfig(seq_length=2**22),
    memory=MemoryConfig(offload_activations=True, max_host_memory_gib=257.0),
)


def test_four_million_tokens_on_eight_ranks_fill_the_host() -> None:
    # A layer's input and output of attention are 4 GiB each, the log-sum-exps 1/16 GiB.
    whole = 32 * (4 + 4 + 1 / 16) * 2**30
    assert host_bytes(RUN, MODEL, 8) == whole
    with pytest.raises(InputError, match=r"needs 258.0 GiB .* max_host_memory_gib is 257: raise"):
        check_offloading(RUN, MODEL, 8)
    inputs_only = dataclasses.replace(RUN.memory, recompute_granularity="full")
    run = dataclasses.replace(RUN, memory=inputs_only)
    assert host_bytes(run, MODEL, 8) == 32 * 4 * 2**30
    assert check_offloading(run, MODEL, 8) == 257 * 2**30


def test_the_stage_with_most_under_way_counts() -> None:
    layer = (4 + 4 + 1 / 16) * 2**30
    stages = dataclasses.replace(RUN.parallel, pipeline_model_parallel_size=4)
    # Of 8 micro-batches the first stage has 4 under way, the last one.
    assert host_bytes(dataclasses.replace(RUN, parallel=stages), MODEL, 32) == 8 * 4 * layer
    uneven = dataclasses.replace(stages, num_layers_in_first_pipeline_stage=2)
    assert host_bytes(dataclasses.replace(RUN, parallel=uneven), MODEL, 32) == 10 * 3 * layer


def test_the_machine_is_the_limit_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    run = dataclasses.replace(
        RUN, memory=MemoryConfig(offload_activations=True), data=DataConfig(seq_length=2**30)
    )
    with pytest.raises(InputError, match=r"80% of the .* available here, shared by 8 ranks"):
        check_offloading(run, MODEL, 8)


def train_offloading(config: PretrainConfig) -> tuple[list[int], int, str]:
    """Run on every rank: bytes of each reservation that made some; those planned; what was told."""
    made, told = [], io.StringIO()
    reserve = PinnedMemory.reserve

    def recorded(self: PinnedMemory, sizes: Iterable[int], *advance: Any) -> None:
        before = self.num_bytes
        reserve(self, sizes, *advance)
        if self.num_bytes > before:
            made.append(self.num_bytes - before)

    with (
        mock.patch.object(PinnedMemory, "reserve", recorded),
        mock.patch.object(state, "_SHOWN_BYTES", 1),
        contextlib.redirect_stderr(told),
    ):
        assert len(pretrain(config)) == config.train_iters
    model = load_metadata(Path(config.load)).model
    config = dataclasses.replace(config, data=DataConfig(seq_length=128))
    return made, host_bytes(config, model, dist.get_world_size()), told.getvalue()


def test_all_is_pinned_once_before_the_first_step(make_config: MakeConfig) -> None:
    config = make_config(None, (1, 2), train_iters=3)
    memory = MemoryConfig(offload_activations=True, max_host_memory_gib=1.0)
    config = dataclasses.replace(config, memory=memory)
    found = run_on_ranks(2, train_offloading, config)
    for made, planned, _ in found:
        assert planned >= 2 * 2 * 4096, "two layers offload at least two tensors each"
        # Exactly what is planned, at once; no step has made more.
        assert made == [planned]
    told = quantity(found[0][1], "B")
    assert f"pinning host memory: 100% ({told}/{told})" in found[0][2]
    assert "pinning" not in found[1][2], "another rank speaks"


def test_pinned_buffers_are_powers_of_two() -> None:
    assert [pinned_bytes(n) for n in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]
