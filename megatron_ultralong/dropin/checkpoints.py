"""Megatron-LM's own reading of checkpoints: vetted first, running nothing, with torch's Adam.

Megatron-LM's loaders unpickle what a checkpoint holds. While a run lasts they read by
:func:`~megatron_ultralong.checkpoint.formats.model_state.guarded` readers, after the checkpoint
was looked through as our own programs do it.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE, iterations, resolve
from megatron_ultralong.checkpoint.formats import model_state, torch_dist
from megatron_ultralong.checkpoint.formats.megatron import check_tensors, listed_files
from megatron_ultralong.dropin.described import assertion_is_told
from megatron_ultralong.mcore.cpu import replaced
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank
from megatron_ultralong.training.saving.state_dict import prepare_torch_adam, separate_steps

_log = logging.getLogger(__name__)
_MARK = "vetted_by_ultralong"


@contextlib.contextmanager
def checkpoints_are_vetted() -> Iterator[None]:
    """Check a checkpoint before Megatron-LM's loaders read it, and help its optimizer.

    Inside another such context it does nothing.

    Megatron-Core's distributed optimizer saves torch's Adam (where there is no Apex and no
    Transformer Engine) and cannot load what it has saved: see
    :func:`~megatron_ultralong.training.saving.state_dict.prepare_torch_adam`.
    """
    from megatron.training import checkpointing, get_args, training

    read, load = checkpointing._load_base_checkpoint, training.load_checkpoint
    if hasattr(read, _MARK):
        yield
        return
    vetted: set[tuple[Path, int | None, bool]] = set()

    @functools.wraps(read)
    def guarded_read(load_dir: Any, args: Any, *others: Any, **keywords: Any) -> Any:
        if load_dir is not None:
            what = (Path(load_dir), getattr(args, "ckpt_step", None), dist.is_initialized())
            if what not in vetted:
                vet(what[0], what[1], verify_checksums=args.ultralong_verify_checksums == "yes")
                vetted.add(what)
        with model_state.guarded():
            return read(load_dir, args, *others, **keywords)

    @functools.wraps(load)
    def load_with_adam(model: Any, optimizer: Any, *others: Any, **keywords: Any) -> Any:
        parts = _distributed(optimizer)
        prepare_torch_adam(parts)
        # Weights in float32 are their own main parameters, and are written into.
        told = assertion_is_told(get_args().load)
        with model_state.guarded(), torch.no_grad(), told:
            result = load(model, optimizer, *others, **keywords)
        separate_steps(parts)
        _take_steps(parts)
        return result

    setattr(guarded_read, _MARK, True)
    with replaced(
        (checkpointing, "_load_base_checkpoint", guarded_read),
        (training, "load_checkpoint", load_with_adam),
    ):
        yield


def vet(folder: Path, step: int | None, *, verify_checksums: bool) -> None:
    """Check what a folder holds, if it is a checkpoint in ``torch_dist`` form.

    Before the ranks know each other, each looks at the small files alone; afterwards they share
    the files of tensors.

    Raises:
        InputError: it is not whole, is named after another iteration, or would run code.
    """
    if not (folder / LATEST_FILE).is_file() or not iterations(folder):
        return  # none, or of another format: Megatron-LM says so
    path, _ = resolve(folder, step)
    if not verify_checksums:
        if is_main_rank():
            _log.warning("%s is read without comparing it with its checksums", path)
        torch_dist.check_iteration(path, torch_dist.TorchDistReader(path).metadata)
        return
    try:
        checksums = listed_files(path)
        if checksums is not None and dist.is_initialized():
            check_tensors(path, checksums)
        torch_dist.check_iteration(path, torch_dist.TorchDistReader(path).metadata)
    except InputError as error:
        said = str(error).replace("--no-verify-checksums", "--ultralong-verify-checksums no")
        raise InputError(said) from error


def _take_steps(parts: list[Any]) -> None:
    """Give torch's Adam the step that Megatron-Core keeps once a group of parameters."""
    for part in parts:
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state.get(parameter, {})
                if "step" in group and "step" in state:
                    state["step"] = torch.tensor(float(group["step"]))


def _distributed(optimizer: Any) -> list[Any]:
    """The parts of an optimizer that Megatron-Core distributes over data-parallel ranks."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if isinstance(part, DistributedOptimizer)]
