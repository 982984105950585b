"""``torch.compile`` that waits for the first call of the function that it compiles.

Megatron-Core decorates its fused functions with ``torch.compile`` when it is imported, and the
decorator imports torch's whole compiler, half of the time that Megatron-Core takes to import, on
every rank; on a CPU none of these functions is called.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_ultralong.mcore.cpu import replaced


@contextlib.contextmanager
def compile_at_first_call() -> Iterator[None]:
    """While this is entered, a function given to ``torch.compile`` is compiled when it is called.

    What is compiled, and its arguments, stay the same; modules (which ``torch.compile`` wraps in
    another class) are compiled at once.
    """
    at_once = torch.compile

    def deferred(model: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if model is None:
            return functools.partial(deferred, **options)
        if isinstance(model, torch.nn.Module):
            return at_once(model, **options)
        compiled = functools.cache(lambda: at_once(model, **options))

        @functools.wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    with replaced((torch, "compile", deferred)):
        yield
