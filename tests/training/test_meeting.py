"""Threads of ranks meet in the job's store."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from megatron_ultralong.training.saving import meeting
from megatron_ultralong.training.saving.meeting import Meeting
from tests.ranks import run_on_ranks


def met(chunk: int) -> list[str]:
    """Run on every rank: what two meetings end with, each in a thread of its own."""
    meeting._CHUNK = chunk
    found: list[str] = []
    for name in ("one", "two"):
        place = Meeting(name, 60.0)

        def meet(name: str = name, place: Meeting = place) -> None:
            own = f"{name} é {dist.get_rank()}\n" * 5
            found.append(place.meet(own, lambda texts: "".join(texts).upper()))

        thread = threading.Thread(target=meet)
        thread.start()
        dist.barrier()  # a collective of main threads meanwhile
        thread.join()
    return found


@pytest.mark.parametrize(("num_ranks", "chunk"), [(1, 4), (2, 4), (3, 2**22)])
def test_all_have_what_the_main_one_makes_of_all(num_ranks: int, chunk: int) -> None:
    expected = [
        "".join(f"{name} É {rank}\n" * 5 for rank in range(num_ranks)) for name in ("ONE", "TWO")
    ]
    assert run_on_ranks(num_ranks, met, chunk) == [expected] * num_ranks


def alone() -> str:
    """Run on every rank: the main one does not come."""
    place = Meeting("alone", 0.1)
    if dist.get_rank() == 0:
        dist.barrier()
        return ""
    place.hurry()
    with pytest.raises(TimeoutError) as error:
        place.meet("", lambda texts: "")
    dist.barrier()
    return str(error.value)


def test_a_rank_that_does_not_come_is_named() -> None:
    assert run_on_ranks(2, alone)[1] == "rank 0 has written nothing for 0 s"
