"""``tools/benchmark_decoding.py``: a model of some checkpoint's shape reads and writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata, save_metadata
from megatron_ultralong.model.shape import ModelConfig
from tests.patience import patience

ROOT = Path(__file__).parents[2]
SHAPE = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=64,
    norm_epsilon=1e-5,
    rotary_base=10000.0,
    max_position_embeddings=256,
    untie_embeddings_and_output_weights=True,
)


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
