from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.mcore.tiles import SequenceTiles, tiles


def test_tiles_cover_a_sequence_once() -> None:
    assert tiles(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert tiles(4, 8) == [slice(0, 4)]
    assert tiles(4, 0) == [slice(0, 4)]
    assert tiles(0, 0) == []


@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 30))
def test_tiles_put_together_are_the_sequence(num_runs: int, length: int, tile_size: int) -> None:
    cut = SequenceTiles(num_runs, tile_size)
    whole = torch.arange(num_runs * length * 3).view(num_runs * length, 3)
    copy = torch.full_like(whole, -1)
    for tile in cut.of(length):
        part = cut.take(whole, tile)
        assert len(part) <= max(tile_size, num_runs) or not tile_size
        # As the ranks' runs stand one after the other when a tile is gathered.
        runs = [run[tile] for run in whole.chunk(num_runs)]
        assert torch.equal(part, torch.cat(runs))
        cut.put(copy, tile, part)
    assert torch.equal(copy, whole)
