"""FlashAttention 2 and 3 by PyTorch's own (aten) signatures.

``fa2`` is in every CUDA build of PyTorch. ``fa3`` is a package that takes the place of ``fa2``
behind the same operators once activated.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import attention as implementations

from megatron_ultralong.attention.kernels import base


class FlashKernel(base.RowsKernel):
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
        why = base.unfit(dtype, head_dim, device, 256, (8, 0))
        if why or self._package is None:
            return why
        if not _has_registry():
            return f"PyTorch {torch.__version__} has no registry of FlashAttention versions"
        return base.missing(self._package, (9,), device)

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`."""
        _activate(self._implementation)
        q, k, v, mask, scale = inputs
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(*base.packed(inputs, q, k, v), *_lengths(inputs), 0.0, mask is not None, False),
            scale=scale,
        )
        return base.unpacked(out)[0], lse.reshape(q.shape[1], q.shape[2], len(q))

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`."""
        _activate(self._implementation)
        q, k, v, mask, scale = inputs
        gradients = torch.ops.aten._flash_attention_backward(
            *base.packed(inputs, saved.dout, q, k, v, saved.out),
            *(base.packed_lse(inputs, saved.lse), *_lengths(inputs)),
            *(0.0, mask is not None, *no_dropout(q.device)),
            scale=scale,
        )
        dq, dk, dv = base.unpacked(*gradients)
        return dq, dk, dv

    def forward_rows(
        self, q: Tensor, keys: Tensor, values: Tensor, rows: base.RowLengths, scale: float
    ) -> base.Result:
        """See :class:`RowsKernel`; how many parts keys are split into depends on the slots alone.

        PyTorch's public ``varlen_attn`` takes no ``seqused_k`` in 2.11; it does in 2.13.
        """
        assert self._package is None, "FlashAttention 2 alone"
        _activate(None)
        heads = q.shape[2]
        # It splits the keys of one query where several heads share them, and else has a block of
        # threads for a head: each head asks twice then.
        times = 2 if heads == keys.shape[2] else 1
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(q[0].repeat_interleave(times, dim=1), keys.flatten(0, 1), values.flatten(0, 1)),
            *(rows.queries, rows.slots, 1, keys.shape[1], 0.0, False, False),
            scale=scale,
            seqused_k=rows.lengths,
        )
        lse = lse.t() if lse.ndim == 2 else lse[..., 0]  # in old PyTorch
        # It says +inf where there is no key.
        lse = lse[:, ::times].nan_to_num(nan=torch.nan, posinf=-torch.inf, neginf=-torch.inf)
        return out[:, ::times][None], lse[..., None]


def _lengths(inputs: base.Inputs) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Boundaries of queries and keys on the device, None without documents; longest of each."""
    if inputs.documents is None:
        return None, None, len(inputs.q), len(inputs.k)
    edges, longest = base.device_edges(inputs.documents, inputs.q.device)
    return edges, edges, longest, longest


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
