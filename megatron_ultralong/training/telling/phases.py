"""Where the time of a run goes: by phase of an iteration, as a torch trace, in sum at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.config.run import LogConfig
from megatron_ultralong.model.flops import peak_tflops
from megatron_ultralong.program import aside
from megatron_ultralong.program.quantity import counted
from megatron_ultralong.training.telling.log import IterationRecord

PHASES = ("data", "forward", "backward", "communication", "optimizer", "checkpoint", "other")
_MEGATRON = {
    "forward-compute": "forward",
    "backward-compute": "backward",
    "forward-backward": "other",  # the whole pass: its parts are counted
}


class Clock:
    """Marks moments, and tells later what lay between two of them: the time of the process."""

    def mark(self) -> Any:
        """The moment now."""
        return time.perf_counter()

    def wait(self, mark: Any) -> None:
        """Wait until the moment has come; those before it have then, too."""

    def seconds(self, first: Any, second: Any) -> float:
        """Between two moments that have come."""
        return float(second - first)


class CudaClock(Clock):
    """The time of a GPU's stream: events among its kernels, which nobody waits for meanwhile.

    Kernels are launched ahead. To wait for them at the border of every phase would end the overlap
    of a pipeline's messages with its computation.
    """

    def mark(self) -> torch.cuda.Event:
        """See :class:`Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """See :class:`Clock`."""
        mark.synchronize()

    def seconds(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """See :class:`Clock`."""
        return float(first.elapsed_time(second)) / 1000.0


class PhaseTimers:
    """Seconds by phase; a phase inside another one stops the outer one's clock.

    Megatron's schedules take it as their ``timers``: what they call forward and backward
    compute, and everything they send, receive and reduce. Communication inside layers (tensor and
    context parallel) runs beside their kernels and counts as forward or backward; a trace
    (``--profile``) shows it. On a GPU it is the time of its stream: what the host does meanwhile
    costs nothing and shows nowhere.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        """Take the device's clock, or another one."""
        self._clock = clock or (CudaClock() if torch.cuda.is_available() else Clock())
        self._stack = ["other"]
        self._since = self._clock.mark()
        self._ends: list[tuple[str, Any]] = []
        """Phases since the last :meth:`take`, and the moment when each was left or broken off."""

    @property
    def current(self) -> str:
        """The phase that is running."""
        return self._stack[-1]

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body's time under ``name``."""
        self._push(name)
        try:
            yield
        finally:
            self._pop()

    def take(self) -> dict[str, float]:
        """Milliseconds by phase since the last call; what was launched before is done then."""
        self._end_phase()
        self._clock.wait(self._ends[-1][1])
        milliseconds = dict.fromkeys(PHASES, 0.0)
        for name, end in self._ends:
            milliseconds[name] += 1000.0 * self._clock.seconds(self._since, end)
            self._since = end
        self._ends.clear()
        return milliseconds

    def restart(self) -> None:
        """Forget what was counted since the last :meth:`take`."""
        self._ends.clear()
        self._since = self._clock.mark()

    def __call__(self, name: str, log_level: int | None = None) -> _MegatronTimer:
        """A timer by Megatron's name for it."""
        return _MegatronTimer(self, _MEGATRON.get(name, "communication"))

    def _push(self, name: str) -> None:
        self._end_phase()
        self._stack.append(name)

    def _pop(self) -> None:
        self._end_phase()
        self._stack.pop()

    def _end_phase(self) -> None:
        self._ends.append((self._stack[-1], self._clock.mark()))


class _MegatronTimer:
    """What Megatron starts and stops."""

    def __init__(self, timers: PhaseTimers, phase: str) -> None:
        self._timers = timers
        self._phase = phase

    def start(self, barrier: Any = False) -> None:
        """Begin."""
        self._timers._push(self._phase)

    def stop(self, barrier: Any = False) -> None:
        """End."""
        self._timers._pop()


_log = logging.getLogger(__name__)


class Profile:
    """Traces iterations ``[profile_step_start, profile_step_end)`` on the ranks asked for."""

    def __init__(self, config: LogConfig, folder: Path | None, rank: int) -> None:
        self._start, self._end = config.profile_step_start, config.profile_step_end
        name = f"rank{rank}-steps{self._start}-{self._end - 1}.json.gz"
        self._path = (folder or Path(".")) / "profile" / name
        self._wanted = config.profile and rank in config.profile_ranks
        self._profiler: torch.profiler.profile | None = None

    def before(self, iteration: int) -> None:
        """Iteration number ``iteration``, counted from 1, is about to begin."""
        if not self._wanted:
            return
        if self._profiler is None and self._start <= iteration < self._end:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        elif iteration >= self._end:
            self.finish()

    def finish(self) -> None:
        """Write the trace if one is being taken: open it in Perfetto or chrome://tracing."""
        if self._profiler is None:
            return
        self._profiler.stop()
        profiler, self._profiler, self._wanted = self._profiler, None, False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with aside.whole(self._path) as file:
                compressed = file.with_name(f"{file.name}.gz")  # torch goes by the name
                try:
                    profiler.export_chrome_trace(str(compressed))
                    compressed.rename(file)
                finally:
                    compressed.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("WARNING: the trace %s cannot be written: %s", self._path, error)


WINDOW = 10
"""Iterations whose mean loss stands for the beginning, and for the end."""


@dataclasses.dataclass
class RunSummary:
    """Sums over the iterations of this start of a run, and the losses of its two ends."""

    num_iterations: int = 0
    num_skipped: int = 0
    num_tokens: int = 0
    """Of the rows, padding among them."""
    num_real_tokens: int = 0
    num_loss_tokens: int = 0
    milliseconds: float = 0.0
    teraflop: float = 0.0
    """Model FLOPs of one rank, in 1e12."""
    first: IterationRecord | None = None
    last: IterationRecord | None = None
    first_losses: list[float] = dataclasses.field(default_factory=list)
    last_losses: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=WINDOW))
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
        self.num_real_tokens += record.num_real_tokens
        self.num_loss_tokens += record.num_loss_tokens
        self.milliseconds += record.elapsed_ms
        self.teraflop += record.tflops_per_rank * record.elapsed_ms / 1000.0
        self.first = self.first or record
        self.last = record
        if not record.skipped:
            if len(self.first_losses) < WINDOW:
                self.first_losses.append(record.lm_loss)
            self.last_losses.append(record.lm_loss)
        if record.validation_loss is not None:
            self.validation = record.validation_loss
        for phase, value in record.phases_ms.items():
            self.phases_ms[phase] += value

    def _losses(self) -> str:
        """``2.3456 -> 2.1234 (means of the first and last 10 iterations)``: rows differ in loss."""
        window = min(WINDOW, (self.num_iterations - self.num_skipped) // 2)
        if window < 1:
            return ", ".join(f"{loss:.4f}" for loss in self.first_losses) or "every step skipped"
        first = sum(self.first_losses[:window]) / window
        last = sum(list(self.last_losses)[-window:]) / window
        which = f"means of the first and last {counted(window, 'iteration')}"
        if window == 1:
            which = "the first and the last iteration"
        return f"{first:.4f} -> {last:.4f} ({which})"

    def _tokens(self) -> str:
        """``8,192 tokens``, of conversations ``8,192 tokens, 80.9 % real, 22.0 % in the loss``."""
        text = f"{self.num_tokens:,} tokens"
        shares = [100 * n / self.num_tokens for n in (self.num_real_tokens, self.num_loss_tokens)]
        if min(shares) > 99:
            return text
        return f"{text}, {shares[0]:.1f} % real, {shares[1]:.1f} % in the loss"

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
        rate = self.num_real_tokens / seconds / world_size
        tflops = self.teraflop / seconds
        losses = self._losses()
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
                f"{seconds:.1f} s, {self._tokens()}, {self.num_skipped} skipped",
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
