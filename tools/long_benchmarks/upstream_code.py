"""Functions of upstream's, taken alone out of its files and data cards."""

import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def sources(path: Path) -> list[str]:
    """Python texts of a file: the whole, or the blocks of a card."""
    text = path.read_text("utf-8").replace("\r\n", "\n")
    return [text] if path.suffix == ".py" else list(filter(_is_python, _PYTHON.findall(text)))


def _is_python(text: str) -> bool:
    try:
        ast.parse(textwrap.dedent(text))
    except SyntaxError:  # an example that is cut short
        return False
    return True


def function(texts: Iterable[str], name: str, **names: Any) -> Callable[..., Any]:
    """A function or method of upstream's, alone: what stands around it is not run."""
    for text in texts:
        for node in ast.walk(ast.parse(textwrap.dedent(text))):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                node.decorator_list, node.returns = [], None
                for argument in node.args.args:
                    argument.annotation = None
                exec(compile(ast.Module([node], []), name, "exec"), names)
                found: Callable[..., Any] = names[name]
                return found
    sys.exit(f"there is no function {name}")


def inner_functions(text: str, outer: str, **names: Any) -> dict[str, Any]:
    """All functions inside one of upstream's, which see each other."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == outer:
            body: list[ast.stmt] = [one for one in node.body if isinstance(one, ast.FunctionDef)]
            exec(compile(ast.Module(body, []), outer, "exec"), names)
            return names
    sys.exit(f"there is no function {outer}")
