"""Continued pretraining at an extended context."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from megatron_ultralong import yarn
from megatron_ultralong.checkpoint.folder import resolve
from megatron_ultralong.checkpoint.metadata import CheckpointMetadata, load_metadata
from megatron_ultralong.config import PretrainConfig
from megatron_ultralong.data.manifest import Manifest, load_manifest
from megatron_ultralong.data.rows import PackedRows
from megatron_ultralong.errors import InputError
from megatron_ultralong.mcore.parallel import flat_fields, world_size
from megatron_ultralong.plan.given import plan_text
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.log import IterationRecord
from megatron_ultralong.training.loop import train
from megatron_ultralong.training.offloading import check_offloading
from megatron_ultralong.training.rows import PackedRowSource
from megatron_ultralong.training.run_folder import RunFolder, config_text
from megatron_ultralong.training.sinks import check_sinks


def pretrain(config: PretrainConfig) -> list[IterationRecord]:
    """Train; returns the records of the iterations done, none if the run was complete.

    Raises:
        InputError: bad input; see :func:`check_run`.
    """
    return train(check_run(config, world_size()))


def dry_run(config: PretrainConfig) -> str:
    """Check all that a run would check before its weights are loaded; its configuration and plan.

    The plan stands in comments, so that the text is a configuration file.

    Raises:
        InputError: bad input; see :func:`check_run` and :meth:`RunFolder.check`.
    """
    inputs = check_run(config, world_size())
    resumed = RunFolder(inputs.config, inputs.result).check()
    start = f"goes on from {resumed.folder}" if resumed.folder else f"begins with {config.load}"
    plan = plan_text(inputs.config, inputs.source.model, world_size(), _device_name())
    comments = "".join(f"# {line}".rstrip() + "\n" for line in plan.splitlines())
    return f"# a dry run: this one {start}\n{config_text(inputs.config)}{comments}"


def _device_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def check_run(config: PretrainConfig, num_ranks: int) -> RunInputs:
    """Check everything that can be known before a rank is started.

    Raises:
        InputError: a rule between configuration, checkpoint and data is broken.
    """
    config.check(num_ranks)
    check_sinks(config)
    source = load_metadata(Path(config.load))
    resolve(config.load)
    config.parallel.check_model(source.model)
    data = Path(config.data.data_path)
    manifest = load_manifest(data)
    train_rows = PackedRows(data / "train")
    length = config.data.seq_length or train_rows.seq_length
    if length != train_rows.seq_length:
        raise InputError(
            f"seq_length ({length}) is not the length of the rows in {data} "
            f"({train_rows.seq_length}): leave --seq-length out, or prepare rows of {length}"
        )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_length=length))
    config.parallel.check_seq_length(length)
    config.check_positions(source.model.max_position_embeddings)
    check_offloading(config, source.model, num_ranks)
    _check_tokenizer(config, source, manifest)
    rope_scaling = config.rope.scaling(source.rope_scaling)
    yarn.hf_rope_scaling(rope_scaling)  # what could not be exported is not trained for hours
    if config.data.document_mask == "block" and not manifest.separator_ids:
        raise InputError(
            f"document_mask 'block' needs a separator, but {data} was prepared without one: "
            "its documents cannot be told apart; prepare it again with --separator"
        )
    return RunInputs(
        config=config,
        source=source,
        result=dataclasses.replace(
            source,
            model=dataclasses.replace(
                source.model,
                max_position_embeddings=config.rope.max_positions(
                    source.model.max_position_embeddings
                ),
            ),
            rope_scaling=rope_scaling,
            separator_ids=tuple(manifest.separator_ids),
            angle_precision=config.rope.angle_precision,
        ),
        train_rows=_source(config, manifest, train_rows),
        valid_rows=(
            _source(config, manifest, PackedRows(data / "valid")) if config.eval_interval else None
        ),
        agreed=flat_fields(manifest, "data manifest"),
    )


def _source(config: PretrainConfig, manifest: Manifest, rows: PackedRows) -> PackedRowSource:
    return PackedRowSource(rows, config.data.seed, tuple(manifest.separator_ids))


def _check_tokenizer(
    config: PretrainConfig, source: CheckpointMetadata, manifest: Manifest
) -> None:
    if manifest.vocab_size > source.model.vocab_size:
        raise InputError(
            f"the tokenizer of {config.data.data_path} has {manifest.vocab_size} ids, the model "
            f"in {config.load} has {source.model.vocab_size} embeddings: prepare the data with "
            f"the model's own tokenizer ({config.load}/huggingface)"
        )
    if source.tokenizer_sha256 and manifest.tokenizer_sha256 != source.tokenizer_sha256:
        raise InputError(
            f"the tokenizer of {config.data.data_path} (sha256 {manifest.tokenizer_sha256[:12]}) "
            f"is not that of {config.load} (sha256 {source.tokenizer_sha256[:12]}): the same "
            "ids would mean other text; prepare the data with the model's own tokenizer "
            f"({config.load}/huggingface)"
        )
