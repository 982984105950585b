"""Conversations of the demo's second stage: questions about functions of Python's library.

Every answer stands in the function: its name, its parameters, the first line of its docstring. So a
small model can give it, and one can tell whether it is right.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

MOST_CHARACTERS = 1200
"""Of a function: with its questions it stays within the base's 512 tokens, as the paper's examples
stay within 8K."""


def write_conversations(library: Path, file: Path) -> int:
    """Write the conversations about a folder's modules as JSONL; return how many.

    Modules one folder below are read too, except for those of tests: many, and much alike.
    """
    lines = []
    for module in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if module.parent.name == "test":
            continue
        try:
            text = module.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (UnicodeDecodeError, SyntaxError):
            continue  # tests of Python's own parser
        found = _conversations(text.splitlines(keepends=True), tree)
        lines += [json.dumps({"messages": turns}) for turns in found]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _conversations(text: list[str], tree: ast.Module) -> Iterator[list[dict[str, str]]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        source = "".join(text[node.lineno - 1 : node.end_lineno])
        docstring = ast.get_docstring(node)
        parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        if not (docstring and parameters) or len(source) > MOST_CHARACTERS:
            continue
        answers = {
            f"{textwrap.dedent(source)}\n\nWhat is this function called?": node.name,
            "Which parameters does it take?": ", ".join(parameters),
            "How does its docstring begin?": docstring.splitlines()[0],
        }
        if not all(answer.strip() for answer in answers.values()):
            continue
        yield [
            {"role": role, "content": content}
            for pair in answers.items()
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
