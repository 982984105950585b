"""Where the time of a run goes: by phase of an iteration, as a torch trace, in sum at the end."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from megatron_ultralong.config.run import LogConfig
from megatron_ultralong.program import aside
from megatron_ultralong.program.errors import counted
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

    def __call__(self, name: str, log_level: int | None = None) -> SimpleNamespace:
        """A timer by Megatron's name for it, which Megatron starts and stops."""
        phase = _MEGATRON.get(name, "communication")
        return SimpleNamespace(
            start=lambda barrier=False: self._push(phase), stop=lambda barrier=False: self._pop()
        )

    def _push(self, name: str) -> None:
        self._end_phase()
        self._stack.append(name)

    def _pop(self) -> None:
        self._end_phase()
        self._stack.pop()

    def _end_phase(self) -> None:
        self._ends.append((self._stack[-1], self._clock.mark()))


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


def run_summary(
    records: Sequence[IterationRecord],
    num_tokens: int,
    world_size: int,
    num_checkpoints: int,
    num_failures: int,
    place: str,
) -> str:
    """What a start of a run has done, in several lines.

    Each iteration had rows of ``num_tokens``, padding among them. ``place`` is where the last
    checkpoint is, or what to say instead.
    """
    if not records:
        return f"nothing was left to do; {place}"
    first, last = records[0], records[-1]
    seconds = sum(each.elapsed_ms for each in records) / 1000.0
    teraflop = sum(each.tflops_per_rank * each.elapsed_ms / 1000.0 for each in records)
    num_real = sum(each.num_real_tokens for each in records)
    num_loss = sum(each.num_loss_tokens for each in records)
    validations = [x.validation_loss for x in records if x.validation_loss is not None]
    losses = _losses([each.lm_loss for each in records if not each.skipped])
    if validations and not math.isnan(validations[-1]):
        losses += f", validation {validations[-1]:.4f}"
    phases_ms = {phase: sum(each.phases_ms[phase] for each in records) for phase in PHASES}
    whole = sum(phases_ms.values()) or 1.0
    shares = ", ".join(
        f"{phase} {100 * value / whole:.1f} %" for phase, value in phases_ms.items() if value
    )
    return "\n".join(
        (
            f"done: iterations {first.iteration} to {last.iteration} in {seconds:.1f} s, "
            f"{_tokens(len(records) * num_tokens, num_real, num_loss)}, {last.num_skipped} skipped",
            f"  loss: {losses}",
            f"  speed: {num_real / seconds / world_size:,.0f} tokens/s/GPU, "
            f"{teraflop / seconds:.3g} TFLOP/s/GPU; peak memory {last.peak_memory_gib:.2f} GiB",
            f"  time: {shares}",
            f"  checkpoints: {num_checkpoints} written, {num_failures} failed; {place}",
        )
    )


def _losses(losses: Sequence[float]) -> str:
    """``2.3456 -> 2.1234 (means of the first and last 10 iterations)``: rows differ in loss."""
    window = min(WINDOW, len(losses) // 2)
    if window < 1:
        return ", ".join(f"{loss:.4f}" for loss in losses) or "every step skipped"
    first, last = sum(losses[:window]) / window, sum(losses[-window:]) / window
    which = f"means of the first and last {counted(window, 'iteration')}"
    if window == 1:
        which = "the first and the last iteration"
    return f"{first:.4f} -> {last:.4f} ({which})"


def _tokens(number: int, num_real: int, num_loss: int) -> str:
    """``8,192 tokens``, of conversations ``8,192 tokens, 80.9 % real, 22.0 % in the loss``."""
    text, shares = f"{number:,} tokens", [100 * each / number for each in (num_real, num_loss)]
    if min(shares) > 99:
        return text
    return f"{text}, {shares[0]:.1f} % real, {shares[1]:.1f} % in the loss"
