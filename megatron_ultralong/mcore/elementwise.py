"""Kernels for the work between matrix products: rotary embedding and SwiGLU.

``compiled`` ones are made by ``torch.compile`` at their first use, some seconds each, and kept in
its cache: one kernel for each direction, float32 inside, one rounding at the end
(:class:`~megatron_ultralong.mcore.projection.FusedProjection`, and Megatron-Core's own fused
SwiGLU). ``torch`` runs Megatron-Core's operations one by one. Norms are one kernel of torch's in
both.
"""

import functools
import importlib
from typing import Any, NamedTuple

import torch

from megatron_ultralong.config.run import ElementwiseKernel
from megatron_ultralong.program.errors import InputError


class Choice(NamedTuple):
    """What layers get."""

    is_compiled: bool
    why: str
    """Why they are not compiled; empty if they are."""

    def __str__(self) -> str:
        if self.is_compiled:
            return "elementwise kernels compiled (rotary embedding, SwiGLU)"
        return f"elementwise kernels torch, one operation at a time; not compiled: {self.why}"


def choose(asked: ElementwiseKernel, dtype: torch.dtype, device: torch.device) -> Choice:
    """The fastest that work here, or those that are asked for.

    Raises:
        InputError: compiled ones are asked for, and do not work here.
    """
    if asked == "torch":
        return Choice(False, "--elementwise-kernel torch")
    why = refusal(dtype, device)
    if why and asked == "compiled":
        raise InputError(
            f"--elementwise-kernel compiled cannot be had for {dtype} on {device}: {why}; use "
            "--elementwise-kernel auto to get the fastest that can"
        )
    if why is None:
        keep_compilations()
    return Choice(why is None, why or "")


COMPILATIONS = 64
"""Of one function, for all models of a process."""


def keep_compilations() -> None:
    """Have ``torch.compile`` make a function for every kind of tensor that models call it with.

    It stops after 8, and from then on runs the operations one by one. Megatron-Core's SwiGLU takes
    5 for one model, and about as many for every width and dtype that is the first of its kind.
    """
    config: Any = importlib.import_module("torch._dynamo").config
    # An alias in later versions of torch, whose first name is recompile_limit.
    config.cache_size_limit = max(config.cache_size_limit, COMPILATIONS)


@functools.cache
def refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why compiled kernels cannot serve tensors of that dtype on the device; None: they can."""
    if device.type != "cuda":
        return f"they are for a GPU, not for {device.type}"
    found = torch.cuda.get_device_capability(device)
    if found < (8, 0):
        return f"they need compute capability (8, 0), the device has {found}"
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken package raises anything when it loads its library
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    # Whether there is a C compiler, Python's headers and a folder that code runs from, the first
    # kernel tells.
    try:
        numbers = torch.arange(8, device=device, dtype=dtype)
        result = torch.compile(_square, fullgraph=True)(numbers)
        if not torch.equal(result, _square(numbers)):
            return f"torch.compile computes squares wrongly here: {result.tolist()}"
    except Exception as error:
        first, *_ = (str(error).strip() or "no message").splitlines()
        return f"torch.compile does not work here ({type(error).__name__}: {first})"
    return None


def _square(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * numbers
