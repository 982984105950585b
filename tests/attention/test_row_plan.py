"""A row's plan is made once, for as long as the row is there, and is the plan of its documents."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.base import Inputs, Saved
from megatron_ultralong.attention.kernels.cpu import CPU, CpuKernel
from megatron_ultralong.attention.ring import plan
from megatron_ultralong.attention.ring.plan import make_plan, row_plan
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.documents import Boundaries


def test_layers_of_a_row_share_its_plan_and_nobody_keeps_it() -> None:
    gc.collect()
    kept = len(plan._plans)
    edges = torch.tensor([0, 5, 16], dtype=torch.int32)
    first = row_plan(zigzag(2), 16, edges, 1)
    assert first.cu_seqlens == (0, 5, 16)
    assert row_plan(zigzag(2), 16, edges, 1) is first
    assert row_plan(zigzag(1), 16, edges, 1).size == 1
    assert len(plan._plans) == kept + 1
    edges[1] = 6
    assert row_plan(zigzag(2), 16, edges, 1).cu_seqlens == (0, 6, 16)
    other = torch.tensor([0, 6, 16])
    assert row_plan(zigzag(2), 16, other, 1) == make_plan(zigzag(2), 16, (0, 6, 16))
    del edges, other
    gc.collect()
    assert len(plan._plans) == kept


def test_a_plan_in_inference_mode() -> None:
    with torch.inference_mode():
        edges = torch.tensor([0, 5, 5, 16])
        assert row_plan(zigzag(2), 16, edges, 1).cu_seqlens == (0, 5, 16)
        edges[1:3] = 7
        assert row_plan(zigzag(2), 16, edges, 1).cu_seqlens == (0, 7, 16)


def test_wrong_boundaries_are_named_in_a_line() -> None:
    for wrong, message in (
        ([0, 9, 5, 16], r"must rise; document 1 has -4 tokens"),
        ([0, 5, 15], r"length of the whole row \(16\), not \(0, 15\)"),
        ([1, 5, 16], r"length of the whole row \(16\), not \(1, 16\)"),
        ([0], r"cu_seqlens of \(1,\)"),
    ):
        with pytest.raises(AssertionError, match=message):
            row_plan(zigzag(2), 16, torch.tensor(wrong), 1)


def test_boundaries_are_a_tuple_to_all_others() -> None:
    edges = Boundaries((0, 3, 5))
    assert edges == (0, 3, 5)
    assert {(0, 3, 5): 1}[edges] == 1
    assert hash(edges) == hash(edges) == hash((0, 3, 5))
    assert Boundaries((0, 3, 6)) != edges


@given(st.lists(st.integers(1, 12), min_size=2, max_size=40), st.sampled_from(["fp64", "bf16"]))
def test_documents_of_one_length_together_are_those_alone(lengths: list[int], name: str) -> None:
    edges = (0, *np.cumsum(lengths).tolist())
    dtype = {"fp64": torch.float64, "bf16": torch.bfloat16}[name]
    torch.manual_seed(len(lengths))
    q, dout = (torch.randn(edges[-1], 1, 4, 16).to(dtype) for _ in range(2))
    k, v = (torch.randn(edges[-1], 1, 2, 16).to(dtype) for _ in range(2))
    alone = CpuKernel()
    alone.serves_documents = False
    out, lse = block_attention.forward(CPU, Inputs(q, k, v, edges, 0.3))
    for actual, expected in (
        ((out, lse), block_attention.forward(alone, Inputs(q, k, v, edges, 0.3))),
        (
            block_attention.backward(CPU, Inputs(q, k, v, edges, 0.3), Saved(dout, out, lse)),
            block_attention.backward(alone, Inputs(q, k, v, edges, 0.3), Saved(dout, out, lse)),
        ),
    ):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
