"""Instruction tuning on conversations, packed whole to rows or one in each."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.data.chat_manifest import load_chat_manifest
from megatron_ultralong.data.chat_rows import ChatRows, chat_rows_of
from megatron_ultralong.data.manifest import TOKENIZER_FOLDER
from megatron_ultralong.data.template_check import folder_template
from megatron_ultralong.errors import InputError
from megatron_ultralong.mcore.parallel import flat_fields, world_size
from megatron_ultralong.sft_config import SftConfig
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
from megatron_ultralong.training.rows import ChatRowSource


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
    if not config.data.data_path:
        raise InputError(f"--data-path is needed: see `ultralong {config.verb} --help`")
    data = Path(config.data.data_path)
    manifest = load_chat_manifest(data)
    config = config.with_iterations(len(ChatRows(data / "train")))
    source = check_source(config, num_ranks)
    vocab_size = source.model.vocab_size
    train_rows = chat_rows_of(data, "train", manifest, vocab_size)
    config = with_row_length(config, train_rows.seq_length)
    longest = max(split.longest for split in manifest.splits.values())
    config.check_conversations(source.model.max_position_embeddings, source.rope_scaling, longest)
    check_tokenizer(
        *(config.data.data_path, config.load, source),
        manifest.vocab_size,
        manifest.tokenizer_sha256,
    )
    valid_rows = None
    if config.eval_interval:
        if "valid" not in manifest.splits:
            raise InputError(
                f"eval_interval ({config.eval_interval}) needs held-out conversations, and {data} "
                "has none: prepare it with a --valid-fraction above 0, or leave the interval 0"
            )
        valid_rows = ChatRowSource(
            chat_rows_of(data, "valid", manifest, vocab_size), config.data.seed
        )
    return RunInputs(
        config=config,
        source=source,
        result=check_result(config, source, num_ranks),
        train_rows=ChatRowSource(train_rows, config.data.seed),
        valid_rows=valid_rows,
        agreed=flat_fields(manifest, "data manifest"),
        remarks=check_attention(config, source.model),
        template=folder_template(data / TOKENIZER_FOLDER),
    )
