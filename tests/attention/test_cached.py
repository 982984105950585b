"""Attention in chunks over a cache spread over ranks is attention over the whole sequence."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.attention import decoding, reference
from megatron_ultralong.attention.decoding import KeyValueCache, local_capacity, spread_length
from megatron_ultralong.attention.kernels.base import merge_, merge_all
from megatron_ultralong.sequence.assignment import zigzag
from tests.attention.whole_sequence import inputs
from tests.ranks import run_on_ranks

HEADS, KV_HEADS, DIM, SCALE = 4, 2, 16, 0.3
NUM_CASES = 12


def a_case(number: int, cp_size: int) -> tuple[int, list[tuple[bool, int]]]:
    """Random passes over a sequence: (is_spread, tokens); the first ones may be spread."""
    draw = random.Random(number)
    unit = 2 * cp_size if cp_size > 1 else 1
    spread = [(True, unit * draw.randint(1, 6)) for _ in range(draw.randint(0, 3))]
    together = [
        (False, draw.choice([1, 1, 1, draw.randint(2, 9)])) for _ in range(draw.randint(1, 9))
    ]
    passes = spread + together
    return sum(tokens for _, tokens in passes), passes


def run_case(number: int, group: dist.ProcessGroup | None, dtype: torch.dtype) -> torch.Tensor:
    """Output of the whole sequence, [s, 1, heads, d]; spread chunks put together again."""
    size = 1 if group is None else group.size()
    rank = 0 if group is None else group.rank()
    length, passes = a_case(number, size)
    q, k, v, _ = inputs(length, HEADS, KV_HEADS, DIM, dtype, seed=number)
    cache = KeyValueCache(1, 1, length, KV_HEADS, DIM, dtype=dtype, device=torch.device("cpu"))
    outs, start = [], 0
    options: dict[str, Any] = {"group": group, "softmax_scale": SCALE}
    for is_spread, tokens in passes:
        chunk = slice(start, start + tokens)
        its = [x[chunk] for x in (q, k, v)]
        if is_spread:
            its = [zigzag(size).shard(x, rank, 0) for x in its]
            kept = [range(len(its[0]))]
            before = cache.cached(0, [0], cache.lengths) if start else None
            out = decoding.spread(*its, before, **options)
            if group is not None:
                shards = [torch.empty_like(out) for _ in range(size)]
                dist.all_gather(shards, out.contiguous(), group=group)
                out = zigzag(size).unshard(shards, 0)
        else:
            kept = [tuple(t for t in range(tokens) if (start + t) % size == rank)]
        placement = cache.place([0], kept)
        is_step = not is_spread and tokens == 1 and number % 2 == 0
        if is_step:
            cache.write(0, placement, *its[1:])
            lengths = [cache.lengths[0] + len(kept[0])]
        else:
            lengths = list(cache.lengths)
        if not is_spread:
            out = decoding.shared(
                *its, cache.cached(0, [0], lengths), is_written=is_step, **options
            )
        if not is_step:
            cache.write(0, placement, *its[1:])
        cache.advance([0], kept)
        outs.append(out)
        start += tokens
    return torch.cat(outs)


def run_cases(dtype: torch.dtype) -> dict[int, list[torch.Tensor]]:
    """Run on four ranks, which are two groups of two as well."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    groups = {2: pairs[dist.get_rank() // 2], 4: dist.group.WORLD}
    return {
        size: [run_case(number, group, dtype) for number in range(NUM_CASES)]
        for size, group in groups.items()
    }


def expected(number: int, cp_size: int, dtype: torch.dtype) -> torch.Tensor:
    length, _ = a_case(number, cp_size)
    q, k, v, _ = inputs(length, HEADS, KV_HEADS, DIM, dtype, seed=number)
    return reference.attention(q.double(), k.double(), v.double(), softmax_scale=SCALE)


def test_on_one_rank_any_chunks_give_attention_over_the_whole():
    for number in range(40):
        found = run_case(number, None, torch.float64)
        torch.testing.assert_close(found, expected(number, 1, torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_on_ranks_any_chunks_give_attention_over_the_whole(dtype):
    # bfloat16: inputs are exact, and each of the at most five partial results is rounded once.
    tolerance = 1e-12 if dtype == torch.float64 else 2**-6
    for results in run_on_ranks(4, run_cases, dtype):
        for size, outs in results.items():
            for number, found in enumerate(outs):
                want = expected(number, size, dtype)
                torch.testing.assert_close(found.double(), want, atol=tolerance, rtol=0)


@given(st.data())
def test_rows_of_a_batch_do_not_see_each_other(data):
    """Rows of any lengths, some of them left out: each is attended to as if it were alone."""
    num_rows = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=num_rows, max_size=num_rows))
    rows = sorted(data.draw(st.sets(st.integers(0, num_rows - 1), min_size=1)))
    dtype = torch.float64
    cache = KeyValueCache(2, num_rows, 8, KV_HEADS, DIM, dtype=dtype, device=torch.device("cpu"))
    _, k, v, _ = inputs(6, HEADS, KV_HEADS, DIM, batch=num_rows)
    kept = [range(length) for length in lengths]
    for layer in range(2):
        cache.write(layer, cache.place(range(num_rows), kept), k, v)
    cache.advance(range(num_rows), kept)
    q, new_k, new_v, _ = inputs(1, HEADS, KV_HEADS, DIM, seed=1, batch=len(rows))
    out = decoding.shared(
        q,
        new_k,
        new_v,
        cache.cached(1, rows, [lengths[row] for row in rows]),
        group=None,
        softmax_scale=SCALE,
        is_written=False,
    )
    for column, row in enumerate(rows):
        keys = torch.cat((k[: lengths[row], row], new_k[:, column]))[:, None]
        values = torch.cat((v[: lengths[row], row], new_v[:, column]))[:, None]
        queries = torch.zeros(len(keys), 1, HEADS, DIM, dtype=dtype)
        queries[-1, 0] = q[0, column]
        want = reference.attention(queries, keys, values, softmax_scale=SCALE)[-1, 0]
        torch.testing.assert_close(out[0, column], want, atol=1e-12, rtol=0)


@given(st.integers(1, 400), st.integers(0, 60), st.sampled_from([1, 2, 4, 8]))
def test_a_rank_never_keeps_more_than_its_room(prompt, new, cp_size):
    spread = spread_length(prompt, cp_size)
    assert 1 <= prompt - spread <= max(1, 2 * cp_size)
    assert spread % (2 * cp_size if cp_size > 1 else 1) == 0
    room = local_capacity(prompt, new, cp_size)
    for rank in range(cp_size):
        shared = sum(position % cp_size == rank for position in range(spread, prompt + new))
        assert spread // cp_size + shared <= room
    assert cp_size * room < prompt + new + cp_size


@given(st.integers(0, 200))
def test_joining_all_parts_at_once_is_joining_them_one_by_one(seed):
    generator = torch.Generator().manual_seed(seed)
    outs = torch.randn(4, 3, 2, 2, 8, generator=generator, dtype=torch.float64)
    lses = 5 * torch.randn(4, 2, 2, 3, generator=generator, dtype=torch.float64)
    empty = torch.rand(4, 2, 2, 3, generator=generator) < 0.5
    lses[empty] = -torch.inf
    outs[empty.permute(0, 3, 1, 2)] = 0.0  # as kernels leave it
    out, lse = outs[0].clone(), lses[0].clone()
    for part, part_lse in zip(outs[1:], lses[1:], strict=True):
        merge_(out, lse, part, part_lse)
    found, found_lse = merge_all(outs, lses)
    torch.testing.assert_close(found_lse, lse, atol=1e-12, rtol=0)
    torch.testing.assert_close(found, out, atol=1e-12, rtol=0)
