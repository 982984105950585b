"""What a run needs of this machine, and what its checkpoints will say of themselves."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.mcore.compat import check_layers
from megatron_ultralong.training.offloading import check_offloading
from megatron_ultralong.training.optimizer import check_optimizer
from megatron_ultralong.training.telling.sinks import check_sinks


def check_machine(config: TrainingConfig) -> None:
    """Check that the libraries here can do what is asked for, and that the weights can be read.

    Raises:
        InputError: they cannot.
    """
    check_sinks(config)
    check_layers(config.layers, deterministic=config.deterministic_mode, is_saved=bool(config.save))
    check_optimizer(config.optimizer)
    # Before anything is built: memory is bounded by the weights that are there.
    MegatronCheckpoint(config.load, verify_checksums=config.checkpoint.verify_checksums)


def check_result(
    config: TrainingConfig, source: CheckpointMetadata, num_ranks: int
) -> CheckpointMetadata:
    """What the run's checkpoints will say of themselves; its separators are those of ``source``.

    Raises:
        InputError: activations do not fit the host.
    """
    check_offloading(config, source.model, num_ranks)
    rope_scaling = config.rope.scaling(source.rope_scaling)
    positions = config.rope.max_positions(source.model.max_position_embeddings, source.rope_scaling)
    result = dataclasses.replace(
        source,
        model=dataclasses.replace(source.model, max_position_embeddings=positions),
        rope_scaling=rope_scaling,
        angle_precision=config.rope.angle_precision,
    )
    return result.after_training(source, config.data.seq_length)
