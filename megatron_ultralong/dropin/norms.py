"""torch's norms under sequence parallelism, which Megatron-Core's wrapper of them refuses.

Each rank sees its part of the sequence, so a norm's gradients are partial. Megatron sums those of
the parameters that carry ``sequence_parallel``; torch's norms do not carry it, hence the refusal.
Without Apex and Transformer Engine there are no others.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from megatron.core.transformer.torch_norm import WrappedTorchNorm


@contextlib.contextmanager
def norms_under_sequence_parallelism() -> Iterator[None]:
    """Let ``WrappedTorchNorm`` build a norm whose parameters carry the mark."""
    theirs = WrappedTorchNorm.__new__

    def build(kind: Any, config: Any, *arguments: Any, **keywords: Any) -> Any:
        if not config.sequence_parallel:
            return theirs(kind, config, *arguments, **keywords)
        unsplit = copy.copy(config)
        unsplit.sequence_parallel = False
        norm = theirs(kind, unsplit, *arguments, **keywords)
        for parameter in norm.parameters():
            parameter.sequence_parallel = True
        return norm

    WrappedTorchNorm.__new__ = staticmethod(build)
    try:
        yield
    finally:
        WrappedTorchNorm.__new__ = staticmethod(theirs)
