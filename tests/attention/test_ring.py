"""Ring attention, all ranks in one process, against dense attention in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from megatron_ultralong.attention import KeptOutput, ring_attention
from megatron_ultralong.attention.ring import function, gradient_sum
from megatron_ultralong.attention.ring import ring as ring_module
from megatron_ultralong.attention.ring.gradient_sum import MAX_PIECES, SumSpace, num_pieces
from megatron_ultralong.attention.ring.plan import make_plan
from megatron_ultralong.sequence.assignment import balanced, zigzag
from megatron_ultralong.sequence.transport import LocalRing
from tests.attention.whole_sequence import (
    assignments,
    boundaries,
    dense,
    inputs,
    largest_difference,
    ring,
)

BACKENDS = ["p2p", "all_gather"]
# Rounding of sums over at most 128 keys of values about 1, gradients about 10: float64 keeps 16
# digits, float32 keeps 7.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module", autouse=True)
def several_pieces() -> Iterator[None]:
    """Sums of these sizes travel in several pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_sum, "PIECE_BYTES", 8192)
        yield


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cp_size", [1, 2, 4, 8])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_equals_dense_attention(backend, cp_size, data):
    seq_length = 16 * cp_size
    edges = data.draw(st.none() | boundaries(seq_length, 8))
    heads, kv_heads = data.draw(st.sampled_from([(8, 8), (8, 2), (4, 1)]))
    head_dim = data.draw(st.sampled_from([64, 128]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    assignment = data.draw(
        st.none() | st.sampled_from([1, 2, 4]).flatmap(lambda per: assignments(cp_size, per))
    )
    cu_seqlens = None if edges is None else torch.tensor(edges, dtype=torch.int32)
    tensors = inputs(seq_length, heads, kv_heads, head_dim, dtype)
    found = ring(tensors, cp_size, cu_seqlens, assignment, backend=backend)
    assert found[0].dtype == dtype
    assert largest_difference(found, dense(tensors, cu_seqlens)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_rows_and_a_softmax_scale(backend):
    tensors = inputs(32, 4, 2, 64, batch=3)
    found = ring(tensors, 4, None, softmax_scale=0.3, backend=backend)
    assert largest_difference(found, dense(tensors, None, softmax_scale=0.3)) <= 1e-12


def test_the_reference_equals_pytorch():
    tensors = inputs(48, 4, 2, 64)
    q, k, v, dout = (x.permute(1, 2, 0, 3).requires_grad_() for x in tensors)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = (out, *torch.autograd.grad(out, (q, k, v), dout))
    assert (
        largest_difference(dense(tensors, None), tuple(x.permute(2, 0, 1, 3) for x in expected))
        <= 1e-12
    )  # float64, other order of sums


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(cp_size=st.sampled_from([1, 2, 4]), data=st.data())
def test_changing_document_a_leaves_document_b_bit_equal(backend, cp_size, data):
    edges = data.draw(boundaries(16 * cp_size, 8))
    assignment = data.draw(assignments(cp_size, 2))
    number = data.draw(st.integers(0, len(edges) - 2))
    changed = slice(edges[number], edges[number + 1])
    kept = torch.ones(edges[-1], dtype=torch.bool)
    kept[changed] = False
    tensors = inputs(edges[-1], 4, 2, 64, torch.float32)
    others = [x.clone() for x in tensors]
    for x, y in zip(others, inputs(edges[-1], 4, 2, 64, torch.float32, seed=1), strict=True):
        x[changed] = 50 * y[changed]
    cu_seqlens = torch.tensor(edges)
    before = ring(tensors, cp_size, cu_seqlens, assignment, backend=backend)
    after = ring(others, cp_size, cu_seqlens, assignment, backend=backend)
    assert all(torch.equal(a[kept], b[kept]) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_past_does_not_see_the_future(backend):
    tensors = inputs(64, 4, 2, 64, torch.float32)
    others = [x.clone() for x in tensors]
    for x in others[:3]:
        x[37:] = -x[37:]
    outs = [ring(x, 4, None, backend=backend)[0] for x in (tensors, others)]
    assert torch.equal(outs[0][:37], outs[1][:37])
    assert not torch.equal(outs[0][37:], outs[1][37:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("edges", [None, [0, 1, 300, 512, 1024]])
def test_bfloat16_errs_no_more_than_plain_attention_at_any_size(backend, edges):
    """Parts and sums are float32 here: the results are rounded once at any size."""
    cu_seqlens = None if edges is None else torch.tensor(edges)
    tensors = inputs(1024, 4, 1, 64, torch.bfloat16)
    exact = dense(tensors, cu_seqlens)

    def errors(cp_size: int) -> list[tuple[float, float]]:
        results = zip(ring(tensors, cp_size, cu_seqlens, backend=backend), exact, strict=True)
        differences = [a.double() - b for a, b in results]
        return [(x.abs().max().item(), x.norm().item()) for x in differences]

    plain, two, sixteen = errors(1), errors(2), errors(16)
    for found in (two, sixteen):
        assert all(x[0] <= 2 * y[0] for x, y in zip(found, plain, strict=True))
    # The root mean square, since one largest element is a matter of luck.
    assert all(x[1] <= 1.10 * y[1] for x, y in zip(sixteen, two, strict=True))


def test_backward_has_space_for_one_sum_and_a_piece(monkeypatch):
    spaces = []

    class Recorded(SumSpace):
        def __init__(self, *its):
            super().__init__(*its)
            spaces.append(self)

    monkeypatch.setattr(ring_module, "SumSpace", Recorded)
    ring(inputs(256, 4, 2, 64, torch.float32), 4, None)  # sums of 64 KiB
    assert max(space.num_slots for space in spaces) == 8 + 1


def test_pieces_of_a_large_sum_are_small_and_a_small_one_is_a_single_piece():
    unit = gradient_sum.PIECE_BYTES
    assert [num_pieces(size * unit) for size in (0, 1, 16, 64, 256)] == [1, 1, 16, 64, MAX_PIECES]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bit_equal(backend):
    tensors = inputs(64, 4, 2, 64, torch.float32)
    cu_seqlens = torch.tensor([0, 5, 40, 64])
    runs = [ring(tensors, 4, cu_seqlens, backend=backend, deterministic=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_one_document_is_no_document_mask():
    tensors = inputs(64, 4, 2, 64, torch.float32)
    one, none = ring(tensors, 4, torch.tensor([0, 64])), ring(tensors, 4, None)
    assert all(torch.equal(a, b) for a, b in zip(one, none, strict=True))


@pytest.mark.parametrize(("edges", "forward_tokens"), [
    # Three hops of 16 keys, except for rank 0: all others need its early chunk alone.
    (None, 3 * 3 * 16 + 3 * 8),
    ([0, 8, 16, 24, 32, 40, 48, 56, 64], 0),  # documents inside chunks
    ([0, 12, 64], None),
    ([0, 30, 34, 64], None),
])  # fmt: skip
def test_bytes_sent_are_those_needed(edges, forward_tokens):
    cp_size, heads, kv_heads, head_dim = 4, 4, 2, 64
    tensors = inputs(64, heads, kv_heads, head_dim, torch.float32)
    plan = make_plan(zigzag(cp_size), 64, None if edges is None else tuple(edges))
    hops = [[high - low for low, high in its_hops] for its_hops in plan.needed]
    expected = sum(sum(its_hops) for its_hops in hops)
    assert forward_tokens in (None, expected)
    token = 2 * kv_heads * head_dim * 4  # k and v, float32
    group = LocalRing(cp_size)
    cu_seqlens = None if edges is None else torch.tensor(edges)
    q, k, v, dout = tensors
    how = [torch.cat([zigzag(cp_size).shard(x, r, 0) for r in range(cp_size)]) for x in tensors]
    q, k, v, dout = (x.requires_grad_() for x in how)
    out = ring_attention(q, k, v, group=group, cu_seqlens=cu_seqlens)
    assert group.bytes_sent == expected * token
    torch.autograd.grad(out, (q, k, v), dout)
    # Backward sends the keys again, and each source's sums as many times as its keys hopped,
    # the last time home.
    sums = sum(its_hops[1] * plan.last_hop(source) for source, its_hops in enumerate(hops))
    assert group.bytes_sent == (2 * expected + sums) * token


def test_balanced_assignment_is_exact():
    edges = [0, 3, 90, 91, 128]
    assignment = balanced(edges, 4)
    assert assignment != zigzag(4)
    tensors = inputs(128, 4, 2, 64)
    cu_seqlens = torch.tensor(edges)
    found = ring(tensors, 4, cu_seqlens, assignment)
    assert largest_difference(found, dense(tensors, cu_seqlens)) <= 1e-12


def test_inputs_need_not_be_contiguous_nor_want_gradients():
    q, k, v, _ = inputs(32, 4, 2, 64)
    expected = ring_attention(q, k, v)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1).flip(3).flip(3) for x in (q, k, v)]
    wide = torch.cat([q, q], dim=2)[:, :, :4]
    assert torch.equal(ring_attention(wide, *strided[1:]), expected)
    assert not expected.requires_grad
    with torch.no_grad():
        out = ring_attention(q.clone().requires_grad_(), k, v)
    assert torch.equal(out, expected)
    k.requires_grad_()  # keys alone
    ring_attention(q, k, v).sum().backward()
    assert k.grad is not None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_repeats_attention_unless_its_output_is_kept(use_reentrant, monkeypatch):
    calls = []
    forward = function._forward
    monkeypatch.setattr(function, "_forward", lambda *a: calls.append(1) or forward(*a))
    q, k, v, dout = (x.requires_grad_() for x in inputs(32, 4, 2, 64, torch.float32))

    def gradients(keep: KeptOutput | None) -> tuple[torch.Tensor, ...]:
        def layer(*x: torch.Tensor) -> torch.Tensor:
            return ring_attention(*(2 * y for y in x), group=LocalRing(2), keep=keep) ** 2

        out = checkpoint(layer, q, k, v, use_reentrant=use_reentrant)
        return torch.autograd.grad(out, (q, k, v), dout) if not use_reentrant else _by_backward(out)

    def _by_backward(out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q.grad = k.grad = v.grad = None
        out.backward(dout)
        return q.grad, k.grad, v.grad

    recomputed = gradients(None)
    assert len(calls) == 2
    kept = gradients(KeptOutput())
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(recomputed, kept, strict=True))


def test_mistakes_of_the_caller_are_named():
    q, k, v, _ = inputs(32, 4, 2, 64, batch=2)
    with pytest.raises(AssertionError, match="one row at a time, not a batch of 2"):
        ring_attention(q, k, v, cu_seqlens=torch.tensor([0, 32]))
    with pytest.raises(AssertionError, match=r"kv_heads \(3\) must divide heads \(4\)"):
        ring_attention(q, q[:, :, :3], q[:, :, :3])
    with pytest.raises(AssertionError, match=r"run from 0 to the length of the whole row \(32\)"):
        ring_attention(q[:, :1], k[:, :1], v[:, :1], cu_seqlens=torch.tensor([0, 16]))
