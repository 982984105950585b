"""The output layer and the cross entropy in tiles of the sequence: full logits never exist.

At 262,144 local tokens and TP 8, the logits of Llama 3 are 4.2e9 numbers: 16 GiB in float32,
several times over, and more than an int32 can index. Here a tile of tokens goes through the output
layer and the loss before the next one; backward makes the tile's logits again. That is one more
pass of the output layer: for Llama 8B 1.9 % of a training step's FLOPs at 8K tokens, 0.1 % at 1M.

The plain formula, with ``z = h W^T`` over the vocabulary::

    loss = log(sum(exp(z))) - z[label]      dz = softmax(z) - onehot(label)
    dh = dz W                               dW = dz^T h
"""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import mappings
from torch.autograd.function import once_differentiable

from megatron_ultralong.mcore.batch import token_scores
from megatron_ultralong.mcore.tiles import SequenceTiles


@dataclasses.dataclass(frozen=True)
class _Tiling:
    """How hidden states are cut, and where their parts and those of the vocabulary are."""

    tiles: SequenceTiles
    group: dist.ProcessGroup
    """Ranks that hold the parts of the vocabulary, and of the sequence if that is split."""

    def gather(self, hidden_NBH: torch.Tensor, tile: slice) -> torch.Tensor:
        """All hidden states of a tile, [T, b, h]; under ``no_grad``."""
        if self.tiles.num_runs == 1:
            return hidden_NBH[tile]
        whole: torch.Tensor = mappings.gather_from_sequence_parallel_region(
            hidden_NBH[tile].contiguous(), group=self.group
        )
        return whole

    def reduce(self, dhidden_TBH: torch.Tensor) -> torch.Tensor:
        """Sum of all ranks' gradients of a tile, this rank's run of it; under ``no_grad``."""
        reduce = (
            mappings.reduce_from_tensor_model_parallel_region
            if self.tiles.num_runs == 1
            else mappings.reduce_scatter_to_sequence_parallel_region
        )
        total: torch.Tensor = reduce(dhidden_TBH, group=self.group)
        return total


class _TiledCrossEntropy(torch.autograd.Function):
    """Losses [s, b] of hidden states [n, b, h] and labels [s, b], summed over the vocabulary.

    ``weight_VH`` is this rank's part of it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NBH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_SB: torch.Tensor,
        tiling: _Tiling,
    ) -> torch.Tensor:
        lse_SB = torch.empty(labels_SB.shape, dtype=torch.float32, device=hidden_NBH.device)
        label_logit_SB = torch.empty_like(lse_SB)
        tiles = tiling.tiles
        for tile in tiles.of(len(hidden_NBH)):
            hidden_TBH, labels_TB = tiling.gather(hidden_NBH, tile), tiles.take(labels_SB, tile)
            lse_TB, label_logit_TB = _tile_terms(hidden_TBH, weight_VH, labels_TB, tiling.group)
            tiles.put(lse_SB, tile, lse_TB)
            tiles.put(label_logit_SB, tile, label_logit_TB)
        ctx.save_for_backward(hidden_NBH, weight_VH, labels_SB, lse_SB)
        ctx.tiling = tiling
        return lse_SB - label_logit_SB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss_SB: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NBH, weight_VH, labels_SB, lse_SB = ctx.saved_tensors
        tiling: _Tiling = ctx.tiling
        tiles = tiling.tiles
        dhidden_NBH = torch.empty_like(hidden_NBH)
        dweight_VH = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device)
        for tile in tiles.of(len(hidden_NBH)):
            hidden_TBH = tiling.gather(hidden_NBH, tile)
            dhidden_TBH = _tile_gradients(
                hidden_TBH,
                weight_VH,
                tiles.take(labels_SB, tile),
                tiles.take(lse_SB, tile),
                tiles.take(dloss_SB, tile),
                dweight_VH,
                tiling.group,
            )
            dhidden_NBH[tile] = tiling.reduce(dhidden_TBH)
        return dhidden_NBH, dweight_VH.to(weight_VH.dtype), None, None


def _tile_terms(
    hidden_TBH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_TB: torch.Tensor,
    group: dist.ProcessGroup,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp and logit of the label of every token, over the whole vocabulary."""
    logits_TBV = (hidden_TBH @ weight_VH.t()).float()
    largest_TB = logits_TBV.amax(dim=-1)
    dist.all_reduce(largest_TB, op=dist.ReduceOp.MAX, group=group)
    here_TB, index_TB = _labels_here(labels_TB, weight_VH, group)
    picked_TB = logits_TBV.gather(-1, index_TB[..., None]).squeeze(-1)
    # Both sums over the vocabulary in one message; the label is in one rank's part.
    sums_2TB = torch.stack(
        (
            logits_TBV.sub_(largest_TB[..., None]).exp_().sum(dim=-1),
            torch.where(here_TB, picked_TB, torch.zeros_like(picked_TB)),
        )
    )
    dist.all_reduce(sums_2TB, group=group)
    return sums_2TB[0].log() + largest_TB, sums_2TB[1]


def _tile_gradients(
    hidden_TBH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_TB: torch.Tensor,
    lse_TB: torch.Tensor,
    dloss_TB: torch.Tensor,
    dweight_VH: torch.Tensor,
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """Gradient of hidden states through this rank's part; that of the weight is added."""
    dlogits_TBV = (hidden_TBH @ weight_VH.t()).float().sub_(lse_TB[..., None]).exp_()
    here_TB, index_TB = _labels_here(labels_TB, weight_VH, group)
    dlogits_TBV.scatter_add_(-1, index_TB[..., None], -here_TB.float()[..., None])
    dlogits_TBV *= dloss_TB[..., None]
    dlogits_TBV = dlogits_TBV.to(weight_VH.dtype)
    dweight_VH += dlogits_TBV.flatten(0, 1).t() @ hidden_TBH.flatten(0, 1)
    return dlogits_TBV @ weight_VH


def _labels_here(
    labels: torch.Tensor, weight_VH: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether labels lie in this rank's part of the vocabulary, and their row there (else 0)."""
    size = weight_VH.shape[0]
    first = group.rank() * size
    here = (labels >= first) & (labels < first + size)
    return here, torch.where(here, labels - first, torch.zeros_like(labels))


class TiledLoss:
    """Stands where GPTModel has its output layer's forward and ``compute_language_model_loss``.

    A model that was given one makes losses where it is given labels, and without them returns
    hidden states, for :meth:`scores`; it makes no logits.
    """

    def __init__(self, model: GPTModel, tile_size: int) -> None:
        assert model.post_process, "the loss belongs to the last pipeline stage"
        self._layer = model.output_layer
        group = model.pg_collection.tp
        runs = group.size() if self._layer.sequence_parallel else 1
        self._tiling = _Tiling(SequenceTiles(runs, tile_size), group)
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
        """Losses in nats, [b, s].

        Args:
            labels: token ids, [b, s].
            hidden_states: [s, b, h], or this rank's run of them under sequence parallelism.
        """
        losses_SB: torch.Tensor = _TiledCrossEntropy.apply(
            hidden_states, self._output_weight(), labels.t(), self._tiling
        )
        return losses_SB.t()

    @torch.no_grad()
    def scores(
        self, labels: torch.Tensor, hidden_BNH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss in nats, and whether the label has the largest logit; both [b, s].

        Args:
            labels: token ids, [b, s].
            hidden_BNH: what the model returned without labels.
        """
        hidden_NBH, labels_SB = hidden_BNH.transpose(0, 1), labels.t()
        weight_VH = self._output_weight()
        losses_SB = torch.empty(labels_SB.shape, dtype=torch.float32, device=labels.device)
        correct_SB = torch.empty(labels_SB.shape, dtype=torch.bool, device=labels.device)
        tiles, group = self._tiling.tiles, self._tiling.group
        for tile in tiles.of(len(hidden_NBH)):
            logits_TBV = self._tiling.gather(hidden_NBH, tile) @ weight_VH.t()
            labels_BT = tiles.take(labels_SB, tile).t()
            losses_BT, correct_BT = token_scores(logits_TBV.transpose(0, 1), labels_BT, group)
            tiles.put(losses_SB, tile, losses_BT.t())
            tiles.put(correct_SB, tile, correct_BT.t())
        return losses_SB.t(), correct_SB.t()

    @torch.no_grad()
    def logits(self, hidden_BSH: torch.Tensor) -> torch.Tensor:
        """Logits over the whole vocabulary on every tensor-parallel rank, float32 [b, s, V].

        Args:
            hidden_BSH: of the few tokens that need them, from what the model returned without
                labels and without sequence parallelism.
        """
        tiles, group = self._tiling.tiles, self._tiling.group
        assert tiles.num_runs == 1, "under sequence parallelism no rank has all tokens"
        local = (hidden_BSH @ self._output_weight().t()).contiguous()
        if group.size() == 1:
            return _at_least_float32(local)
        parts = [torch.empty_like(local) for _ in range(group.size())]
        dist.all_gather(parts, local, group=group)
        return _at_least_float32(torch.cat(parts, dim=-1))

    def _output_weight(self) -> torch.Tensor:
        weight = self._layer.weight if self._weight is None else self._weight
        assert weight is not None, "the weight of a tied output layer comes with its call"
        return weight


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
