"""A kernel that is new here: what it takes to add one is this class and a place in a table."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch

from megatron_ultralong.attention.kernels import base, block_attention
from megatron_ultralong.attention.kernels.cpu import CPU
from megatron_ultralong.attention.kernels.math import MATH
from tests.attention.whole_sequence import dense, inputs, ring

MOST_LINES = 60


class NewKernel(base.Kernel):
    """One call of torch, and one for its gradients."""

    name = "new"

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        return None if device.type == "cpu" else "it runs on the CPU"

    def forward(self, inputs: base.Inputs) -> base.Result:
        q, k, v, mask, scale = inputs
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *base.heads_first(q, k, v), 0.0, mask is not None, scale=scale
        )
        return base.sequence_first(out)[0], lse

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        q, k, v, mask, scale = inputs
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *base.heads_first(saved.dout, q, k, v, saved.out),
            *(saved.lse, 0.0, mask is not None),
            scale=scale,
        )
        dq, dk, dv = base.sequence_first(*gradients)
        return dq, dk, dv


@pytest.fixture
def new_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[base.Kernel]:
    new = NewKernel()
    monkeypatch.setattr(block_attention, "candidates", lambda device: (new, CPU, MATH))
    block_attention._resolve.cache_clear()
    yield new
    block_attention._resolve.cache_clear()


def test_its_size() -> None:
    assert len(inspect.getsource(NewKernel).splitlines()) <= MOST_LINES


@pytest.mark.parametrize("edges", [None, [0, 1, 3, 20, 64]])
@pytest.mark.parametrize("cp_size", [1, 2, 4])
def test_the_ring_takes_it_and_is_exact(
    new_kernel: base.Kernel, edges: list[int] | None, cp_size: int
) -> None:
    tensors = inputs(64, 4, 2, 16)
    cu_seqlens = None if edges is None else torch.tensor(edges)
    exact = dense(tensors, cu_seqlens)
    found = ring(tensors, cp_size, cu_seqlens, kernel=new_kernel.name)
    for a, b in zip(found, exact, strict=True):
        assert (a - b).abs().max() <= 1e-12
