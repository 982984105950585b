"""Megatron-LM's index builder where it is compiled already: in a wheel, or by an earlier start."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def keep_compiled_helpers() -> None:
    """Do not let Megatron-LM compile its index builder where it has been compiled.

    At its start it runs ``make`` in ``megatron/core/datasets`` and ends the program if that fails:
    in a wheel, which has the result and no Makefile, and in a source tree where ``pybind11`` is not
    installed for the ``python3`` of the path.
    """
    from megatron.core.datasets import utils

    compiled = importlib.util.find_spec("megatron.core.datasets.helpers_cpp")
    if compiled is None or compiled.origin is None:
        return
    source = Path(str(utils.__file__)).parent / "helpers.cpp"
    is_stale = source.is_file() and source.stat().st_mtime > Path(compiled.origin).stat().st_mtime
    if not is_stale:
        utils.compile_helpers = _nothing_to_compile


def _nothing_to_compile() -> None:
    return None
