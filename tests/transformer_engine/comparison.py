"""How far two computations may be apart, and why."""

from __future__ import annotations

import logging

import torch

from tests.transformer_engine.wide import Log

# A loss is a mean over 2,046 tokens, of which each is off by about one rounding of bf16 (2^-9) of
# its logits; a norm is the root of sums of squares of gradients off by a few roundings each.
LOSS, NORM = 1e-3, 5e-3
# e4m3 has four bits of mantissa, e5m2 of the gradients three.
FP8_LOSS, FP8_NORM = 2e-2, 1e-1
# A step is the mean gradient over its root mean square. Moments of four bits make it another by a
# tenth, and the loss falls by a sixth in these steps.
STATES_LOSS, STATES_NORM = 2e-2, 5e-2
_log = logging.getLogger(__name__)


def distance(name: str, found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root of the mean square of the differences, relative."""
    relative = float((found - exact).norm() / exact.norm())
    _log.info("%s: logits %.2e from float32", name, relative)
    return relative


def assert_close(name: str, found: Log, expected: Log, loss: float, norm: float) -> None:
    """Compare losses and gradient norms, relative."""
    assert len(found) == len(expected) > 0
    worst = [
        max(abs(a[i] - b[i]) / abs(b[i]) for a, b in zip(found, expected, strict=True))
        for i in range(2)
    ]
    _log.info("%s: losses within %.1e, gradient norms within %.1e", name, *worst)
    _log.info("%s: %s, not %s", name, found, expected)
    assert worst[0] <= loss, (name, found, expected)
    assert worst[1] <= norm, (name, found, expected)
