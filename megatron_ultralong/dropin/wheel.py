"""Megatron-LM's training loop from a wheel of Megatron-Core, where there is no source tree."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def keep_compiled_helpers() -> None:
    """Do not let Megatron-LM compile its index builder where a wheel has brought it compiled.

    At its start it runs ``make`` in ``megatron/core/datasets`` and ends the program if that fails.
    A source tree has a Makefile there and goes on as ever; a wheel has the result instead.
    """
    from megatron.core.datasets import utils

    has_makefile = (Path(str(utils.__file__)).parent / "Makefile").is_file()
    if not has_makefile and importlib.util.find_spec("megatron.core.datasets.helpers_cpp"):
        utils.compile_helpers = _nothing_to_compile


def _nothing_to_compile() -> None:
    return None
