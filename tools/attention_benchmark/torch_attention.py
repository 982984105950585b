"""PyTorch's context parallelism of ``scaled_dot_product_attention``, as contestants.

Its prototype API, alike in PyTorch 2.11 and 2.13; it takes no documents. It has no kernel of the
CPU: there its ring alone runs (``_templated_ring_attention``), over PyTorch's kernel of the CPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.attention as implementations
import torch.nn.functional as functional
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from .contest import Contestant, Task, UnableError
from .head_tail import HeadTail

EXPERIMENTAL = "torch.distributed.tensor.experimental._attention"
ROTATIONS = ("allgather", "alltoall")
KERNELS = {
    "same": ("cudnn",),
    "best": ("FA3", "FA4", "cudnn", "FA2"),  # on Hopper, the fastest first
}


class TorchContextParallel(HeadTail):
    """``context_parallel`` with one way to rotate keys and one kernel."""

    def __init__(self, kernel: str, rotation: str, implementation: str, copies: bool) -> None:
        """``copies``: keys and values are copied for the heads that share them."""
        super().__init__(kernel)
        self.name = f"PyTorch context_parallel {rotation}"
        self._rotation, self._implementation, self._copies = rotation, implementation, copies
        self.note = "keys and values copied for the heads that share them" if copies else ""

    def check(self, task: Task) -> None:
        """See :class:`Contestant`."""
        importlib.import_module(EXPERIMENTAL)
        if task.edges is not None:
            raise UnableError(
                "context_parallel takes no documents: of masks it takes is_causal alone, and an "
                "attn_mask is not sharded with the rows"
            )
        if self._implementation in ("FA3", "FA4") and task.groups.device.type == "cuda":
            with _flash_implementation(self._implementation):
                pass

    def alternatives(self, task: Task) -> list[Contestant]:
        """See :class:`Contestant`."""
        if task.edges is not None:  # one says why, for all kernels
            return [self]
        return [
            TorchContextParallel(self.kernel, self._rotation, implementation, copies)
            for implementation in KERNELS[self.kernel]
            for copies in (False, True)
        ]

    def kernel_name(self, task: Task) -> str:
        """See :class:`Contestant`."""
        return self._implementation if task.groups.device.type == "cuda" else "cpu"

    @contextmanager
    def running(self, task: Task) -> Iterator[None]:
        """See :class:`Contestant`."""
        from torch.distributed.tensor.experimental import _attention as context_parallelism

        context_parallelism.set_rotate_method(self._rotation)
        if task.groups.device.type != "cuda":
            yield
            return
        is_cudnn = self._implementation == "cudnn"
        backend = SDPBackend.CUDNN_ATTENTION if is_cudnn else SDPBackend.FLASH_ATTENTION
        # It wants a buffer to shard; those of the contest are sharded already.
        buffer = torch.zeros(2 * task.groups.size, device=task.groups.device)
        with ExitStack() as stack:
            stack.enter_context(kept_attention())
            if self._implementation in ("FA3", "FA4"):
                stack.enter_context(_flash_implementation(self._implementation))
            stack.enter_context(
                context_parallelism.context_parallel(
                    task.groups.mesh(), buffers=[buffer], buffer_seq_dims=[0]
                )
            )
            stack.enter_context(sdpa_kernel(backend))
            yield

    def attention(self, task: Task, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Contestant`."""
        if self._copies:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        if task.groups.device.type != "cuda":
            out: Tensor = _CpuRing.apply(q, k, v, task.groups.world)
            return out
        # Looked up here: context_parallel puts its own in the place.
        attend = functional.scaled_dot_product_attention
        return attend(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


@contextmanager
def kept_attention() -> Iterator[None]:
    """PyTorch's function is in its place afterwards.

    If an error leaves ``context_parallel`` of PyTorch 2.11, its own stays there, and every later
    call of any ``context_parallel`` takes that one with its mesh.
    """
    before = functional.scaled_dot_product_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


@contextmanager
def _flash_implementation(name: str) -> Iterator[None]:
    """Another FlashAttention behind PyTorch's operators.

    Raises:
        UnableError: this PyTorch knows none of that name, or cannot put its own back.
        ImportError: the package is not there.
    """
    if not hasattr(implementations, "restore_flash_attention_impl"):
        raise UnableError("this PyTorch cannot replace its FlashAttention")
    implementations.activate_flash_attention_impl(name)
    try:
        yield
    finally:
        implementations.restore_flash_attention_impl()


class _CpuRing(torch.autograd.Function):
    """PyTorch's ring over its kernel of the CPU."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Any) -> Tensor:
        from torch.distributed.tensor.experimental._attention import (
            _templated_ring_attention as its,
        )

        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = its(group, 2, kernel, q, k, v, is_causal=True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.group = group
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        from torch.distributed.tensor.experimental._context_parallel import _attention

        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q, k, v, out, lse = ctx.saved_tensors
        gradients = _attention._templated_ring_attention_backward(
            ctx.group, 2, partial(kernel, dropout_p=0.0), dout, "grad_out", q, k, v, out, lse,
            is_causal=True,
        )  # fmt: skip
        return (*gradients[:3], None)


def torch_contestants(kernel: str) -> list[Contestant]:
    """One for each way to rotate keys."""
    first = KERNELS[kernel][0]
    return [TorchContextParallel(kernel, rotation, first, False) for rotation in ROTATIONS]
