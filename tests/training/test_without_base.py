"""A run whose base is gone resumes by itself, and a command that still names the base says so."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import write_latest
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.run import LogConfig, MemoryConfig
from megatron_ultralong.config.training import DataConfig, SftConfig, TrainingConfig
from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.config_file import CONFIG_FILE, load_config
from megatron_ultralong.training.verbs import check_run, check_sft, pretrain, sft
from tests.data.chats import write_jsonl
from tests.ranks import run_on_ranks
from tests.training.chats import conversations, write_chat_model
from tests.training.conftest import MakeConfig

VERBS = {"pretrain": (pretrain, check_run), "sft": (sft, check_sft)}


def chat_config(folder: Path) -> SftConfig:
    """A tuning of six iterations."""
    return SftConfig(
        load=str(folder / "base"),
        save=str(folder / "run"),
        save_interval=3,
        train_iters=6,
        global_batch_size=1,
        precision="fp32",
        memory=MemoryConfig(recompute_granularity="none", loss_tile_size=0),
        data=DataConfig(str(folder / "rows"), document_mask="block", reset_position_ids=True),
        optimizer=OptimizerConfig(lr=1e-3),
        log=LogConfig(tensorboard=False),
    )


def losses(config: TrainingConfig) -> dict[int, float]:
    """Run it; the loss of each iteration that was done."""
    run, _ = VERBS[config.verb]
    (records,) = run_on_ranks(1, run, config)
    return {record.iteration: record.lm_loss for record in records}


@pytest.mark.parametrize("verb", VERBS)
def test_it_resumes_bit_equal(
    tmp_path: Path, tiny: Path, make_config: MakeConfig, verb: str
) -> None:
    config: TrainingConfig
    if verb == "sft":
        config = chat_config(tmp_path)
        write_chat_model(tmp_path, max_position_embeddings=512)
        write_jsonl(tmp_path / "chats.jsonl", conversations(12))
        source, rows = (f"chats={tmp_path}/chats.jsonl",), tmp_path / "rows"
        options = {"seq_length": 512, "valid_fraction": 0.0}
        prepare_chat(PrepareChatConfig(source, tmp_path / "hf", rows, **options))
    else:
        shutil.copytree(tiny / "base", tmp_path / "base")
        config = make_config(tmp_path / "run", train_iters=6)
        config = dataclasses.replace(config, load=str(tmp_path / "base"))
    expected = losses(config)
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    run = Path(config.save)
    write_latest(run, 3)
    shutil.rmtree(config.load)
    with pytest.raises(InputError, match="base does not exist; the run in --save") as told:
        VERBS[verb][1](config, 1)
    assert f"`ultralong {verb} --config {run / CONFIG_FILE} --load {run}`" in str(told.value)
    again = dataclasses.replace(load_config(run / CONFIG_FILE, type(config)), load=str(run))
    assert losses(again) == {n: expected[n] for n in (4, 5, 6)}
    assert load_config(run / CONFIG_FILE, type(config)).load == str(run)


def test_without_a_run_the_base_is_what_is_told_of(make_config: MakeConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(tmp_path / "run"), load=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"checkpoint folder .*none does not exist: name one"):
        check_run(config, 1)
