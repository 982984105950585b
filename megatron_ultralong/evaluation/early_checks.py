"""What can be told of an evaluation before torch and Megatron-Core are imported."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.rows.chat_manifest import ChatManifest, load_chat_manifest
from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.evaluation.commands import benchmark_of
from megatron_ultralong.evaluation.models import facts
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.fields import check_ranges
from megatron_ultralong.program.output import check_output
from megatron_ultralong.program.required import check_required

_MANIFESTS: dict[str, Callable[[str], Manifest | ChatManifest]] = {
    "loss": load_manifest,
    "chat": load_chat_manifest,
}
"""Of the rows that a benchmark reads."""


def check_command(command: Any, num_ranks: int) -> None:
    """Check flags, folders, layout and tokenizers of a command of ``evaluate``.

    Raises:
        InputError: one of them is wrong, or they do not fit.
    """
    models = command.models
    check_required(models)
    name, config = benchmark_of(command)
    config.check()
    check_ranges(command)
    named = facts.named_folders(models, num_ranks)
    _check_names([name for name, _ in named], are_folders=name != "loss")
    for load, (_, folder) in zip(models.load, named, strict=True):
        facts.shape_and_weights(folder)
        if name != "loss":  # it compares ids alone
            PromptTokenizer(facts.tokenizer_folder(load))
    output = getattr(config, "output", "")
    if len(models.load) == 1 and output:  # of several some may be finished
        check_output(output)
    if name in _MANIFESTS:
        splits = _MANIFESTS[name](config.data_path).splits
        if config.split not in splits:
            raise InputError(
                f"{config.data_path} has no split {config.split!r}, only {', '.join(splits)}: take "
                f"that one with --split, or prepare one with a --{config.split}-fraction above 0"
            )
    data = getattr(config, "data", ())
    for path in (data,) if isinstance(data, str) else data:
        if not Path(path).exists():
            raise InputError(f"--data {missing(path)}: name a file or folder of questions")


def _check_names(names: Sequence[str], *, are_folders: bool) -> None:
    """Raise InputError where two models have one name: nobody could tell their results apart; or
    several have folders in ``--output``, and one's name is that of no folder.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two models of --load are called {name!r}: give each a name, --load before=FOLDER "
                "after=FOLDER"
            )
        if are_folders and len(names) > 1 and Path(name).name != name:
            raise InputError(
                f"--load {name}=...: with several models the name is that of a folder in --output; "
                "leave out what is not allowed in a file's name"
            )
