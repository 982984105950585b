"""What can be told of a generation before torch and Megatron-Core are imported."""

import dataclasses
from pathlib import Path

from megatron_ultralong.checkpoint.disk.folder import resolve_readable
from megatron_ultralong.checkpoint.disk.metadata import (
    SOURCE_FOLDER,
    CheckpointMetadata,
    load_metadata,
)
from megatron_ultralong.config.generate import GenerateConfig
from megatron_ultralong.data.read.record import read_named_text
from megatron_ultralong.data.tokenize.folder_template import folder_template
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError

WITHOUT_CHAT = "give a prompt without --chat"
"""The fix where there is no chat template."""


@dataclasses.dataclass(frozen=True)
class EarlyGeneration:
    """A generation, as far as files and flags tell."""

    metadata: CheckpointMetadata
    tokenizer: PromptTokenizer
    messages: list[str]
    """Prompts, those of files behind those of flags."""


def check_generation(config: GenerateConfig, num_ranks: int) -> EarlyGeneration:
    """Check flags, checkpoint, layout, tokenizer and prompts.

    Raises:
        InputError: one of them is wrong, or they do not fit.
    """
    config.check()
    folder = Path(config.load)
    metadata = load_metadata(folder)
    resolve_readable(folder)
    config.parallel.check_forward_only()
    config.parallel.check_model(metadata.model)
    config.parallel.data_parallel_size(num_ranks)
    tokenizer = PromptTokenizer(folder / SOURCE_FOLDER)
    if config.chat:
        check_template(tokenizer.folder, WITHOUT_CHAT)
    files = [read_named_text("--prompt-file", name) for name in config.prompt_file]
    return EarlyGeneration(metadata, tokenizer, [*config.prompt, *files])


def check_template(folder: Path, way_out: str) -> None:
    """Raise InputError where a tokenizer's folder has no chat template; ``way_out`` does without.

    As transformers finds it, which :class:`FolderTokenizer` renders it with.
    """
    if not folder_template(folder):
        raise InputError(
            f"{folder} has no chat template: the checkpoint was imported from a base model; import "
            f"an instruction-tuned one, or {way_out}"
        )
