"""Look at a run without starting it."""

from __future__ import annotations

import torch

from megatron_ultralong.plan.given import plan_text
from megatron_ultralong.program.owner_signs import check_not_owned
from megatron_ultralong.program.ranks import world_size
from megatron_ultralong.training.config_file import config_text
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.saving.run_folder import NOTHING_SAVED, RunFolder
from megatron_ultralong.training.validation import validation_notes


def dry_run(inputs: RunInputs) -> str:
    """The resolved configuration of a run that has been checked, where it would begin, its plan.

    The plan stands in comments, so that the text is a configuration file.

    Raises:
        InputError: another job has the run's folder, or :meth:`RunFolder.check` refuses it.
    """
    folder = RunFolder(inputs.config, inputs.result, inputs.agreed)
    if folder.root is not None:
        check_not_owned(folder.root, f"--save {folder.root}", "name another --save")
    resumed = folder.check()
    load = inputs.config.load
    start = f"goes on from {resumed.folder}" if resumed.folder else f"begins with {load}"
    plan = plan_text(inputs.config, inputs.source.model, world_size(), _device_name())
    lines = [*inputs.notes, *inputs.remarks, *plan.splitlines()]
    comments = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    notes = [f"changed since the start before: {change}" for change in folder.changes]
    notes += validation_notes(inputs)
    if folder.root is None:
        notes.append(NOTHING_SAVED)
    comments = "".join(f"# {note}\n" for note in notes) + comments
    return f"# a dry run: this one {start}\n{config_text(inputs.config)}{comments}"


def _device_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
