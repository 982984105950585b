"""A Llama in a Hugging Face folder, loaded by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.errors import InputError


def load_llama(folder: Path, device: torch.device) -> Any:
    """The folder as transformers' ``LlamaForCausalLM`` in float32, in evaluation mode.

    Args:
        folder: what `ultralong convert export` writes, or any Llama that transformers loads.
        device: where it runs.

    Raises:
        InputError: the folder does not hold a Llama.
    """
    _check_folder(folder)
    from transformers import LlamaForCausalLM  # a second to import; only here it is needed

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def _check_folder(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no config.json: it is not a Hugging Face folder; name the folder that "
            "`ultralong convert export` wrote"
        )
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): export the checkpoint again") from error
    if model_type != "llama":
        raise InputError(f"{path} has model_type {model_type!r}: only 'llama' can be evaluated")
