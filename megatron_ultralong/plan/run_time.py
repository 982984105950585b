"""Time of a whole run: its steps, its first iteration, validation and saving; the paper's own."""

from __future__ import annotations

import dataclasses
import math

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import model_of_recipe
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.host_memory import CheckpointSize, checkpoint_size
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


PAPER: dict[str, tuple[int, float]] = {
    "llama3.1-8b-1m": (256, 5.0),
    "llama3.1-8b-2m": (256, 6.0),
    "llama3.1-8b-4m": (256, 13.0),
}
"""H100s and about the hours that arXiv 2504.06214 gives for these runs, by recipe."""


def paper_hours(
    recipe: str, model: str, config: TrainingConfig, train_tokens: float
) -> tuple[int, float] | None:
    """GPUs and hours of the paper's run, where ``config`` is it: its model, rows and tokens.

    How it is spread over GPUs may differ, and what is kept in memory.
    """
    if recipe not in PAPER or model != model_of_recipe(recipe):
        return None
    theirs = PRETRAIN_RECIPES[recipe]()
    tokens = theirs.train_iters * theirs.global_batch_size * theirs.data.seq_length
    is_same = (
        train_tokens == tokens
        and all(
            getattr(config, name) == getattr(theirs, name)
            for name in ("global_batch_size", "precision", "rope", "optimizer", "layers")
        )
        and config.data.seq_length == theirs.data.seq_length
        and config.data.document_mask == theirs.data.document_mask
        and not config.deterministic_mode
    )
    return PAPER[recipe] if is_same else None
