"""What every kind of training checks of its checkpoint and rows before a rank is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from megatron_ultralong import yarn
from megatron_ultralong.checkpoint.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.metadata import CheckpointMetadata, load_metadata
from megatron_ultralong.config import TrainingConfig
from megatron_ultralong.errors import InputError
from megatron_ultralong.mcore.compat import check_layers
from megatron_ultralong.training.offloading import check_offloading
from megatron_ultralong.training.optimizer import check_optimizer
from megatron_ultralong.training.sinks import check_sinks

Config = TypeVar("Config", bound=TrainingConfig)


def check_source(config: TrainingConfig, num_ranks: int) -> CheckpointMetadata:
    """What the run starts from.

    Raises:
        InputError: the configuration contradicts itself, or the checkpoint is missing or cannot be
            split this way.
    """
    config.check(num_ranks)
    check_sinks(config)
    check_layers(config.layers, deterministic=config.deterministic_mode, is_saved=bool(config.save))
    check_optimizer(config.optimizer)
    source = load_metadata(Path(config.load))
    # Before anything is built: memory is bounded by the weights that are there.
    MegatronCheckpoint(config.load, verify_checksums=config.checkpoint.verify_checksums)
    config.parallel.check_model(source.model)
    return source


def with_row_length(config: Config, row_length: int) -> Config:
    """The configuration with the length of the rows.

    Raises:
        InputError: they are not of the length asked for, or cannot be split this way.
    """
    data = config.data
    length = data.seq_length or row_length
    if length != row_length:
        raise InputError(
            f"seq_length ({length}) is not the length of the rows in {data.data_path} "
            f"({row_length}): leave --seq-length out, or prepare rows of {length}"
        )
    config.parallel.check_seq_length(length)
    config = dataclasses.replace(config, data=dataclasses.replace(data, seq_length=length))
    config.check_layers()
    return config


def check_result(
    config: TrainingConfig, source: CheckpointMetadata, num_ranks: int
) -> CheckpointMetadata:
    """What the run's checkpoints will say of themselves; its separators are those of ``source``.

    Raises:
        InputError: activations do not fit the host, or no export could carry the rotary scaling.
    """
    check_offloading(config, source.model, num_ranks)
    rope_scaling = config.rope.scaling(source.rope_scaling)
    yarn.hf_rope_scaling(rope_scaling)  # what could not be exported is not trained for hours
    positions = config.rope.max_positions(source.model.max_position_embeddings, source.rope_scaling)
    result = dataclasses.replace(
        source,
        model=dataclasses.replace(source.model, max_position_embeddings=positions),
        rope_scaling=rope_scaling,
        angle_precision=config.rope.angle_precision,
    )
    return result.after_training(source, config.data.seq_length)


def check_tokenizer(
    data_path: str, load: str, source: CheckpointMetadata, vocab_size: int, sha256: str
) -> None:
    """Check that ids of the rows' tokenizer mean to the model what they mean to the rows.

    Raises:
        InputError: they do not.
    """
    if vocab_size > source.model.vocab_size:
        raise InputError(
            f"the tokenizer of {data_path} has {vocab_size} ids, the model "
            f"in {load} has {source.model.vocab_size} embeddings: prepare the data with "
            f"the model's own tokenizer ({load}/huggingface)"
        )
    if source.tokenizer_sha256 and sha256 != source.tokenizer_sha256:
        raise InputError(
            f"the tokenizer of {data_path} (sha256 {sha256[:12]}) "
            f"is not that of {load} (sha256 {source.tokenizer_sha256[:12]}): the same "
            "ids would mean other text; prepare the data with the model's own tokenizer "
            f"({load}/huggingface)"
        )
