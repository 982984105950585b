"""A model on disk under another rotary embedding than its own: its weights, extended, untrained."""

from __future__ import annotations

import dataclasses

import torch

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.checkpoint.formats.weight_map import Weight
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import RopeScaling, describe, hf_rope_scaling
from megatron_ultralong.program.ending import tell


@dataclasses.dataclass(frozen=True)
class ExtendedModel:
    """The weights of ``source`` for the positions and the scaling of a :class:`RopeConfig`."""

    source: HuggingFaceFolder | MetaFolder
    rope: RopeConfig

    @property
    def format(self) -> str:
        """Name of its format."""
        return self.source.format

    @property
    def rope_scaling(self) -> RopeScaling:
        """What is done to the rotary frequencies."""
        return self.rope.scaling(self.source.rope_scaling)

    @property
    def model(self) -> ModelConfig:
        """Its shape."""
        model = self.source.model
        positions = self.rope.max_positions(model.max_position_embeddings, self.source.rope_scaling)
        return dataclasses.replace(model, max_position_embeddings=positions)

    @property
    def trained_seq_length(self) -> int | None:
        """Positions that the weights were trained for, where they are not the model's own."""
        if self.rope_scaling == self.source.rope_scaling:
            return None
        models = (self.source.model, self.model)
        return min(model.max_position_embeddings for model in models)

    def dtype(self, weight: Weight) -> torch.dtype:
        """Dtype that ``weight`` is stored in."""
        return self.source.dtype(weight)

    def read(self, weight: Weight) -> tuple[torch.Tensor, ...]:
        """The parts of ``weight``."""
        return self.source.read(weight)

    def check(self) -> None:
        """Say what becomes of the rotary embedding, where it changes.

        Raises:
            InputError: no rope block can express it, or the positions would be too many.
        """
        hf_rope_scaling(self.rope_scaling)
        self.model.check("--rope-scaling")
        source = self.source
        positions = source.model.max_position_embeddings
        if self.rope_scaling != source.rope_scaling:
            before = describe(source.rope_scaling, positions)
            after = describe(self.rope_scaling, self.model.max_position_embeddings)
            tell(f"rotary: {before} -> {after}; the weights are not trained for it")
        for line in self.rope.warnings(positions, source.rope_scaling):
            tell(line)
