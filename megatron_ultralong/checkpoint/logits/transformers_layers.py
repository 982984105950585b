"""Layers of a Hugging Face or Meta folder through transformers' LlamaModel, one at a time."""

from __future__ import annotations

import torch
from torch import nn

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.checkpoint.formats.weight_map import weight_map
from megatron_ultralong.checkpoint.logits.float64_mode import arithmetic
from megatron_ultralong.checkpoint.logits.transformers_logits import round_frequencies
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_config


class TransformersLayers:
    """A LlamaModel of one layer, filled with one layer of the folder after the other."""

    def __init__(self, folder: HuggingFaceFolder | MetaFolder, dtype: torch.dtype) -> None:
        """Build it, and check its rotary frequencies.

        Raises:
            InputError: transformers makes others of the rope block than this project.
        """
        from transformers import LlamaModel

        config = transformers_config(folder)
        config.num_hidden_layers = 1
        # hidden states are given to it: it looks up no token
        config.vocab_size, config.pad_token_id = 1, None
        model = LlamaModel(config).to(dtype).eval()
        round_frequencies(model.rotary_emb, folder, dtype)
        self._norm, model.norm = model.norm, nn.Identity()
        self._model = model
        self._folder = folder
        self._weights = weight_map(folder.model)
        self._parameters = dict(model.named_parameters())

    def layer(self, number: int, hidden_SH: torch.Tensor) -> torch.Tensor:
        """Hidden states behind layer ``number``."""
        for weight in self._weights:
            if weight.layer == number:
                for name, part in zip(weight.names, self._folder.read(weight), strict=True):
                    own = name.replace(f"model.layers.{number}.", "layers.0.")
                    self._parameters[own].data.copy_(part)
        with arithmetic(hidden_SH.dtype):
            output = self._model(inputs_embeds=hidden_SH[None], use_cache=False)
        result: torch.Tensor = output.last_hidden_state[0]
        return result

    def final_norm(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        """What the output layer is given."""
        (weight,) = (weight for weight in self._weights if weight.names == ("model.norm.weight",))
        self._norm.weight.data.copy_(self._folder.read(weight)[0])
        with arithmetic(hidden_SH.dtype):
            result: torch.Tensor = self._norm(hidden_SH)
        return result
