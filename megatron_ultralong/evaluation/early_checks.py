"""What can be told of an evaluation before torch and Megatron-Core are imported."""

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.data.rows.chat_manifest import load_chat_manifest
from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.evaluation.models import facts
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.fields import check_ranges
from megatron_ultralong.program.output import check_output
from megatron_ultralong.program.required import check_required

_MANIFESTS = {"loss": load_manifest, "chat": load_chat_manifest}
"""Of the rows that a benchmark reads."""


def check_command(command: Any, num_ranks: int) -> None:
    """Check flags, folders, layout and tokenizers of a command of ``evaluate``.

    Raises:
        InputError: one of them is wrong, or they do not fit.
    """
    models = command.models
    check_required(models)
    (name,) = {field.name for field in dataclasses.fields(command)} - {"models", "cost"}
    config = getattr(command, name)
    config.check()
    check_ranges(command)
    for load, (_, folder) in zip(models.load, facts.named_folders(models, num_ranks), strict=True):
        facts.shape_and_weights(folder)
        if name != "loss":  # it compares ids alone
            PromptTokenizer(facts.tokenizer_folder(load))
    output = getattr(config, "output", "")
    if len(models.load) == 1 and output:  # of several some may be finished
        check_output(output)
    if name in _MANIFESTS:
        _MANIFESTS[name](config.data_path)
    data = getattr(config, "data", ())
    for path in (data,) if isinstance(data, str) else data:
        if not Path(path).exists():
            raise InputError(f"--data {missing(path)}: name a file or folder of questions")
