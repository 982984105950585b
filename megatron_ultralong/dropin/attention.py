"""Our attention in the layers that Megatron-LM builds from the user's own arguments.

A layer's spec is made in many ways (``--spec``, experts, heterogeneous blocks, layers for further
tokens, a described model). All of them end where ``SelfAttention`` builds the ``core_attention`` of
its submodules. There, and nowhere else, ours takes its place: what a layer is made of otherwise is
the user's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from megatron.core.transformer import attention
from megatron.core.transformer.dot_product_attention import DotProductAttention

from megatron_ultralong.mcore.core_attention import RingCoreAttention
from megatron_ultralong.program.errors import InputError


@contextlib.contextmanager
def ring_attention_in_layers() -> Iterator[None]:
    """Build ``RingCoreAttention`` wherever Megatron-Core would build a dot-product attention."""
    theirs = attention.SelfAttention.__init__

    @functools.wraps(theirs)
    def build(self: Any, config: Any, submodules: Any, *arguments: Any, **keywords: Any) -> None:
        theirs(self, config, with_ring_attention(submodules), *arguments, **keywords)

    attention.SelfAttention.__init__ = build
    try:
        yield
    finally:
        attention.SelfAttention.__init__ = theirs


def with_ring_attention(submodules: Any) -> Any:
    """The submodules of a self-attention, with ours as ``core_attention``.

    Raises:
        InputError: it is none of those that ours can stand for.
    """
    found = submodules.core_attention
    kind = getattr(found, "module", found)
    if kind is RingCoreAttention:
        return submodules
    if kind not in _replaced():
        raise InputError(
            f"the core_attention of this model's layers is {getattr(kind, '__name__', kind)}; ours "
            f"takes the place of {' and '.join(one.__name__ for one in _replaced())} alone: leave "
            "out what chooses another (--spec, --use-kitchen-attention), or train without "
            "megatron_ultralong.dropin"
        )
    return dataclasses.replace(submodules, core_attention=RingCoreAttention)


@functools.cache
def _replaced() -> tuple[type, ...]:
    try:
        from megatron.core.extensions.transformer_engine import TEDotProductAttention
    except ImportError:
        return (DotProductAttention,)
    return (DotProductAttention, TEDotProductAttention)
