"""float32 outputs of flash-attn-4: numbers and their residuals, on a stand-in of the package."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch

from megatron_ultralong.attention.kernels import accumulators, block_attention, flash4
from megatron_ultralong.attention.kernels.base import Inputs, Part, Result
from megatron_ultralong.attention.kernels.math import MATH
from tests.attention import fake_flash4
from tests.attention.whole_sequence import inputs

KERNEL = fake_flash4.OnCpu()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.setattr(flash4, "_usable", {})
    monkeypatch.setattr(flash4, "_compiled", {})
    monkeypatch.setattr(flash4, "is_hopper", lambda device: True)
    accumulators.say.cache_clear()
    flash4._twice.cache_clear()
    its = fake_flash4.package()
    monkeypatch.setitem(sys.modules, its.__name__, its)
    for each in fake_flash4.cutlass():
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return its


def both_ways(mask: tuple[int, ...] | None, batch: int = 1) -> tuple[Result, Result, Result]:
    """As the package rounds, as a part of a sum, and exact."""
    q, k, v, _ = inputs(300, 4, 2, 64, torch.bfloat16, batch=batch)
    q = q if mask else q[:129]
    exact = block_attention.forward(MATH, Inputs(q.double(), k.double(), v.double(), mask, 0.1))
    whole, part = (kind(q, k, v, mask, 0.1) for kind in (Inputs, Part))
    return block_attention.forward(KERNEL, whole), block_attention.forward(KERNEL, part), exact


def state(package: types.ModuleType) -> tuple[object, ...]:
    names = ("FlashAttentionForwardSm90", "_validate_tensor", "_flash_attn_fwd")
    return (*(getattr(package, name) for name in names), package._flash_attn_fwd.compile_cache)


@pytest.mark.parametrize("mask", [None, (0, 300), (0, 1, 130, 131, 300)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_part_has_sixteen_bits(package, mask, batch):
    before = state(package)
    rounded, found, exact = both_ways(mask, batch)
    assert (rounded[0].dtype, found[0].dtype) == (torch.bfloat16, torch.float32)
    assert ((found[0] - rounded[0]).abs() <= 2**-8 * rounded[0].abs()).all()
    assert (found[0] - exact[0]).abs().max() <= 2**-16 * exact[0].abs().max()
    assert torch.equal(found[1], rounded[1])
    assert all(a is b for a, b in zip(state(package), before, strict=True))


def test_forms_that_write_twice_are_not_those_of_the_package(package):
    both_ways((0, 300))
    assert set(package._flash_attn_fwd.compile_cache) == {(True, False, None)}
    assert set(flash4._compiled[package.__name__]) == {(True, False, False)}


class Repeating(fake_flash4.HopperKernel):
    """Writes all numbers two times."""

    def epilogue(self, numbers, lse, out, out_lse, memory, head, batch):
        for place in (head, head + out.shape[2] // 2):
            fake_flash4._storing.clear()
            super().epilogue(numbers, lse, out, out_lse, memory, place, batch)


@pytest.mark.parametrize("fault", ["no such kernel", "no residuals"])
def test_what_is_wrong_is_rounded_by_the_package_and_said_once(package, monkeypatch, caplog, fault):
    if fault == "no such kernel":
        monkeypatch.setattr(flash4, "_KERNEL", "AnotherName")
    else:
        monkeypatch.setattr(flash4, "_twice", lambda kernel: Repeating)
    before = state(package)
    with caplog.at_level(logging.WARNING):
        rounded, found, _ = both_ways((0, 300))
        both_ways((0, 300))
    assert torch.equal(found[0], rounded[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "parts of out are rounded before a ring adds them" in caplog.records[0].message
    assert all(a is b for a, b in zip(state(package), before, strict=True))


def test_elsewhere_nothing_is_tried(package, monkeypatch, caplog):
    monkeypatch.setattr(flash4, "is_hopper", lambda device: False)
    rounded, found, _ = both_ways((0, 300))
    assert torch.equal(found[0], rounded[0])
    assert not caplog.records
