"""The optimizer's states, by each rank its own: the same tensors as Megatron-Core's, gathered."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.formats.torch_dist import TorchDistReader
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.host_memory import PinnedMemory
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.training import optimizer
from megatron_ultralong.training.saving import state_dict
from megatron_ultralong.training.saving.snapshot import Snapshot
from megatron_ultralong.training.saving.state_dict import STATES, boxes
from tests.mcore.test_recomputed_layer import MODEL
from tests.ranks import run_on_ranks


def test_a_run_of_elements_is_a_few_boxes() -> None:
    rng = random.Random(3)
    shapes = [(), (1,), (7,), (1, 1), (4, 5), (5, 1), (1, 6), (2, 3, 4), (3, 1, 2, 2), (2, 2, 2, 3)]
    for shape in shapes * 40:
        size = math.prod(shape)
        begin, end = sorted(rng.randint(0, size) for _ in range(2))
        array, found = np.arange(size).reshape(shape), []
        made = list(boxes(shape, begin, end))
        for offsets, sizes in made:
            part = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
            assert array[part].shape == sizes, "a box ends outside"
            found += array[part].flatten().tolist()
        assert found == list(range(begin, end)), (shape, begin, end)
        assert len(made) <= max(1, 2 * len(shape) - 1)


def save_both_ways(parallel: ParallelConfig, root: str) -> list[int]:
    """Run on every rank: write a state by its shards, and as Megatron-Core gathers it.

    Loads each into itself, set to 0 before, the gathered one by Megatron-Core's own code too.
    Returns the bytes of states that this rank hands out.
    """
    with parallel_groups(parallel, seed=1) as groups:
        config = transformer_config(MODEL, parallel, params_dtype=torch.bfloat16)
        built = build_model(MODEL, config, groups, seq_length=96, rope_scaling=None)
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter)
        chunks = optimizer.wrap_model([built.to(torch.bfloat16)])
        adam = optimizer.build_optimizer(chunks, OptimizerConfig(), torch.bfloat16)
        scheduler = optimizer.build_scheduler(adam, OptimizerConfig(), 10)
        optimizer.make_states(chunks, adam)
        (part,) = adam.chained_optimizers

        def states() -> list[torch.Tensor]:
            return [value for weight in part.model_param_group_index_map for value in of(weight)]

        def of(weight: torch.nn.Parameter) -> list[torch.Tensor]:
            found = part._get_main_param_and_optimizer_states(weight)
            return [found[name].data for name in STATES]

        for number, weight in enumerate(part.model_param_group_index_map):
            is_split = getattr(weight, "tensor_model_parallel", False)
            ranks = groups.dp_cp.rank(), groups.tp.rank() if is_split else 0
            generator = torch.Generator().manual_seed(10_000 * ranks[0] + 100 * ranks[1] + number)
            for value in of(weight):
                value.normal_(generator=generator)
        expected = [value.clone() for value in states()]
        gathered = mock.patch.object(state_dict, "own_shards", return_value=nullcontext())

        def write(name: str) -> Path:
            folder = Path(root) / name
            if dist.get_rank() == 0:
                folder.mkdir()
            dist.barrier()
            position = {"iteration": 1, "consumed_samples": 1}
            state = state_dict.checkpoint_state(chunks, adam, scheduler, position, MODEL)
            staging = {on_gpu: PinnedMemory() for on_gpu in (True, False)}
            snapshot = Snapshot(state, folder, staging, validate=True)
            sizes.append(
                sum(
                    value.nbytes
                    for item, value in snapshot._writer.items
                    if item.index.fqn.startswith("optimizer.state.")
                )
            )
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, snapshot.write({}))
            snapshot.release()
            if dist.get_rank() == 0:
                snapshot.finish(parts)
            dist.barrier()
            return folder

        sizes: list[int] = []
        folders = [write("own")]
        with gathered:
            folders.append(write("gathered"))
        for folder in folders:
            for way in (nullcontext(), gathered):
                for value in states():
                    value.zero_()
                with way:
                    state_dict.load_checkpoint(folder, chunks, adam, scheduler)
                assert all(map(torch.equal, states(), expected)), (folder.name, way)
        return sizes


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(context_parallel_size=2),
        ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    ],
    ids=["cp2", "tp2"],
)
def test_files_hold_what_megatron_would_gather(parallel: ParallelConfig, tmp_path: Path) -> None:
    sizes = run_on_ranks(2, save_both_ways, parallel, str(tmp_path))
    own, gathered = (TorchDistReader(tmp_path / name) for name in ("own", "gathered"))
    assert own.tensors.keys() == gathered.tensors.keys()
    names = [name for name in own.tensors if name.startswith("optimizer.state.")]
    assert len(names) >= 3 * 8
    for name in own.tensors:
        shape = own.tensors[name].size
        assert shape == gathered.tensors[name].size
        region = (name, (0,) * len(shape), shape)
        assert torch.equal(own.read(*region), gathered.read(*region)), name
    total = sum(12 * math.prod(own.tensors[name].size) for name in names) // 3
    assert sum(own for own, _ in sizes) == total
    if parallel.context_parallel_size == 2:
        # Each rank has a half; of Megatron-Core's way one writes all.
        assert [own for own, _ in sizes] == pytest.approx([total / 2] * 2, rel=0.02)
        assert [gathered for _, gathered in sizes] == [total, 0]
