"""No test judges how fast a machine is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import patience

TESTS = Path(__file__).parent


def limits(tree: ast.AST) -> list[ast.keyword]:
    """Time limits of programs and tests: ``timeout=60``, ``pytest.mark.timeout(60)``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [word for word in node.keywords if word.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr == "timeout":
                found += [ast.keyword(arg="timeout", value=value) for value in node.args]
    return found


def test_every_limit_grows_on_a_slow_machine() -> None:
    wrong = [
        f"{path.relative_to(TESTS)}: {ast.unparse(limit)}"
        for path in sorted(TESTS.rglob("*.py"))
        for limit in limits(ast.parse(path.read_text()))
        if isinstance(limit.value, ast.Constant)
    ]
    assert not wrong, f"use patience(seconds) of tests/patience.py: {wrong}"


def test_a_slow_machine_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    for measured, factor in ((0.5, 1.0), (1.0, 1.0), (2.0, 2.0)):
        monkeypatch.delenv(patience._NAME, raising=False)
        monkeypatch.setattr(
            patience, "_measured", lambda measured=measured: measured * patience._QUIET_SECONDS
        )
        assert patience.patience(30.0) == pytest.approx(30.0 * factor)
