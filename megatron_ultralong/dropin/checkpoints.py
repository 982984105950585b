"""Megatron-LM's own reading of checkpoints: vetted first, and torch's Adam taken back whole."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.folder import FORMAT_FILE, LATEST_FILE, resolve
from megatron_ultralong.checkpoint.torch_dist import TorchDistReader
from megatron_ultralong.training.checkpointing import prepare_torch_adam, separate_steps


@contextlib.contextmanager
def checkpoints_are_vetted() -> Iterator[None]:
    """Check a checkpoint before Megatron-LM's loaders read it, and help its optimizer.

    Megatron-Core's distributed optimizer saves torch's Adam (there is no Apex and no Transformer
    Engine), and cannot load what it has saved: it misses states that Adam makes in its first step.
    """
    from megatron.training import checkpointing, training

    read, load = checkpointing._load_base_checkpoint, training.load_checkpoint

    @functools.wraps(read)
    def vetted(load_dir: Any, args: Any, *others: Any, **keywords: Any) -> Any:
        if load_dir is not None:
            vet(Path(load_dir), getattr(args, "ckpt_step", None))
        return read(load_dir, args, *others, **keywords)

    @functools.wraps(load)
    def with_adam(model: Any, optimizer: Any, *others: Any, **keywords: Any) -> Any:
        parts = _distributed(optimizer)
        prepare_torch_adam(parts)
        result = load(model, optimizer, *others, **keywords)
        separate_steps(parts)
        return result

    checkpointing._load_base_checkpoint = vetted
    training.load_checkpoint = with_adam
    try:
        yield
    finally:
        checkpointing._load_base_checkpoint = read
        training.load_checkpoint = load


def vet(folder: Path, step: int | None) -> None:
    """Check what a folder holds, if it is a checkpoint in ``torch_dist`` form.

    Args:
        folder: of ``--load``.
        step: iteration asked for; the latest.

    Raises:
        InputError: it is not whole.
    """
    if not (folder / LATEST_FILE).is_file():
        return  # Megatron-LM says itself that there is none, and begins anew or ends
    if not list(folder.glob(f"*/{FORMAT_FILE}")):
        return  # of another format
    path, _ = resolve(folder, step)
    TorchDistReader(path)


def _distributed(optimizer: Any) -> list[Any]:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if isinstance(part, DistributedOptimizer)]
