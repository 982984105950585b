"""What this project does to a model that Megatron-LM has built."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_ultralong import yarn
from megatron_ultralong.data.manifest import Manifest, load_manifest
from megatron_ultralong.dropin.arguments import drop_in_config
from megatron_ultralong.dropin.config import DropInConfig
from megatron_ultralong.dropin.identity import Identity, find_identity
from megatron_ultralong.errors import InputError
from megatron_ultralong.mcore.core_attention import RingCoreAttention
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.parallel import is_main_rank
from megatron_ultralong.mcore.recomputed_layer import Recomputation, RecomputedLayer
from megatron_ultralong.mcore.rotary import LocalRotaryEmbedding, softmax_scale
from megatron_ultralong.mcore.tiled_embedding import TiledEmbedding
from megatron_ultralong.mcore.tiled_loss import TiledLoss

_log = logging.getLogger(__name__)
_SPEC = (
    "--spec megatron_ultralong.spec ring_te_spec (layers of Transformer Engine) or "
    "ring_local_spec (with --transformer-impl local)"
)


@dataclasses.dataclass(frozen=True)
class Extension:
    """Our arguments and what they are about, checked against each other."""

    config: DropInConfig
    args: Any
    """Megatron-LM's arguments."""
    manifest: Manifest | None
    """Of ``--ultralong-data-path``."""
    identity: Identity | None

    @classmethod
    def of(cls, args: Any) -> Extension:
        """Read what the arguments name.

        Raises:
            InputError: they do not fit together, or a file is missing or damaged.
        """
        config = drop_in_config(args)
        config.check(args.micro_batch_size)
        manifest = load_manifest(config.data_path) if config.data_path else None
        identity = find_identity(config, args, manifest)
        if identity is None and config.rope_scaling == "keep" and manifest is not None:
            raise InputError(
                "--ultralong-data-path needs a rotary embedding that is known: no checkpoint in "
                f"--load ({args.load}) or --pretrained-checkpoint carries an ultralong.json to "
                "keep the scaling of; name one by --ultralong-rope-scaling, or begin with a "
                "checkpoint of `ultralong convert import`"
            )
        return cls(config, args, manifest, identity)

    def apply(self, model: GPTModel) -> None:
        """Give ``model`` (one stage, not wrapped yet) our rotary embedding, tiles and layers.

        Raises:
            InputError: it is not made of the layers that this needs.
        """
        config, args = self.config, self.args
        attentions = [m for m in model.modules() if isinstance(m, RingCoreAttention)]
        if not attentions and len(model.decoder.layers):
            raise InputError(
                "this model's layers do not have our attention, which --ultralong arguments are "
                f"for: add {_SPEC}"
            )
        if self.identity is not None or config.rope_scaling != "keep":
            self._replace_rotary(model, attentions)
        elif is_main_rank():
            _log.warning(
                "no ultralong.json in --load (%s), and --ultralong-rope-scaling is keep: "
                "Megatron-LM's own rotary embedding stays",
                args.load,
            )
        if config.recompute_granularity != "none":
            self._recompute(model)
        if config.loss_tile_size and model.post_process:
            TiledLoss(model, config.loss_tile_size).install(model)

    def _replace_rotary(self, model: GPTModel, attentions: list[RingCoreAttention]) -> None:
        if model.position_embedding_type != "rope":
            raise InputError(
                f"--position-embedding-type is {model.position_embedding_type!r}: our rotary "
                "embedding stands in the place of 'rope'; pass --position-embedding-type rope"
            )
        head_dim = model.config.kv_channels
        if self.identity is not None:
            scaling = self.identity.result.rope_scaling
            rotary_base = self.identity.result.model.rotary_base
        else:
            scaling, rotary_base = self.config.rope().scaling(None), float(self.args.rotary_base)
        model.rotary_pos_emb = LocalRotaryEmbedding(
            scaling,
            head_dim,
            rotary_base,
            parallel_state.get_context_parallel_group(),
            device(),
            self.config.angle_precision,
        )
        for attention in attentions:
            attention.softmax_scale = softmax_scale(scaling, head_dim)
        if is_main_rank():
            _log.warning(
                "rotary embedding: %s over base %g, angles %s",
                *(scaling, yarn.effective_rotary_base(scaling, head_dim, rotary_base)),
                self.config.angle_precision,
            )

    def _recompute(self, model: GPTModel) -> None:
        config = self.config
        if self.args.recompute_granularity:
            raise InputError(
                f"--recompute-granularity {self.args.recompute_granularity} and "
                f"--ultralong-recompute-granularity {config.recompute_granularity} would each "
                "recompute the layers: use one of them"
            )
        recomputation = Recomputation(
            keep_attention=config.recompute_granularity == "keep_attention",
            tile_size=config.sequence_tile_size,
        )
        for layer in model.decoder.layers:
            if not isinstance(layer, RecomputedLayer):
                raise InputError(
                    f"--ultralong-recompute-granularity needs our layers, not "
                    f"{type(layer).__name__}: add {_SPEC}"
                )
            layer.recomputation = recomputation
        if recomputation.tile_size and model.pre_process:
            TiledEmbedding(model, recomputation.tile_size).install(model)

    def apply_to_all(self, models: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """:meth:`apply` to the stages that a builder made (a ``pre_wrap_hook``)."""
        for model in models:
            self.apply(model)
        return models
