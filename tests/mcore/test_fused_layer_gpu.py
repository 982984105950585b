"""Compiled kernels of a GPU against Megatron-Core's operations, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

from megatron_ultralong.mcore import elementwise, projection
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.model.shape import ModelConfig
from tests.mcore.test_fused_layer import NORMED, ONE, WIDE, Values, layer_values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
Function = Callable[[torch.Tensor], torch.Tensor]
DEVICE = torch.device("cuda", 0)


def test_the_compiler_works_here() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert elementwise.refusal(dtype, DEVICE) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2, 4, 16), (8, 1, 4, 128), (3, 2, 1, 64)])
def test_a_compiled_rotation_is_the_plain_one(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    groups, rows, heads, width = shape
    torch._dynamo.reset()
    for length in (256, 100, 777):
        mixed = torch.randn(1, length, rows, groups, heads + 2, 2, width // 2, device=DEVICE)
        x = mixed.to(dtype)[..., :-2, :, :]
        angle = torch.randn(1, length, 1, 1, 1, 1, width // 2, device=DEVICE)
        sin = torch.cat((-angle.sin(), angle.sin()), dim=-2)
        whole = torch.zeros(1, 2 * length, *x.shape[2:], dtype=dtype, device=DEVICE)
        expected = torch.empty_like(x)
        projection.compiled_rotate(whole[:, length:], x, angle.cos(), sin)
        projection.rotate(expected, x, angle.cos(), sin)
        # A product and its sum may be rounded once, not twice; near the middle between two numbers
        # of bfloat16 that gives the other one, which is up to 2**-7 away.
        tolerance = 2**-7 if dtype is torch.bfloat16 else 2**-20
        torch.testing.assert_close(whole[:, length:], expected, rtol=tolerance, atol=tolerance)
        assert not whole[:, :length].any(), "it wrote beside its tile"


@pytest.mark.parametrize("length", [256, 100, 1])
def test_the_fused_swiglu_is_nearer_to_float64(length: int) -> None:
    wide = torch.randn(length, 1, 192, device=DEVICE).bfloat16()
    dout = torch.randn(length, 1, 96, device=DEVICE).bfloat16()

    def plain(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    def values(function: Function, dtype: torch.dtype) -> list[torch.Tensor]:
        x = wide.to(dtype, copy=True).requires_grad_()
        result = function(x)
        (gradient,) = torch.autograd.grad(result, x, dout.to(dtype))
        return [result.detach().double(), gradient.double()]

    def fused(x: torch.Tensor) -> torch.Tensor:
        return bias_swiglu_impl(x, None)

    exact = values(plain, torch.float64)
    for found, other, truth in zip(
        values(fused, torch.bfloat16), values(plain, torch.bfloat16), exact, strict=True
    ):
        # Fewer roundings; a tenth for luck.
        assert (found - truth).norm() <= 1.1 * (other - truth).norm()
    for found, truth in zip(values(fused, torch.float32), exact, strict=True):
        # Exponentials are good to some units of float32's last place.
        assert (found - truth).norm() <= 1e-6 * truth.norm()


def ways(model: ModelConfig, tile_size: int, dtype: torch.dtype) -> list[Values]:
    """Fused and plain, and plain in float32."""
    with parallel_groups(ONE, seed=1) as groups:
        return [
            layer_values(
                *(groups, ONE, Recomputation(tile_size=tile_size, fused=fused)),
                model=model,
                dtype=its,
                compiled=fused,
            )
            for fused, its in ((True, dtype), (False, dtype), (False, torch.float32))
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", [WIDE, dataclasses.replace(NORMED, kv_channels=16)])
@pytest.mark.parametrize("tile_size", [0, 20])
def test_compiled_layers_have_the_gradients_of_plain_ones(
    model: ModelConfig, tile_size: int, dtype: torch.dtype
) -> None:
    elementwise.keep_compilations()
    fused, plain, exact = ways(model, tile_size, dtype)

    def error(way: Values, name: str) -> float:
        return float((way[name].float() - exact[name]).norm() / exact[name].norm())

    if dtype is torch.float32:
        # Another order of sums; the wide model makes a hundredfold of a rounding, see bfloat16.
        for name in exact:
            assert error(fused, name) <= 1000 * 2**-24, (name, error(fused, name))
    else:
        # The wide model's own rounding comes to a fifth: no two orders of it agree.
        errors = [sum(error(way, name) for name in exact) for way in (fused, plain)]
        assert errors[0] <= 1.5 * errors[1], errors
