"""Megatron-LM's source tree where there is no Triton.

Before 0.17 ``megatron.training`` cannot be imported without Triton, for kernels of one module that
run on GPUs alone. PyTorch's builds for CPUs bring none.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

_KERNELS = "megatron.core.transformer.custom_layers.batch_invariant_kernels"


def import_kernels_without_triton() -> None:
    """Import that module; its kernels raise where they are called.

    While it is imported, and by nothing else, ``triton`` is a stand-in: elsewhere Megatron-Core and
    torch ask whether there is a Triton, and have to hear that there is none.
    """
    try:
        importlib.import_module(_KERNELS)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            return  # not in this release, or something else is missing: whoever needs it says so
        triton, language = types.ModuleType("triton"), types.ModuleType("triton.language")
        vars(triton).update(jit=_jit, language=language)
        vars(language).update(constexpr=object)
        stand_ins = {"triton": triton, "triton.language": language}
        sys.modules.update(stand_ins)
        try:
            importlib.import_module(_KERNELS)
        finally:
            for name in stand_ins:
                del sys.modules[name]


def _jit(kernel: Callable[..., Any] | None = None, **_: Any) -> Any:
    """In the place of ``triton.jit``, with and without options."""
    if kernel is None:
        return _jit

    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{kernel.__name__} is a Triton kernel, and Triton is not installed")

    return missing
