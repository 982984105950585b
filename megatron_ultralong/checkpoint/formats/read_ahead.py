"""Reading of the next weight while one is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from megatron_ultralong.checkpoint.formats.weight_map import Weight

T = TypeVar("T")


def read_ahead(
    weights: Sequence[Weight], read: Callable[[Weight], T]
) -> Iterator[tuple[Weight, T]]:
    """Each of ``weights`` with what ``read`` makes of it; two of them are in memory at a time.

    The large tensors of a Llama, embedding and output, have small neighbours. Reading and writing
    take about the same time, and Python's lock is free in most of both.
    """
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[T] | None = reader.submit(read, weights[0]) if weights else None
        for number, weight in enumerate(weights):
            assert ahead is not None
            value = ahead.result()
            ahead = None  # or it would keep the value
            if number + 1 < len(weights):
                ahead = reader.submit(read, weights[number + 1])
            yield weight, value
            del value
