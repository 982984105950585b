"""What this project does to a model that Megatron-LM has built.

Each rank sees its part of the sequence, so a norm's gradients are partial. Megatron sums those of
the parameters that carry ``sequence_parallel``; torch's norms do not carry it, hence the refusal.
Without Apex and Transformer Engine there are no others.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.dropin.arguments import DropInConfig, drop_in_config
from megatron_ultralong.dropin.attention import ResetMask
from megatron_ultralong.dropin.identity import Identity, find_identity
from megatron_ultralong.dropin.rules import Part, check_arguments, check_model_config, parts
from megatron_ultralong.mcore import cpu, rotary, tiled_loss, tiles
from megatron_ultralong.mcore.core_attention import RingCoreAttention
from megatron_ultralong.mcore.recomputed_layer import Recomputation, RecomputedLayer
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Extension:
    """Our arguments and what they are about, checked against each other."""

    config: DropInConfig
    args: Any
    """Megatron-LM's arguments."""
    manifest: Manifest | None
    """Of ``--ultralong-data-path``."""
    identity: Identity
    parts: tuple[Part, ...]
    """Parts of ours that the run uses."""

    @classmethod
    def of(cls, args: Any) -> Extension:
        """Read what the arguments name.

        Raises:
            InputError: they do not fit together, or a file is missing or damaged.
        """
        config = drop_in_config(args)
        config.check(args.micro_batch_size)
        used = parts(config, args)
        check_arguments(config, args, used)
        manifest = load_manifest(config.data_path) if config.data_path else None
        identity = find_identity(config, args, manifest)
        if identity.result.rope_scaling is not None and "rotary" not in used:
            used = (*used, "rotary")
            check_arguments(config, args, used)
        return cls(config, args, manifest, identity, used)

    def apply(self, model: GPTModel) -> None:
        """Give ``model`` (one stage, not wrapped yet) our rotary embedding, tiles and layers.

        Raises:
            InputError: it is not made of the layers that this needs.
        """
        check_model_config(self.config, model.config, self.parts)
        attentions = [m for m in model.modules() if isinstance(m, RingCoreAttention)]
        if not attentions and len(model.decoder.layers):
            raise InputError(
                f"the layers of this model ({type(model).__name__}) have no self-attention that "
                "ours could stand for: train it without megatron_ultralong.dropin"
            )
        if "rotary" in self.parts:
            self._replace_rotary(model, attentions)
        else:
            kind = self.args.position_embedding_type
            _tell(f"rotary embedding: Megatron-LM's own, --position-embedding-type {kind}")
        if "reset mask" in self.parts:
            self._reset_mask(model)
        if self.config.recompute_granularity != "none":
            self._recompute(model)
        if self.config.loss_tile_size and model.post_process:
            tiled_loss.TiledLoss(model, self.config.loss_tile_size).install(model)

    def _replace_rotary(self, model: GPTModel, attentions: list[RingCoreAttention]) -> None:
        head_dim = model.config.kv_channels
        scaling = self.identity.result.rope_scaling
        rotary_base = self.identity.result.model.rotary_base
        model.rotary_pos_emb = rotary.LocalRotaryEmbedding(
            scaling,
            head_dim,
            rotary_base,
            parallel_state.get_context_parallel_group(),
            cpu.device(),
            self.config.angle_precision,
        )
        for attention in attentions:  # the temperature, beside the scale that the layer asked for
            attention.softmax_scale *= yarn.attention_factor(scaling) ** 2
        base = yarn.effective_rotary_base(scaling, head_dim, rotary_base)
        precision = self.config.angle_precision
        _tell(f"rotary embedding: {scaling} over base {base:g}, angles {precision}")

    def _reset_mask(self, model: GPTModel) -> None:
        from megatron.training import get_tokenizer

        tokenizer = get_tokenizer()
        eod = tokenizer.eod
        if eod == _padding_of(tokenizer):
            raise InputError(
                f"--reset-attention-mask, and the tokenizer's end of document is its padding "
                f"({eod}): Megatron-LM's data set replaces padding by 0 before the model sees it, "
                "so that documents cannot be told apart; use a tokenizer with two ids, or rows of "
                "`ultralong prepare` with --ultralong-document-mask block"
            )
        args = self.args
        counts_alike = args.calculate_per_token_loss or args.context_parallel_size == 1
        if args.eod_mask_loss and not counts_alike:
            _tell(
                f"--eod-mask-loss with --context-parallel-size {args.context_parallel_size}: "
                "Megatron-LM takes the mean of each rank's own tokens, however many count; "
                "--calculate-per-token-loss makes it the mean of all"
            )
        ResetMask(eod, parallel_state.get_context_parallel_group()).install(model)
        _tell(f"documents end at token {eod}: attention stays within them")

    def _recompute(self, model: GPTModel) -> None:
        recomputation = Recomputation(
            keep_attention=self.config.recompute_granularity == "keep_attention",
            tile_size=self.config.sequence_tile_size,
        )
        for layer in model.decoder.layers:
            if type(layer) is TransformerLayer:
                # It has methods more and nothing else: a layer that is built becomes one.
                layer.__class__ = RecomputedLayer
            if not isinstance(layer, RecomputedLayer):
                raise InputError(
                    f"--ultralong-recompute-granularity is for Megatron-Core's TransformerLayer, "
                    f"not {type(layer).__name__}: use Megatron-LM's own --recompute-granularity"
                )
            layer.recomputation = recomputation
        if recomputation.tile_size and model.pre_process:
            tiles.TiledEmbedding(model, recomputation.tile_size).install(model)

    def apply_to_all(self, models: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """:meth:`apply` to the stages that a builder made (a ``pre_wrap_hook``)."""
        for model in models:
            self.apply(model)
        return models


def _tell(text: str) -> None:
    if is_main_rank():
        _log.warning("%s", text)


def _padding_of(tokenizer: Any) -> int | None:
    """Id of the padding token; tokenizers without one say so in two ways."""
    try:
        found: int | None = tokenizer.pad
    except (AttributeError, NotImplementedError):
        return None
    return found


@contextlib.contextmanager
def norms_under_sequence_parallelism() -> Iterator[None]:
    """Let ``WrappedTorchNorm`` build a norm whose parameters carry the mark."""
    theirs = WrappedTorchNorm.__new__

    def build(kind: Any, config: Any, *arguments: Any, **keywords: Any) -> Any:
        if not config.sequence_parallel:
            return theirs(kind, config, *arguments, **keywords)
        unsplit = copy.copy(config)
        unsplit.sequence_parallel = False
        norm = theirs(kind, unsplit, *arguments, **keywords)
        for parameter in norm.parameters():
            parameter.sequence_parallel = True
        return norm

    WrappedTorchNorm.__new__ = staticmethod(build)
    try:
        yield
    finally:
        WrappedTorchNorm.__new__ = staticmethod(theirs)
