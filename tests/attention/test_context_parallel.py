"""Who holds what: shards, positions, and the balance of the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.attention import reference
from megatron_ultralong.attention.ring.plan import make_plan
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.assignment import Assignment, balanced, zigzag
from megatron_ultralong.sequence.chunks import hop_areas, phases_end, ring_time
from megatron_ultralong.sequence.documents import causal_area, chunk_areas
from tests.attention.whole_sequence import assignments, boundaries
from tools.attention_benchmark.recipe_lengths import recipe_lengths


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 4), st.integers(0, 1), st.data())
def test_every_token_is_on_one_rank_and_comes_back(cp_size, per_rank, chunk, dim, data):
    assignment = data.draw(assignments(cp_size, per_rank))
    x = torch.arange(cp_size * per_rank * chunk)
    x = torch.stack([x, -x], dim=1 - dim)
    shards = [assignment.shard(x, rank, dim) for rank in range(cp_size)]
    assert torch.equal(assignment.unshard(shards, dim), x)
    for rank, shard in enumerate(shards):
        assert torch.equal(shard.select(1 - dim, 0), assignment.positions(rank, x.shape[dim]))


def test_zigzag_gives_an_early_and_a_late_chunk():
    x, two = torch.arange(8), zigzag(2)
    assert two.shard(x, 0, 0).tolist() == [0, 1, 6, 7]
    assert two.shard(x, 1, 0).tolist() == [2, 3, 4, 5]
    assert two.positions(0, 8).tolist() == [0, 1, 6, 7]
    assert torch.equal(two.unshard([two.shard(x, r, 0) for r in (0, 1)], 0), x)


@pytest.mark.parametrize("cp_size", [1, 2, 4, 16])
def test_zigzag_shares_causal_work_equally(cp_size):
    plan = make_plan(zigzag(cp_size), 64 * cp_size, None)
    assert len({plan.area(rank) for rank in range(cp_size)}) == 1


def test_one_rank_takes_any_length():
    assert zigzag(1).shard(torch.arange(7), 0, 0).tolist() == list(range(7))


def test_the_length_must_divide_into_the_chunks():
    with pytest.raises(InputError, match=r"seq_length \(10\) must be divisible by .*\(4 = 2 for"):
        zigzag(2).shard(torch.arange(10), 0, 0)
    with pytest.raises(InputError, match=r"use 12 or 8"):
        zigzag(2).positions(0, 10)
    with pytest.raises(InputError, match=r"\(6 = 3 for each of 2 context-parallel ranks\); use 12"):
        Assignment(((0, 1, 2), (3, 4, 5))).shard(torch.arange(10), 0, 0)


@given(st.integers(1, 12), st.integers(1, 6), st.data())
def test_areas_of_chunks_count_the_mask(num_chunks, chunk, data):
    edges = data.draw(boundaries(num_chunks * chunk, chunk))
    mask = reference.mask(edges[-1], torch.tensor(edges))
    assert (
        chunk_areas(edges, num_chunks).tolist() == mask.sum(1).view(num_chunks, -1).sum(1).tolist()
    )


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.data())
def test_areas_by_hop_are_those_of_the_plan(cp_size, per_rank, chunk, data):
    assignment = data.draw(assignments(cp_size, per_rank))
    edges = data.draw(boundaries(cp_size * per_rank * chunk, chunk))
    areas = hop_areas(assignment.chunks, edges)
    plan = make_plan(assignment, edges[-1], tuple(edges))
    for rank, hops in enumerate(plan.rectangles):
        own = causal_area(plan.local_cu_seqlens[rank])
        rectangles = [sum(rectangle.area for rectangle in hop) for hop in hops[1:]]
        assert areas[rank].tolist() == [own, *rectangles]


@given(st.integers(1, 6), st.data())
def test_a_ring_is_slower_than_its_busiest_rank_and_faster_than_with_barriers(size, data):
    some = st.lists(st.integers(0, 9), min_size=size, max_size=size)
    areas = np.array([data.draw(some) for _ in range(size)], float) + 0.01
    mean = areas.sum() / size
    assert areas.sum(1).max() / mean <= ring_time(areas) * (1 + 1e-9)
    assert ring_time(areas) <= areas.max(0).sum() / mean * (1 + 1e-9)


def test_a_rank_waits_for_its_neighbours_to_come_to_a_hop():
    assert ring_time(np.ones((4, 4))) == 1
    areas = np.ones((5, 5))
    areas[0, 0] = 4
    assert phases_end(areas) == 8  # of rank 0 itself
    # It starts hops at 0, 4, 5, 6, 7. Rank 1 cannot start its third hop before 4, when rank 0 comes
    # to its second: 0, 1, 4, 5, 6. Rank 2 waits for that: 0, 1, 2, 4, 5.
    areas[2, 4] = 7
    assert phases_end(areas) == 5 + 7


@settings(deadline=None)
@given(st.sampled_from([2, 3, 4]), st.data())
def test_balanced_is_never_slower_than_zigzag(cp_size, data):
    edges = data.draw(boundaries(16 * cp_size, 8))
    found, plain = (each.chunks for each in (balanced(edges, cp_size), zigzag(cp_size)))
    assert ring_time(hop_areas(found, edges)) <= ring_time(hop_areas(plain, edges))


def _busiest(assignment: Assignment, edges: list[int]) -> float:
    """Work of the busiest rank over the mean, as the ring executes it."""
    plan = make_plan(assignment, edges[-1], tuple(edges))
    areas = [plan.area(rank) for rank in range(plan.size)]
    return max(areas) / (sum(areas) / len(areas))


@pytest.mark.parametrize("cp_size", [4, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_balanced_shares_the_work_of_the_recipes_lengths(cp_size, seed):
    seq_length = 262_144 * cp_size  # the budget of every published run
    edges = recipe_lengths(seq_length, seed)
    # What the project promises: the busiest rank at most 1.10 x the mean, the ring 1.05.
    assert _busiest(balanced(edges, cp_size), edges) <= 1.10
    assert ring_time(hop_areas(balanced(edges, cp_size).chunks, edges)) <= 1.05
    # The work done is the mask's own area: rectangles cover nothing that is hidden.
    plan = make_plan(balanced(edges, cp_size), seq_length, tuple(edges))
    assert sum(plan.area(rank) for rank in range(cp_size)) == causal_area(edges)
