"""The commands of docs/dropin.md, one after the other, as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT, blocks
from tests.dropin.megatron_lm import needs_megatron_lm
from tests.patience import patience

needs_megatron_lm()


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    said = []
    for block in blocks(ROOT / "docs" / "dropin.md"):
        if block.mark != "run":
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.commands],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=patience(250),
            check=False,
        )
        assert done.returncode == 0, f"{block.where}\n{done.stdout}{done.stderr}"
        said.append(done.stdout + done.stderr)
    own, _, rows, _ = said
    assert "context-parallel size: 2" in own
    for text in (own, rows):
        assert re.search(r"iteration +3/ +3 .* lm loss: \d\.\d+E", text), text
    # of the page's own words
    assert "original context: 512, that of the checkpoint in before before any scaling" in rows
    assert "rotary: not scaled (512 positions) -> llama3 x4 over 512, betas 1 and 4" in rows
    assert "warning: original_max" not in rows
    found = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert found["rope_scaling"]["original_max_position_embeddings"] == 512
