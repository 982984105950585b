"""Rotary embedding of the extended model, for this rank's positions only."""

import math

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from megatron_ultralong.config.rope import AnglePrecision
from megatron_ultralong.model import yarn
from megatron_ultralong.sequence.assignment import Assignment, zigzag
from megatron_ultralong.sequence.documents import document_positions


class LocalRotaryEmbedding(RotaryEmbedding):
    """Stands where GPTModel has its ``rotary_pos_emb``, and is called the same way.

    Megatron's own makes a float32 table of the whole row on every rank, then cuts it. Here the
    angles of the local positions are made in float64 and wrapped to [-pi, pi] before they are
    rounded, so cos and sin are right to 1e-6 at any position. The attention temperature is not
    in the angles: it belongs into ``softmax_scale`` (:func:`softmax_scale`).
    """

    def __init__(
        self,
        scaling: yarn.RopeScaling,
        head_dim: int,
        rotary_base: float,
        cp_group: dist.ProcessGroup | None,
        device: torch.device,
        angle_precision: AnglePrecision = "exact",
    ) -> None:
        super().__init__(
            kv_channels=head_dim, rotary_percent=1.0, use_cpu_initialization=True, cp_group=cp_group
        )
        self.inv_freq_float64 = yarn.inv_freq(scaling, head_dim, rotary_base)
        self.device = device
        self.angle_precision = angle_precision
        self.assignment: Assignment | None = None
        """Chunks of the context-parallel ranks in the next forward pass; zigzag if None."""
        self.restarts: tuple[int, ...] | None = None
        """Boundaries of the row at which its positions start again in the next forward pass."""
        self._key: tuple[object, ...] | None = None
        self._angles: torch.Tensor | None = None

    def forward(
        self,
        max_seq_len: int,
        offset: int = 0,
        packed_seq: bool = False,
        cp_group: dist.ProcessGroup | None = None,
    ) -> torch.Tensor:
        """Angles in radians, float32, shape [max_seq_len / cp, 1, 1, head_dim].

        Args:
            max_seq_len: tokens of the whole row.
            offset: position of its first token.
            packed_seq: leave the row whole (Megatron's ``thd`` rows are cut elsewhere).
            cp_group: context-parallel group that the row is spread over.
        """
        group = cp_group if cp_group is not None else self.cp_group
        size = 1 if group is None or packed_seq else group.size()
        rank = 0 if size == 1 else group.rank()
        assignment = self.assignment or zigzag(size)
        key = (max_seq_len, offset, rank, assignment, self.restarts)
        if self._key != key or self._angles is None:
            positions = assignment.positions(rank, max_seq_len)
            if self.restarts is not None:
                edges = np.asarray(self.restarts)
                positions = torch.from_numpy(document_positions(positions.numpy(), edges))
            # One row length is in use at a time: a larger cache would hold stale tables.
            self._key, self._angles = key, self._local_angles(positions + offset)
        return self._angles

    def angles_at(self, positions: torch.Tensor) -> torch.Tensor:
        """Angles of tokens at any positions: int64 [s, b] -> float32 [s, b, 1, head_dim]."""
        angles_N11D = self._local_angles(positions.flatten())
        return angles_N11D.reshape(*positions.shape, 1, angles_N11D.shape[-1])

    def _local_angles(self, positions_S: torch.Tensor) -> torch.Tensor:
        if self.angle_precision == "exact":
            angles_SF = yarn.wrapped_angles(positions_S.numpy(), self.inv_freq_float64)
            local_SF = torch.from_numpy(angles_SF.astype(np.float32))
        else:
            frequencies_F = torch.from_numpy(self.inv_freq_float64).float()
            local_SF = torch.outer(positions_S.float(), frequencies_F)
        return torch.cat((local_SF, local_SF), dim=-1)[:, None, None, :].to(self.device)


def softmax_scale(scaling: yarn.RopeScaling, head_dim: int) -> float:
    """Scale of the attention logits: ``attention_factor^2 / sqrt(head_dim)``.

    YaRN multiplies q and k by the factor (arXiv 2309.00071, section 3.4); their product has its
    square, and no fused kernel can lose it here.
    """
    return yarn.attention_factor(scaling) ** 2 / math.sqrt(head_dim)
