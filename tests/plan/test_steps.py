"""Work of a plan, in lines of Python: four times the GPUs take at most five times as many."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.plan.area import drawn_rows
from megatron_ultralong.plan.hardware import HARDWARE
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.search import search
from megatron_ultralong.plan.work import ring_bytes


def num_lines(function: Callable[[], object]) -> int:
    """Lines of this package that run."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if "megatron_ultralong" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def job(num_gpus: int, *, documents: bool = False) -> Job:
    config = PRETRAIN_RECIPES["llama3.1-8b-1m"]()
    length = config.data.seq_length
    rows = drawn_rows(length, 65_536) if documents else None
    return Job(MODELS["llama3.1-8b"], config, num_gpus, length * (length + 1) / 2, rows)


@pytest.mark.parametrize(
    ("num_gpus", "documents"),
    [
        (16, False),
        pytest.param(64, False, marks=pytest.mark.slow),
        pytest.param(32, True, marks=pytest.mark.slow),
        pytest.param(1024, False, marks=pytest.mark.slow),
        pytest.param(1024, True, marks=pytest.mark.slow),
    ],
)
def test_a_search(num_gpus: int, documents: bool) -> None:
    hardware = HARDWARE["h100-80gb"]
    search(job(8, documents=documents), hardware)  # what is imported or made once

    def lines(count: int) -> int:
        planned = job(count, documents=documents)
        return num_lines(lambda: search(planned, hardware))

    once, four_times = lines(num_gpus), lines(4 * num_gpus)
    assert four_times <= 5 * once, (once, four_times)


def test_the_bytes_of_a_ring() -> None:
    def bytes_of(ranks: int) -> int:
        planned = job(ranks)
        parallel = dataclasses.replace(
            planned.parallel, tensor_model_parallel_size=1, context_parallel_size=ranks,
            sequence_parallel=False,
        )  # fmt: skip
        config = dataclasses.replace(planned.config, parallel=parallel)
        planned = dataclasses.replace(planned, config=config)
        return num_lines(lambda: ring_bytes(planned))

    assert bytes_of(4096) <= 5 * bytes_of(1024)
