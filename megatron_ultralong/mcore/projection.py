"""A layer up to its attention, in tiles: norm, gather, projection and rotary embedding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
