"""The kernel seam: each kernel against the plain formulas, and the choice among them."""

from __future__ import annotations

import importlib
import logging
import sys
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.attention.kernels import base, block_attention, cudnn, efficient
from megatron_ultralong.attention.kernels.base import Inputs, Saved, merge_
from megatron_ultralong.attention.kernels.cpu import CPU, CpuKernel
from megatron_ultralong.attention.kernels.efficient import EFFICIENT
from megatron_ultralong.attention.kernels.math import MATH
from megatron_ultralong.program.errors import InputError
from tests.attention.whole_sequence import inputs

CPU_DEVICE = torch.device("cpu")
# Rounding of the kernel's sums over 70 keys, times the size of the gradients (about 10).
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (4, 1)])
@pytest.mark.parametrize("mask", [None, (0, 70)])
def test_cpu_kernel_equals_the_formulas(dtype, heads, mask):
    q, k, v, dout = inputs(70, *heads, 64, dtype, batch=2)
    if mask is None:
        k, v = k[:33], v[:33]
    expected_out, expected_lse = MATH.forward(Inputs(q.double(), k.double(), v.double(), mask, 0.2))
    out, lse = CPU.forward(Inputs(q, k, v, mask, 0.2))
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (lse - expected_lse).abs().max() <= TOLERANCE[dtype]
    assert (out - expected_out).abs().max() <= TOLERANCE[dtype]
    wide = [x.double() for x in (dout, q, k, v)]
    expected = MATH.backward(
        Inputs(*wide[1:], mask, 0.2), Saved(wide[0], expected_out, expected_lse)
    )
    found = CPU.backward(Inputs(q, k, v, mask, 0.2), Saved(dout, out, lse))
    for its, gradient in zip(found, expected, strict=True):
        assert (its - gradient).abs().max() <= TOLERANCE[dtype] * gradient.abs().max()


@pytest.mark.parametrize("kernel", [CPU, MATH], ids=lambda kernel: kernel.name)
def test_empty_blocks_add_nothing(kernel):
    q, k, v, dout = inputs(4, 2, 1, 64, torch.float32)
    out, lse = block_attention.forward(kernel, Inputs(q, k[:0], v[:0], None, 1.0))
    assert not out.any()
    assert torch.isneginf(lse).all()
    dq, dk, _ = block_attention.backward(
        kernel, Inputs(q, k[:0], v[:0], None, 1.0), Saved(dout, out, lse)
    )
    assert not dq.any()
    assert dk.shape == k[:0].shape
    assert block_attention.forward(kernel, Inputs(q[:0], k, v, None, 1.0))[0].shape == q[:0].shape


def test_merging_halves_equals_the_whole_and_nothing_is_neutral():
    q, k, v, _ = inputs(16, 2, 1, 64)
    whole, whole_lse = MATH.forward(Inputs(q, k, v, None, 0.1))
    out, lse = block_attention.forward(MATH, Inputs(q, k[:0], v[:0], None, 0.1))
    for part in (slice(0, 0), slice(0, 5), slice(5, 16), slice(3, 3)):
        merge_(out, lse, *block_attention.forward(MATH, Inputs(q, k[part], v[part], None, 0.1)))
        assert not out.isnan().any()
    assert (out - whole).abs().max() <= 1e-15
    assert (lse - whole_lse).abs().max() <= 1e-14


def test_heads_are_split_where_a_tensor_cannot_be_indexed(monkeypatch):
    q, k, v, dout = inputs(16, 8, 4, 64)
    out, lse = block_attention.forward(CPU, Inputs(q, k, v, (0, len(q)), 0.1))
    whole = block_attention.backward(CPU, Inputs(q, k, v, (0, len(q)), 0.1), Saved(dout, out, lse))
    monkeypatch.setattr(block_attention, "MAX_ELEMENTS", q.numel() // 2)
    split_out, split_lse = block_attention.forward(CPU, Inputs(q, k, v, (0, len(q)), 0.1))
    assert torch.equal(split_out, out)
    assert torch.equal(split_lse, lse)
    split = block_attention.backward(CPU, Inputs(q, k, v, (0, len(q)), 0.1), Saved(dout, out, lse))
    assert all(torch.equal(a, b) for a, b in zip(split, whole, strict=True))
    # A kernel that takes all documents in one call is called for each group of heads too.
    edges, calls = (0, 5, 16), []

    class Counted(CpuKernel):
        def forward(self, inputs):
            calls.append(inputs.q.shape[2])
            return super().forward(inputs)

    found = block_attention.forward(Counted(), Inputs(q, k, v, edges, 0.1))
    assert calls == [4, 4]
    assert torch.equal(found[0], block_attention.forward(CPU, Inputs(q, k, v, edges, 0.1))[0])
    # Query heads of one key head are split last: its gradient is then a sum of parts.
    for num_groups in (4, 8):
        monkeypatch.setattr(block_attention, "MAX_ELEMENTS", q.numel() // num_groups)
        assert len(block_attention._head_groups(q, k)) == num_groups
        split_out, split_lse = block_attention.forward(CPU, Inputs(q, k, v, (0, len(q)), 0.1))
        assert torch.equal(split_out, out)
        assert torch.equal(split_lse, lse)
        split = block_attention.backward(
            CPU, Inputs(q, k, v, (0, len(q)), 0.1), Saved(dout, out, lse)
        )
        for part, exact in zip(split, whole, strict=True):
            torch.testing.assert_close(part, exact, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(block_attention, "MAX_ELEMENTS", q.numel() // 9)
    with pytest.raises(InputError, match="raise context_parallel_size"):
        block_attention.forward(CPU, Inputs(q, k, v, (0, len(q)), 0.1))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_cudnn_takes_long_documents_alone_and_short_ones_together(lengths):
    edges = [0, *accumulate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudnn, "MIN_AREA", 100)  # long: 10 tokens
        runs = cudnn.CUDNN.runs(tuple(edges))
    found = [start + edge for start, its in runs for edge in its]
    assert sorted(set(found)) == edges
    assert [start + its[-1] for start, its in runs] == [start for start, _ in runs[1:]] + edges[-1:]
    is_long = [len(its) == 2 and its[1] >= 10 for _, its in runs]
    assert sum(is_long) == sum(length >= 10 for length in lengths)
    assert all(a or b for a, b in pairwise(is_long)), "neighbours are not together"


def test_cudnn_takes_so_many_shapes_and_no_more(monkeypatch, caplog):
    monkeypatch.setattr(cudnn, "MIN_AREA", 100)
    monkeypatch.setattr(cudnn, "MAX_SHAPES", 2)
    monkeypatch.setattr(cudnn, "_shapes", set())

    def falls(length: int) -> bool:
        return cudnn._falls_to_fa2(torch.empty(length, 1), torch.empty(length, 1))

    assert [falls(n) for n in (9, 10, 11, 12, 10, 1024)] == [True, False, False, True, False, False]
    assert "cuDNN has plans for 2 shapes of documents" in caplog.text
    torch.use_deterministic_algorithms(True)
    try:
        assert falls(10), "it would depend on what ran before"
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_choice_is_named_in_the_log_and_can_be_overridden(monkeypatch, caplog):
    block_attention._resolve.cache_clear()
    with caplog.at_level(logging.INFO):
        assert block_attention.resolve(torch.float32, 64, CPU_DEVICE) is CPU
    assert "attention kernel cpu for torch.float32, head size 64, on cpu" in caplog.text
    assert block_attention.resolve(torch.float32, 64, CPU_DEVICE, "math") is MATH
    monkeypatch.setenv(block_attention.OVERRIDE, "math")
    assert block_attention.resolve(torch.float32, 64, CPU_DEVICE) is MATH


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ([], "flash_attn.cute.interface is not installed"),
        # FlashAttention 2 has the first name of flash-attn-4.
        (["flash_attn/__init__.py"], "flash_attn.cute.interface is not installed"),
        (
            ["flash_attn/__init__.py", "flash_attn/cute/__init__.py"],
            "flash_attn.cute.interface is installed in part, and cannot be imported "
            "(ModuleNotFoundError: No module named 'flash_attn.cute.interface')",
        ),
        (
            ["flash_attn/cute/__init__.py", "flash_attn/cute/interface.py: import no_such_thing"],
            "flash_attn.cute.interface is installed in part, and cannot be imported "
            "(ModuleNotFoundError: No module named 'no_such_thing')",
        ),
        (
            ["flash_attn/cute/interface.py: raise OSError('libcudart.so.12: no such file')"],
            "flash_attn.cute.interface is installed in part, and cannot be imported "
            "(OSError: libcudart.so.12: no such file)",
        ),
    ],
)
def test_a_package_that_is_not_whole_is_told_from_one_that_is_not_there(
    files, why, tmp_path, monkeypatch
):
    for name, _, text in (file.partition(": ") for file in files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    gpu = torch.device("cuda", 0)
    assert base.missing("flash_attn.cute.interface", (9,), gpu) == why
    assert "for compute capability (10,)" in (base.missing("flash_attn", (10,), gpu) or "")
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        del sys.modules[name]


def test_a_kernel_that_cannot_serve_is_refused():
    with pytest.raises(InputError, match=r"kernel fa3 cannot serve .* there is none of that name"):
        block_attention.resolve(torch.float32, 64, CPU_DEVICE, "fa3")


@pytest.mark.parametrize("mask", [None, (0, 45)])
def test_the_float32_kernel_reads_each_key_for_all_heads_that_share_it(
    mask: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's CPU kernel in the place of that of a GPU, by its arguments: 6 heads over 2."""
    ops = torch.ops.aten
    sizes = []

    def forward(q, k, v, bias, with_lse, dropout, is_causal, *, scale):
        assert (bias, with_lse, dropout) == (None, True, 0.0)
        assert q.shape[1] == k.shape[1]
        sizes.append(k.numel())
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, scale=scale
        )
        return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32)), None, None

    def backward(dout, q, k, v, bias, out, lse, *rest, scale):
        *_, wanted, is_causal = rest
        assert (bias, lse.shape[-1] % 32, wanted) == (None, 0, [True, True, True, False])
        return *ops._scaled_dot_product_flash_attention_for_cpu_backward(
            dout, q, k, v, out, lse[..., : q.shape[2]], 0.0, is_causal, scale=scale
        ), None

    fused = {"_scaled_dot_product_efficient_attention": forward}
    fused |= {f"{name}_backward": backward for name in fused}
    monkeypatch.setattr(efficient, "aten", SimpleNamespace(**fused))
    q, k, v, dout = inputs(45, 6, 2, 16, torch.float32)
    its = Inputs(q, k, v, mask, 0.3)
    out, lse = EFFICIENT.forward(its)
    exact = MATH.forward(its)
    found = EFFICIENT.backward(its, Saved(dout, out, lse))
    expected = MATH.backward(its, Saved(dout, *exact))
    for actual, wanted in zip((out, lse, *found), (*exact, *expected), strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)
    assert set(sizes) == {k.numel()}
