"""A Llama in a Hugging Face folder, loaded by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_model
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json


def load_llama(folder: Path, device: torch.device) -> Any:
    """The folder as transformers' ``LlamaForCausalLM`` in float32, in evaluation mode.

    Args:
        folder: what `ultralong convert export` writes, or any plain Llama.
        device: where it runs.

    Raises:
        InputError: the folder does not hold a plain Llama, or a damaged one.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no config.json: it is not a Hugging Face folder; name the folder that "
            "`ultralong convert export` wrote"
        )
    try:
        model_type = read_json(path).get("model_type")
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}): export the checkpoint again") from error
    if model_type != "llama":
        raise InputError(f"{path} has model_type {model_type!r}: only 'llama' can be evaluated")
    return transformers_model(HuggingFaceFolder(folder)).to(device)
