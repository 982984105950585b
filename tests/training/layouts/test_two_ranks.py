"""Two ranks train as one does; recomputation, bf16 and a resumed run beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.attention.ring import function
from megatron_ultralong.config.run import RecomputeGranularity
from megatron_ultralong.sequence.document_mask import DocumentMask
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.verbs import pretrain
from tests.patience import patience
from tests.ranks import run_on_ranks
from tests.training.layouts.runs import Logs, cases, check_like_one_rank, run_config

# All layouts train in one fixture, which takes minutes where ranks share cores with other tests.
pytestmark = pytest.mark.timeout(patience(800))


@pytest.mark.parametrize(("layout", "mask"), cases(ranks=2))
def test_two_ranks_train_as_one(logs: Logs, layout: str, mask: DocumentMask) -> None:
    check_like_one_rank(logs, layout, mask)


def test_the_masks_differ_and_the_loss_falls(logs: Logs) -> None:
    none, block = logs["one", "none"], logs["one", "block"]
    assert abs(none[0].lm_loss - block[0].lm_loss) > 1e-3
    for log in (none, block):
        assert log[-1].lm_loss < log[0].lm_loss - 0.1


def count_attention(inputs: Path, recomputes: list[RecomputeGranularity]) -> list[int]:
    """Forward passes of attention in two iterations, by kind of recomputation."""
    return [_count_attention(inputs, recompute) for recompute in recomputes]


def _count_attention(inputs: Path, recompute: RecomputeGranularity) -> int:
    config = dataclasses.replace(run_config(inputs, "one", "none"), train_iters=2)
    passes = 0
    forward = function._forward

    def counting(*args: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*args)

    function._forward = counting
    try:
        memory = dataclasses.replace(config.memory, recompute_granularity=recompute)
        pretrain(dataclasses.replace(config, memory=memory))
    finally:
        function._forward = forward
    return passes


def test_attention_that_is_kept_is_not_computed_again(inputs: Path) -> None:
    passes = 2 * 2 * 4  # iterations, rows, layers
    kinds: list[RecomputeGranularity] = ["none", "keep_attention", "full"]
    assert run_on_ranks(1, count_attention, inputs, kinds) == [[passes, passes, 2 * passes]]


def train_bf16(inputs: Path) -> list[IterationRecord]:
    """Run on every rank: as `cp2`, with bf16 weights and activations."""
    return pretrain(dataclasses.replace(run_config(inputs, "cp2", "block"), precision="bf16"))


def test_bf16_follows_float32(inputs: Path, logs: Logs) -> None:
    actual = run_on_ranks(2, train_bf16, inputs)[0]
    expected = logs["one", "block"]
    # bf16 has 8 bits: a relative error of 2^-8 a rounding, averaged over a thousand tokens. Later
    # the weights are rounded after updates of their own size; a wrong scale would be far beyond.
    assert actual[0].lm_loss == pytest.approx(expected[0].lm_loss, rel=2**-8)
    for ours_later, theirs_later in zip(actual, expected, strict=True):
        assert ours_later.lm_loss == pytest.approx(theirs_later.lm_loss, rel=0.03)
        assert ours_later.grad_norm == pytest.approx(theirs_later.grad_norm, rel=0.1)


def resume(inputs: Path) -> None:
    """Run on every rank: two iterations, then the rest from the checkpoint."""
    config = run_config(inputs, "cp2", "block", inputs / "resumed")
    pretrain(dataclasses.replace(config, train_iters=2))
    pretrain(config)


@pytest.mark.parametrize(("layout", "mask"), [("cp2", "block")])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    inputs: Path, logs: Logs, layout: str, mask: DocumentMask
) -> None:
    run_on_ranks(2, resume, inputs)
    lines = (inputs / "resumed" / "log.jsonl").read_text().splitlines()
    resumed = [json.loads(line) for line in lines]
    for figure in ("iteration", "lm_loss", "grad_norm", "learning_rate"):
        assert [record[figure] for record in resumed] == [
            getattr(record, figure) for record in logs[layout, mask]
        ]
