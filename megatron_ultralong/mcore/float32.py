"""Products of float32 tensors with all bits of float32."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def whole_products() -> Iterator[None]:
    """Inside this context no product of float32 is made of TF32, which keeps 10 bits of 23.

    NVIDIA's PyTorch images set ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1``, so torch takes TF32 there.
    Positions above 2,048 are no numbers of TF32, and transformers makes rotary angles by a product
    (transformers issue 48428).
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
