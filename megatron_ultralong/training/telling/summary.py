"""What a run has done, when it ends, and how fast."""

from __future__ import annotations

import dataclasses
import math

import torch

from megatron_ultralong.model.flops import peak_tflops
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.telling.phases import PHASES


@dataclasses.dataclass
class RunSummary:
    """Sums over the iterations of this start of a run; no records are kept."""

    num_iterations: int = 0
    num_skipped: int = 0
    num_tokens: int = 0
    milliseconds: float = 0.0
    teraflop: float = 0.0
    """Model FLOPs of one rank, in 1e12."""
    first: IterationRecord | None = None
    last: IterationRecord | None = None
    validation: float | None = None
    """The last validation loss."""
    phases_ms: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(PHASES, 0.0)
    )

    def add(self, record: IterationRecord, num_tokens: int) -> None:
        """Count one iteration over ``num_tokens`` tokens."""
        self.num_iterations += 1
        self.num_skipped += record.skipped
        self.num_tokens += num_tokens
        self.milliseconds += record.elapsed_ms
        self.teraflop += record.tflops_per_rank * record.elapsed_ms / 1000.0
        self.first = self.first or record
        self.last = record
        if record.validation_loss is not None:
            self.validation = record.validation_loss
        for phase, value in record.phases_ms.items():
            self.phases_ms[phase] += value

    def text(self, world_size: int, num_checkpoints: int, num_failures: int, place: str) -> str:
        """The summary, several lines.

        Args:
            world_size: ranks.
            num_checkpoints: written.
            num_failures: checkpoints that could not be written.
            place: where the last checkpoint is, or what to say in its place.
        """
        if self.first is None or self.last is None:
            return f"nothing was left to do; {place}"
        seconds = self.milliseconds / 1000.0
        rate = self.num_tokens / seconds / world_size
        tflops = self.teraflop / seconds
        losses = f"{self.first.lm_loss:.4f} -> {self.last.lm_loss:.4f}"
        if self.validation is not None and not math.isnan(self.validation):
            losses += f", validation {self.validation:.4f}"
        whole = sum(self.phases_ms.values()) or 1.0
        shares = ", ".join(
            f"{phase} {100 * value / whole:.1f} %"
            for phase, value in self.phases_ms.items()
            if value
        )
        return "\n".join(
            (
                f"done: iterations {self.first.iteration} to {self.last.iteration} in "
                f"{seconds:.1f} s, {self.num_tokens:,} tokens, {self.num_skipped} skipped",
                f"  loss: {losses}",
                f"  speed: {rate:,.0f} tokens/s/GPU, {tflops:.3g} TFLOP/s/GPU; "
                f"peak memory {self.last.peak_memory_gib:.2f} GiB",
                f"  time: {shares}",
                f"  checkpoints: {num_checkpoints} written, {num_failures} failed; {place}",
            )
        )


class Throughput:
    """Speed of the ranks of a job."""

    def __init__(self, peak: float, world_size: int) -> None:
        """Take the peak in TFLOP/s as given; 0 looks the device up."""
        self.peak: float | None = peak or None
        if not peak and torch.cuda.is_available():
            self.peak = peak_tflops(torch.cuda.get_device_name())
        self._world_size = world_size

    def of(self, flops: float, seconds: float) -> tuple[float, float | None]:
        """TFLOP/s of one rank and MFU, of ``flops`` that all ranks did in ``seconds``."""
        tflops = flops / seconds / self._world_size / 1e12
        return tflops, tflops / self.peak if self.peak else None
