"""A transformer layer that keeps its input and its attention's output, and works in tiles.

Backward makes everything else of the layer again, but never the attention (unless asked): at 1M
tokens and more that is nearly all of the work. Projections, norms, rotary embedding and MLP see one
tile of the sequence at a time, in both directions, so that of the tensors as long as the sequence
only these exist, [s, b, h] each, with h the part of a tensor-parallel rank:

    forward:  input, q, k, v, out, result (q, k, v until out is there)
    backward: input, out, q, k, v (made again); gradients of result, input, out, and of q, k, v

Under sequence parallelism the input is gathered tile by tile too.
"""

import dataclasses
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ultralong.attention import KeptOutput
from megatron_ultralong.mcore import compat, core_attention, projection, tiles
from megatron_ultralong.mcore.host_memory import Kept, Store


@dataclasses.dataclass(frozen=True)
class Recomputation:
    """What a layer keeps for its backward pass, and how."""

    keep_attention: bool = True
    """Keep (out, lse) of attention; without, backward computes attention once more."""
    tile_size: int = 0
    """Tokens that go through projections and MLP at a time; 0: all."""
    fused: bool = False
    """Rotate queries and keys in compiled kernels, not by Megatron-Core's operations."""
    store: Store = dataclasses.field(default_factory=Store)
    """Where kept tensors stay meanwhile."""


class RecomputedLayer(TransformerLayer):
    """Megatron's layer with its own parameters and modules, run by :class:`_Recomputed`.

    Without a :class:`Recomputation` it is Megatron's layer.
    """

    recomputation: Recomputation | None = None
    begins_pass = False
    """Whether it is the first layer of a model chunk: what ran before it, another pass, is not
    what backward takes after it."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        context: Tensor | None = None,
        rotary_pos_emb: Tensor | projection.CosSin | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states after the layer, [s, b, h], and ``context`` as it came.

        Args:
            hidden_states: [s, b, h], or this rank's run of them under sequence parallelism.
            attention_mask: None; the mask is causal, within documents.
            context: of cross attention, which a Llama has not.
            rotary_pos_emb: angles, [s, 1 or b, 1, head_dim], or what is made of them.
            packed_seq_params: documents of the whole row.
            others: Megatron's arguments for inference and cross attention.
        """
        if self.recomputation is None:
            assert not isinstance(rotary_pos_emb, projection.CosSin), (
                "Megatron's layer takes angles"
            )
            result: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states=hidden_states,
                attention_mask=attention_mask,
                context=context,
                rotary_pos_emb=rotary_pos_emb,
                packed_seq_params=packed_seq_params,
                **others,
            )
            return result
        core_attention.refuse_mask(attention_mask)
        assert rotary_pos_emb is not None
        work = _LayerWork(self, self.recomputation, rotary_pos_emb, packed_seq_params)
        if not torch.is_grad_enabled():
            return work.forward(hidden_states)[0], context
        return _Recomputed.apply(hidden_states, work), context


class _LayerWork:
    """The two parts of a layer, before and after attention, in tiles."""

    def __init__(
        self,
        layer: RecomputedLayer,
        recomputation: Recomputation,
        angles: Tensor | projection.CosSin,
        packed_seq_params: PackedSeqParams | None,
    ) -> None:
        assert not layer.hidden_dropout, "dropout is not supported: set it to 0"
        config = layer.config
        self.layer = layer
        self.recomputation = recomputation
        self.packed_seq_params = packed_seq_params
        runs = config.tensor_model_parallel_size if config.sequence_parallel else 1
        self.tiles = tiles.SequenceTiles(runs, recomputation.tile_size)
        self.projection: projection.Projection
        if recomputation.fused and not isinstance(angles, projection.CosSin):
            self.projection = projection.FusedProjection(layer, self.tiles, angles)
        else:
            self.projection = projection.Projection(layer, self.tiles, angles)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, KeptOutput]:
        """Result, attention's output and what attention keeps.

        Megatron-Core's block has entered the FP8 region of this layer, if there is one.
        """
        kept = KeptOutput()
        with torch.no_grad():
            out = self._attention(*self.projection.forward(hidden), kept)
            result = torch.empty_like(hidden)
            for tile in self.tiles.of(len(hidden)):
                residual, made = self.after_attention(hidden[tile], self.tiles.take(out, tile))
                torch.add(residual, made, out=result[tile])
        return result, out, kept

    def backward(self, kept: Kept, dresult: Tensor) -> Tensor:
        """Gradient of the input; those of the parameters are added where they belong."""
        with compat.fp8_context(self.layer.config, self.layer.layer_number):
            return self._backward(kept, dresult)

    def _backward(self, kept: Kept, dresult: Tensor) -> Tensor:
        hidden, *out_lse = kept.take()
        attention = KeptOutput()
        if out_lse:
            attention.out_lse = (out_lse[0], out_lse[1])
        del out_lse
        with torch.no_grad():
            q_k_v = self.projection.forward(hidden)
        for x in q_k_v:
            x.requires_grad_()
        with torch.enable_grad():
            out = self._attention(*q_k_v, attention)  # takes (out, lse), if there are any
        dhidden, dout = torch.empty_like(hidden), torch.empty_like(out)
        for tile in self.tiles.of(len(hidden)):
            residual = hidden[tile].detach().requires_grad_()
            attended = self.tiles.take(out.detach(), tile).requires_grad_()
            with (
                torch.enable_grad(),
                projection.result_left_out(getattr(self.layer.mlp, "linear_fc2", None)),
            ):
                summands = self.after_attention(residual, attended)
            torch.autograd.backward(summands, [dresult[tile]] * 2)
            assert residual.grad is not None
            assert attended.grad is not None
            dhidden[tile] = residual.grad
            self.tiles.put(dout, tile, attended.grad)
        gradients = torch.autograd.grad(out, q_k_v, dout)
        del out, dout, q_k_v
        kept.prefetch_previous()
        self.projection.backward(hidden, gradients, dhidden)
        return dhidden

    def after_attention(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Projection, residual, norm and MLP of a tile: the residual, and what it is to get."""
        layer = self.layer
        projected = layer.self_attention.linear_proj(attended)
        hidden = layer.self_attn_bda(layer.training, False)(projected, hidden, 0.0)
        made, bias = layer.mlp(layer.pre_mlp_layernorm(hidden))
        return hidden, made if bias is None else made + bias

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, kept: KeptOutput) -> Tensor:
        attention = self.layer.self_attention
        if isinstance(
            attention.core_attention,
            core_attention.RingCoreAttention | core_attention.CachedCoreAttention,
        ):
            out: Tensor = attention.core_attention(
                q, k, v, packed_seq_params=self.packed_seq_params, keep=kept
            )
            return out
        assert self.packed_seq_params is None, "Transformer Engine's attention has no documents"
        assert not self.recomputation.keep_attention, "Transformer Engine keeps its own output"
        result: Tensor = attention.core_attention(q, k, v, None, attention.attn_mask_type)
        return result


class _Recomputed(torch.autograd.Function):
    """The layer as one differentiable step."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, work: _LayerWork) -> Tensor:
        result, _, attention = work.forward(hidden)
        ctx.work = work
        tensors = [hidden.detach()]
        if work.recomputation.keep_attention:
            assert attention.out_lse is not None
            tensors += attention.out_lse
        ctx.kept = work.recomputation.store.keep(tensors, begins_pass=work.layer.begins_pass)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dresult: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.work.backward(ctx.kept, dresult), None
