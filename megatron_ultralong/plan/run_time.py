"""Time of a whole run: its steps, its first iteration, validation and saving."""

from __future__ import annotations

import dataclasses
import math

from megatron_ultralong.plan.checkpoint_size import CheckpointSize, checkpoint_size
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.job import GIB


@dataclasses.dataclass(frozen=True)
class RunTime:
    """Of so many iterations."""

    num_iterations: int
    step_seconds: float
    pin_seconds: float
    """By which the first iteration is longer: host memory is pinned then."""
    num_checkpoints: int
    checkpoint: CheckpointSize
    write_seconds: float
    """To write one, by all nodes at once."""
    wait_seconds: float
    """For which training waits at each: until tensors are copied, or written too."""
    num_kept: int
    """Checkpoints on disk at the most, the one that is being written included."""
    num_validations: int
    validation_seconds: float
    """Of one."""

    @property
    def hours(self) -> float:
        """Steps and all pauses."""
        pauses = self.num_checkpoints * self.wait_seconds
        pauses += self.num_validations * self.validation_seconds + self.pin_seconds
        return (self.num_iterations * self.step_seconds + pauses) / 3600.0

    @property
    def disk_bytes(self) -> int:
        """Of all checkpoints that are kept."""
        return self.num_kept * self.checkpoint.on_disk


def run_time(estimate: Estimate, num_tokens: float) -> RunTime:
    """Of a run over ``num_tokens`` in the estimate's layout."""
    job, hardware, time = estimate.job, estimate.hardware, estimate.time
    config = job.config
    iterations = max(1, math.ceil(num_tokens / job.tokens_per_iteration))
    size = checkpoint_size(job, hardware.gpus_per_node)
    writing = size.on_disk / estimate.num_nodes / hardware.storage_gb_per_second / 1e9
    copying = size.copied / hardware.host_gb_per_second / 1e9
    # The last iteration has a checkpoint, too; nothing trains beside its writing.
    interval = config.save_interval or iterations
    checkpoints = math.ceil(iterations / interval)
    keep = config.checkpoint
    kept = keep.save_retain_last or checkpoints
    if keep.save_retain_interval:
        kept += iterations // keep.save_retain_interval
    is_async = keep.async_save
    validations = iterations // config.eval_interval if config.eval_interval else 0
    return RunTime(
        num_iterations=iterations,
        step_seconds=time.total,
        pin_seconds=estimate.host.pinned / GIB / hardware.host_pin_gib_per_second,
        num_checkpoints=checkpoints,
        checkpoint=size,
        write_seconds=writing,
        wait_seconds=copying if is_async else copying + writing,
        num_kept=min(kept + 1, checkpoints),
        num_validations=validations,
        validation_seconds=config.eval_iters * time.forward,
    )
