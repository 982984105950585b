"""The output layer and the cross entropy in tiles of the sequence: full logits never exist.

At 262,144 local tokens and TP 8, the logits of Llama 3 are 4.2e9 numbers: 16 GiB in float32,
several times over, and more than an int32 can index. Here a tile of tokens goes through the output
layer and the loss before the next one; backward makes the tile's logits again. That is one more
pass of the output layer: for Llama 8B 1.9 % of a training step's FLOPs at 8K tokens, 0.1 % at 1M.

The plain formula, with ``z = h W^T`` over the vocabulary::

    loss = log(sum(exp(z))) - z[label]      dz = softmax(z) - onehot(label)
    dh = dz W                               dW = dz^T h
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch.autograd.function import once_differentiable

from megatron_ultralong.mcore.loss import token_scores


class _TiledCrossEntropy(torch.autograd.Function):
    """Losses of this rank's part ``weight_VH`` of the vocabulary, summed over ``group``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_T: torch.Tensor,
        group: dist.ProcessGroup,
        tile_size: int,
    ) -> torch.Tensor:
        lse_T = torch.empty(labels_T.shape, dtype=torch.float32, device=hidden_TH.device)
        label_logit_T = torch.empty_like(lse_T)
        first, size = group.rank() * weight_VH.shape[0], weight_VH.shape[0]
        for tile in _tiles(labels_T.numel(), tile_size):
            logits_TV = (hidden_TH[tile] @ weight_VH.t()).float()
            largest_T = logits_TV.amax(dim=-1)
            dist.all_reduce(largest_T, op=dist.ReduceOp.MAX, group=group)
            here_T, index_T = _labels_here(labels_T[tile], first, size)
            picked_T = logits_TV.gather(-1, index_T[:, None]).squeeze(-1)
            # Both sums over the vocabulary in one message; the label is in one rank's part.
            sums_2T = torch.stack(
                (
                    torch.exp(logits_TV - largest_T[:, None]).sum(dim=-1),
                    torch.where(here_T, picked_T, torch.zeros_like(picked_T)),
                )
            )
            dist.all_reduce(sums_2T, group=group)
            lse_T[tile] = sums_2T[0].log() + largest_T
            label_logit_T[tile] = sums_2T[1]
        ctx.save_for_backward(hidden_TH, weight_VH, labels_T, lse_T)
        ctx.first, ctx.tile_size = first, tile_size
        return lse_T - label_logit_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss_T: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TH, weight_VH, labels_T, lse_T = ctx.saved_tensors
        dhidden_TH = torch.empty_like(hidden_TH)
        dweight_VH = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device)
        for tile in _tiles(labels_T.numel(), ctx.tile_size):
            logits_TV = (hidden_TH[tile] @ weight_VH.t()).float()
            dlogits_TV = torch.exp(logits_TV - lse_T[tile][:, None])
            here_T, index_T = _labels_here(labels_T[tile], ctx.first, weight_VH.shape[0])
            dlogits_TV.scatter_add_(-1, index_T[:, None], -here_T.float()[:, None])
            dlogits_TV *= dloss_T[tile][:, None]
            dlogits_TV = dlogits_TV.to(weight_VH.dtype)
            dhidden_TH[tile] = dlogits_TV @ weight_VH
            dweight_VH += dlogits_TV.t() @ hidden_TH[tile]
        return dhidden_TH, dweight_VH.to(weight_VH.dtype), None, None, None


def _tiles(length: int, tile_size: int) -> list[slice]:
    """Tiles of a sequence: ``5, 2 -> [0:2, 2:4, 4:5]``."""
    return [slice(start, min(start + tile_size, length)) for start in range(0, length, tile_size)]


def _labels_here(
    labels_T: torch.Tensor, first: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether labels lie in the part ``[first, first + size)``, and their row there (else 0)."""
    here_T = (labels_T >= first) & (labels_T < first + size)
    return here_T, torch.where(here_T, labels_T - first, torch.zeros_like(labels_T))


class TiledLoss:
    """Stands where GPTModel has its output layer's forward and ``compute_language_model_loss``.

    A model that was given one makes losses where it is given labels, and without them returns
    hidden states, for :meth:`scores`; it makes no logits.
    """

    def __init__(self, model: GPTModel, tile_size: int) -> None:
        assert model.post_process, "the loss belongs to the last pipeline stage"
        self._layer = model.output_layer
        self._group = model.pg_collection.tp
        self._tile_size = tile_size
        self._weight: torch.Tensor | None = None

    def install(self, model: GPTModel) -> None:
        """Put it into its places in ``model``."""
        model.tiled_loss = self
        model.output_layer.forward = self.pass_hidden
        model.compute_language_model_loss = self.losses

    def pass_hidden(
        self,
        hidden_states: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, None]:
        """The output layer's call: hands the hidden states on, and notes a tied weight."""
        assert not runtime_gather_output, "a model with tiled loss returns no logits"
        self._weight = weight
        return hidden_states, None

    def losses(self, labels: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Losses in nats, [b, s], from labels [b, s] and hidden states [s, b, h]."""
        if self._layer.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(hidden_states, group=self._group)
        else:
            hidden_SBH = copy_to_tensor_model_parallel_region(hidden_states, group=self._group)
        losses_T: torch.Tensor = _TiledCrossEntropy.apply(
            hidden_SBH.flatten(0, 1),
            self._output_weight(),
            labels.transpose(0, 1).flatten(),
            self._group,
            self._tile_size,
        )
        return losses_T.view(hidden_SBH.shape[:2]).transpose(0, 1)

    @torch.no_grad()
    def scores(
        self, labels: torch.Tensor, hidden_BSH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss in nats, and whether the label has the largest logit; both [b, s].

        Args:
            labels: token ids, [b, s].
            hidden_BSH: what the model returned without labels.
        """
        if self._layer.sequence_parallel:
            hidden_SBH = hidden_BSH.transpose(0, 1).contiguous()
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=self._group)
            hidden_BSH = hidden_SBH.transpose(0, 1)
        weight_VH = self._output_weight()
        tiles = [
            token_scores(hidden_BSH[:, tile] @ weight_VH.t(), labels[:, tile], self._group)
            for tile in _tiles(labels.shape[1], self._tile_size)
        ]
        losses, correct = zip(*tiles, strict=True)
        return torch.cat(losses, dim=1), torch.cat(correct, dim=1)

    def _output_weight(self) -> torch.Tensor:
        weight = self._layer.weight if self._weight is None else self._weight
        assert weight is not None, "the weight of a tied output layer comes with its call"
        return weight
