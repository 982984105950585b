"""A kernel: attention of one block of queries over one block of keys, and the sum of such results.

    forward(inputs) -> out, lse
    backward(inputs, saved) -> dq, dk, dv

with q, out [s, b, heads, d]; k, v [t, b, kv_heads, d]; lse float32 (float64 for float64),
[b, heads, s]. In backward, the saved ``out`` and ``lse`` are those over **all** keys of a query,
not over the block's: that is what makes the sums over blocks exact.

A new kernel is a subclass in a file of its own, and a place in
:func:`~megatron_ultralong.attention.kernels.block_attention.candidates`.

``out = sum_j exp(s_j - lse) v_j`` over keys ``j``, with ``lse = log sum_j exp(s_j)``. Two results
over disjoint keys join as

    lse_new = log(exp(lse_a) + exp(lse_b))
    out_new = exp(lse_a - lse_new) out_a + exp(lse_b - lse_new) out_b

which is a step from ``out_a`` towards ``out_b`` of size ``sigmoid(lse_b - lse_a)``.
"""

from __future__ import annotations

import abc
import importlib
import importlib.util
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 16_384  # merged at a time: the float32 copy of a part is of these alone


def merge_(out_SBHD: Tensor, lse_BHS: Tensor, part_SBHD: Tensor, part_lse_BHS: Tensor) -> None:
    """Add a partial result to the running one, in place.

    Args:
        out_SBHD: running output, float32 or float64.
        lse_BHS: running log-sum-exp of the scores, of the same dtype; -inf: no key yet.
        part_SBHD: output over other keys, of any dtype.
        part_lse_BHS: its log-sum-exp; -inf: no key.
    """
    part_lse_BHS = part_lse_BHS.to(lse_BHS.dtype)
    # nan: -inf - (-inf), neither side has a key; the output stays.
    share_BHS = torch.sigmoid(part_lse_BHS - lse_BHS).nan_to_num_(nan=0.0)
    share_SBH1 = share_BHS.permute(2, 0, 1).unsqueeze(-1)
    for start in range(0, len(out_SBHD), _ROWS):
        rows = slice(start, start + _ROWS)
        out_SBHD[rows].lerp_(part_SBHD[rows].to(out_SBHD.dtype), share_SBH1[rows])
    torch.logaddexp(lse_BHS, part_lse_BHS, out=lse_BHS)


def merge_all(outs_RSBHD: Tensor, lses_RBHS: Tensor) -> Result:
    """Output and log-sum-exp of R partial results over disjoint keys, float32 or float64.

    A part without a key has lse -inf; where no part has one, the output is 0 and lse is -inf.
    """
    lse_BHS = lses_RBHS.logsumexp(dim=0)
    shares_RBHS = torch.exp(lses_RBHS - lse_BHS).nan_to_num_(nan=0.0)
    return (shares_RBHS.permute(0, 3, 1, 2).unsqueeze(-1) * outs_RSBHD).sum(dim=0), lse_BHS


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of sums: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


Mask = tuple[int, ...] | None
"""What a block's queries attend to. None: every key. Boundaries ``(0, ..., s)``, for s = t alone:
the keys of their own document up to themselves; ``(0, s)`` is plain causal attention."""
Result = tuple[Tensor, Tensor]
"""Output and log-sum-exp."""
Gradients = tuple[Tensor, Tensor, Tensor]
"""Of q, k and v."""
Runs = tuple[tuple[int, tuple[int, ...]], ...]
"""Where a run of documents starts, and its boundaries, counted from there."""


class Inputs(NamedTuple):
    """What a kernel is called with; shapes are the module's."""

    @property
    def wide(self) -> bool:
        """Whether the results are parts of a sum (:class:`Part`)."""
        return False

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask
    scale: float

    @property
    def documents(self) -> tuple[int, ...] | None:
        """Boundaries, where the mask is one of several documents."""
        return self.mask if self.mask is not None and len(self.mask) > 2 else None

    def rows(self, rows: slice, mask: Mask) -> Inputs:
        """Documents alone: their queries over their keys."""
        return type(self)(self.q[rows], self.k[rows], self.v[rows], mask, self.scale)

    def heads(self, heads: slice, kv: slice) -> Inputs:
        """Some heads, and the key heads that they read."""
        group = (self.q[:, :, heads], self.k[:, :, kv], self.v[:, :, kv])
        return type(self)(*group, self.mask, self.scale)


class Part(Inputs):
    """Inputs whose results are parts of a sum.

    A kernel that has them in float32 returns them so; others round each part.
    """

    @property
    def wide(self) -> bool:
        """It is so."""
        return True


class Saved(NamedTuple):
    """What backward starts from: dout and out [s, b, heads, d], lse [b, heads, s]."""

    dout: Tensor
    out: Tensor
    lse: Tensor

    def rows(self, rows: slice) -> Saved:
        """Those of some queries."""
        return Saved(self.dout[rows], self.out[rows], self.lse[..., rows])

    def heads(self, heads: slice) -> Saved:
        """Those of some heads."""
        return Saved(self.dout[:, :, heads], self.out[:, :, heads], self.lse[:, heads])


class RowLengths(NamedTuple):
    """How many keys count of each row of a storage [rows, slots, ...]; all of it on the device.

    A kernel reads the numbers where they are, so a captured one finds those of its replay.
    """

    lengths: Tensor
    """Keys that count, the first ones of each row; int32 [rows]."""
    queries: Tensor
    """Boundaries of the rows' queries, one each; int32 [rows + 1]."""
    slots: Tensor
    """Boundaries of the rows' slots; int32 [rows + 1]."""

    @classmethod
    def none(cls, num_rows: int, num_slots: int, device: torch.device) -> RowLengths:
        """No key of any row; ``lengths`` are to be overwritten."""
        assert num_rows * num_slots < 2**31, "slots are counted in int32"
        rows = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        return cls(torch.zeros_like(rows[1:]), rows, rows * num_slots)


@lru_cache(maxsize=16)
def each_alone(cu_seqlens: tuple[int, ...]) -> Runs:
    """Runs of one document each: ``(0, 3, 5) -> ((0, (0, 3)), (3, (0, 2)))``."""
    return tuple((start, (0, stop - start)) for start, stop in pairwise(cu_seqlens))


class Kernel(abc.ABC):
    """One implementation of block attention. It is called with at least one query and one key."""

    name: str
    """As users write it in ``ULTRALONG_ATTENTION_KERNEL``."""
    serves_documents = False
    """It takes masks of several documents where b = 1; others get a call for each document."""
    can_widen = False
    """It can compute bfloat16 blocks in float32, so that no part of a sum is rounded; a kernel that
    computes in bfloat16 but has float32 results looks at :attr:`Inputs.wide`."""

    @abc.abstractmethod
    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """Why it cannot serve tensors of that dtype and head size on the device; None: it can."""

    def runs(self, cu_seqlens: tuple[int, ...]) -> Runs:
        """Documents that it takes in one call where b = 1; of a batch, each is a call."""
        return ((0, cu_seqlens),) if self.serves_documents else each_alone(cu_seqlens)

    @abc.abstractmethod
    def forward(self, inputs: Inputs) -> Result:
        """Output, of any dtype of floats, and log-sum-exp."""

    @abc.abstractmethod
    def backward(self, inputs: Inputs, saved: Saved) -> Gradients:
        """Gradients of q, k and v, given out and lse over all keys, of any dtype of floats."""


class RowsKernel(Kernel):
    """A kernel that also reads from the device how many keys of a row count."""

    @abc.abstractmethod
    def forward_rows(
        self, q: Tensor, keys: Tensor, values: Tensor, rows: RowLengths, scale: float
    ) -> Result:
        """Output [1, b, heads, d] and log-sum-exp [b, heads, 1] of one query of each row.

        Args:
            q: [1, b, heads, d].
            keys: the rows' storage, contiguous, [b, slots, kv_heads, d].
            values: as ``keys``.
            rows: how many of them count; the result of a row without any is zero, and -inf.
            scale: factor of the scores.
        """


def heads_first(*tensors: Tensor) -> list[Tensor]:
    """Views [b, heads, s, d] of [s, b, heads, d]."""
    return [x.permute(1, 2, 0, 3) for x in tensors]


def sequence_first(*tensors: Tensor) -> list[Tensor]:
    """Views [s, b, heads, d] of [b, heads, s, d]."""
    return [x.permute(2, 0, 1, 3) for x in tensors]


def room_for(q: Tensor, dtype: torch.dtype | None = None) -> Result:
    """Memory for the output and log-sum-exp of queries ``q``, not yet written."""
    s, b, heads, _ = q.shape
    lse = q.new_empty((b, heads, s), dtype=accumulation_dtype(q.dtype))
    return q.new_empty(q.shape, dtype=dtype), lse


def room_for_gradients(*tensors: Tensor) -> list[Tensor]:
    """Memory for the gradient of each tensor, not yet written."""
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


def nothing_attended(q: Tensor) -> Result:
    """Result without keys: zero, with a log-sum-exp of -inf that merging ignores."""
    s, b, heads, _ = q.shape
    lse = q.new_full((b, heads, s), -torch.inf, dtype=accumulation_dtype(q.dtype))
    return torch.zeros_like(q), lse


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
    """Why a package made for some generations of GPUs cannot serve here.

    Args:
        package: the module that is called, such as ``flash_attn.cute.interface``.
        generations: major compute capabilities.
        device: a GPU.
    """
    major, _ = torch.cuda.get_device_capability(device)
    if major not in generations:
        return f"it is for compute capability {generations}, the device has {major}"
    try:
        importlib.import_module(package)
    except Exception as error:  # a broken package raises anything when it loads its library
        if isinstance(error, ModuleNotFoundError) and _is_absent(package):
            return f"{package} is not installed"
        why = f"{type(error).__name__}: {error}"
        return f"{package} is installed in part, and cannot be imported ({why})"
    return None


def _is_absent(package: str) -> bool:
    """Whether nothing of it is there: FlashAttention 2 has the first name of flash-attn-4 too."""
    first, *_ = package.split(".")
    if importlib.util.find_spec(first) is None:
        return True
    try:
        return importlib.util.find_spec(package.rpartition(".")[0] or package) is None
    except Exception:  # a broken package raises anything
        return False


@lru_cache(maxsize=64)
def device_edges(cu_seqlens: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Boundaries on the device, int32, and the longest document: one copy for all layers."""
    edges = torch.tensor(cu_seqlens, dtype=torch.int32)
    return edges.to(device), int(edges.diff().max())


def packed(inputs: Inputs, *tensors: Tensor) -> list[Tensor]:
    """Views [b, s, heads, d] of [s, b, heads, d]; of documents in one call, [s, heads, d]."""
    return [x[:, 0] if inputs.documents else x.transpose(0, 1) for x in tensors]


def packed_lse(inputs: Inputs, lse: Tensor) -> Tensor:
    """[b, heads, s], contiguous; of documents in one call, [heads, s]."""
    return (lse[0] if inputs.documents else lse).contiguous()


def unpacked(*tensors: Tensor) -> list[Tensor]:
    """Views [s, b, heads, d] of what came from tensors of :func:`packed`."""
    return [x[:, None] if x.ndim == 3 else x.transpose(0, 1) for x in tensors]
