"""The page's first step without a GPU, by torchrun, on a script of a user's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT, blocks
from tests.dropin.megatron_lm import needs_megatron_lm
from tests.patience import patience

needs_megatron_lm()


def test_the_first_step_of_the_page_runs(tmp_path: Path) -> None:
    [block] = [
        found for found in blocks(ROOT / "docs" / "dropin.md") if "--mock-data" in found.text
    ]
    shutil.copy(Path(__file__).with_name("own_pretrain_gpt.py"), tmp_path / "pretrain_gpt.py")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=patience(250),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "context-parallel size: 2" in done.stdout
    assert re.search(r"iteration +3/ +3 .* lm loss: \d\.\d+E", done.stdout), done.stdout
