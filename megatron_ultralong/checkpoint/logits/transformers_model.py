"""A Hugging Face or Meta folder as a model of transformers, which is given tensors and no files.

``from_pretrained`` of a folder does what keys of its configuration say: it downloads kernels that
``attn_implementation`` names, quantises, imports the files of ``auto_map``, and loads the adapter
that lies beside the weights. None of that is a Llama. Here a configuration is made of the keys that
shape one, and tensors come through the readers of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import export_config
from megatron_ultralong.checkpoint.formats.meta import MetaFolder, hugging_face_defaults
from megatron_ultralong.checkpoint.formats.weight_map import EMBEDDING, LM_HEAD, weight_map

ATTENTION = "sdpa"
"""Ours, whatever a folder asks for."""

_SHAPE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)


def shape_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a ``config.json`` that make the function; all others may choose code."""
    return {key: config[key] for key in _SHAPE_KEYS if config.get(key) is not None}


def transformers_config(folder: HuggingFaceFolder | MetaFolder) -> Any:
    """The LlamaConfig of ``folder``: its shape and its rope block, which transformers reads."""
    from transformers import LlamaConfig

    if isinstance(folder, HuggingFaceFolder):
        values = shape_values(folder.config)
    else:
        metadata = CheckpointMetadata(folder.model, folder.rope_scaling, folder.name)
        exported = export_config(hugging_face_defaults(folder.model), metadata, torch.float32)
        values = shape_values(exported)
    config = LlamaConfig.from_dict(values)
    config._attn_implementation = ATTENTION
    return config


def transformers_model(folder: HuggingFaceFolder | MetaFolder) -> Any:
    """``folder`` as a LlamaForCausalLM in float32, in evaluation mode."""
    from transformers import LlamaForCausalLM

    state = {
        name: part.float()
        for weight in weight_map(folder.model)
        for name, part in zip(weight.names, folder.read(weight), strict=True)
    }
    if not folder.model.untie_embeddings_and_output_weights:
        state[LM_HEAD] = state[EMBEDDING]
    return LlamaForCausalLM.from_pretrained(
        None,
        config=transformers_config(folder),
        state_dict=state,
        dtype=torch.float32,
        attn_implementation=ATTENTION,
        trust_remote_code=False,
    ).eval()
