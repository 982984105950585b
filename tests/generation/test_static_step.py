"""Steps of shapes that never change are those over what there is, on one rank and on several."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from megatron_ultralong.attention import reference
from megatron_ultralong.attention.decoding import KeyValueCache, NextTokens
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.base import merge_all
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.static_step import StaticStep, graph_refusal
from tests.attention.whole_sequence import inputs
from tests.generation.random_model import continued, ending, random_decoder
from tests.ranks import run_on_ranks

ONE = ParallelConfig()
TWO = {
    "cp": ParallelConfig(context_parallel_size=2),
    "tp": ParallelConfig(tensor_model_parallel_size=2),
}
LENGTHS = (5, 1, 41, 16)
STEPS = [*ending(4, 9), [1, 3], [0, 2, 3], [3]]  # rows come back, too
HEADS, KV_HEADS, DIM, SCALE = 4, 2, 16, 0.3
CPU = torch.device("cpu")


def forms(parallel: ParallelConfig, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """Run on every rank: logits of both forms, twice from one decoder."""
    with random_decoder(parallel, dtype) as decoder:
        return [
            continued(decoder, form, lengths, STEPS)
            for lengths in (LENGTHS, LENGTHS[::-1])
            for form in ("eager", "static")
        ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_both_forms_have_the_same_logits(dtype: torch.dtype) -> None:
    check(forms(ONE, dtype), dtype)


@pytest.mark.parametrize("name", TWO)
def test_on_two_ranks_too(name: str) -> None:
    for of_rank in run_on_ranks(2, forms, TWO[name], torch.float64):
        check(of_rank, torch.float64)


def check(results: list[list[torch.Tensor]], dtype: torch.dtype) -> None:
    # bfloat16: of logits up to 5, some units of the last place of what layers hand on.
    tolerance = 1e-12 if dtype == torch.float64 else 2**-4
    for eager, static in (results[:2], results[2:]):
        assert len(eager) == len(STEPS) + 1
        for found, expected in zip(static, eager, strict=True):
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert not torch.equal(results[0][0], results[2][0])


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: operations on the memory that they had, done again."""

    def __init__(self, function: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Any]]] = []
        with self:
            self.result = function()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Of the memory as it is: Megatron-Core gives tensors other memory later.
        memory = tree_map_only(torch.Tensor, torch.detach, (args, kwargs or {}))
        made = func(*args, **(kwargs or {}))
        assert all(isinstance(its, torch.Tensor) for its in tree_leaves(made)), f"{func} reads back"
        self._calls.append((func, *memory, [its.detach() for its in tree_leaves(made)]))
        return made

    def replay(self) -> torch.Tensor:
        for func, args, kwargs, outs in self._calls:
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            known = {x.untyped_storage().data_ptr() for x in inputs}
            for out, made in zip(outs, tree_leaves(func(*args, **kwargs)), strict=True):
                if out.untyped_storage().data_ptr() not in known:  # no view, not in place
                    out.copy_(made)
        return self.result


def test_what_is_recorded_at_one_step_is_right_at_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing that changes from step to step is a number of the host."""
    tapes: dict[StaticStep, Tape] = {}
    plain = StaticStep._forward

    def replayed(step: StaticStep) -> torch.Tensor:
        if step not in tapes:
            tapes[step] = Tape(lambda: plain(step))
        return tapes[step].replay()

    with random_decoder(ONE, torch.float64) as decoder:
        for lengths in (LENGTHS, LENGTHS[:2]):
            steps = [[row for row in rows if row < len(lengths)] or [0] for rows in STEPS]
            expected = continued(decoder, "eager", lengths, steps)
            with monkeypatch.context() as patch:
                patch.setattr(StaticStep, "_forward", replayed)
                found = continued(decoder, "static", lengths, steps)
            for its, other in zip(found, expected, strict=True):
                torch.testing.assert_close(its, other, atol=1e-12, rtol=0)
    assert len(tapes) == 2


def test_forms_follow_each_other_in_one_row() -> None:
    """Each reads the keys that the other one kept."""
    with random_decoder(ONE, torch.float64) as decoder:
        expected = continued(decoder, "eager", LENGTHS[:1], [[0]] * 6)
        draw, logits = np.random.default_rng(0), []
        decoder.start([(LENGTHS[0], 6)])
        decoder.read(0, draw.integers(320, size=LENGTHS[0]), 16)
        for number in range(6):
            decoder.set_steps("eager" if number % 2 else "static")
            logits.append(decoder.step([0], draw.integers(320, size=1)))
    for found, its in zip(logits, expected[1:], strict=True):
        torch.testing.assert_close(found, its, atol=1e-12, rtol=0)


@given(st.data())
def test_ranks_keep_every_token_once(data: st.DataObject) -> None:
    """Rows of any lengths that come and go: keys of all ranks are those of all tokens."""
    cp_size = data.draw(st.sampled_from([1, 2, 3]))
    num_rows = data.draw(st.integers(1, 4))
    steps = data.draw(
        st.lists(st.sets(st.integers(0, num_rows - 1), min_size=1).map(sorted), max_size=7)
    )
    total = 7
    q, k, v, _ = inputs(total, HEADS, KV_HEADS, DIM, batch=num_rows)
    caches = [
        KeyValueCache(
            *(1, num_rows, -(-total // cp_size), KV_HEADS, DIM), dtype=torch.float64, device=CPU
        )
        for _ in range(cp_size)
    ]
    for cache in caches:
        for storage in cache.storage(0):
            storage.fill_(torch.nan)  # whatever was there
    ranks = [NextTokens(cache) for cache in caches]
    lengths = [0] * num_rows
    for rows in steps:
        # Idle columns bring anything.
        new = [x[0].clone()[None] for x in (q, k, v)]
        for row in rows:
            for x, source in zip(new, (q, k, v), strict=True):
                x[0, row] = source[lengths[row], row]
        parts = []
        for rank, (tokens, cache) in enumerate(zip(ranks, caches, strict=True)):
            kept = [lengths[row] % cp_size == rank for row in rows]
            tokens.place(rows, kept)
            tokens.attend(0, *new, group=None, softmax_scale=SCALE)
            parts.append(
                block_attention.forward_rows(new[0], *cache.storage(0), tokens._counts, SCALE)
            )
            cache.advance(rows, [range(its) for its in kept])
        outs, lses = (torch.stack(its) for its in zip(*parts, strict=True))
        out, lse = merge_all(outs, lses)
        for row in range(num_rows):
            if row not in rows:
                assert not out[0, row].any()
                assert (lse[row] == -torch.inf).all()
                continue
            until = lengths[row] + 1
            expected = reference.attention(
                *(x[:until, row : row + 1] for x in (q, k, v)), softmax_scale=SCALE
            )[-1, 0]
            torch.testing.assert_close(out[0, row], expected, atol=1e-12, rtol=0)
            lengths[row] += 1
    for row, length in enumerate(lengths):
        assert [cache.lengths[row] for cache in caches] == [
            len(range(rank, length, cp_size)) for rank in range(cp_size)
        ]
        for rank, cache in enumerate(caches):
            kept_keys = cache.storage(0)[0][row, : cache.lengths[row]]
            assert torch.equal(kept_keys, k[rank:length:cp_size, row])


def test_a_start_leaves_nothing_of_the_last_one() -> None:
    with random_decoder(ONE, torch.float32) as decoder:
        for form in ("eager", "static"):
            continued(decoder, form, LENGTHS, STEPS[:1])
            old = weakref.ref(decoder._cache), weakref.ref(decoder._static or decoder._cache)
            decoder.most_cached_tokens()
            assert all(its() is None for its in old), form


def test_logits_stay_what_they_are() -> None:
    with random_decoder(ONE, torch.float32) as decoder:
        first, *_ = made = continued(decoder, "static", LENGTHS, [range(4)] * 2)
        assert first.data_ptr() != made[1].data_ptr() != made[2].data_ptr()


@pytest.mark.parametrize(
    ("dtype", "stages", "why"),
    [
        (torch.bfloat16, 1, "graphs are for a GPU, not for cpu"),
        (torch.bfloat16, 2, "2 pipeline stages wait for each other's messages"),
    ],
)
def test_what_cannot_be_a_graph(dtype: torch.dtype, stages: int, why: str) -> None:
    device = CPU if stages == 1 else torch.device("cuda")
    assert graph_refusal(dtype, 16, stages, device) == why


def test_the_decoder_says_why_it_has_none(caplog: pytest.LogCaptureFixture) -> None:
    with random_decoder(ONE, torch.float32) as decoder, caplog.at_level(logging.INFO):
        continued(decoder, "auto", LENGTHS, [range(4)] * 2)
    said = [its for its in caplog.records if its.name.endswith("mcore.decoding")]
    assert [(its.levelname, its.getMessage()) for its in said] == [
        # A CPU has no other way: nobody is warned.
        ("INFO", "each token kernel by kernel (graphs are for a GPU, not for cpu)")
    ]


class Failing:
    """A model that fails once."""

    def __init__(self, error: RuntimeError) -> None:
        self.errors, self.num_calls = [error], 0

    def __call__(self, *_: Any) -> torch.Tensor:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop()
        return torch.zeros(2, 8)


def tried(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> tuple[StaticStep, Failing]:
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    cache = KeyValueCache(1, 2, 4, KV_HEADS, DIM, dtype=torch.float32, device=CPU)
    model = Failing(error)
    return StaticStep(NextTokens(cache), DIM, model, captures=False), model


def test_a_step_is_done_again_only_where_all_ranks_do_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = RuntimeError("called a synchronizing CUDA operation\nException raised from ...")
    step, model = tried(waits, monkeypatch)
    assert step._try().shape == (2, 8)
    assert model.num_calls == 2
    assert "called a synchronizing CUDA operation" in step.failure


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), torch.distributed.DistBackendError("NCCL")],
)
def test_an_error_of_one_rank_is_not_passed_over(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done again, messages of its first layer would meet those of a later one."""
    step, model = tried(error, monkeypatch)
    with pytest.raises(type(error)):
        step._try()
    assert (model.num_calls, step.failure) == (1, "")
