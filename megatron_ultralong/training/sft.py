"""Instruction tuning on conversations, packed whole to rows or one in each."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.config.plain_values import flat_fields
from megatron_ultralong.config.sft import SftConfig
from megatron_ultralong.data.rows.manifest import TOKENIZER_FOLDER
from megatron_ultralong.data.tokenize.folder_template import folder_template
from megatron_ultralong.program.ranks import world_size
from megatron_ultralong.training.checks import check_attention, check_machine, check_result
from megatron_ultralong.training.early_checks import check_chat_run
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.loop import train
from megatron_ultralong.training.rows import ChatRowSource
from megatron_ultralong.training.telling.log import IterationRecord


def sft(config: SftConfig) -> list[IterationRecord]:
    """Train; returns the records of the iterations done, none if the run was complete.

    Raises:
        InputError: bad input; see :func:`check_sft`.
    """
    return train(check_sft(config, world_size()))


def check_sft(config: SftConfig, num_ranks: int) -> RunInputs:
    """Check everything that can be known before a rank is started.

    Raises:
        InputError: a rule between configuration, checkpoint and conversations is broken.
    """
    early = check_chat_run(config, num_ranks)
    config, source = early.config, early.source
    check_machine(config)
    seed = config.data.seed
    return RunInputs(
        config=config,
        source=source,
        result=check_result(config, source, num_ranks),
        train_rows=ChatRowSource(early.train_rows, seed),
        valid_rows=ChatRowSource(early.valid_rows, seed) if early.valid_rows else None,
        agreed=flat_fields(early.manifest, "data manifest"),
        remarks=check_attention(config, source.model),
        template=folder_template(Path(config.data.data_path) / TOKENIZER_FOLDER),
    )
