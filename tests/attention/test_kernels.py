"""The kernel seam: each kernel against the plain formulas, and the choice among them."""

from __future__ import annotations

import logging

import pytest
import torch

from megatron_ultralong.attention import kernels
from megatron_ultralong.attention.cpu_kernel import CPU
from megatron_ultralong.attention.math_kernel import MATH
from megatron_ultralong.attention.online_softmax import merge_
from megatron_ultralong.errors import InputError
from tests.attention.whole_sequence import inputs

CPU_DEVICE = torch.device("cpu")
# Rounding of the kernel's sums over 70 keys, times the size of the gradients (about 10).
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (4, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_cpu_kernel_equals_the_formulas(dtype, heads, causal):
    q, k, v, dout = inputs(70, *heads, 64, dtype, batch=2)
    if not causal:
        k, v = k[:33], v[:33]
    expected_out, expected_lse = MATH.forward(q.double(), k.double(), v.double(), causal, 0.2)
    out, lse = CPU.forward(q, k, v, causal, 0.2)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (lse - expected_lse).abs().max() <= TOLERANCE[dtype]
    assert (out - expected_out).abs().max() <= TOLERANCE[dtype]
    wide = [x.double() for x in (dout, q, k, v)]
    expected = MATH.backward(*wide, expected_out, expected_lse, causal, 0.2)
    found = CPU.backward(dout, q, k, v, out, lse, causal, 0.2)
    for its, gradient in zip(found, expected, strict=True):
        assert (its - gradient).abs().max() <= TOLERANCE[dtype] * gradient.abs().max()


@pytest.mark.parametrize("kernel", [CPU, MATH], ids=lambda kernel: kernel.name)
def test_empty_blocks_add_nothing(kernel):
    q, k, v, dout = inputs(4, 2, 1, 64, torch.float32)
    out, lse = kernel.forward(q, k[:0], v[:0], False, 1.0)
    assert not out.any()
    assert torch.isneginf(lse).all()
    dq, dk, _ = kernel.backward(dout, q, k[:0], v[:0], out, lse, False, 1.0)
    assert not dq.any()
    assert dk.shape == k[:0].shape
    assert kernel.forward(q[:0], k, v, False, 1.0)[0].shape == q[:0].shape


def test_merging_halves_equals_the_whole_and_nothing_is_neutral():
    q, k, v, _ = inputs(16, 2, 1, 64)
    whole, whole_lse = MATH.forward(q, k, v, False, 0.1)
    out, lse = MATH.forward(q, k[:0], v[:0], False, 0.1)
    for part in (slice(0, 0), slice(0, 5), slice(5, 16), slice(3, 3)):
        merge_(out, lse, *MATH.forward(q, k[part], v[part], False, 0.1))
        assert not out.isnan().any()
    assert (out - whole).abs().max() <= 1e-15
    assert (lse - whole_lse).abs().max() <= 1e-14


def test_heads_are_split_where_a_tensor_cannot_be_indexed(monkeypatch):
    q, k, v, dout = inputs(16, 8, 4, 64)
    out, lse = kernels.forward(CPU, q, k, v, True, 0.1)
    whole = kernels.backward(CPU, dout, q, k, v, out, lse, True, 0.1)
    monkeypatch.setattr(kernels, "MAX_ELEMENTS", q.numel() // 2)
    split_out, split_lse = kernels.forward(CPU, q, k, v, True, 0.1)
    assert torch.equal(split_out, out)
    assert torch.equal(split_lse, lse)
    split = kernels.backward(CPU, dout, q, k, v, out, lse, True, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(split, whole, strict=True))
    monkeypatch.setattr(kernels, "MAX_ELEMENTS", q.numel() // 5)
    with pytest.raises(InputError, match="raise context_parallel_size"):
        kernels.forward(CPU, q, k, v, True, 0.1)


def test_the_choice_is_named_in_the_log_and_can_be_overridden(monkeypatch, caplog):
    kernels._resolve.cache_clear()
    with caplog.at_level(logging.INFO):
        assert kernels.resolve(torch.float32, 64, CPU_DEVICE) is CPU
    assert "attention kernel cpu for torch.float32, head size 64, on cpu" in caplog.text
    assert kernels.resolve(torch.float32, 64, CPU_DEVICE, "math") is MATH
    monkeypatch.setenv(kernels.OVERRIDE, "math")
    assert kernels.resolve(torch.float32, 64, CPU_DEVICE) is MATH


def test_a_kernel_that_cannot_serve_is_refused():
    with pytest.raises(InputError, match=r"kernel fa3 cannot serve .* there is none of that name"):
        kernels.resolve(torch.float32, 64, CPU_DEVICE, "fa3")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["fa2", "cudnn", "fa3", "fa4"])
@pytest.mark.parametrize("length", [1, 64, 192, 1024, 1088])
def test_cuda_kernels_equal_the_formulas(name, length):
    device = torch.device("cuda", 0)
    try:
        kernel = kernels.resolve(torch.bfloat16, 128, device, name)
    except InputError as error:
        pytest.skip(str(error))
    q, k, v, dout = (x.to(device) for x in inputs(length, 4, 1, 128, torch.bfloat16))
    wide = [x.double() for x in (dout, q, k, v)]
    edges = tuple(sorted({0, length // 3, length // 2, length}))
    for causal in (False, True):
        exact, exact_lse = MATH.forward(*wide[1:], causal, 0.1)
        out, lse = kernels.forward(kernel, q, k, v, causal, 0.1)
        # Eight bits of mantissa; three roundings.
        assert (out - exact).abs().max() <= 3 * 2**-8 * exact.abs().max()
        assert (lse - exact_lse).abs().max() <= 1e-3
        expected = MATH.backward(*wide, exact, exact_lse, causal, 0.1)
        found = kernels.backward(kernel, dout, q, k, v, out, lse, causal, 0.1)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 3 * 2**-8 * b.norm() + 1e-3
    out, lse = kernels.documents_forward(kernel, q, k, v, edges, 0.1)
    exact, exact_lse = kernels.documents_forward(MATH, *wide[1:], edges, 0.1)
    assert (out - exact).abs().max() <= 3 * 2**-8 * exact.abs().max()
    assert (lse - exact_lse).abs().max() <= 1e-3
    expected = kernels.documents_backward(MATH, *wide, exact, exact_lse, edges, 0.1)
    found = kernels.documents_backward(kernel, dout, q, k, v, out, lse, edges, 0.1)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 3 * 2**-8 * b.norm() + 1e-3
