"""A layer up to its attention, with one kernel for what is done between projection and attention.

Megatron-Core's own way cuts queries out of the projection's output, turns halves, multiplies, adds
and joins: a pass over memory each, and one more into the tensor of the whole sequence.
``torch.compile`` makes a kernel that reads a tile's queries (or keys) where the projection left
them and writes them rotated where they belong. Arithmetic is float32 with one rounding at the end;
Megatron-Core's rounds cosines, sines and both products too.
"""

import functools
import inspect
import itertools
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.mcore.projection import Projection, QueriesKeysValues


def rotate(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Write ``x`` rotated to ``out``, both [..., 2, d / 2]: the halves of heads.

    ``out = x cos + flip(x) sin``, where ``flip`` exchanges the halves and sines [..., 2, d / 2] are
    negative for the first one. With the opposite sines it is the rotation back.
    """
    x = x.float()
    out.copy_(x * cos + x.flip(-2) * sin)


def compiled_rotate(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """:func:`rotate` as one kernel, compiled for heads and layouts as they come.

    Only lengths differ between calls of one kernel: it is compiled again for the second one, which
    stands for any, and for one token.
    """
    tensors = (out, x, cos, sin)
    _compiled(tuple((t.dtype, t.device, _without_length(t)) for t in tensors))(*tensors)


def is_compiled(x: Tensor) -> bool:
    """Whether tensors on that device are rotated by a kernel."""
    return x.is_cuda


def _without_length(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of [runs, n, ...] that do not depend on ``n``."""
    return (x.shape[0], *x.shape[2:]), x.stride()[1:]


@functools.cache
def _compiled(_: Hashable) -> Callable[..., None]:
    """A copy of :func:`rotate` to compile.

    ``torch.compile`` keeps what it made, and how often (8 times at most), with a function's code:
    queries, keys and their gradients, in models of different sizes, would be too many for one.
    """
    code = rotate.__code__.replace(co_name=f"rotate_{next(_numbers)}")
    compiled: Callable[..., None] = torch.compile(
        types.FunctionType(code, rotate.__globals__), fullgraph=True, backend=BACKEND
    )
    return compiled


_numbers = itertools.count()
BACKEND: Any = "inductor"
"""Of ``torch.compile``."""


class FusedProjection(Projection):
    """The same with :func:`rotate`, which has no graph: backward turns the gradients back first."""

    def forward(self, hidden: Tensor) -> QueriesKeysValues:
        """See :class:`Projection`."""
        heads_dim = self.layer.config.kv_channels
        whole: QueriesKeysValues | None = None
        for tile in self.tiles.of(len(hidden)):
            made = self._parts(self._made(hidden[tile], tile))
            if whole is None:
                rows = (self.tiles.num_runs * len(hidden), hidden.shape[1])
                q, k, v = (x.new_empty((*rows, x.shape[2:-1].numel(), heads_dim)) for x in made)
                whole = q, k, v
            self._move([self._tile(x, tile, y) for x, y in zip(whole, made, strict=True)],
                       [self.tiles.runs(x) for x in made], tile, 1)  # fmt: skip
        assert whole is not None
        return whole

    def _made(self, hidden: Tensor, tile: slice) -> tuple[Tensor, ...]:
        """The projection's output, or queries, keys and values where only they are to be had."""
        make = self.attention.get_query_key_value_tensors
        normed = self.layer.input_layernorm(hidden)
        if self._is_whole:
            return (make(normed, None, split_qkv=False)[0],)
        made: tuple[Tensor, ...] = make(normed, None)
        return made

    def _roots(
        self, made: tuple[Tensor, ...], gradients: Sequence[Tensor], tile: slice
    ) -> list[Tensor]:
        roots = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in made]
        parts = self._parts(roots)
        self._move([self.tiles.runs(x) for x in parts],
                   [self._tile(x, tile, y) for x, y in zip(gradients, parts, strict=True)],
                   tile, -1)  # fmt: skip
        return roots

    @functools.cached_property
    def _is_whole(self) -> bool:
        """Whether Megatron's attention hands out the projection's output in one.

        It does not where queries or keys are normalized, or ranks share a group of heads.
        """
        config = self.layer.config
        takes = inspect.signature(self.attention.get_query_key_value_tensors).parameters
        return (
            "split_qkv" in takes
            and self._unread is not None
            and config.num_query_groups >= config.tensor_model_parallel_size
        )

    def _parts(self, made: Sequence[Tensor]) -> list[Tensor]:
        """Views [s, b, groups, heads, d] of queries, keys and values."""
        if not self._is_whole:
            return [x.unsqueeze(2) for x in made]
        heads = made[0].unflatten(-1, (-1, self.layer.config.kv_channels))
        return [heads[..., :-2, :], heads[..., -2:-1, :], heads[..., -1:, :]]

    def _tile(self, whole: Tensor, tile: slice, like: Tensor) -> Tensor:
        """A tile of queries, keys or values of all tokens, [runs, n, b, groups, heads, d]."""
        part: Tensor = self.tiles.runs(whole)[:, tile].unflatten(-2, like.shape[-3:-1])
        return part

    def _move(self, to: list[Tensor], source: list[Tensor], tile: slice, sign: int) -> None:
        """Write queries and keys rotated (back, by ``sign`` -1), values as they are."""
        assert isinstance(self.angles, Tensor), "it takes angles"
        half = self.tiles.runs(self.angles)[:, tile, ..., : self.angles.shape[-1] // 2]
        half = half[..., None, None, :]  # [runs, n, 1 or b, groups, heads, halves, d / 2]
        cos, sin = half.cos(), sign * half.sin()
        sin = torch.cat((-sin, sin), dim=-2)
        kernel = compiled_rotate if is_compiled(half) else rotate
        for out, x in zip(to[:2], source[:2], strict=True):
            kernel(_halves(out), _halves(x), cos, sin)
        to[2].copy_(source[2].detach())


def _halves(x: Tensor) -> Tensor:
    """Heads [..., d] as [..., 2, d / 2], out of the graph."""
    halves: Tensor = x.detach().unflatten(-1, (2, -1))
    return halves
