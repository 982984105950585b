"""One rank's block of queries, keys and values, and what it adds to the sums."""

from dataclasses import dataclass

from torch import Tensor

from megatron_ultralong.attention.kernels import base, block_attention
from megatron_ultralong.attention.kernels.base import Gradients, Inputs, Kernel, Result, Saved
from megatron_ultralong.attention.ring.plan import Plan, Rectangle

_ALL = slice(None)


@dataclass(frozen=True)
class Block:
    """Inputs of one rank: q [s, b, heads, d], k and v [s, b, kv_heads, d], contiguous."""

    plan: Plan
    rank: int
    q: Tensor
    k: Tensor
    v: Tensor
    kernel: Kernel
    scale: float

    def source(self, hop: int) -> int:
        """Rank whose keys are here at a hop of the ring."""
        return (self.rank - hop) % self.plan.size

    def peer(self, hops: int) -> int:
        """Rank that many hops further."""
        return (self.rank + hops) % self.plan.size

    def exact(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors in the dtype of sums, if the kernel can compute in it and the block is one
        of several: its results are then rounded once, at the end, at any size of the ring.

        The kernels of GPUs compute in bfloat16; of them, fa4 has float32 results.
        """
        if self.plan.size == 1 or not self.kernel.can_widen:
            return list(tensors)
        return [x.to(base.accumulation_dtype(x.dtype)) for x in tensors]

    def _inputs(self, rows: slice, k: Tensor, v: Tensor, mask: base.Mask) -> Inputs:
        """Queries ``rows`` over some keys."""
        q, k, v = self.exact(self.q[rows], k, v)
        kind = Inputs if self.plan.size == 1 else base.Part
        return kind(q, k, v, mask, self.scale)

    def forward_own(self, edges: tuple[int, ...]) -> Result:
        """Causal attention inside the documents of the rank's own tokens.

        Returns:
            The running sums out [s, b, heads, d] and lse [b, heads, s], float32 or float64; of a
            ring of one, to which nothing is added, out as the kernel has it.
        """
        inputs = self._inputs(_ALL, self.k, self.v, edges)
        out, lse = block_attention.forward(self.kernel, inputs)
        wide = base.accumulation_dtype(out.dtype)
        out = out if self.plan.size == 1 else out.to(wide)
        return out.contiguous(), lse.to(wide).contiguous()

    def add_rectangle_(
        self, rectangle: Rectangle, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> None:
        """Add to the running sums what some queries see of keys ``k``, the rectangle's alone."""
        rows = slice(rectangle.query_start, rectangle.query_stop)
        part = block_attention.forward(self.kernel, self._inputs(rows, k, v, None))
        base.merge_(out[rows], lse[..., rows], *part)

    def backward_own(self, saved: Saved, edges: tuple[int, ...]) -> Gradients:
        """Gradients through the mask of :meth:`forward_own`."""
        return self._backward(self._inputs(_ALL, self.k, self.v, edges), saved)

    def backward_rectangle(
        self, saved: Saved, rectangle: Rectangle, k: Tensor, v: Tensor
    ) -> Gradients:
        """Gradients through one rectangle, of its queries and its keys alone."""
        rows = slice(rectangle.query_start, rectangle.query_stop)
        return self._backward(self._inputs(rows, k, v, None), saved.rows(rows))

    def _backward(self, inputs: Inputs, saved: Saved) -> Gradients:
        dout, out = self.exact(saved.dout, saved.out)
        return block_attention.backward(self.kernel, inputs, Saved(dout, out, saved.lse))
