"""Kernels of a GPU against the plain formulas, and the ring on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_ultralong.attention.kernels import accumulators, block_attention, cudnn
from megatron_ultralong.attention.kernels.base import Inputs, Kernel, Part, Saved
from megatron_ultralong.attention.kernels.math import MATH
from megatron_ultralong.program.errors import InputError
from tests.attention.whole_sequence import dense, inputs, ring

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = torch.device("cuda", 0)
# Eight bits of mantissa; three roundings.
ROUNDING = 3 * 2**-8


@pytest.fixture(params=["fa2", "cudnn", "fa3", "fa4"])
def kernel(request, monkeypatch) -> Kernel:
    # Small blocks go to cuDNN and FA2 both, as large ones do.
    monkeypatch.setattr(cudnn, "MIN_AREA", 100**2)
    try:
        return block_attention.resolve(torch.bfloat16, 128, DEVICE, request.param)
    except InputError as error:
        pytest.skip(str(error))


def _inputs(length: int) -> list[torch.Tensor]:
    return [x.to(DEVICE) for x in inputs(length, 4, 1, 128, torch.bfloat16)]


@pytest.mark.parametrize("length", [1, 64, 192, 1024, 1088])
def test_kernels_equal_the_formulas(kernel, length):
    q, k, v, dout = _inputs(length)
    wide = [x.double() for x in (dout, q, k, v)]
    for mask in (None, (0, length)):
        exact, exact_lse = MATH.forward(Inputs(*wide[1:], mask, 0.1))
        out, lse = block_attention.forward(kernel, Inputs(q, k, v, mask, 0.1))
        assert (out - exact).abs().max() <= ROUNDING * exact.abs().max()
        assert (lse - exact_lse).abs().max() <= 1e-3
        expected = MATH.backward(Inputs(*wide[1:], mask, 0.1), Saved(wide[0], exact, exact_lse))
        found = block_attention.backward(kernel, Inputs(q, k, v, mask, 0.1), Saved(dout, out, lse))
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= ROUNDING * b.norm() + 1e-3


@pytest.mark.parametrize("length", [5, 192, 1088])
def test_documents_equal_the_formulas(kernel, length):
    q, k, v, dout = _inputs(length)
    wide = [x.double() for x in (dout, q, k, v)]
    edges = tuple(sorted({0, length // 5, length // 3, length // 3 + 1, length // 2, length}))
    out, lse = block_attention.forward(kernel, Inputs(q, k, v, edges, 0.1))
    exact, exact_lse = block_attention.forward(MATH, Inputs(*wide[1:], edges, 0.1))
    assert (out - exact).abs().max() <= ROUNDING * exact.abs().max()
    assert (lse - exact_lse).abs().max() <= 1e-3
    expected = block_attention.backward(
        MATH, Inputs(*wide[1:], edges, 0.1), Saved(wide[0], exact, exact_lse)
    )
    found = block_attention.backward(kernel, Inputs(q, k, v, edges, 0.1), Saved(dout, out, lse))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= ROUNDING * b.norm() + 1e-3


@pytest.mark.parametrize("length", [1, 5, 64, 1088])
def test_float32_equals_the_formulas(length):
    kernel = block_attention.resolve(torch.float32, 64, DEVICE)
    assert kernel.name == "efficient"
    q, k, v, dout = [x.to(DEVICE) for x in inputs(length, 6, 2, 64, torch.float32)]
    wide = [x.double() for x in (dout, q, k, v)]
    for mask in (None, (0, length), tuple(sorted({0, length // 3, length // 2, length}))):
        out, lse = block_attention.forward(kernel, Inputs(q, k, v, mask, 0.1))
        exact = block_attention.forward(MATH, Inputs(*wide[1:], mask, 0.1))
        expected = block_attention.backward(
            MATH, Inputs(*wide[1:], mask, 0.1), Saved(wide[0], *exact)
        )
        found = block_attention.backward(kernel, Inputs(q, k, v, mask, 0.1), Saved(dout, out, lse))
        for a, b in zip((out, lse, *found), (*exact, *expected), strict=True):
            # Sums of so many products, in float32 with its 24 bits; one key's scores have no
            # gradient, where float32 finds differences of its rounding.
            assert (a - b).norm() <= 2**-17 * b.norm() + 1e-5


def test_empty_blocks_add_nothing(kernel):
    q, k, v, dout = _inputs(4)
    out, lse = block_attention.forward(kernel, Inputs(q, k[:0], v[:0], None, 1.0))
    assert not out.any()
    assert torch.isneginf(lse).all()
    assert not block_attention.backward(
        kernel, Inputs(q, k[:0], v[:0], None, 1.0), Saved(dout, out, lse)
    )[0].any()


def test_heads_are_split_where_a_tensor_cannot_be_indexed(kernel, monkeypatch):
    q, k, v, dout = (x.to(DEVICE) for x in inputs(256, 8, 2, 128, torch.bfloat16))
    edges = (0, 30, 200, 256)
    whole = block_attention.forward(kernel, Inputs(q, k, v, edges, 0.1))
    expected = block_attention.backward(kernel, Inputs(q, k, v, edges, 0.1), Saved(dout, *whole))
    monkeypatch.setattr(block_attention, "MAX_ELEMENTS", q.numel() // 2)
    split = block_attention.forward(kernel, Inputs(q, k, v, edges, 0.1))
    found = block_attention.backward(kernel, Inputs(q, k, v, edges, 0.1), Saved(dout, *whole))
    for a, b in zip((*split, *found), (*whole, *expected), strict=True):
        assert (a.double() - b.double()).norm() <= ROUNDING * b.double().norm()


@pytest.mark.parametrize("backend", ["p2p", "all_gather"])
@pytest.mark.parametrize("edges", [None, [0, 1, 300, 1030, 2048]])
def test_the_ring_errs_at_most_twice_as_much_as_one_kernel(kernel, backend, edges):
    ratios = _errors_over_one_rank(kernel, backend, edges)
    assert all(ratio <= 2 for ratio in ratios), ratios


def _errors_over_one_rank(kernel, backend, edges) -> list[float]:
    """Errors of out, dq, dk and dv of rings of 2 and 16 over those of a ring of one."""
    tensors = _inputs(2048)
    cu_seqlens = None if edges is None else torch.tensor(edges)
    exact = dense(tensors, cu_seqlens)
    errors = []
    for cp_size in (1, 2, 16):
        found = ring(tensors, cp_size, cu_seqlens, backend=backend, kernel=kernel.name)
        assert not any(x.isnan().any() for x in found)
        errors.append([(a.double() - b).norm() for a, b in zip(found, exact, strict=True)])
    plain, *others = errors
    return [float(x / y) for its in others for x, y in zip(its, plain, strict=True)]


def test_deterministic_runs_are_bit_equal(kernel):
    tensors = _inputs(2048)
    cu_seqlens = torch.tensor([0, 300, 1030, 2048])
    runs = [ring(tensors, 4, cu_seqlens, kernel=kernel.name, deterministic=True) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.fixture
def fa4(monkeypatch) -> Kernel:
    monkeypatch.setattr(accumulators, "_orders", {})
    accumulators.say.cache_clear()
    try:
        return block_attention.resolve(torch.bfloat16, 128, DEVICE, "fa4")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def fixed_order() -> Iterator[None]:
    """Of the sums of dq, without which two runs of it differ."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("fixed_order")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("mask", ["none", "causal", "documents", "many documents"])
@pytest.mark.parametrize(("length", "batch"), [(1000, 1), (129, 2)])
def test_float32_parts_are_those_of_the_package_before_it_rounds(
    fa4, caplog, head_dim, mask, length, batch
):
    """Bit for bit. Of more than 256 documents the package has another form."""
    tensors = inputs(length, 4, 1, head_dim, torch.bfloat16, batch=batch)
    q, k, v, dout = (x.to(DEVICE) for x in tensors)
    some = (0, 1, length // 3, length // 3 + 1, length // 2, length)
    many = (*range(0, min(900, length - 1), 3), length)
    edges = {"none": None, "causal": (0, length), "documents": some, "many documents": many}
    its = Inputs(q, k, v, edges[mask], 0.1)
    saved = Saved(dout, *block_attention.forward(fa4, its))
    rounded = block_attention.backward(fa4, its, saved)
    found = block_attention.backward(fa4, Part(*its), saved)
    assert [record.message for record in caplog.records if "fa4" in record.message] == []
    assert all(x.dtype == torch.float32 for x in found)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(rounded, found, strict=True))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability(DEVICE)[0] != 9,
    reason="the kernel that writes residuals is Hopper's",
)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("mask", ["none", "causal", "documents"])
@pytest.mark.parametrize(("length", "batch"), [(1000, 1), (129, 2)])
def test_parts_of_the_output_have_the_bits_of_two_numbers(
    fa4, caplog, head_dim, mask, length, batch
):
    q, k, v, _ = (x.to(DEVICE) for x in inputs(length, 4, 1, head_dim, torch.bfloat16, batch=batch))
    some = (0, 1, length // 3, length // 3 + 1, length // 2, length)
    edges = {"none": None, "causal": (0, length), "documents": some}[mask]
    rounded, lse = block_attention.forward(fa4, Inputs(q, k, v, edges, 0.1))
    found, lse_found = block_attention.forward(fa4, Part(q, k, v, edges, 0.1))
    exact, _ = block_attention.forward(MATH, Inputs(q.double(), k.double(), v.double(), edges, 0.1))
    assert [record.message for record in caplog.records if "fa4" in record.message] == []
    assert (rounded.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    # Of a number that is rounded, half a step; the kernel rounds no differently with packed heads.
    assert (found - rounded).abs().max() <= 2**-8 * rounded.abs().max()
    assert (found - rounded).norm() >= 1e-3 * rounded.norm()
    assert (found - exact).norm() < 0.85 * (rounded - exact).norm()
    assert (lse - lse_found).abs().max() <= 1e-3


@pytest.mark.parametrize("backend", ["p2p", "all_gather"])
@pytest.mark.parametrize("edges", [None, [0, 1, 300, 1030, 2048]])
def test_the_ring_of_fa4_errs_as_one_rank(fa4, backend, edges):
    ratios = _errors_over_one_rank(fa4, backend, edges)
    assert all(ratio <= 1.05 for ratio in ratios), ratios
