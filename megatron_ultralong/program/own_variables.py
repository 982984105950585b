"""Variables in the environment that choose how a run computes, and what to tell of them."""

import os
from collections.abc import Iterator

from megatron_ultralong.program.errors import slips
from megatron_ultralong.program.exit_status import STATUS_VARIABLE
from megatron_ultralong.program.ranks import LAUNCHED

LEVEL = "ULTRALONG_LOG"
KERNEL = "ULTRALONG_ATTENTION_KERNEL"
_NAMES = (LEVEL, KERNEL, STATUS_VARIABLE, LAUNCHED)
_OF_USERS = (LEVEL, KERNEL, STATUS_VARIABLE)


def misspelt() -> Iterator[str]:
    """A line for each that is nearly one of them, and so does nothing."""
    for name in sorted(name for name in os.environ if name[:1] in "Uu" and name not in _NAMES):
        meant = min(_OF_USERS, key=lambda known: slips(name, known))
        if slips(name, meant) <= (1 if meant == LEVEL else 2):  # a short name is near to many
            yield f"warning: {name} in the environment is not read; perhaps you meant {meant}"


def kernel_asked() -> Iterator[str]:
    """A line where one attention kernel is asked for, which is slower than the one chosen."""
    if name := os.environ.get(KERNEL):
        yield f"attention kernel {name}: {KERNEL} is set in the environment, and no other is used"


def products_rounded() -> Iterator[str]:
    """A line where cuBLAS is told to make products of float32 of TF32, whatever torch asks for."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE", "0") not in ("", "0"):
        yield (
            "warning: NVIDIA_TF32_OVERRIDE in the environment has cuBLAS round the factors of "
            "float32 products to 10 bits (TF32): unset it, or set it to 0"
        )
