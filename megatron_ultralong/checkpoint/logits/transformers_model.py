"""A Hugging Face or Meta folder in transformers: the model, its logits, its layers one at a time.

``from_pretrained`` of a folder does what keys of its configuration say: it downloads kernels that
``attn_implementation`` names, quantises, imports the files of ``auto_map``, and loads the adapter
that lies beside the weights. None of that is the model. Here a configuration is made of the keys
that shape one, and tensors come through the readers of this package.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats import hugging_face_config, meta, weight_map
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.models import ModelFolder
from megatron_ultralong.checkpoint.logits.comparison import arithmetic
from megatron_ultralong.model.yarn import attention_factor, inv_freq
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import optional_package

ATTENTION = "sdpa"
"""Ours, whatever a folder asks for."""
NEEDS = "transformers is the judge of logits"

_SHAPE_KEYS = (
    *(*hugging_face_config.SHAPE_KEYS, "original_max_position_embeddings", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
)


def shape_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a ``config.json`` that make the function; all others may choose code."""
    return {key: config[key] for key in _SHAPE_KEYS if config.get(key) is not None}


def _model_class(folder: ModelFolder) -> Any:
    transformers = optional_package("transformers", NEEDS)
    name = folder.model.family.architecture
    if not hasattr(transformers, name):
        raise InputError(
            f"{folder.folder} is a {name}, and transformers {transformers.__version__} has none: "
            "install a newer one (pip install -U transformers)"
        )
    return getattr(transformers, name)


def transformers_config(folder: ModelFolder) -> Any:
    """The configuration of ``folder``: its shape and its rope block, which transformers reads."""
    model_class = _model_class(folder)
    if isinstance(folder, HuggingFaceFolder):
        values: Mapping[str, Any] = folder.config
    else:
        metadata = CheckpointMetadata(folder.model, folder.rope_scaling, folder.name)
        values = hugging_face_config.export_config(
            meta.hugging_face_defaults(folder.model), metadata, torch.float32
        )
    config = model_class.config_class.from_dict(
        {**shape_values(values), **folder.model.family.stated}
    )
    config._attn_implementation = ATTENTION
    return config


def transformers_model(folder: ModelFolder) -> Any:
    """``folder`` as its ``...ForCausalLM`` in float32, in evaluation mode.

    Raises:
        InputError: transformers makes other rotary frequencies of config.json than this project.
    """
    model_class = _model_class(folder)
    state = {
        name: part.float()
        for weight in weight_map.model_weights(folder.model)
        for name, part in zip(weight.names, folder.read(weight), strict=True)
    }
    if not folder.model.untie_embeddings_and_output_weights:
        state[weight_map.LM_HEAD] = state[weight_map.EMBEDDING]
    model = model_class.from_pretrained(  # `dtype` has another name before 4.56
        None,
        config=transformers_config(folder),
        state_dict=state,
        attn_implementation=ATTENTION,
        trust_remote_code=False,
    )
    model = model.float().eval()
    for rotary in (module for module in model.modules() if hasattr(module, "inv_freq")):
        _exact_frequencies(rotary, folder)
    return model


_ROUNDING = 1e-6
"""Relative error of a power and two products in float32, 2^-24 each."""


@torch.no_grad()
def transformers_logits(
    folder: ModelFolder, tokens_S: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Logits [S, vocabulary] of one row, in ``dtype``, float32 or float64.

    transformers is given the tensors, and reads the rope block of ``config.json`` itself.

    Raises:
        InputError: it makes other rotary frequencies of config.json than this project.
    """
    model = transformers_model(folder).to(dtype)
    round_frequencies(model.model.rotary_emb, folder, dtype)
    with arithmetic(dtype):
        logits: torch.Tensor = model(tokens_S[None], use_cache=False).logits[0]
    return logits


def round_frequencies(rotary: Any, folder: ModelFolder, dtype: torch.dtype) -> None:
    """Check transformers' rotary frequencies, and round them to ``dtype`` as Megatron's are.

    It computes them in float32, wrong by two units in the last place. At position 8,192 that turns
    q and k by 1e-3 rad and moves logits by as much: rounding, which would hide real differences.
    """
    rotary.inv_freq = _exact_frequencies(rotary, folder).to(dtype)


def _exact_frequencies(rotary: Any, folder: ModelFolder) -> torch.Tensor:
    """The rotary frequencies in float64, which those of transformers are near to.

    Raises:
        InputError: they are not: it reads the rope block in another way.
    """
    model = folder.model
    expected = torch.from_numpy(inv_freq(folder.rope_scaling, model.kv_channels, model.rotary_base))
    deviation = (rotary.inv_freq.double() / expected - 1).abs().max().item()
    factor = attention_factor(folder.rope_scaling)
    scaling = getattr(rotary, "attention_scaling", 1.0)  # Mistral's has none before 4.47
    if deviation > _ROUNDING or abs(scaling / factor - 1) > _ROUNDING:
        raise InputError(
            f"{folder.folder}: this version of transformers reads the rope block in another way: "
            f"frequencies differ by {deviation:.2g}, attention factors are "
            f"{scaling:.6g} and {factor:.6g}; use a newer one (5.x reads what it "
            "has saved), or a checkpoint of `ultralong convert import`"
        )
    return expected


class TransformersLayers:
    """A model of one layer, filled with one layer of the folder after the other."""

    def __init__(self, folder: ModelFolder, dtype: torch.dtype) -> None:
        """Build it, and check its rotary frequencies.

        Raises:
            InputError: transformers makes others of the rope block than this project.
        """
        config = transformers_config(folder)
        config.num_hidden_layers = 1
        # hidden states are given to it: it looks up no token
        config.vocab_size, config.pad_token_id = 1, None
        model = _model_class(folder)(config).base_model.to(dtype).eval()
        round_frequencies(model.rotary_emb, folder, dtype)
        self._norm, model.norm = model.norm, nn.Identity()
        self._model = model
        self._folder = folder
        self._weights = weight_map.model_weights(folder.model)
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
