"""Every key of ``config.json`` that transformers reads in a model is decided here.

A release that reads a new one fails the first test, until somebody knows what it does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.hugging_face_config import (
    _FIXED,
    SHAPE_KEYS,
    read_config,
)
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.program.errors import InputError
from tests.families.shapes import write

READ_HERE = {*SHAPE_KEYS, "rope_parameters", "tie_word_embeddings"}
WITHOUT_EFFECT = {
    *("attention_dropout", "initializer_range", "gradient_checkpointing"),  # of training
    *("use_cache", "return_dict", "name_or_path", "pad_token_id"),
    "attention_chunk_size",  # of layer_types that are refused
    "sliding_window",  # the same in Llama; fixed where it decides by itself
    *("vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"),
    *("get_text_config", "is_heterogeneous"),  # of text_config and per_layer_config
}
_PLACES = ("modeling_", "masking_utils", "rope_utils", "cache_utils", "integrations", "generic")


def keys_read(family: str) -> set[str]:
    """Attributes of the configuration that building and running a model read."""
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config: Any = CONFIG_MAPPING[family](**sizes, **heads)
    model_class, config_class, seen = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], type(config), set()

    class Watched(config_class):  # type: ignore[misc,valid-type]
        def __getattribute__(self, key: str) -> Any:
            reader = Path(sys._getframe(1).f_code.co_filename).name
            if not key.startswith("_") and any(place in reader for place in _PLACES):
                seen.add(key)
            return super().__getattribute__(key)

    config.__class__ = Watched
    for attention in ("sdpa", "eager"):
        config._attn_implementation = attention
        with torch.no_grad():
            model_class(config).eval()(torch.arange(12)[None])
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_is_decided(family: str) -> None:
    its = FAMILIES[family]
    keys = keys_read(family)
    assert {"hidden_size", "rms_norm_eps", "hidden_act"} <= keys
    decided = {*READ_HERE, *_FIXED, *its.fixed, *its.stated, *WITHOUT_EFFECT}
    assert not keys - decided, "decide these: in READ_HERE, _FIXED or WITHOUT_EFFECT"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_causal", False),
        ("use_bidirectional_attention", True),
        ("kv_sharing_modes", ["first", "last"]),
        ("num_kv_shared_layers", 2),
        ("text_config", {"hidden_size": 8}),
        ("layer_types", ["full_attention", "sliding_attention"]),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_another_model_is_refused(tmp_path: Path, family: str, key: str, value: Any) -> None:
    values = {"architectures": [FAMILIES[family].architecture], "sliding_window": None, key: value}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"{key} .* is not supported: it must be"):
        read_config(tmp_path)


def test_a_fixed_key_is_exported_in_its_own_type(tmp_path: Path) -> None:
    """transformers 4 reads null and 0 there, and 5 refuses them."""
    write(tmp_path / "hf", "llama", "tied")
    path = tmp_path / "hf" / "config.json"
    odd = {"attention_bias": 0, "mlp_bias": None, "hidden_act": None, "text_config": None}
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    export_checkpoint(ExportConfig(tmp_path / "megatron", tmp_path / "exported"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported") is not None
