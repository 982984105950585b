"""The tool that tries a Megatron-LM's arguments, where there is none: one message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--megatron-lm", "nowhere"), "--megatron-lm nowhere is no checkout"),
        ((), "megatron.training is not in this environment"),
    ],
)
def test_without_megatron_lm_it_ends_with_one_message(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['megatron.training'] = None"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "check_dropin_flags.py", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
