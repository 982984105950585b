"""A stand-in for flash-attn-4 on a CPU: its calls and its accumulators, with an order of its own.

As on a Hopper GPU, dq and, of grouped heads, dk and dv are added in float32 in tiles whose places
are shuffled, every document begins with a tile, and one function, which the others find in the
module, puts the tiles in order and rounds. What a tile holds beyond its rows is not a number.
"""

from __future__ import annotations

import types
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.base import Inputs, Saved
from megatron_ultralong.attention.kernels.flash4 import Flash4Kernel
from megatron_ultralong.attention.kernels.math import MATH

MULTIPLE = 32


class OnCpu(Flash4Kernel):
    """The kernel, wherever it is."""

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        return None


@cache
def shuffled(block: int, width: int) -> Tensor:
    """Where a tile holds the number of a row and column."""
    generator = torch.Generator().manual_seed(block)
    return torch.randperm(block * width, generator=generator).view(block, width)


def tile_rows(edges: Tensor | None, rows: int, block: int) -> tuple[Tensor, int]:
    """The row of an accumulator for each token, and how many rows it has."""
    if edges is None:
        return torch.arange(rows), -(-rows // block) * block
    places = [
        torch.arange(high - low) + (low + i * block) // block * block
        for i, (low, high) in enumerate(pairwise(edges.tolist()))
    ]
    return torch.cat(places), (rows + len(edges) * block - 1) // block * block


def package(fault: str = "") -> types.ModuleType:
    """The module.

    Args:
        fault: what is different in it, if anything.
    """
    its = types.ModuleType("flash_attn.cute.interface")
    renamed = fault == "the function has another name"
    name = "_convert" if renamed else "_bwd_postprocess_convert"

    def _bwd_postprocess_convert(
        accum: Tensor,
        output: Tensor,
        scale: float,
        cu_seqlens: Tensor | None,
        seqused: Tensor | None,
        arch: int,
        dtype: Any,
        hdim: int,
        block_size: int,
        cluster_size: int = 1,
        cu_total_m_blocks: Tensor | None = None,
        sink_tensors: Any = None,
        hdim_multiple_of: int = MULTIPLE,
        *,
        fake_mode: bool,
    ) -> None:
        getattr(its, name).compiled.add((hdim, block_size, cu_seqlens is None))
        width = -(-hdim // hdim_multiple_of) * hdim_multiple_of
        tiles = accum.unflatten(-1, (-1, block_size * width))
        order = shuffled(block_size, width).flatten()
        if fault == "two places are one":
            order = torch.cat([order[:1], order[:1], order[2:]])
        rows = tiles[..., order].unflatten(-1, (block_size, width)).flatten(-3, -2)[..., :hdim]
        found = rows * (2 * scale if fault == "a factor is another" and scale != 1 else scale)
        if cu_seqlens is None:
            output.copy_(found[:, :, : output.shape[1]].transpose(1, 2))
        else:
            places, _ = tile_rows(cu_seqlens, len(output), block_size)
            output.copy_(found[:, places].transpose(0, 1))

    def _flash_attn_fwd(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        return_lse: bool,
        out: Tensor | None = None,
        pack_gqa: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        out = torch.empty_like(q) if out is None else out
        its._validate_tensor(out, "out", q.shape)
        key = (options["causal"], "cu_seqlens_q" in options, pack_gqa)
        compiled = its._flash_attn_fwd.compile_cache
        if key not in compiled:
            compiled[key] = its.FlashAttentionForwardSm90()
        found, lse_BHS = block_attention.forward(MATH, _inputs(q, k, v, options))
        compiled[key](found, lse_BHS, out)
        return out, lse_BHS[0] if q.ndim == 3 else lse_BHS, None

    def _validate_tensor(x: Tensor, name: str, shape: tuple[int, ...]) -> None:
        assert x.shape == shape, f"{name} shape {x.shape} != expected {shape}"

    def _flash_attn_bwd(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, **options: Any
    ) -> tuple[Tensor, ...]:
        saved = Saved(_rows(dout), _rows(out), lse[None] if q.ndim == 3 else lse)
        found = block_attention.backward(MATH, _inputs(q, k, v, options), saved)
        edges, scale = options.get("cu_seqlens_q"), options["softmax_scale"]
        blocks = (64 if options["causal"] else 80, 128, 128)
        results = [torch.empty_like(x) for x in (q, k, v)]
        for x, result, block, factor in zip(
            found, results, blocks, (scale, scale, 1.0), strict=True
        ):
            if result is not results[0] and q.shape[-2] == k.shape[-2]:
                result.copy_(x.transpose(0, 1).view_as(result))
                continue
            accum = _accumulated(x / factor, edges, block)
            if fault == "it fails in between" and result is results[1]:
                raise RuntimeError("out of memory")
            getattr(its, name)(
                *(accum, result, factor, edges, None, 90, q.dtype, q.shape[-1], block),
                cu_total_m_blocks=None,
                fake_mode=False,
            )
        return tuple(x.view_as(x) if fault == "it returns views" else x for x in results)

    _bwd_postprocess_convert.compiled = set()
    setattr(its, name, _bwd_postprocess_convert)
    its._flash_attn_fwd, its._flash_attn_bwd = _flash_attn_fwd, _flash_attn_bwd
    its._validate_tensor, its.FlashAttentionForwardSm90 = _validate_tensor, HopperKernel
    _flash_attn_fwd.compile_cache = {}
    return its


class Register:
    """Numbers of a tile."""

    def __init__(self, numbers: Tensor):
        self.numbers = numbers

    def load(self) -> Tensor:
        return self.numbers

    def store(self, numbers: Tensor) -> None:
        self.numbers = numbers


_storing: list[int] = []  # threads that have not met since a tile was written


class HopperKernel:
    """Its tiles are whole heads. One may be written when all threads have met after the last."""

    dtype = torch.bfloat16
    num_epilogue_threads = 256

    def __call__(self, found_SBHD: Tensor, lse_BHS: Tensor, out: Tensor) -> None:
        out_SDHB = out.permute(1, 3, 2, 0) if out.ndim == 4 else out.permute(0, 2, 1)[..., None]
        _, b, heads, _ = found_SBHD.shape
        for batch in range(b):
            for head in range(heads):
                numbers = Register(found_SBHD[:, batch, head])
                _storing.clear()
                self.epilogue(numbers, lse_BHS, out_SDHB, lse_BHS, "shared memory", head, batch)

    def epilogue(
        self,
        numbers: Register,
        lse: Tensor,
        out_SDHB: Tensor,
        out_lse: Tensor | None,
        memory: str,
        head: int,
        batch: int,
    ) -> None:
        assert not _storing, "memory that is shared is still being read"
        _storing.append(self.num_epilogue_threads)
        out_SDHB[:, :, head, batch] = numbers.load().to(self.dtype)


def cutlass() -> tuple[types.ModuleType, types.ModuleType]:
    """The language of the kernels: ``cutlass`` and ``cutlass.cute``."""
    its, cute = types.ModuleType("cutlass"), types.ModuleType("cutlass.cute")
    its.Float32, its.cute = torch.float32, cute

    def barrier(*, barrier_id: int, number_of_threads: int) -> None:
        assert barrier_id > 6, "the package's own"
        _storing.remove(number_of_threads)

    cute.arch = types.SimpleNamespace(barrier=barrier)
    return its, cute


def _rows(x: Tensor) -> Tensor:
    """[s, b, heads, d], float32."""
    return (x[:, None] if x.ndim == 3 else x.transpose(0, 1)).float()


def _inputs(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Inputs:
    edges = options.get("cu_seqlens_q")
    mask = (0, q.shape[1]) if options["causal"] else None
    mask = mask if edges is None else tuple(edges.tolist())
    return Inputs(*(_rows(x) for x in (q, k, v)), mask, options["softmax_scale"])


def _accumulated(x_SBHD: Tensor, edges: Tensor | None, block: int) -> Tensor:
    """In tiles, shuffled."""
    s, b, heads, d = x_SBHD.shape
    width = -(-d // MULTIPLE) * MULTIPLE
    places, rows = tile_rows(edges, s, block)
    whole = x_SBHD.new_full((b, heads, rows, width), torch.nan)
    whole[:, :, places, :d] = x_SBHD.permute(1, 2, 0, 3)
    tiles = whole.view(b, heads, -1, block * width)
    accum = torch.empty_like(tiles)
    accum[..., shuffled(block, width).flatten()] = tiles
    accum = accum.flatten(2)
    return accum if edges is None else accum[0]
