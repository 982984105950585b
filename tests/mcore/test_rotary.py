from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.mcore.cpu import cpu_backend
from megatron_ultralong.mcore.rotary import LocalRotaryEmbedding, softmax_scale
from megatron_ultralong.model import yarn
from megatron_ultralong.sequence.assignment import Assignment, zigzag

SCALING = yarn.YarnConfig(512.0)


class FakeGroup:
    """A rank's place in a group: all that the rotary module asks of one."""

    def __init__(self, size: int, rank: int) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


def rotary(precision: str = "exact") -> LocalRotaryEmbedding:
    return LocalRotaryEmbedding(
        SCALING,
        32,
        500_000.0,
        None,
        torch.device("cpu"),
        precision,  # type: ignore[arg-type]
    )


@given(st.integers(1, 8), st.integers(1, 16))
def test_the_ranks_hold_the_angles_of_the_whole_row(cp_size: int, chunk: int) -> None:
    length = 2 * cp_size * chunk
    whole = rotary()(length)
    shards = [rotary()(length, cp_group=FakeGroup(cp_size, rank)) for rank in range(cp_size)]
    assert torch.equal(zigzag(cp_size).unshard(shards, 0), whole)


def test_another_assignment_moves_the_angles() -> None:
    module = rotary()
    group = FakeGroup(2, 1)
    zigzag_angles = module(16, cp_group=group)
    module.assignment = Assignment(((0, 1), (2, 3)))
    assert torch.equal(module(16, cp_group=group), rotary()(16)[8:])
    module.assignment = None
    assert torch.equal(module(16, cp_group=group), zigzag_angles)


def test_angles_are_wrapped_and_right_at_the_end_of_a_4m_row() -> None:
    angles = rotary()(4_194_304, cp_group=FakeGroup(8192, 0))[:, 0, 0]
    assert angles.dtype == torch.float32
    # The largest float32 below pi is above it by half a unit in the last place.
    assert angles.abs().max() <= np.pi + 1e-6
    exact = yarn.wrapped_angles(np.asarray([4_194_303]), yarn.inv_freq(SCALING, 32, 500_000.0))
    # A float32 in [-pi, pi] is off by at most half of 2^-22.
    np.testing.assert_allclose(angles[-1, :16].numpy(), exact[0], atol=1.2e-7, rtol=0)
    assert torch.equal(angles[:, :16], angles[:, 16:])


def test_float32_angles_are_those_of_megatron() -> None:
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    actual = LocalRotaryEmbedding(None, 32, 10_000.0, None, torch.device("cpu"), "float32")(64)
    with cpu_backend():
        expected = RotaryEmbedding(32, 1.0, rotary_base=10_000, use_cpu_initialization=True)(64)
    # The frequencies are rounded from float64 here and computed in float32 there: two roundings.
    torch.testing.assert_close(actual, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("factor", [1.0, 1.4852])
def test_the_temperature_goes_into_the_softmax_scale(factor: float) -> None:
    scaling = yarn.YarnConfig(128.0, ramp="dimensions", attention_factor=factor)
    assert softmax_scale(scaling, 64) == pytest.approx(factor**2 / 8.0)
