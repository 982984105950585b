"""Every pair that may attend is computed once, and nothing travels that nobody needs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.attention import reference
from megatron_ultralong.attention.ring.gather import _mask
from megatron_ultralong.attention.ring.plan import (
    Plan,
    Rectangle,
    local_cu_seqlens,
    make_plan,
    rectangles,
)
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.documents import causal_area
from tests.attention.whole_sequence import assignments, boundaries


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    cp_size = draw(st.sampled_from([1, 2, 3, 4, 8]))
    chunks_per_rank = draw(st.sampled_from([1, 2, 3]))
    chunk_length = draw(st.integers(1, 6))
    seq_length = cp_size * chunks_per_rank * chunk_length
    edges = draw(st.none() | boundaries(seq_length, chunk_length))
    assignment = draw(assignments(cp_size, chunks_per_rank))
    return make_plan(assignment, seq_length, tuple(edges) if edges else None)


def _mask_of(plan: Plan) -> torch.Tensor:
    return reference.mask(plan.seq_length, torch.tensor(plan.cu_seqlens))


def _count(counts: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, cu: tuple[int, ...]):
    """Count the pairs of a causal kernel inside local documents."""
    local = reference.mask(len(queries), torch.tensor(cu)).int()
    counts[queries[:, None], keys[None, :]] += local


@settings(max_examples=200, deadline=None)
@given(plans())
def test_the_ring_computes_every_pair_once(plan):
    counts = torch.zeros(plan.seq_length, plan.seq_length, dtype=torch.int32)
    positions = [plan.assignment.positions(rank, plan.seq_length) for rank in range(plan.size)]
    for rank, own in enumerate(positions):
        _count(counts, own, own, plan.local_cu_seqlens[rank])
        for hop, step in enumerate(plan.rectangles[rank]):
            upstream = positions[(rank - hop) % plan.size]
            for q_start, q_stop, k_start, k_stop in step:
                assert q_start < q_stop, "an empty block crashes the CPU kernel"
                assert k_start < k_stop
                counts[own[q_start:q_stop, None], upstream[None, k_start:k_stop]] += 1
    assert torch.equal(counts, _mask_of(plan).int())
    assert sum(plan.area(rank) for rank in range(plan.size)) == counts.sum()
    assert causal_area(plan.cu_seqlens) == counts.sum()


@settings(max_examples=200, deadline=None)
@given(plans())
def test_all_gather_computes_every_pair_once(plan):
    counts = torch.zeros(plan.seq_length, plan.seq_length, dtype=torch.int32)
    for rank in range(plan.size):
        own = plan.assignment.positions(rank, plan.seq_length)
        edges, dense = _mask(plan, rank)
        _count(counts, own, own, edges)
        for q_start, q_stop, k_start, k_stop in dense:
            counts[own[q_start:q_stop], k_start:k_stop] += 1
    assert torch.equal(counts, _mask_of(plan).int())


@settings(max_examples=200, deadline=None)
@given(plans())
def test_keys_travel_as_far_as_they_are_needed_and_no_further(plan):
    mask = _mask_of(plan)
    positions = [plan.assignment.positions(rank, plan.seq_length) for rank in range(plan.size)]
    for source, upstream in enumerate(positions):
        for hop in range(1, plan.size):
            later = [positions[(source + h) % plan.size] for h in range(hop, plan.size)]
            wanted = mask[torch.cat(later)][:, upstream].any(dim=0).nonzero().flatten().tolist()
            expected = (wanted[0], wanted[-1] + 1) if wanted else (0, 0)
            assert plan.needed[source][hop] == expected


@given(st.sampled_from([2, 4, 8]), st.data())
def test_zigzag_needs_at_most_one_rectangle_for_each_hop(cp_size, data):
    edges = data.draw(boundaries(8 * cp_size, 4))
    plan = make_plan(zigzag(cp_size), 8 * cp_size, tuple(edges))
    assert all(len(step) <= 1 for rank in plan.rectangles for step in rank)


def test_rectangles_of_two_zigzag_ranks():
    assert rectangles((0, 3), (1, 2), 4, [0, 16]) == (Rectangle(4, 8, 0, 8),)
    assert rectangles((1, 2), (0, 3), 4, [0, 16]) == (Rectangle(0, 8, 0, 4),)
    assert rectangles((0, 3), (1, 2), 4, [0, 10, 16]) == (Rectangle(4, 8, 6, 8),)
    assert rectangles((0, 3), (1, 2), 4, [0, 12, 16]) == ()


def test_a_document_that_leaves_a_rank_and_returns_is_one_local_document():
    assert local_cu_seqlens((0, 3), 4, [0, 2, 16]) == (0, 2, 8)
    assert local_cu_seqlens((0, 3), 4, [0, 8, 16]) == (0, 4, 8)
