"""What goes together to a process that runs tests."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_files_stay_whole_but_those_of_long_tests() -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    from tests.spread import SPREAD, Spread

    assert all((TESTS / name).exists() for name in SPREAD), "a file of long tests has another name"
    scope = Spread._split_scope
    spread: Spread = object.__new__(Spread)
    kills = ["tests/training/test_kills.py::test_a", "tests/training/test_kills.py::test_b[x::y]"]
    assert [scope(spread, test) for test in kills] == kills
    for test in ("test_a", "test_b[x::y]", "TestC::test_d"):
        assert scope(spread, f"tests/test_cli.py::{test}") == "tests/test_cli.py"
