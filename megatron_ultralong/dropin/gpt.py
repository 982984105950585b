"""An entry of our own for Megatron-LM: its GPT, by ``--spec``, over our rows."""

from __future__ import annotations

import inspect
from typing import Any

from megatron_ultralong.dropin.entry import pretrain
from megatron_ultralong.program.ending import ends_with_message
from megatron_ultralong.program.errors import InputError


def pretrain_gpt() -> None:
    """Train as the command line says: Megatron-LM's arguments and ours; on a CPU without a GPU.

    Bad input ends with one message and exit status 2.
    """
    from megatron.core.enums import ModelType

    with ends_with_message():
        pretrain(_no_datasets, gpt_model_provider, ModelType.encoder_or_decoder, _no_step)


def gpt_model_provider(pre_process: bool = True, post_process: bool = True, **others: Any) -> Any:
    """The part of a GPT that this rank has, of the layers that ``--spec`` names.

    Args:
        pre_process: it begins with the embedding.
        post_process: it ends with the output layer.
        others: ``config``, ``vp_stage``, ``pg_collection``, as releases of Megatron-LM give them.
    """
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.spec_utils import import_module
    from megatron.training import get_args
    from megatron.training.arguments import core_transformer_config_from_args

    args = get_args()
    if not args.spec:
        raise InputError(
            "which layers is not said: add --spec megatron_ultralong.spec ring_te_spec (layers of "
            "Transformer Engine) or ring_local_spec (with --transformer-impl local)"
        )
    config = others.pop("config", None) or core_transformer_config_from_args(args)
    known = inspect.signature(GPTModel).parameters
    return GPTModel(
        config=config,
        transformer_layer_spec=import_module(args.spec),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        **{name: value for name, value in others.items() if name in known},
    )


def _no_datasets(*_: Any, **__: Any) -> Any:
    raise InputError(
        "this entry trains on rows of `ultralong prepare`: add --ultralong-data-path FOLDER; your "
        "own script keeps its own data (docs/dropin.md)"
    )


def _no_step(*_: Any, **__: Any) -> Any:
    raise AssertionError("without rows no step is taken")
