"""What decides on the bytes of a conversion's output: a killed one is continued by the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_ultralong import __version__
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import MetaFolder


def describe(
    action: str, source: HuggingFaceFolder | MetaFolder | MegatronCheckpoint, **flags: object
) -> dict[str, Any]:
    """Source, flags and programs of a conversion, as JSON values.

    A source file is known by its size and the time of its last change.
    """
    folder = source.path if isinstance(source, MegatronCheckpoint) else source.folder
    return {
        "action": action,
        "source": str(folder.resolve()),
        **flags,
        **{f"file {path.name}": _state(path) for path in sorted(folder.iterdir())},
        "megatron_ultralong": __version__,
        # its torch.save lays the files out
        "torch": torch.__version__,
    }


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]
