"""Ranks that stay between tests, over gloo."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.standing_ranks import RankFailedError, StandingRanks


@pytest.fixture(scope="module")
def ranks() -> Iterator[StandingRanks]:
    found = StandingRanks("gloo")
    yield found
    found.end()


def _sum(value: float) -> tuple[int, float, int]:
    x = torch.tensor(value + dist.get_rank())
    dist.all_reduce(x)
    is_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert not is_on, "left by another call"
    return os.getpid(), x.item(), int(os.environ["WORLD_SIZE"])


def _fails_on(rank: int, how: str) -> None:
    if dist.get_rank() == rank:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("planted")
    dist.barrier()


def _pids(ranks: StandingRanks, world_size: int) -> list[int]:
    found = ranks.run(world_size, _sum, 1.0)
    expected = sum(1.0 + rank for rank in range(world_size))
    assert [result[1:] for result in found] == [(expected, world_size)] * world_size
    return [result[0] for result in found]


def test_calls_of_any_size_share_processes(ranks: StandingRanks) -> None:
    two = _pids(ranks, 2)
    assert len({*two, os.getpid()}) == 3
    assert _pids(ranks, 1) == two[:1]
    assert _pids(ranks, 3)[:2] == two


@pytest.mark.parametrize(
    ("rank", "how", "said"),
    [(0, "dies", "exit status -9"), (1, "raises", "RuntimeError: planted")],
)
def test_a_rank_that_fails_is_told_and_others_start(
    ranks: StandingRanks, rank: int, how: str, said: str
) -> None:
    before = _pids(ranks, 2)
    # The other one may be told first: it has lost its peer.
    with pytest.raises(RankFailedError, match=rf"rank \d(:\n| )(.*\n)*.*({said}|Connection|peer)"):
        ranks.run(2, _fails_on, rank, how)
    assert not {*_pids(ranks, 2)} & {*before}


def test_another_environment_starts_other_ranks(
    ranks: StandingRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _pids(ranks, 1)
    monkeypatch.setenv("SOME_SWITCH", "1")
    assert _pids(ranks, 1) != before
    assert ranks.run(1, os.getenv, "SOME_SWITCH") == ["1"]
