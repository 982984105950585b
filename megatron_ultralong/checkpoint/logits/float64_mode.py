"""Programs that compute in float32 of their own accord, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def arithmetic(dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """A context in which a program that is given tensors of ``dtype`` computes in no narrower one.

    transformers' norms and both programs' rotary angles are float32 of their own accord: inside,
    where ``dtype`` is float64, float32 by name is float64.
    """
    return _Float32MeansFloat64() if dtype == torch.float64 else contextlib.nullcontext()


class _Float32MeansFloat64(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_widened, args), **{k: _widened(v) for k, v in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
