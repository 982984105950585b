"""``--reset-attention-mask`` through the drop-in: what Megatron-LM's own mask of S x S gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_ultralong.dropin.extension import _boundaries
from tests.dropin.megatron_lm import Tiny, needs_megatron_lm, tiny_run
from tests.ranks import run_on_ranks

needs_megatron_lm()

RESET = ("--reset-attention-mask", "--reset-position-ids", "--eod-mask-loss")
# Else Megatron-LM takes the mean of each context-parallel rank's own tokens, however many count.
PER_TOKEN = "--calculate-per-token-loss"


def test_boundaries_are_behind_the_ends_of_documents() -> None:
    ends = torch.tensor([False, False, True, True, False, True])
    assert _boundaries(ends).tolist() == [0, 3, 4, 6]
    assert _boundaries(torch.tensor([False, False])).tolist() == [0, 2]


@pytest.mark.parametrize("rows", [1, 2], ids=lambda n: f"micro-batches of {n}")
def test_losses_are_those_of_the_dense_mask(tmp_path: Path, rows: int) -> None:
    words = (*RESET, PER_TOKEN, "--micro-batch-size", str(rows))
    expected = run_on_ranks(1, tiny_run, Tiny(tmp_path / "plain", words, plain=True))[0]
    without = run_on_ranks(1, tiny_run, Tiny(tmp_path / "without", words[3:], plain=True))[0]
    assert expected != pytest.approx(without, rel=1e-4)  # the mask is seen
    for ranks in (1, 2):
        split = (*words, "--context-parallel-size", str(ranks))
        found = run_on_ranks(ranks, tiny_run, Tiny(tmp_path / f"cp{ranks}", split))[0]
        assert found == pytest.approx(expected, rel=1e-5)  # float32 sums in another order
