"""Where releases of Megatron-Core differ, 0.16 to 0.19: found by asking, not by version.

Everything else here runs on all of them as it is written. What a release has is probed on its
signatures, fields and modules, so that a fork or a later release is judged by what it can do.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from typing import Any

from megatron.core import fp8_utils
from megatron.core.models.gpt import gpt_layer_specs

from megatron_ultralong.errors import InputError


def has_transformer_engine() -> bool:
    """Whether Megatron-Core has found a Transformer Engine that it can use."""
    return bool(gpt_layer_specs.HAVE_TE)


def require_transformer_engine(what: str) -> None:
    """Check that Transformer Engine is there.

    Args:
        what: what needs it, for the message.

    Raises:
        InputError: it is not, or it does not import; with what to do.
    """
    if has_transformer_engine():
        return
    state = "is not installed"
    if importlib.util.find_spec("transformer_engine") is not None:
        try:
            importlib.import_module("transformer_engine.pytorch")
            state = "is there, but Megatron-Core does not take it"
        except Exception as error:
            state = f"is there and does not import ({type(error).__name__}: {error})"
    raise InputError(
        f"{what} needs Transformer Engine, which {state}: run in NVIDIA's PyTorch image "
        "(nvcr.io/nvidia/pytorch), or pip install --no-build-isolation "
        "'transformer-engine[pytorch]' where there is CUDA's compiler and the torch that it is "
        "for; without it use --transformer-impl local, ring_local_spec with Megatron-LM's --spec"
    )


def transformer_engine_norm() -> type[Any]:
    """Transformer Engine's RMSNorm, as Megatron-Core wraps it."""
    from megatron.core.extensions.transformer_engine import TENorm

    norm: type[Any] = TENorm
    return norm


def fp8_context(config: Any, layer_number: int) -> contextlib.AbstractContextManager[Any]:
    """The FP8 region that Megatron-Core's block runs a layer in; nothing without FP8.

    Args:
        config: Megatron's configuration.
        layer_number: of the layer, from 1 on, over all pipeline stages.
    """
    if not config.fp8:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = fp8_utils.get_fp8_context(
        config, layer_number - 1
    )
    return context
