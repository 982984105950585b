"""The kernel of the package flash-attn-4, on Hopper and Blackwell GPUs.

It is compiled at its first use, some seconds for each of forward, backward and their forms for
documents. Called by the package's own functions: PyTorch's activation of "FA4" fits the releases
of its own time alone (the number of results has grown since).
"""

import importlib
from functools import partial
from typing import Any

import torch

from megatron_ultralong.attention.kernels import accumulators, base, residuals

_PACKAGE = "flash_attn.cute.interface"


class Flash4Kernel(base.Kernel):
    """The package's functions."""

    name = "fa4"
    serves_documents = True

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves 16-bit floats and head sizes up to 128."""
        why = base.unfit(dtype, head_dim, device, 128, (9, 0))
        return why or base.missing(_PACKAGE, (9, 10), device)

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`. Parts of a sum are float32 on Hopper."""
        q, *_ = inputs
        package = importlib.import_module(_PACKAGE)

        def call(its: base.Inputs) -> "partial[tuple[Any, ...]]":
            tensors = base.packed(its, *its[:3])
            return partial(package._flash_attn_fwd, *tensors, return_lse=True, **_options(its))

        with accumulators.patching:
            if inputs.wide:
                out, lse = residuals.outputs(package, call, inputs)
            else:
                out, lse = call(inputs)()[:2]
        return base.unpacked(out)[0], lse.reshape(q.shape[1], q.shape[2], len(q))

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`. Parts of a sum are float32; dk and dv only of grouped heads."""
        package = importlib.import_module(_PACKAGE)
        call = partial(
            package._flash_attn_bwd,
            *base.packed(inputs, *inputs[:3], saved.out, saved.dout),
            base.packed_lse(inputs, saved.lse),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_options(inputs),
        )
        with accumulators.patching:
            if inputs.wide:
                gradients = accumulators.gradients(package, call, inputs.documents)
            else:
                gradients = call()[:3]
        dq, dk, dv = base.unpacked(*gradients)
        return dq, dk, dv


def _options(inputs: base.Inputs) -> dict[str, Any]:
    """Arguments of forward and backward: factor, mask and documents."""
    options = {"softmax_scale": inputs.scale, "causal": inputs.mask is not None}
    if inputs.documents is None:
        return options
    edges, longest = base.device_edges(inputs.documents, inputs.q.device)
    return {
        **options,
        "cu_seqlens_q": edges,
        "cu_seqlens_k": edges,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


FA4 = Flash4Kernel()
