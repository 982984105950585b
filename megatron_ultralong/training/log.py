"""What a run tells: a line an iteration, as Megatron-LM words it, and the same as JSON lines."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import psutil
import torch

from megatron_ultralong.progress import ProgressBar

FILE_NAME = "log.jsonl"


@dataclasses.dataclass(frozen=True)
class IterationRecord:
    """Figures of one iteration."""

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    lm_loss: float
    """Mean nats a token over the global batch."""
    grad_norm: float
    learning_rate: float
    elapsed_ms: float
    """Time of the iteration, in milliseconds."""
    tokens_per_second_per_rank: float
    peak_memory_gib: float
    """Peak of the device's allocations; on a CPU the resident memory of the process."""
    skipped: bool = False
    """The optimizer refused the gradients (not finite)."""
    validation_loss: float | None = None


def peak_memory_gib() -> float:
    """Memory of this rank so far, in GiB: see :class:`IterationRecord`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


class RunLog:
    """Writes records to the terminal and to ``log.jsonl``; made on the main rank only."""

    def __init__(self, folder: Path | None, train_iters: int, bar: ProgressBar) -> None:
        self._file = (folder / FILE_NAME).open("a", encoding="utf-8") if folder else None
        self._train_iters = train_iters
        self._bar = bar
        self._start = time.monotonic()

    def write(self, record: IterationRecord, *, to_terminal: bool) -> None:
        """Append one record."""
        if self._file:
            self._file.write(json.dumps(dataclasses.asdict(record)) + "\n")
            self._file.flush()
        if to_terminal:
            self._bar.print(self._line(record))

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _line(self, record: IterationRecord) -> str:
        parts = [
            f"iteration {record.iteration:8d}/{self._train_iters:8d}",
            f"consumed samples: {record.consumed_samples:10d}",
            f"consumed tokens: {record.consumed_tokens:13d}",
            f"elapsed time per iteration (ms): {record.elapsed_ms:.1f}",
            f"tokens/s/rank: {record.tokens_per_second_per_rank:.0f}",
            f"learning rate: {record.learning_rate:.6E}",
            f"lm loss: {record.lm_loss:.6E}",
            f"grad norm: {record.grad_norm:.3f}",
            f"memory (GiB): {record.peak_memory_gib:.2f}",
        ]
        if record.skipped:
            parts.append("skipped: the gradients are not finite")
        if record.validation_loss is not None:
            parts.append(f"validation loss: {record.validation_loss:.6E}")
        return " | ".join(parts)
