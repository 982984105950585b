"""A row that a run cannot train on ends it before its first step, on every rank alike."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.data.rows.indexed import IndexedWriter
from megatron_ultralong.data.rows.packed import PackedRows, checksums_of, global_row_index
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.verbs import pretrain
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

TENSOR, CONTEXT, PIPELINE = (
    ParallelConfig(**{f"{kind}_parallel_size": 2})  # type: ignore[arg-type]
    for kind in ("tensor_model", "context", "pipeline_model")
)


def messages(configs: list[PretrainConfig]) -> list[str]:
    """Run on every rank: what ends each run."""
    found = []
    for config in configs:
        try:
            pretrain(config)
            found.append("it ran")
        except InputError as error:
            found.append(str(error))
    return found


@pytest.fixture
def config(make_config: MakeConfig, tiny: Path, tmp_path: Path) -> PretrainConfig:
    """A run over rows whose fourth sample has an id beyond the 320 of the model."""
    shutil.copytree(tiny / "rows", tmp_path / "rows")
    made = make_config(None, train_iters=3)
    data = dataclasses.replace(made.data, data_path=str(tmp_path / "rows"))
    made = dataclasses.replace(made, data=data)
    spoil(tmp_path / "rows", global_row_index(3, len(PackedRows(tmp_path / "rows/train")), 1234))
    assert made.data.seed == 1234
    return made


def spoil(folder: Path, row: int, position: int = 100, token_id: int = 320) -> None:
    """Write the training rows again with this id in one of them."""
    rows = list(PackedRows(folder / "train"))
    rows[row][position] = token_id
    with IndexedWriter(folder / "train", np.dtype("<i4")) as writer:
        for tokens in rows:
            writer.add(tokens)
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["splits"]["train"]["checksums"] = checksums_of(folder / "train", ["boundaries"])
    file.write_text(json.dumps(manifest))


def test_an_unknown_id_ends_every_rank_with_one_message(config: PretrainConfig) -> None:
    configs = [
        dataclasses.replace(config, parallel=parallel)
        for parallel in (TENSOR, CONTEXT, PIPELINE, ParallelConfig())
    ]
    first, second = run_on_ranks(2, messages, configs)
    assert first == second
    row = global_row_index(3, len(PackedRows(f"{config.data.data_path}/train")), 1234)
    prefix = f"{config.data.data_path}/train.bin: row {row} has at position 100 token id 320, and"
    for message in first:
        assert message.startswith(prefix)
        assert "knows ids 0 to 319 (vocab_size 320)" in message
        assert "prepare them with the model's own tokenizer" in message


def test_rows_that_a_run_does_not_come_to_do_not_end_it(config: PretrainConfig) -> None:
    optimizer = dataclasses.replace(config.optimizer, lr_warmup_iters=0)
    config = dataclasses.replace(config, train_iters=1, optimizer=optimizer)
    [[message]] = run_on_ranks(1, messages, [config])
    assert message == "it ran"


def test_rows_of_odd_length_are_for_a_rank_alone() -> None:
    ParallelConfig().check_seq_length(127)
    with pytest.raises(InputError, match=r"\(127\) must be divisible by 2 \* context_parallel"):
        CONTEXT.check_seq_length(127)
    split = dataclasses.replace(TENSOR, sequence_parallel=True)
    with pytest.raises(InputError, match=r"by tensor_model_parallel_size \(2\): sequence paral"):
        split.check_seq_length(127)
