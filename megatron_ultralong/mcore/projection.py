"""A layer up to its attention, in tiles: norm, gather, projection and rotary embedding."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from megatron_ultralong.mcore import tiles

QueriesKeysValues = tuple[Tensor, Tensor, Tensor]


class CosSin(NamedTuple):
    """Of the angles of a pass of one tile, [s, b, 1, d], in the dtype of heads.

    They are the same in all layers. Each makes its own otherwise, which is nothing for a tile of
    many tokens, and a third of the kernels of a tile of one.
    """

    cos: Tensor
    sin: Tensor
    """Negative in the first half."""

    @classmethod
    def of(cls, angles: Tensor, dtype: torch.dtype) -> CosSin:
        """Rounded as Megatron-Core rounds them."""
        first, second = angles.sin().chunk(2, dim=-1)
        return cls(angles.cos().to(dtype), torch.cat((-first, second), dim=-1).to(dtype))

    def rotated(self, x: Tensor) -> Tensor:
        """Heads [s, b, heads, d] rotated: ``x cos`` and the exchanged halves of ``x`` by ``sin``.

        Megatron-Core rounds both products, and here one of them is not.
        """
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin)


class Projection:
    """By Megatron's own modules and its rotary embedding."""

    def __init__(self, layer: Any, sequence: tiles.SequenceTiles, angles: Tensor | CosSin) -> None:
        """``angles``: radians of all tokens, [s, 1 or b, 1, d], or what is made of them."""
        self.layer, self.attention = layer, layer.self_attention
        self.tiles, self.angles = sequence, angles
        norms = (self.attention.q_layernorm, self.attention.k_layernorm)
        # The gradient of a norm needs what it was given; that of a rotation does not.
        has_norms = not all(isinstance(norm, IdentityOp | None) for norm in norms)
        self._unread = None if has_norms else self.attention.linear_qkv

    def forward(self, hidden: Tensor) -> QueriesKeysValues:
        """Queries [s, b, heads, d], keys and values [s, b, kv_heads, d], of all tokens."""
        whole: QueriesKeysValues | None = None
        for tile in self.tiles.of(len(hidden)):
            made = self._rotated(hidden[tile], tile)
            if whole is None:
                if tile.stop == len(hidden):
                    return made  # the only tile
                length = self.tiles.num_runs * len(hidden)
                q, k, v = (x.new_empty((length, *x.shape[1:])) for x in made)
                whole = q, k, v
            for x, part in zip(whole, made, strict=True):
                self.tiles.put(x, tile, part)
        assert whole is not None
        return whole

    def backward(self, hidden: Tensor, gradients: Sequence[Tensor], dhidden: Tensor) -> None:
        """Add what comes from the gradients of queries, keys and values to ``dhidden``.

        Gradients of the parameters are added where they belong.
        """
        for tile in self.tiles.of(len(hidden)):
            source = hidden[tile].detach().requires_grad_()
            with torch.enable_grad(), result_left_out(self._unread):
                made = self._made(source, tile)
            # The residual's gradient is a root too: autograd then adds up as without recomputation.
            roots = self._roots(made, gradients, tile)
            torch.autograd.backward([*made, source], [*roots, dhidden[tile]])
            assert source.grad is not None
            dhidden[tile] = source.grad

    def _made(self, hidden: Tensor, tile: slice) -> tuple[Tensor, ...]:
        """What backward goes through."""
        return self._rotated(hidden, tile)

    def _roots(
        self, made: tuple[Tensor, ...], gradients: Sequence[Tensor], tile: slice
    ) -> list[Tensor]:
        """Gradients of it."""
        return [self.tiles.take(x, tile) for x in gradients]

    def _rotated(self, hidden: Tensor, tile: slice) -> QueriesKeysValues:
        q, k, v = self.attention.get_query_key_value_tensors(
            self.layer.input_layernorm(hidden), None
        )
        if isinstance(self.angles, CosSin):
            assert len(q) == len(self.angles.cos), "of one tile"
            return self.angles.rotated(q), self.angles.rotated(k), v
        angles, group = self.tiles.take(self.angles, tile), self.attention.pg_collection.cp
        q, k = (apply_rotary_pos_emb(x, angles, self.layer.config, cp_group=group) for x in (q, k))
        return q, k, v


class _NoProducts(TorchFunctionMode):
    """Inside autograd functions a product is memory that nobody has written."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # With gradients enabled, autograd would lose the product from its graph.
        if func is torch.matmul and not torch.is_grad_enabled():
            left, right = args
            return left.new_empty((*left.shape[:-1], right.shape[-1]))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def result_left_out(linear: nn.Module | None) -> Iterator[None]:
    """While this is entered, ``linear`` yields a tensor of any content, with its gradients.

    Backward makes a layer's tensors again to have the graph that gradients go through. What its
    last products yield (queries, keys and values of a tile, the MLP's output) no gradient depends
    on: those of a linear layer come from its input, its weight and the gradient of its output.

    Megatron-Core's linear layers multiply in an autograd function of their own, by
    ``torch.matmul``; others (Transformer Engine's) do what they always do. None: no layer.
    """
    if linear is None:
        yield
        return
    own, forward = vars(linear).get("forward"), linear.forward  # somebody may have set one

    def without_product(*args: Any, **kwargs: Any) -> Any:
        with _NoProducts():
            return forward(*args, **kwargs)

    linear.forward = without_product
    try:
        yield
    finally:
        if own is None:
            del linear.forward
        else:
            linear.forward = own


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
    """The same with :func:`rotate`, which has no graph: backward turns the gradients back first.

    Megatron-Core's own way cuts queries out of the projection's output, turns halves, multiplies,
    adds and joins: a pass over memory each, and one more into the tensor of the whole sequence.
    ``torch.compile`` makes a kernel that reads a tile's queries (or keys) where the projection left
    them and writes them rotated where they belong. Arithmetic is float32 with one rounding at the
    end; Megatron-Core's rounds cosines, sines and both products too.
    """

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
