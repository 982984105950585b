"""Error of what ranks have computed, against float64: of all rows of a short row, or of some."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.attention import reference

from .contest import Result, Task

ELEMENTS = 2**27  # scores at a time: 1 GiB of float64


class ExactRows:
    """Rows of out and dq, [n, 1, heads, d] in float64, and dk and dv of all keys or none."""

    def __init__(self, positions: Tensor, results: list[Tensor]) -> None:
        """``positions``: of the rows, ascending, int64 [n]; ``results``: out, dq, ..."""
        self._positions, self._results = positions, results

    def errors(self, found: Result, positions: Tensor) -> list[float]:
        """Root of the mean square of the error, relative, over all ranks: of out, dq, ...

        Args:
            found: of this rank, each [s_local, 1, heads, d].
            positions: of its tokens, int64 [s_local].
        """
        positions = positions.to(self._positions.device)
        places = torch.searchsorted(self._positions, positions).clamp(max=len(self._positions) - 1)
        is_known = self._positions[places] == positions
        places = places[is_known]
        sums = torch.zeros(len(self._results), 2, dtype=torch.float64)
        for number, (its, exact) in enumerate(zip(found, self._results, strict=False)):
            expected = exact[places]
            difference = its[is_known].double() - expected
            sums[number] = torch.stack([difference.square().sum(), expected.square().sum()]).cpu()
        dist.all_reduce(sums)
        # A row that no rank has computed would have no error.
        counted = torch.tensor(int(is_known.sum()))
        dist.all_reduce(counted)
        assert int(counted) == len(self._positions), f"{counted} of {len(self._positions)} rows"
        relative: list[float] = (sums[:, 0] / sums[:, 1]).sqrt().tolist()
        return relative


def all_rows(task: Task) -> ExactRows:
    """By the dense reference, which holds the scores of all pairs."""
    q, k, v = (x.double().requires_grad_() for x in task.tensors[:3])
    out = reference.attention(q, k, v, cu_seqlens=task.cu_seqlens)
    gradients = torch.autograd.grad(out, (q, k, v), task.tensors[3].double())
    positions = torch.arange(task.length, device=task.groups.device)
    return ExactRows(positions, [out.detach(), *gradients])


def some_rows(task: Task, number: int) -> ExactRows:
    """Out and dq of random queries, the last one among them; each needs its own row alone."""
    device = task.groups.device
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(task.length - 1, generator=generator)[: number - 1]
    positions = torch.cat([chosen, torch.tensor([task.length - 1])]).sort().values.to(device)
    edges = torch.tensor(task.edges or [0, task.length], device=device)
    firsts = edges[torch.searchsorted(edges, positions, right=True) - 1]
    q, k, v, dout = task.tensors
    out, dq = (torch.empty_like(q[positions], dtype=torch.float64) for _ in range(2))
    group = q.shape[2] // k.shape[2]
    at_once = max(1, ELEMENTS // task.length)
    for kv_head in range(k.shape[2]):
        keys, values = k[:, 0, kv_head].double(), v[:, 0, kv_head].double()
        for head in range(kv_head * group, (kv_head + 1) * group):
            for start in range(0, len(positions), at_once):
                rows = slice(start, start + at_once)
                here = positions[rows]
                out[rows, 0, head], dq[rows, 0, head] = _rows(
                    q[here, 0, head].double(), keys, values, dout[here, 0, head].double(),
                    partial(_hidden, here[:, None], firsts[rows][:, None]),
                )  # fmt: skip
    return ExactRows(positions, [out, dq])


def _hidden(last: Tensor, first: Tensor, keys: Tensor) -> Tensor:
    return (keys > last) | (keys < first)


def _rows(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, hidden: partial[Tensor]
) -> tuple[Tensor, Tensor]:
    """Out and dq, [n, d], of queries [n, d] over all keys [s, d]."""
    scale = q.shape[-1] ** -0.5
    scores = scale * (q @ k.T)
    scores.masked_fill_(hidden(torch.arange(len(k), device=k.device)), -torch.inf)
    probabilities = scores.softmax(dim=-1)
    out = probabilities @ v
    delta = (dout * out).sum(dim=-1, keepdim=True)
    return out, scale * ((probabilities * (dout @ v.T - delta)) @ k)
