"""Amounts and rates for people."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.program.quantity import duration, quantity, rate

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (5.029e7, "B", "50.3 MB"),
        (999.4, "B", "999 B"),
        (999.6, "B", "1 kB"),
        (16.06e9, "B", "16.1 GB"),
        (0, "B", "0 B"),
        (12345.6, "tokens", "12,346 tokens"),
        (0.01234, "iterations", "0.0123 iterations"),
        (99.99, "tokens", "100 tokens"),
    ],
)
def test_amounts(amount: float, unit: str, text: str) -> None:
    assert quantity(amount, unit) == text


def test_rates() -> None:
    assert rate(5.029e8, "B", 10) == "50.3 MB/s"
    assert rate(0, "tokens", 0) == "0 tokens/s"


@given(st.floats(0.01, 1e17))
def test_bytes_are_short_and_right(amount: float) -> None:
    number, unit = quantity(amount, "B").split()
    assert len(number) <= 6
    found = float(number.replace(",", "")) * 1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(unit)
    assert math.isclose(found, amount, rel_tol=0.006)  # half of the third digit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rates_have_one_formatter() -> None:
    """No other module writes a rate of bytes, or a bare exponent before a unit."""
    for path in (ROOT / "megatron_ultralong").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\.\d+g\}\s?\{?[a-z_.]*unit", text), path
        if path.name != "quantity.py":
            assert not re.search(r"progress\([^)]*/ ?1e[69]", text), path
