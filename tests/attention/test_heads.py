"""Attention by exchange of heads, alone and around a ring, against dense attention in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_ultralong.attention import KeptOutput
from megatron_ultralong.attention.heads import groups_of, head_attention, to_heads, to_tokens
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.assignment import balanced, zigzag
from megatron_ultralong.sequence.transport import LocalRing
from tests.attention.whole_sequence import (
    assignments,
    boundaries,
    by_heads,
    dense,
    inputs,
    largest_difference,
    ring,
)

LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (2, 4), (4, 2)]
"""Ranks that exchange heads, and groups of them in a ring."""
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # as tests/attention/test_ring.py


def test_neighbours_hold_their_chunks_in_the_order_of_the_sequence():
    first, second = groups_of(zigzag(4), 2)
    assert first == ((0, 1, 6, 7), (0, 2, 3, 1))
    assert second == ((2, 3, 4, 5), (0, 2, 3, 1))
    (alone,) = groups_of(zigzag(4), 4)
    assert alone.chunks == tuple(range(8))


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.data())
def test_an_exchange_is_undone_by_the_other(size, per_rank, length, data):
    assignment = data.draw(assignments(size, per_rank))
    (group,) = groups_of(assignment, size)
    seq_length, transport = size * per_rank * length, LocalRing(size)
    whole = torch.arange(seq_length * 8.0).view(seq_length, 1, 8, 1)
    shards = torch.cat([assignment.shard(whole, rank, 0) for rank in range(size)])
    exchanged = to_heads(shards, group.order, transport)
    for rank, its in enumerate(exchanged.chunk(size)):
        assert torch.equal(its, whole.chunk(size, dim=2)[rank])
    assert torch.equal(to_tokens(exchanged, group.order, transport), shards)


@pytest.mark.parametrize("backend", ["p2p", "all_gather"])
@pytest.mark.parametrize("sizes", LAYOUTS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_equals_dense_attention(sizes, backend, data):
    cp_size = sizes[0] * sizes[1]
    seq_length = 16 * cp_size
    edges = data.draw(st.none() | boundaries(seq_length, 8))
    kv_heads = data.draw(st.sampled_from([sizes[0], 2 * sizes[0]]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    assignment = data.draw(
        st.none() | st.sampled_from([1, 2, 4]).flatmap(lambda per: assignments(cp_size, per))
    )
    cu_seqlens = None if edges is None else torch.tensor(edges, dtype=torch.int32)
    tensors = inputs(seq_length, 2 * kv_heads, kv_heads, 64, dtype)
    found = by_heads(tensors, sizes, cu_seqlens, assignment, backend=backend)
    assert found[0].dtype == dtype
    assert largest_difference(found, dense(tensors, cu_seqlens)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("edges", [None, [0, 1, 300, 512, 1024]])
def test_bfloat16_without_a_ring_is_bit_equal_to_one_rank(edges):
    """Nothing is summed over ranks."""
    cu_seqlens = None if edges is None else torch.tensor(edges)
    tensors = inputs(1024, 8, 4, 64, torch.bfloat16)
    alone = ring(tensors, 1, cu_seqlens)
    for size in (2, 4):
        found = by_heads(tensors, (size, 1), cu_seqlens)
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_balanced_assignments_and_rows():
    edges = [0, 3, 70, 71, 128]
    cu_seqlens = torch.tensor(edges)
    tensors = inputs(128, 8, 4, 64)
    found = by_heads(tensors, (2, 2), cu_seqlens, balanced(edges, 4))
    assert largest_difference(found, dense(tensors, cu_seqlens)) <= 1e-12
    rows = inputs(32, 4, 2, 64, batch=3)
    found = by_heads(rows, (2, 2), None, softmax_scale=0.3)
    assert largest_difference(found, dense(rows, None, softmax_scale=0.3)) <= 1e-12


@pytest.mark.parametrize("between", [1, 2])
def test_a_kept_output_is_not_computed_again(between, monkeypatch):
    from megatron_ultralong.attention.ring import function

    calls = []
    plain = function._forward
    monkeypatch.setattr(function, "_forward", lambda *its: calls.append(1) or plain(*its))
    q, k, v, dout = inputs(32 * between, 4, 2, 64)
    gradients = []
    for keep in (None, KeptOutput()):
        its = [x.clone().requires_grad_() for x in (q, k, v)]

        def layer(*tensors: Tensor, keep: KeptOutput | None = keep) -> Tensor:
            options = {"heads": LocalRing(1), "ring": LocalRing(between), "keep": keep}
            return head_attention(*tensors, **options)

        out = checkpoint(layer, *its, use_reentrant=False)
        gradients.append(torch.autograd.grad(out, its, dout))
    assert len(calls) == 2 + 1
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_traffic_is_counted():
    heads, between = LocalRing(2), LocalRing(2)
    q, k, v, _ = inputs(64, 4, 2, 64, torch.float32)
    head_attention(q, k, v, heads=heads, ring=between)
    # Half of queries, keys and values, and of the outputs, of four ranks.
    assert heads.bytes_sent == (q.nbytes + k.nbytes + v.nbytes + q.nbytes) // 2


def test_heads_that_do_not_divide_are_refused():
    q, k, v, _ = inputs(64, 8, 2, 64)
    with pytest.raises(InputError, match="among 4 ranks, and a rank has 2 key heads") as error:
        head_attention(q, k, v, heads=LocalRing(4))
    assert "--cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 2" in str(error.value)
