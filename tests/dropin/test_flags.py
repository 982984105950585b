"""Arguments of Megatron-LM with the drop-in and without it: the same losses, or refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dropin.megatron_lm import needs_megatron_lm
from tests.patience import patience

needs_megatron_lm()

ROOT = Path(__file__).parents[2]
COVERING = (
    "apply_rope_fusion,hidden_dropout,normalization,num_experts,position_embedding_type,qk_layernorm,"
    "reset_attention_mask,rotary_percent,softmax_type,use_rope_scaling,window_size"
)
"""Of every part of this project one, and of every outcome."""


def check(only: str, table: Path) -> list[dict[str, object]]:
    """The tool in a process of its own, which forks: its table."""
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "check_dropin_flags.py",
            "--write",
            table,
            "--only",
            only,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    rows: list[dict[str, object]] = json.loads(table.read_text())
    return rows


def test_arguments_do_the_same_or_are_refused(tmp_path: Path) -> None:
    rows = check(COVERING, tmp_path / "table.json")
    kinds = {(row["name"], row["kind"]) for row in rows}
    assert ("softmax_type", "refused") in kinds
    assert ("window_size", "refused") in kinds
    assert ("normalization", "same") in kinds
    seen = {row["name"] for row in rows if row["kind"] == "same" and row["has_effect"]}
    assert {"reset_attention_mask", "qk_layernorm", "rotary_percent"} <= seen


@pytest.mark.faults
@pytest.mark.timeout(patience(7200))
def test_every_argument_does_the_same_or_is_refused(tmp_path: Path) -> None:
    rows = check("", tmp_path / "table.json")
    assert sum(row["kind"] == "same" for row in rows) > 400
