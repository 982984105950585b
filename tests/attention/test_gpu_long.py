"""Rows whose tensors a kernel cannot index as a whole, on one GPU."""

from __future__ import annotations

import pytest
import torch

from megatron_ultralong.attention import ring_attention
from megatron_ultralong.attention.kernels import block_attention
from tests.patience import patience

LENGTH, HEADS, HEAD_DIM, LAST = 4_194_304, 4, 128, 8


@pytest.mark.gpu
@pytest.mark.timeout(patience(600))
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 70 * 2**30,
    reason="needs a CUDA device of 70 GiB",
)
def test_query_heads_of_four_million_tokens_are_split() -> None:
    """Queries alone are 2^31 numbers. The last ones are checked against the plain formula."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(heads: int) -> torch.Tensor:
        shape = (LENGTH, 1, heads, HEAD_DIM)
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    q, k, v = random(HEADS), random(1), random(1)
    assert len(block_attention._head_groups(q, k)) == 2
    dout = torch.zeros_like(q)
    dout[-LAST:].normal_(generator=generator)
    for x in (q, k, v):
        x.requires_grad_()
    out = ring_attention(q, k, v)
    grads = torch.autograd.grad(out, (q, k, v), dout)

    wide = [x.detach().float() for x in (q[-LAST:], k, v)]
    for x in wide:
        x.requires_grad_()
    scores = torch.einsum("qbhd,kbd->bhqk", wide[0], wide[1][:, :, 0]) / HEAD_DIM**0.5
    later = torch.arange(LENGTH, device="cuda") > torch.arange(
        LENGTH - LAST, LENGTH, device="cuda"
    ).unsqueeze(1)
    probabilities = scores.masked_fill(later, -torch.inf).softmax(-1)
    exact = torch.einsum("bhqk,kbd->qbhd", probabilities, wide[2][:, :, 0])
    exact_grads = torch.autograd.grad(exact, wide, dout[-LAST:].float())

    def error(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x.detach().float() - y.detach()).norm() / y.detach().norm())

    # bf16 rounds inputs of products and results, 2^-9 relative each.
    assert error(out[-LAST:], exact) <= 2**-7
    assert error(grads[0][-LAST:], exact_grads[0]) <= 2**-7
    assert not grads[0][:-LAST].any()
    for own, exactly in zip(grads[1:], exact_grads[1:], strict=True):
        assert error(own, exactly) <= 2**-7
