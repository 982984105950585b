"""What the kernels on NVIDIA GPUs have in common: their domain, and where documents begin."""

from __future__ import annotations

import importlib
from functools import lru_cache

import torch
from torch import Tensor


def unfit(
    dtype: torch.dtype,
    head_dim: int,
    device: torch.device,
    max_head_dim: int,
    capability: tuple[int, int],
) -> str | None:
    """Why the arguments are outside a kernel's domain."""
    if device.type != "cuda":
        return f"it runs on a GPU, not on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16, not {dtype}"
    if head_dim % 8 or head_dim > max_head_dim:
        return f"the head size must be a multiple of 8, at most {max_head_dim}"
    found = torch.cuda.get_device_capability(device)
    if found < capability:
        return f"it needs compute capability {capability}, the device has {found}"
    return None


def missing(package: str, generations: tuple[int, ...], device: torch.device) -> str | None:
    """Why a package made for some generations of GPUs cannot serve here."""
    major, _ = torch.cuda.get_device_capability(device)
    if major not in generations:
        return f"it is for compute capability {generations}, the device has {major}"
    try:
        importlib.import_module(package)
    except Exception as error:  # a broken package raises anything when it loads its library
        return f"{package} cannot be imported ({type(error).__name__}: {error})"
    return None


@lru_cache(maxsize=64)
def device_edges(cu_seqlens: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Boundaries on the device, int32, and the longest document: one copy for all layers."""
    edges = torch.tensor(cu_seqlens, dtype=torch.int32)
    return edges.to(device), int(edges.diff().max())


def batch_first(*tensors: Tensor) -> list[Tensor]:
    """Views [b, s, heads, d] of [s, b, heads, d]."""
    return [x.transpose(0, 1) for x in tensors]
