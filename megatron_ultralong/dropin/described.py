"""The model that Megatron-LM's arguments describe, beside that of an ``ultralong.json``."""

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.dropin.arguments import ASKED
from megatron_ultralong.model.families import family_with
from megatron_ultralong.model.families.family import Family
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError

ARGUMENT_OF = {"norm_epsilon": "layernorm_epsilon", "vocab_size": "padded_vocab_size"}
"""Arguments that have another name than the field."""
OF_ALL = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (1,),
}
ABSENT = (
    *("add_bias_linear", "qk_l2_norm", "attention_output_gate"),
    *("layernorm_zero_centered_gamma", "apply_layernorm_1p", "num_experts", "mtp_num_layers"),
    *("rotary_interleaved", "rotary_seq_len_interpolation_factor", "use_rope_scaling"),
    *("glu_linear_offset", "activation_func_clamp_value", "quick_geglu", "squared_relu"),
    *("openai_gelu", "apply_residual_connection_post_layernorm", "no_rope_freq", "use_mup"),
    *("heterogeneous_layers_config_path", "heterogeneous_layers_config_encoded_json"),
    *("multi_latent_attention", "experimental_attention_variant", "enable_mhc_connections"),
)
"""What no family has."""
OF_SOME = ("add_qkv_bias", "qk_layernorm")
"""What some families have."""


def model_of(args: Any) -> ModelConfig:
    """The shape that Megatron-LM's validated arguments describe."""
    values = {
        field.name: getattr(args, ARGUMENT_OF.get(field.name, field.name))
        for field in dataclasses.fields(ModelConfig)
        if field.name != "model_type"
    }
    family = _family(args)
    if family is not None:
        values["model_type"] = family.name
    if not args.group_query_attention:
        values["num_query_groups"] = args.num_attention_heads
    values["rotary_base"] = float(values["rotary_base"])
    return ModelConfig(**values)


def _family(args: Any) -> Family | None:
    return family_with(**{name: bool(getattr(args, name, False)) for name in OF_SOME})


def vocabulary(args: Any) -> int | None:
    """Ids of the run's tokenizer; None: it does not tell.

    Megatron-LM gives the model rows up to the next multiple of ``--make-vocab-size-divisible-by``
    times the tensor parallel size. No id reads them, and no other program expects them.
    """
    from megatron.training import get_tokenizer

    size = getattr(get_tokenizer(), "vocab_size", None)
    is_size = isinstance(size, int) and 0 < size <= args.padded_vocab_size
    return size if is_size else None


def not_of_a_family(args: Any) -> str | None:
    """The first argument that makes it a model of no known family; None: it is of one."""
    wanted = {**OF_ALL, **{name: (None, False, 0) for name in ABSENT}}
    for name, accepted in wanted.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            return f"{ASKED.flag(name)} {value}"
    return None if _family(args) else " with ".join(map(ASKED.flag, OF_SOME))


def check_shape(args: Any, source: CheckpointMetadata, folder: Path) -> None:
    """Check that the arguments describe the model that a checkpoint's ``ultralong.json`` does.

    The base of the rotary embedding is taken from there, unless the command line names another; of
    a model of no family, whose embedding may be Megatron-LM's own, it has to be said.

    Raises:
        InputError: they do not.
    """
    other = not_of_a_family(args)
    if other is not None and not source.not_exportable:
        raise InputError(
            f"{other} beside {folder}, a checkpoint of {source.model.family.title} without it: "
            "leave it out, or add --use-checkpoint-args"
        )
    asked, given = model_of(args), ASKED.given()
    for name in OF_SOME:
        wanted, stated = (getattr(model.family, name) for model in (asked, source.model))
        if wanted != stated:
            raise InputError(
                f"{ASKED.flag(name)} is {wanted}, and the {source.model.family.title} in {folder} "
                f"has {stated}: {'leave it out' if wanted else 'pass it'}"
            )
    for field in dataclasses.fields(ModelConfig):
        if field.name in ("vocab_size", "max_position_embeddings", "model_type"):
            continue  # padded, extended, and looked at above
        name = ARGUMENT_OF.get(field.name, field.name)
        if field.name == "rotary_base" and name not in given and not source.not_exportable:
            continue
        wanted, stated = getattr(asked, field.name), getattr(source.model, field.name)
        if wanted != stated:
            is_taken = field.name != "norm_epsilon"  # not by Megatron-LM
            raise InputError(
                f"{ASKED.flag(name)} is {wanted:g} and the model in {folder} has {stated:g}: pass "
                f"{stated:g}{', or leave it to --use-checkpoint-args' * is_taken}"
            )
