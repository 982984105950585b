"""Matrix products of a recomputation whose results nobody reads.

Backward makes a layer's tensors again to have the graph that gradients go through. What its last
products yield (queries, keys and values of a tile, the MLP's output) no gradient depends on: those
of a linear layer come from its input, its weight and the gradient of its output.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _NoProducts(TorchFunctionMode):
    """Inside autograd functions a product is memory that nobody has written."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # With gradients enabled, autograd would lose the product from its graph.
        if func is torch.matmul and not torch.is_grad_enabled():
            left, right = args
            return left.new_empty((*left.shape[:-1], right.shape[-1]))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def result_left_out(linear: nn.Module | None) -> Iterator[None]:
    """While this is entered, ``linear`` yields a tensor of any content, with its gradients.

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
