"""Programs and releases that read an export as it was meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE, rope_readers
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles

TRIED = (
    *("4.43.4", "4.44.2", "4.45.2", "4.48.3", "4.50.3", "4.51.3", "4.52.4", "4.55.4", "4.56.2"),
    *("4.57.6", "5.0.0", "5.23.0"),
)
"""Releases of transformers that exports were loaded with: tests/checkpoint/test_releases.py."""

_HEAD_DIM = ">=4.45"
"""Before, heads of hidden_size / num_attention_heads were taken, whatever head_dim says."""


def good_for(
    metadata: CheckpointMetadata, tokenizer: TokenizerFiles, merges: str = "keep"
) -> dict[str, Any]:
    """Versions that read an export: ``transformers`` all of it, ``files`` each of its files.

    ``vllm`` speaks of the rope block in ``config.json``.
    """
    rope = rope_readers(metadata)
    model = metadata.model
    plain = model.kv_channels * model.num_attention_heads == model.hidden_size
    files: Mapping[str, str] = {
        CONFIG_FILE: rope["transformers"]
        if plain
        else max(rope["transformers"], _HEAD_DIM, key=_release),
        **tokenizer.readers(merges),
    }
    oldest = max((text for text in files.values() if text.startswith(">=")), key=_release)
    untried = [file for file, text in files.items() if not text.startswith(">=")]
    return {
        **rope,
        "transformers": oldest + (f"; not tried: {', '.join(untried)}" if untried else ""),
        "files": files,
        "tried": f"transformers {', '.join(TRIED)}",
    }


def export_good_for(folder: Path) -> dict[str, Any]:
    """The same of an export that was written before, read off its files.

    Raises:
        InputError: it is no Hugging Face folder of a Llama, or one of its files is damaged.
    """
    model = HuggingFaceFolder(folder)
    metadata = CheckpointMetadata(model.model, model.rope_scaling, model.name)
    return good_for(metadata, TokenizerFiles(folder))


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.removeprefix(">=").split(".")))
