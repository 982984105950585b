"""Arguments of Megatron-LM in its checkpoints: what they say where there is no ``ultralong.json``.

Megatron-LM keeps the arguments of a run beside its weights, and looks at them only under
``--use-checkpoint-args``, and not at all of them. What no weight tells (the base of the rotary
embedding, the epsilon of norms) is then as the command line has it, and nothing fails.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE, iterations, resolve
from megatron_ultralong.checkpoint.formats.model_state import load_common
from megatron_ultralong.dropin.arguments import ASKED, PREFIX
from megatron_ultralong.dropin.described import ABSENT, ARGUMENT_OF, OF_ALL, OF_SOME
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError

_OFTEN_CHANGED = {"num_experts", "mtp_num_layers"}
"""Dense weights become experts (``--moe-use-upcycling``), layers for further tokens are added."""
OF_ROPE = ("use_rope_scaling", "rope_scaling_factor")
"""A scaling of Megatron-LM's own, which one of this project replaces."""
FACTS = (
    *(name for name in (*OF_ALL, *ABSENT, *OF_SOME) if name not in _OFTEN_CHANGED),
    *("rotary_base", ARGUMENT_OF["norm_epsilon"], "untie_embeddings_and_output_weights"),
    "rope_scaling_factor",
)
"""What makes the model what it is, and is not in the sizes of its weights."""
_FIXED = ("seed", "seq_length", f"{PREFIX}document_mask")
"""Of a run over rows of this project, what it keeps when it is resumed."""
_CONTEXT_OF_MEGATRON = 8192
"""Over which Megatron-LM counts rotations for ``--use-rope-scaling``, without an argument."""


def stored_arguments(folder: Path, step: int | None) -> argparse.Namespace | None:
    """Arguments of the run that saved a checkpoint in ``torch_dist`` form.

    Returns:
        None: there is no checkpoint, it is of another form, or it has none.

    Raises:
        InputError: it is damaged, or would run code.
    """
    if not (folder / LATEST_FILE).is_file() or not iterations(folder):
        return None
    path, _ = resolve(folder, step)
    found: argparse.Namespace | None = load_common(path).get("args")
    return found


def stored_schedule(folder: Path, step: int | None) -> dict[str, Any]:
    """State of the scheduler in a checkpoint that has arguments; empty: it was saved without.

    Raises:
        InputError: as :func:`stored_arguments`.
    """
    found: dict[str, Any] = load_common(resolve(folder, step)[0]).get("opt_param_scheduler") or {}
    return found


def check_stored(
    args: Any, stored: argparse.Namespace, folder: Path, *, scales: bool
) -> tuple[str, ...]:
    """Compare the arguments of a run with those that its weights were saved with.

    ``scales``: this project's scaling replaces Megatron-LM's own.

    Returns:
        Warnings: what the command line names and the checkpoint has otherwise.

    Raises:
        InputError: an argument that the command line does not name differs.
    """
    given, warnings = ASKED.given(), []
    for name, here, there in _different(args, stored):
        if scales and name in OF_ROPE:
            continue
        said = f"{ASKED.flag(name)} is {here}, and the checkpoint in {folder} was saved with"
        if name not in given:
            takes_most = ", or add --use-checkpoint-args" * (not args.use_checkpoint_args)
            raise InputError(
                f"{said} {there}: its weights mean something else then; pass what was passed for "
                f"it{takes_most}, or name {here} on the command line if you mean it"
            )
        warnings.append(f"warning: {said} {there}: its weights were trained with the second")
    return tuple(warnings)


def _different(args: Any, stored: argparse.Namespace) -> Iterator[tuple[str, Any, Any]]:
    for name in FACTS:
        if not hasattr(args, name) or not hasattr(stored, name):
            continue  # a release that does not know it
        here, there = getattr(args, name), getattr(stored, name)
        if name == "rope_scaling_factor" and not (args.use_rope_scaling and hasattr(stored, name)):
            continue
        if here != there and (here or there):  # None and False both ask for nothing
            yield name, here, there


def stored_scaling(stored: argparse.Namespace) -> yarn.RopeScaling:
    """What Megatron-LM's own ``--use-rope-scaling`` was to a checkpoint."""
    if not getattr(stored, "use_rope_scaling", False):
        return None
    return yarn.YarnConfig(float(stored.rope_scaling_factor), _CONTEXT_OF_MEGATRON)


def stored_context(stored: argparse.Namespace | None) -> int | None:
    """Positions that a checkpoint was made for before any scaling; None: it does not say."""
    positions = getattr(stored, "max_position_embeddings", None)
    if stored is None or positions is None:
        return None
    return yarn.raw_context(stored_scaling(stored), int(positions))


def check_has_metadata(stored: argparse.Namespace, folder: Path | None, file_name: str) -> None:
    """Raise InputError where a run of this project's saved it, and its own file is not there."""
    scaling = getattr(stored, f"{PREFIX}rope_scaling", None)
    if scaling not in (None, "keep", "none"):
        raise InputError(
            f"the checkpoint in {folder} was trained with --ultralong-rope-scaling {scaling}, and "
            f"{file_name}, which says more of it, is not there: copy it from the --save of its run"
        )


def check_same_run(args: Any, stored: argparse.Namespace, folder: Path) -> None:
    """Check that a resumed run has the same of its rows as before.

    Raises:
        InputError: it has not.
    """
    rows = f"{PREFIX}data_path"
    before, now = getattr(stored, rows, ""), getattr(args, rows)
    way_out = "pass --finetune to begin another run with its weights"
    if bool(before) != bool(now):
        raise InputError(
            f"the run in {folder}, which this resumes, is over {_data(before)}, and this one over "
            f"{_data(now)}: name the data that it began with, or {way_out}"
        )
    for name in _FIXED if now else ():
        here, there = getattr(args, name), getattr(stored, name, None)
        if there is not None and here != there:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} is {here}, and the run in {folder}, which this resumes, has {there}: use "
                f"{flag} {there}, or {way_out}"
            )


def _data(path: str) -> str:
    return f"--ultralong-data-path {path}" if path else "data of Megatron-LM's own (--data-path)"
