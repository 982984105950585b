"""Products of float32 tensors with all bits of float32."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def whole_products() -> Iterator[None]:
    """Inside this context no product of float32 is made of TF32, which keeps 10 bits of 23.

    NVIDIA's PyTorch images set ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1``, so torch takes TF32 there.
    Positions above 2,048 are no numbers of TF32, and transformers makes rotary angles by a product
    (transformers issue 48428).
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # some other code has used torch's newer names, which do not mix
        with _by_newer_names():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _by_newer_names() -> Iterator[None]:
    """The same where each library has a setting of its own (torch 2.9 and later)."""
    backends: Any = torch.backends
    settings = backends.cuda.matmul, backends.mkldnn.matmul
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        for each, precision in zip(settings, before, strict=True):
            each.fp32_precision = precision
