"""``tools/benchmark_decoding.py``: a model of some checkpoint's shape reads and writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata, save_metadata
from tests.patience import patience
from tests.shapes import llama_shape

ROOT = Path(__file__).parents[2]
SHAPE = llama_shape(layers=2, hidden=32, ffn=48, vocabulary=64, positions=256)


@pytest.mark.slow
def test_it_counts_what_it_reads_and_writes(tmp_path: Path) -> None:
    save_metadata(tmp_path, CheckpointMetadata(SHAPE, None, "shape"))
    words = f"--load {tmp_path} --prompt-length 200 --prefill-chunk-size 64 --batch-size 2"
    said = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", ROOT / "tools" / "benchmark_decoding.py"),
            *words.split(),
            *("--max-new-tokens", "5"),
        ],
        check=True,
        timeout=patience(200),
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    # The first token of each row comes with its prompt.
    assert re.search(r"prefill 400 tokens at \S+ tokens/s, decode 8 tokens at \S+ tokens/s", said)
    for form in ("eager", "static"):  # side by side, behind the same prompts
        assert re.search(rf"{form}: a step, median of 5, ms +\d", said)
    assert re.search(r"ratio of the two +\d", said)
