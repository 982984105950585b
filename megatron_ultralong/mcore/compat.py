"""Where releases of Megatron-Core differ, 0.16 to 0.19: found by asking, not by version.

Everything else here runs on all of them as it is written. What a release has is probed on its
signatures, fields and modules, so that a fork or a later release is judged by what it can do.
"""

import contextlib
import importlib
import importlib.util
import os
from typing import Any

from megatron.core import fp8_utils
from megatron.core.models.gpt import gpt_layer_specs

from megatron_ultralong.config.run import Fp8Recipe, LayerConfig
from megatron_ultralong.program.errors import InputError

_FP8_QUESTIONS: dict[Fp8Recipe, str] = {
    "delayed": "is_fp8_available",
    "tensorwise": "is_fp8_available",
    "blockwise": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
}
_READS_PICKLES = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
_ALLOWS_ANY_ORDER = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"
_KERNELS = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


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


def check_layers(layers: LayerConfig, *, deterministic: bool, is_saved: bool) -> None:
    """Check that this machine has what ``layers`` need.

    Args:
        layers: of a run.
        deterministic: two runs are to be bit-equal.
        is_saved: the run writes checkpoints, which it may have to read.

    Raises:
        InputError: there is no Transformer Engine, or it or the device cannot do what is asked.
    """
    if not layers.needs_transformer_engine:
        return
    require_transformer_engine(f"transformer_impl {layers.transformer_impl!r}")
    if layers.attention == "te" and deterministic and os.environ.get(_ALLOWS_ANY_ORDER) != "0":
        raise InputError(
            "attention 'te' with deterministic_mode needs "
            f"{_ALLOWS_ANY_ORDER}=0 in the environment, which is "
            f"{os.environ.get(_ALLOWS_ANY_ORDER, 'not set')}: Transformer Engine chooses its "
            f"kernels by it; export {_ALLOWS_ANY_ORDER}=0 on every rank, or use --attention ring"
        )
    if layers.fp8_format != "none":
        _check_fp8(layers.fp8_recipe, is_saved)


def check_kernel_variables() -> None:
    """Check that no variable forbids Transformer Engine a kernel of attention.

    Whatever computes attention, Megatron-Core makes no model then: it sets them itself.

    Raises:
        InputError: one does.
    """
    found = [f"{name}={os.environ[name]}" for name in _KERNELS if os.environ.get(name, "1") != "1"]
    if found:
        raise InputError(
            f"{' and '.join(found)} in the environment, where Megatron-Core makes no model: unset "
            f"{' '.join(_KERNELS)}; --attention says what computes attention here"
        )


def _check_fp8(recipe: Fp8Recipe, is_saved: bool) -> None:
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    question = getattr(FP8GlobalStateManager, _FP8_QUESTIONS[recipe], None)
    is_there, reason = question() if question else (False, "this Transformer Engine has it not")
    if not is_there:
        raise InputError(
            f"fp8_recipe {recipe!r} cannot run here: {str(reason).strip().rstrip('.')}; use "
            "another --fp8-recipe (tensorwise from Ada and Hopper on), or --fp8-format none"
        )
    refuses = importlib.util.find_spec("transformer_engine.pytorch._extra_state") is not None
    if recipe == "delayed" and is_saved and refuses and os.environ.get(_READS_PICKLES) != "1":
        raise InputError(
            "fp8_recipe 'delayed' keeps its maxima in checkpoints as pickled Python, which this "
            f"Transformer Engine does not read unless {_READS_PICKLES}=1: the run could not be "
            f"resumed; export {_READS_PICKLES}=1 if you trust what is in --save, or use "
            "--fp8-recipe tensorwise"
        )


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
