"""Bytes of Adam beside those that Megatron-Core's own optimizer takes, counted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore import cpu  # noqa: F401 - Megatron-Core without a GPU
from megatron_ultralong.plan.job import Job, pinned_bytes
from megatron_ultralong.plan.optimizer_memory import optimizer_memory, stage_tensors
from tests.shapes import llama_shape

MODEL = llama_shape(layers=4, hidden=64, ffn=160, vocabulary=512, positions=512)


def planned(num_gpus: int = 1, precision: str = "bf16", **optimizer: Any) -> Job:
    config = PretrainConfig(
        global_batch_size=num_gpus,
        precision=precision,  # type: ignore[arg-type]
        parallel=ParallelConfig(),
        optimizer=OptimizerConfig(**optimizer),
    )
    config.optimizer.check(precision)
    return Job(MODEL, config, num_gpus, 1.0)


class _Stream:
    """Where there is no GPU nothing is waited for."""

    def wait_stream(self, other: _Stream) -> None: ...
    def synchronize(self) -> None: ...
    def record_event(self) -> _Stream:
        return self


def counted(job: Job, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes by device of Megatron-Core's offloaded optimizer, on tensors without data.

    Parameters say that they are on a GPU; nothing is computed, everything is made.
    """
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    optimizer = job.config.optimizer
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = [
            torch.nn.Parameter(torch.empty(size, dtype=torch.bfloat16, device="cuda"))
            for size in stage_tensors(job, 0)
        ]
        hybrid = HybridDeviceOptimizer(
            [{"params": parameters}],
            offload_fraction=optimizer.optimizer_offload_fraction,
            cpu_optimizer_cls=torch.optim.AdamW,
            gpu_optimizer_cls=torch.optim.AdamW,
            param_update_in_fp32=True,
            pin_cpu_grads=False,
            pin_cpu_params=False,
            overlap_cpu_optimizer_d2h_h2d=optimizer.overlap_cpu_optimizer_d2h_h2d,
            lr=1e-3,
            fused=True,
        )
        for parameter in parameters:
            gradient = torch.empty(parameter.shape, dtype=torch.float32, device="cuda")
            parameter.decoupled_grad = gradient
        for part in hybrid.sub_optimizers:  # copies of results, which a fake GPU cannot take
            part._optimizer_step_post_hooks.clear()
        hybrid.step()
        found: Counter[str] = Counter()
        seen = {id(parameter.decoupled_grad) for parameter in parameters}
        for part in hybrid.sub_optimizers:
            held = [p for group in part.param_groups for p in group["params"]]
            held += [p.grad for p in held if p.grad is not None]
            held += [x for state in part.state.values() for x in state.values()]
            for tensor in held:
                if tensor.numel() > 1 and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found["host" if tensor.device.type == "cpu" else "GPU"] += tensor.nbytes
        return found


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.2])
def test_an_offloaded_optimizer_is_as_large_as_megatron_s(
    fraction: float, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = planned(
        optimizer_cpu_offload=True,
        optimizer_offload_fraction=fraction,
        overlap_cpu_optimizer_d2h_h2d=overlap,
    )
    actual, expected = optimizer_memory(job, 0), counted(job, monkeypatch)
    # Pinned gradients are rounded up to powers of two on a GPU's host alone.
    host = actual.host - actual.pinned + 4 * actual.num_offloaded
    # It moves whole tensors until the fraction is reached, the embedding first: here a fifth.
    largest = max(stage_tensors(job, 0)) if fraction < 1 else 0
    assert host <= expected["host"] <= host + 16 * largest
    assert actual.states - 12 * largest <= expected["GPU"] <= actual.states
    if fraction == 1:
        assert (expected["host"], expected["GPU"]) == (host, 0)
        assert actual.pinned == sum(pinned_bytes(4 * size) for size in stage_tensors(job, 0))


@pytest.mark.parametrize(
    ("fields", "gradient", "states", "temporary"),
    [
        ({}, 4, 4 + 4 + 4, 0),
        ({"main_grads_dtype": "bf16"}, 2, 12, 0),
        ({"main_params_dtype": "fp16"}, 4, 2 + 4 + 4, 4),
        ({"exp_avg_dtype": "fp8"}, 4, 4 + 1 + 4, 4),
        ({"exp_avg_sq_dtype": "fp16"}, 4, 4 + 4 + 2, 4),
        # Both means in bf16 are worked on as they are; one alone is copied.
        ({"exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}, 4, 4 + 2 + 2, 0),
        ({"exp_avg_dtype": "bf16"}, 4, 4 + 2 + 4, 4),
        (
            {"main_params_dtype": "fp16", "exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "fp16"},
            4,
            2 + 1 + 2,
            12,
        ),
    ],
)
def test_a_precision_aware_optimizer_by_counted_bytes(
    fields: dict[str, str], gradient: int, states: int, temporary: int
) -> None:
    """As Transformer Engine's FusedAdam makes them; it runs on GPUs alone."""
    for num_gpus in (1, 2):
        job = planned(num_gpus, use_precision_aware_optimizer=True, **fields)
        actual = optimizer_memory(job, 0)
        shard = job.model_parameters // num_gpus
        assert actual.gradients == gradient * job.model_parameters
        assert (actual.states, actual.temporary) == (states * shard, temporary * shard)
        assert actual.host == 0


def test_shards_and_precision() -> None:
    for precision, states in (("bf16", 12), ("fp32", 8)):
        job = planned(4, precision)
        actual = optimizer_memory(job, 0)
        assert actual.states == states * (job.model_parameters // 4)
        assert actual.gradients == 4 * job.model_parameters
    halves = [
        optimizer_memory(planned(n, optimizer_cpu_offload=True), 0).num_offloaded for n in (1, 2)
    ]
    assert halves[1] == halves[0] // 2


def test_all_weights_are_in_some_tensor() -> None:
    for stages in (1, 2, 4):
        job = planned()
        parallel = dataclasses.replace(job.parallel, pipeline_model_parallel_size=stages)
        config = dataclasses.replace(job.config, parallel=parallel)
        job = dataclasses.replace(job, config=config, num_gpus=stages)
        tensors = [size for stage in range(stages) for size in stage_tensors(job, stage)]
        assert sum(tensors) == job.model_parameters
