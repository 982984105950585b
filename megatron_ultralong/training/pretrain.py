"""Continued pretraining at an extended context."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_ultralong.config import PretrainConfig
from megatron_ultralong.data.manifest import Manifest, load_manifest
from megatron_ultralong.data.rows import PackedRows, rows_of
from megatron_ultralong.errors import InputError
from megatron_ultralong.mcore.parallel import flat_fields, world_size
from megatron_ultralong.training.attention_check import check_attention
from megatron_ultralong.training.checks import (
    check_result,
    check_source,
    check_tokenizer,
    with_row_length,
)
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.log import IterationRecord
from megatron_ultralong.training.loop import train
from megatron_ultralong.training.rows import PackedRowSource


def pretrain(config: PretrainConfig) -> list[IterationRecord]:
    """Train; returns the records of the iterations done, none if the run was complete.

    Raises:
        InputError: bad input; see :func:`check_run`.
    """
    return train(check_run(config, world_size()))


def check_run(config: PretrainConfig, num_ranks: int) -> RunInputs:
    """Check everything that can be known before a rank is started.

    Raises:
        InputError: a rule between configuration, checkpoint and data is broken.
    """
    source = check_source(config, num_ranks)
    data = Path(config.data.data_path)
    manifest = load_manifest(data)
    searchable = manifest.separators_tell_all or (
        config.data.document_mask == "none" and manifest.packing != "whole"
    )

    def rows(split: str) -> PackedRows:
        return rows_of(data, split, manifest, source.model.vocab_size, searchable=searchable)

    train_rows = rows("train")
    config = with_row_length(config, train_rows.seq_length)
    config.check_positions(source.model.max_position_embeddings, source.rope_scaling)
    check_tokenizer(
        *(config.data.data_path, config.load, source),
        manifest.vocab_size,
        manifest.tokenizer_sha256,
    )
    result = check_result(config, source, num_ranks)
    if config.data.document_mask == "block" and not manifest.separator_ids:
        raise InputError(
            f"document_mask 'block' needs a separator, but {data} was prepared without one: "
            "its documents cannot be told apart; prepare it again with --separator"
        )
    return RunInputs(
        config=config,
        source=source,
        result=dataclasses.replace(result, separator_ids=tuple(manifest.separator_ids)),
        train_rows=_source(config, manifest, train_rows),
        valid_rows=_source(config, manifest, rows("valid")) if config.eval_interval else None,
        agreed=flat_fields(manifest, "data manifest"),
        remarks=check_attention(config, source.model),
    )


def _source(config: PretrainConfig, manifest: Manifest, rows: PackedRows) -> PackedRowSource:
    return PackedRowSource(rows, config.data.seed, tuple(manifest.separator_ids))
