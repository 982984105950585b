"""The schedule of learning rate and weight decay that a resumed run of Megatron-LM has.

Its scheduler compares what it was built with and what the checkpoint holds, once the model is built
and its weights are read, and ends with an assertion that names no argument.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.program.errors import InputError

_WAY_OUT = (
    "add --override-opt-param-scheduler for the schedule of this command line, or "
    "--use-checkpoint-opt-param-scheduler for that of the checkpoint"
)
_ASSERTED = re.compile(r"OptimizerParamScheduler: .* value (\S+) .* ?value (\S+) for (.*) do")


@contextlib.contextmanager
def assertion_is_told(folder: str | None) -> Iterator[None]:
    """The assertion as a message: of checkpoints that :func:`check_schedule` does not look into.

    Raises:
        InputError: the run in ``folder``, which is resumed, has another schedule.
    """
    try:
        yield
    except AssertionError as error:
        if (found := _ASSERTED.search(str(error))) is None:
            raise
        here, there, what = found.groups()
        raise InputError(
            f"the schedule is not that of the run in {folder}, which this resumes: {what}, in "
            f"samples if it is a number of them, is {here}, there {there}: {_WAY_OUT}"
        ) from error


def check_schedule(args: Any, saved: Mapping[str, Any], folder: Path) -> None:
    """Check that a resumed run has the schedule of its checkpoint, unless it says which counts.

    Args:
        args: Megatron-LM's, as it has checked them.
        saved: state of the scheduler in the checkpoint; empty: it has none.
        folder: of the run that is resumed.

    Raises:
        InputError: it has another one.
    """
    says_which = args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler
    if says_which or args.no_load_optim or args.skip_train:
        return
    found = [
        f"--{name} is {here}, there {saved[key]}"
        for key, (name, here) in _schedule(args).items()
        if key in saved and saved[key] != here
    ]
    if found:
        differences = "; ".join(dict.fromkeys(found))
        raise InputError(
            f"the schedule is not that of the run in {folder}, which this resumes: {differences}: "
            f"{_WAY_OUT}"
        )


def _schedule(args: Any) -> dict[str, tuple[str, Any]]:
    """What the scheduler is built with, by its names: the arguments behind it, and the value.

    As ``get_optimizer_param_scheduler`` of ``megatron.training``: its steps are samples.
    """
    kind = "iters" if args.train_iters else "samples"
    num_steps, decay = getattr(args, f"train_{kind}"), getattr(args, f"lr_decay_{kind}")
    if not num_steps:
        return {}  # Megatron-LM asks for one of them
    unit = args.global_batch_size if args.train_iters else 1
    times = f" times --global-batch-size ({unit})" if args.train_iters else ""
    decay_name = f"train-{kind}" if decay is None else f"lr-decay-{kind}"
    decay_steps = (num_steps if decay is None else decay) * unit
    warmup_name, warmup = f"lr-warmup-{kind}{times}", getattr(args, f"lr_warmup_{kind}") * unit
    if args.lr_warmup_fraction is not None:
        warmup_name = f"lr-warmup-fraction times --{decay_name}{times}"
        warmup = args.lr_warmup_fraction * decay_steps
    begins = "" if args.weight_decay_incr_style == "constant" else "start-"
    ends = begins and "end-"
    return {
        "max_lr": ("lr", args.lr),
        "min_lr": ("min-lr", args.min_lr),
        "lr_warmup_steps": (warmup_name, warmup),
        "lr_decay_steps": (f"{decay_name}{times}", decay_steps),
        "lr_decay_style": ("lr-decay-style", args.lr_decay_style),
        "start_wd": (f"{begins}weight-decay", args.start_weight_decay),
        "end_wd": (f"{ends}weight-decay", args.end_weight_decay),
        "wd_incr_steps": (f"train-{kind}{times}", num_steps * unit),
        "wd_incr_style": ("weight-decay-incr-style", args.weight_decay_incr_style),
    }
