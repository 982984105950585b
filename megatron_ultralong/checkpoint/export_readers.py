"""Programs and releases that read an export as it was meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ultralong.checkpoint.hugging_face_config import CONFIG_FILE
from megatron_ultralong.checkpoint.hugging_face_config import good_for as rope_readers
from megatron_ultralong.checkpoint.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.tokenizer_files import TokenizerFiles

TRIED = (
    *("4.43.4", "4.44.2", "4.45.2", "4.48.3", "4.49.0", "4.56.2", "4.57.6", "5.0.0", "5.23.0"),
)
"""Releases of transformers that exports were loaded with: tests/checkpoint/test_releases.py."""


def good_for(
    metadata: CheckpointMetadata, tokenizer: TokenizerFiles, merges: str = "keep"
) -> dict[str, Any]:
    """Versions that read an export: ``transformers`` all of it, ``files`` each of its files.

    ``vllm`` speaks of the rope block in ``config.json``.
    """
    rope = rope_readers(metadata)
    files: Mapping[str, str] = {
        CONFIG_FILE: rope["transformers"],
        **tokenizer.readers(merges),
    }
    oldest = max(_release(text) for text in files.values() if text.startswith(">="))
    return {
        **rope,
        "transformers": f">={'.'.join(map(str, oldest))}",
        "files": files,
        "tried": f"transformers {', '.join(TRIED)}",
    }


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.removeprefix(">=").split(".")))
