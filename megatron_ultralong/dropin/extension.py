"""What this project does to a model that Megatron-LM builds: attention, documents, rotary, tiles.

A layer's spec is made in many ways (``--spec``, experts, heterogeneous blocks, layers for further
tokens, a described model). All of them end where ``SelfAttention`` builds the ``core_attention`` of
its submodules. There, and nowhere else, ours takes its place: what a layer is made of otherwise is
the user's.

``--reset-attention-mask``: Megatron-LM's data set makes a mask of S x S in which no token sees what
stands before the last end-of-document token. Our attention takes the boundaries instead. They are
read off the tokens of the row as they come to the model: after every end-of-document token a
document begins. Under context parallelism the ranks tell each other where theirs are.

``--reset-position-ids`` asks for nothing more: a rotary embedding enters the attention by the
difference of two positions, which within a document stays what it was, and a learned one is given
the positions of the data set. ``--eod-mask-loss`` is in the data set's loss mask.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.dropin import rules
from megatron_ultralong.dropin.arguments import DropInConfig, drop_in_config
from megatron_ultralong.dropin.identity import Identity, find_identity
from megatron_ultralong.dropin.rules import Part
from megatron_ultralong.mcore import core_attention, cpu, recomputed_layer, rotary
from megatron_ultralong.mcore.core_attention import RingCoreAttention
from megatron_ultralong.mcore.cpu import replaced
from megatron_ultralong.mcore.model import work_in_tiles
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.training import early_checks


@contextlib.contextmanager
def ring_attention_in_layers() -> Iterator[None]:
    """Build ``RingCoreAttention`` wherever Megatron-Core would build a dot-product attention."""
    upstream = SelfAttention.__init__

    @functools.wraps(upstream)
    def build(self: Any, config: Any, submodules: Any, *arguments: Any, **keywords: Any) -> None:
        upstream(self, config, with_ring_attention(submodules), *arguments, **keywords)

    with replaced((SelfAttention, "__init__", build)):
        yield


def with_ring_attention(submodules: Any) -> Any:
    """The submodules of a self-attention, with ours as ``core_attention``.

    Raises:
        InputError: it is none of those that ours can stand for.
    """
    found = submodules.core_attention
    kind = getattr(found, "module", found)
    if kind is RingCoreAttention:
        return submodules
    if kind not in _replaced():
        raise InputError(
            f"the core_attention of this model's layers is {getattr(kind, '__name__', kind)}; ours "
            f"takes the place of {' and '.join(one.__name__ for one in _replaced())} alone: leave "
            "out what chooses another (--spec, --use-kitchen-attention), or train without "
            "megatron_ultralong.dropin"
        )
    return dataclasses.replace(submodules, core_attention=RingCoreAttention)


@functools.cache
def _replaced() -> tuple[type, ...]:
    try:
        from megatron.core.extensions.transformer_engine import TEDotProductAttention
    except ImportError:
        return (DotProductAttention,)
    return (DotProductAttention, TEDotProductAttention)


def give_documents(
    eod: int,
    cp_group: dist.ProcessGroup,
    model: torch.nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a model's forward pass, with the documents of its rows among them.

    ``eod``: id of the end-of-document token; tokens are the local shards, int64 [b, s_local].
    """
    tokens = arguments[0] if arguments else keywords["input_ids"]
    ends = _whole_rows(tokens == eod, cp_group)
    rows = tuple(_boundaries(row) for row in ends.cpu())
    documents = core_attention.document_params(rows[0], ends.shape[1])
    if len(rows) > 1:
        documents = core_attention.RowsOfDocuments(**vars(documents), cu_seqlens_of_rows=rows)
    return arguments, {**keywords, "packed_seq_params": documents}


def _whole_rows(local: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[b, s_local] of every rank -> [b, s], in the order of the row."""
    if group.size() == 1:
        return local
    shard = local.to(torch.uint8).contiguous()
    shards = [torch.empty_like(shard) for _ in range(group.size())]
    dist.all_gather(shards, shard, group=group)
    return zigzag(len(shards)).unshard(shards, dim=1).bool()


def _boundaries(ends: Tensor) -> Tensor:
    """Boundaries of a row from its last tokens of documents: 0 0 1 0 -> 0 3 4, int32."""
    starts = torch.nonzero(ends[:-1]).flatten() + 1
    edges = [starts.new_zeros(1), starts, starts.new_full((1,), len(ends))]
    return torch.cat(edges).to(torch.int32)


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
    """Parts of this project that the run uses."""

    @classmethod
    def of(cls, args: Any) -> Extension:
        """Read what the arguments name.

        Raises:
            InputError: they do not fit together, or a file is missing or damaged.
        """
        config = drop_in_config(args)
        config.check(args.micro_batch_size)
        used = rules.parts(config, args)
        rules.check_arguments(config, args, used)
        manifest = load_manifest(config.data_path) if config.data_path else None
        identity = find_identity(config, args, manifest)
        if identity.result.rope_scaling is not None and "rotary" not in used:
            used = (*used, "rotary")
            rules.check_arguments(config, args, used)
        config = identity.config  # and so that checkpoints keep it:
        args.ultralong_original_max_position_embeddings = config.original_max_position_embeddings
        found = cls(config, args, manifest, identity, used)
        if manifest is not None:
            found._check_rows(manifest)
        for line in (*identity.notes, *rules.idle_notes(config, args)):
            tell(line)
        return found

    @property
    def vocab_size(self) -> int:
        """Ids that the rows may have."""
        vocab_size = self.identity.source.model.vocab_size
        if self.identity.folder is None and self.manifest:  # Megatron-LM's own, which may be padded
            vocab_size = min(vocab_size, self.manifest.vocab_size)
        return vocab_size

    def _check_rows(self, manifest: Manifest) -> None:
        config, identity, folder = self.config, self.identity, self.config.data_path
        mask = config.document_mask
        rows = early_checks.packed_rows(folder, "train", manifest, self.vocab_size, mask)
        early_checks.check_row_length(self.args.seq_length, rows.seq_length, folder)
        source = identity.source
        if identity.folder is None:  # of which no file tells the tokenizer
            vocab_size = max(source.model.vocab_size, manifest.vocab_size)
            model = dataclasses.replace(source.model, vocab_size=vocab_size)
            source = dataclasses.replace(source, model=model)
        early_checks.check_packed_rows(folder, str(identity.folder), source, manifest, mask)

    def apply(self, model: GPTModel) -> GPTModel:
        """Give ``model`` (one stage, not wrapped yet) our rotary embedding, tiles and layers.

        Raises:
            InputError: it is not made of the layers that this needs.
        """
        rules.check_model_config(self.config, model.config, self.parts)
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
            tell(f"rotary embedding: Megatron-LM's own, --position-embedding-type {kind}")
        if "reset mask" in self.parts:
            self._reset_mask(model)
        kind, recomputation = self.config.recompute_granularity, None
        if kind != "none":
            _let_recompute(model)
            recomputation = recomputed_layer.Recomputation(
                kind == "keep_attention", self.config.sequence_tile_size
            )
        work_in_tiles(model, recomputation, self.config.loss_tile_size)
        return model

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
        tell(f"rotary embedding: {yarn.in_words(scaling)} over base {base:g}, angles {precision}")

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
            tell(
                f"--eod-mask-loss with --context-parallel-size {args.context_parallel_size}: "
                "Megatron-LM takes the mean of each rank's own tokens, however many count; "
                "--calculate-per-token-loss makes it the mean of all"
            )
        hook = functools.partial(give_documents, eod, parallel_state.get_context_parallel_group())
        model.register_forward_pre_hook(hook, with_kwargs=True)
        tell(f"documents end at token {eod}: attention stays within them")


def _let_recompute(model: GPTModel) -> None:
    """Make layers ours; raises InputError where one is not Megatron-Core's."""
    for layer in model.decoder.layers:
        if type(layer) is TransformerLayer:
            # It has methods more and nothing else: a layer that is built becomes one.
            layer.__class__ = recomputed_layer.RecomputedLayer
        if not isinstance(layer, recomputed_layer.RecomputedLayer):
            raise InputError(
                f"--ultralong-recompute-granularity is for Megatron-Core's TransformerLayer, "
                f"not {type(layer).__name__}: use Megatron-LM's own --recompute-granularity"
            )


def tell(text: str) -> None:
    """A line for the user, by the main rank."""
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
    """Let Megatron-Core's wrapper of torch's norms build them under sequence parallelism too.

    Each rank sees its part of the sequence, so a norm's gradients are partial. Megatron sums those
    of the parameters that carry ``sequence_parallel``; torch's norms do not carry it, and
    ``WrappedTorchNorm`` refuses them. Without Apex and Transformer Engine there are no others.
    """
    upstream = WrappedTorchNorm.__new__

    def build(kind: Any, config: Any, *arguments: Any, **keywords: Any) -> Any:
        if not config.sequence_parallel:
            return upstream(kind, config, *arguments, **keywords)
        unsplit = copy.copy(config)
        unsplit.sequence_parallel = False
        norm = upstream(kind, unsplit, *arguments, **keywords)
        for parameter in norm.parameters():
            parameter.sequence_parallel = True
        return norm

    with replaced((WrappedTorchNorm, "__new__", build)):
        yield
