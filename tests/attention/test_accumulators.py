"""float32 gradients of flash-attn-4: read out of its accumulators, on a stand-in of the package."""

from __future__ import annotations

import logging
import sys
import threading
import types
from collections.abc import Iterator

import pytest
import torch

from megatron_ultralong.attention import kernels
from megatron_ultralong.attention.kernels import accumulators, block_attention
from megatron_ultralong.attention.kernels.base import Gradients, Inputs, Part, Saved
from megatron_ultralong.attention.kernels.cpu import CPU
from tests.attention import fake_flash4
from tests.attention.whole_sequence import dense, inputs, ring

KERNEL = fake_flash4.OnCpu()
DOCUMENTS = (0, 1, 130, 131, 450, 600)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulators, "_orders", {})
    accumulators.say.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, fault: str = "") -> types.ModuleType:
    its = fake_flash4.package(fault)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", its)
    return its


def both_ways(
    head_dim: int, mask: tuple[int, ...] | None, batch: int = 1, kv_heads: int = 1
) -> tuple[Gradients, Gradients]:
    """Gradients as the package rounds them, and those handed out."""
    length = 600 if mask is None else mask[-1]
    q, k, v, dout = inputs(length, 2, kv_heads, head_dim, torch.bfloat16, batch=batch)
    q, dout = (q[:129], dout[:129]) if mask is None else (q, dout)
    its = Inputs(q, k, v, mask, 0.1)
    saved = Saved(dout, *block_attention.forward(KERNEL, its))
    rounded = block_attention.backward(KERNEL, its, saved)
    return rounded, block_attention.backward(KERNEL, Part(*its), saved)


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("mask", [None, (0, 600), (0, 129), DOCUMENTS], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_they_are_those_of_the_package_before_it_rounds(monkeypatch, head_dim, mask, batch):
    installed(monkeypatch)
    rounded, found = both_ways(head_dim, mask, batch)
    for a, b in zip(rounded, found, strict=True):
        assert (a.dtype, b.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(a, b.to(a.dtype))
        assert not torch.equal(a.float(), b)


def test_heads_without_groups_have_no_accumulators_of_keys(monkeypatch):
    installed(monkeypatch)
    rounded, found = both_ways(64, (0, 600), kv_heads=2)
    assert [x.dtype for x in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(rounded, found, strict=True))


def test_heads_that_are_split_are_not_rounded_either(monkeypatch):
    installed(monkeypatch)
    _, whole = both_ways(64, (0, 300))
    monkeypatch.setattr(block_attention, "MAX_ELEMENTS", 300 * 64)
    rounded, found = both_ways(64, (0, 300))
    assert all(x.dtype == torch.bfloat16 for x in rounded)
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], whole[0])


@pytest.mark.parametrize(
    "fault",
    [
        *("two places are one", "a factor is another", "the function has another name"),
        "it returns views",
    ],
)
def test_what_does_not_agree_is_rounded_by_the_package_and_said_once(monkeypatch, caplog, fault):
    installed(monkeypatch, fault)
    with caplog.at_level(logging.WARNING):
        rounded, found = both_ways(64, (0, 300))
        both_ways(64, (0, 300))
    assert found[0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(rounded, found, strict=True))
    said = [record.message for record in caplog.records]
    assert said
    assert all("are rounded before a ring adds them" in text for text in said)
    assert len(set(said)) == len(said)


def test_the_order_is_read_off_once_for_a_form(monkeypatch):
    its = installed(monkeypatch)
    both_ways(64, (0, 300))
    calls = []
    monkeypatch.setattr(accumulators, "_read_off", lambda *_: calls.append(1))
    both_ways(64, (0, 300))
    assert not calls
    both_ways(64, DOCUMENTS)
    assert calls
    assert its._bwd_postprocess_convert.compiled


def test_a_failure_leaves_the_package_as_it_was(monkeypatch):
    its = installed(monkeypatch, "it fails in between")
    before = its._bwd_postprocess_convert
    with pytest.raises(RuntimeError, match="out of memory"):
        both_ways(64, (0, 300))
    assert its._bwd_postprocess_convert is before


def test_other_threads_convert_as_ever():
    its = fake_flash4.package()
    accum, output = torch.randn(1, 1, 64 * 64), torch.zeros(1, 64, 1, 64, dtype=torch.bfloat16)
    arguments = (accum, output, 1.0, None, None, 90, None, 64, 64)

    def convert() -> None:
        its._bwd_postprocess_convert(*arguments, fake_mode=False)

    with accumulators.held_back(its) as held:
        other = threading.Thread(target=convert)
        other.start()
        other.join()
        assert output.any()
        assert not held
        convert()
        assert held[0].output is output


@pytest.mark.parametrize("backend", ["p2p", "all_gather"])
@pytest.mark.parametrize("edges", [None, [0, 1, 150, 256, 512]])
def test_gradients_err_as_those_of_one_rank_at_any_size_of_the_ring(monkeypatch, backend, edges):
    installed(monkeypatch)
    monkeypatch.setattr(block_attention, "candidates", lambda device: (KERNEL, CPU))
    block_attention._resolve.cache_clear()
    cu_seqlens = None if edges is None else torch.tensor(edges)
    tensors = inputs(512, 4, 1, 64, torch.bfloat16)
    exact = dense(tensors, cu_seqlens)

    def errors(cp_size: int) -> list[float]:
        found = ring(tensors, cp_size, cu_seqlens, backend=backend)
        return [float((a.double() - b).norm()) for a, b in zip(found, exact, strict=True)][1:]

    try:
        one, sixteen = errors(1), errors(16)
        backward = KERNEL.backward
        monkeypatch.setattr(KERNEL, "backward", lambda x, y: backward(Inputs(*x), y))
        rounded = errors(16)
    finally:
        block_attention._resolve.cache_clear()
    # Not 1.00: out, a sum of rounded parts, is in dq and dk, where this kernel rounds little else.
    assert all(x <= 1.05 * y for x, y in zip(sixteen, one, strict=True))
    assert all(x >= 1.25 * y for x, y in zip(rounded, one, strict=True))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton needs no GPU; other tests have a module of their own, which is compiled."""
    pytest.importorskip("triton")

    def forget() -> None:
        sys.modules.pop(f"{kernels.__name__}.tile_order", None)
        vars(kernels).pop("tile_order", None)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    forget()
    yield
    forget()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("size", [80 * 128, 64 * 64])
def test_the_triton_kernel_does_what_its_definition_does(size):
    order = torch.randperm(size).int().view(-1, 64)
    accum = torch.randn(2, 3, 5 * size)
    expected = accum.clone()
    accumulators.by_pieces_(expected, order, 0.3)
    accumulators.by_triton_(accum, order, 0.3)
    assert torch.equal(accum, expected)


@pytest.mark.usefixtures("interpreted")
def test_triton_puts_no_tiles_in_order_that_lie_elsewhere():
    accum = torch.randn(2, 2, 3 * 64)[:, :1]
    with pytest.raises(AssertionError, match="one behind the other"):
        accumulators.by_triton_(accum, torch.arange(64).int().view(8, 8), 1.0)
