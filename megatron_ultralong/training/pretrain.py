"""Continued pretraining at an extended context."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.config.plain_values import flat_fields
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.data.rows.manifest import Manifest
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.program.ranks import world_size
from megatron_ultralong.training.checks import check_attention, check_machine, check_result
from megatron_ultralong.training.early_checks import check_packed_run
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.loop import train
from megatron_ultralong.training.rows import PackedRowSource
from megatron_ultralong.training.telling.log import IterationRecord


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
    early = check_packed_run(config, num_ranks)
    config, source, manifest = early.config, early.source, early.manifest
    check_machine(config)
    result = check_result(config, source, num_ranks)
    return RunInputs(
        config=config,
        source=source,
        result=dataclasses.replace(result, separator_ids=tuple(manifest.separator_ids)),
        train_rows=_source(config, manifest, early.train_rows),
        valid_rows=_source(config, manifest, early.valid_rows) if early.valid_rows else None,
        agreed=flat_fields(manifest, "data manifest"),
        remarks=check_attention(config, source.model),
    )


def _source(config: PretrainConfig, manifest: Manifest, rows: PackedRows) -> PackedRowSource:
    return PackedRowSource(rows, config.data.seed, tuple(manifest.separator_ids))
