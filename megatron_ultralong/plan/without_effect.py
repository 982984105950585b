"""Flags of a run that its plan does not depend on, and why."""

from collections.abc import Iterator

from megatron_ultralong.config.idle import idle_fields
from megatron_ultralong.config.rope import OF_YARN
from megatron_ultralong.plan.job import Job

_SCHEDULE = "the value of a number that Adam multiplies by: no memory, no time"
_ROTARY = "angles are as many and computed as quickly for any scaling"
_TELLING = "written by rank 0 between iterations, below a thousandth of one at these lengths"

WITHOUT_EFFECT: dict[str, str] = {
    "verify_checksums": "the bytes of --load are read once, before the first step",
    "max_skipped_iters": "a plan has no faults",
    "max_save_failures": "a plan has no failures",
    "log_interval": _TELLING,
    "rope_scaling": _ROTARY,
    **dict.fromkeys(OF_YARN, _ROTARY),
    "attention_factor": "part of the softmax scale",
    "angle_precision": "angles are kept in float32 either way",
    "distributed_timeout_minutes": "a limit that a healthy run does not reach",
    "reset_position_ids": "positions are as many",
    "seed": "the order of the rows",
    **dict.fromkeys(("lr", "min_lr", "lr_decay_style", "lr_warmup_iters"), _SCHEDULE),
    **dict.fromkeys(("weight_decay", "adam_beta1", "adam_beta2", "adam_eps"), _SCHEDULE),
    "clip_grad": "the norm is computed with and without it",
    "attention": "Transformer Engine's own is planned at this project's rates, and left out of the "
    "search where it cannot recompute; measured, a step was 3 % longer, in part by recomputation",
    "exit_duration_in_mins": "hours are those of training, in one job or several",
    "on_nan": "a plan has no bad numbers",
    "loss_spike_deviations": "a warning in the log",
    "tensorboard": _TELLING,
    "wandb_project": _TELLING,
    "profile": "a few iterations of a run are slower, not planned",
    **dict.fromkeys(("profile_step_start", "profile_step_end", "profile_ranks"), "see profile"),
}
"""By field of ``PretrainConfig`` and ``SftConfig``; every other one changes the estimate, as a test
says of each (``tests/plan/test_flags.py``)."""


def idle_flags(job: Job) -> Iterator[tuple[str, str]]:
    """Fields that were typed and change nothing in this plan, and why."""
    config, idle = job.config, idle_fields(job.config)
    if config.train_iters or not config.data.data_path:
        idle["num_epochs"] = "iterations are given, or the rows are not (--data-path)"
    for name in sorted(job.pinned):
        if name in WITHOUT_EFFECT:
            yield name, WITHOUT_EFFECT[name]
        elif name in idle:
            yield name, idle[name]
