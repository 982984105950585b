"""``pretrain`` and ``sft``: a run is checked whole, then trained, or looked at alone."""

import dataclasses
from pathlib import Path

import torch

from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER
from megatron_ultralong.config import training
from megatron_ultralong.config.training import SftConfig
from megatron_ultralong.plan.given import plan_text
from megatron_ultralong.program.owner import check_not_owned
from megatron_ultralong.program.ranks import assumptions, world_size
from megatron_ultralong.training import config_file, early_checks, inputs, loop, validation
from megatron_ultralong.training.early_checks import RunInputs
from megatron_ultralong.training.saving.run_folder import RunFolder
from megatron_ultralong.training.telling.log import IterationRecord


def pretrain(config: training.PretrainConfig) -> list[IterationRecord]:
    """Continue pretraining; returns the records of the iterations done, none if it was complete.

    Raises:
        InputError: bad input; see :func:`check_run`.
    """
    return loop.train(check_run(config, world_size()))


def sft(config: SftConfig) -> list[IterationRecord]:
    """The same for instruction tuning on conversations, packed whole to rows or one in each.

    Raises:
        InputError: bad input; see :func:`check_sft`.
    """
    return loop.train(check_sft(config, world_size()))


def check_run(config: training.PretrainConfig, num_ranks: int) -> RunInputs:
    """Check everything that can be known before a rank is started.

    Raises:
        InputError: a rule between configuration, checkpoint and data is broken.
    """
    return _checked(early_checks.check_packed_run(config, num_ranks), num_ranks)


def check_sft(config: SftConfig, num_ranks: int) -> RunInputs:
    """The same for conversations.

    Raises:
        InputError: a rule between configuration, checkpoint and conversations is broken.
    """
    run = _checked(early_checks.check_chat_run(config, num_ranks), num_ranks)
    template, remarks = run.template, list(run.remarks)
    assert template is not None
    folder = Path(config.load) / SOURCE_FOLDER
    instead = template.lacks(folder) if folder.is_dir() else ""
    if instead:
        remarks.append(
            f"chat template: that of {config.data.data_path} stands in the checkpoints of this run "
            f"and in their exports; {folder} has {instead}"
        )
    if missed := template.missed_ends(folder):
        remarks.append(
            f"stop tokens: {', '.join(missed)}, which end answers, are named in the checkpoints "
            f"of this run and in their exports; {folder} does not stop there"
        )
    if template.doubt:
        remarks.append(f"chat template: {template.doubt}")
    return dataclasses.replace(run, remarks=tuple(remarks))


def _checked(run: RunInputs, num_ranks: int) -> RunInputs:
    """The same, where this machine can do it; with what a user must know of how it will."""
    config, model = run.config, run.source.model
    inputs.check_machine(config)
    inputs.check_offloading(config, model, num_ranks)
    return dataclasses.replace(run, remarks=inputs.check_attention(config, model))


def dry_run(run: RunInputs, num_ranks: int | None = None) -> str:
    """The resolved configuration of a run that has been checked, where it would begin, its plan.

    Everything else is in comments, so that the text is a configuration file.

    ``num_ranks`` are those that it was checked for; default: this job's.

    Raises:
        InputError: another job has the run's folder, or :meth:`RunFolder.check` refuses it.
    """
    folder = RunFolder(run.config, run.result, run.agreed, each_iteration=run.each_iteration)
    if folder.root is not None:
        check_not_owned(folder.root, f"--save {folder.root}")
    resumed = folder.check()
    load = run.config.load
    start = f"continues from {resumed.folder}" if resumed.folder else f"begins with {load}"
    device_name, kernel = None, ""
    if torch.cuda.is_available():
        device_name = torch.cuda.get_device_name()
        kernel = inputs.chosen_kernels(run.config, run.source.model)[0]["attention kernel"]
    num_ranks = num_ranks or world_size()
    plan = plan_text(run.config, run.source.model, num_ranks, device_name, kernel)
    lines = [*run.notes(folder.resumed_iteration), *run.remarks, *plan.splitlines()]
    comments = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    notes = [f"assumed: {text}" for text in assumptions(num_ranks)]
    notes += [f"changed since the start before: {change}" for change in folder.changes]
    notes += [folder.nothing_left] * bool(folder.nothing_left)
    notes += validation.validation_notes(run)
    notes += [folder.what_is_saved] * bool(folder.what_is_saved)
    comments = "".join(f"# {note}\n" for note in notes) + comments
    return f"# a dry run: this one {start}\n{config_file.config_text(run.said)}{comments}"
