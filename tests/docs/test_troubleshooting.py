"""Every message that the page explains is one that the program has."""

from __future__ import annotations

import ast
import re

from tests.docs.blocks import ROOT
from tests.sources import modules

PAGE = ROOT / "docs" / "troubleshooting.md"


def messages() -> list[str]:
    """All texts in the package, with `…` where a value is put in."""
    found = []
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_is_one_of_the_program() -> None:
    known = messages()
    rows = re.findall(r"^\| `([^`]+)`", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) > 30
    wrong = [row for row in rows if not any(row in message for message in known)]
    assert not wrong, "\n".join(wrong)
