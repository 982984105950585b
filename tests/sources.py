"""Source of the package, parsed once for all tests of a process."""

import ast
import functools
from pathlib import Path

import megatron_ultralong

PACKAGE = Path(megatron_ultralong.__file__).parent


@functools.cache
def modules() -> tuple[tuple[Path, ast.Module], ...]:
    """Every module of the package, by path, in order."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return tuple((path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths)
