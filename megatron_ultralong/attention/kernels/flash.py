"""FlashAttention 2 and 3 by PyTorch's own (aten) signatures.

``fa2`` is in every CUDA build of PyTorch. ``fa3`` is a package that takes the place of ``fa2``
behind the same operators once activated.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import attention as implementations

from megatron_ultralong.attention.kernels.kernel import (
    Gradients,
    Kernel,
    Mask,
    batch_first,
    device_edges,
    missing,
    unfit,
)


class FlashKernel(Kernel):
    """One of the versions, [b, s, heads, d] inside, [s, heads, d] for documents.

    Args:
        name: for users.
        implementation: PyTorch's name of it; None: the one built in.
        package: what must be installed.
    """

    serves_documents = True

    def __init__(self, name: str, implementation: str | None, package: str | None) -> None:
        self.name = name
        self._implementation = implementation
        self._package = package

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves 16-bit floats and head sizes up to 256."""
        why = unfit(dtype, head_dim, device, 256, (8, 0))
        if why or self._package is None:
            return why
        if not _has_registry():
            return f"PyTorch {torch.__version__} has no registry of FlashAttention versions"
        return missing(self._package, (9,), device)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        _activate(self._implementation)
        run = torch.ops.aten._flash_attention_forward
        if mask is None or len(mask) == 2:
            its = (*batch_first(q, k, v), None, None, len(q), len(k), 0.0, mask is not None, False)
            out, lse, *_ = run(*its, scale=scale)
            return out.transpose(0, 1), lse
        edges, longest = device_edges(mask, q.device)
        its = (q[:, 0], k[:, 0], v[:, 0], edges, edges, longest, longest, 0.0, True, False)
        out, lse, *_ = run(*its, scale=scale)
        return out[:, None], lse.reshape(1, q.shape[2], len(q))

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: Mask,
        scale: float,
    ) -> Gradients:
        """See :class:`Kernel`."""
        _activate(self._implementation)
        run = torch.ops.aten._flash_attention_backward
        if mask is None or len(mask) == 2:
            dq, dk, dv = run(
                *(*batch_first(dout, q, k, v, out), lse.contiguous(), None, None, len(q), len(k)),
                *(0.0, mask is not None, *no_dropout(q.device)),
                scale=scale,
            )
            return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)
        edges, longest = device_edges(mask, q.device)
        dq, dk, dv = run(
            *(x[:, 0] for x in (dout, q, k, v, out)),
            *(lse[0].contiguous(), edges, edges, longest, longest),
            *(0.0, True, *no_dropout(q.device)),
            scale=scale,
        )
        return dq[:, None], dk[:, None], dv[:, None]


@lru_cache(maxsize=8)
def no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Random state of a dropout of zero: never read."""
    nothing = torch.zeros(2, dtype=torch.int64, device=device)
    return nothing, nothing


def _activate(implementation: str | None) -> None:
    """Put one FlashAttention version behind PyTorch's operators; None is the built-in one."""
    if not _has_registry() or implementations.current_flash_attention_impl() == implementation:
        return
    if implementation is None:
        implementations.restore_flash_attention_impl()
    else:
        implementations.activate_flash_attention_impl(implementation)


def _has_registry() -> bool:
    """Whether this PyTorch can replace its built-in version, and put it back."""
    return hasattr(implementations, "restore_flash_attention_impl")


FA2 = FlashKernel("fa2", None, None)
FA3 = FlashKernel("fa3", "FA3", "flash_attn_interface")
