"""Instruction tuning: packed rows against one conversation a row, on every layout; bad input."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import yaml
from transformers import PreTrainedTokenizerFast

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint
from megatron_ultralong.config.convert import ExportConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import CheckpointConfig, LogConfig, MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig, SftConfig
from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.rows.stored import ChatRow, ChatRows
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import causal_area
from megatron_ultralong.training.config_file import load_config, save_config
from megatron_ultralong.training.saving.run_folder import RunFolder
from megatron_ultralong.training.state import TrainingState
from megatron_ultralong.training.step import LanguageModelStep
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.telling.phases import PhaseTimers
from megatron_ultralong.training.verbs import check_run, check_sft, dry_run, sft
from tests.data.chats import write_jsonl
from tests.models import write_tokenizer
from tests.ranks import run_on_ranks
from tests.training.chats import conversations, write_chat_model

SEQ_LENGTH = 512
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the same conversations ``packed`` and one a row (``alone``)."""
    folder = tmp_path_factory.mktemp("sft")
    write_chat_model(folder, max_position_embeddings=SEQ_LENGTH)
    write_jsonl(folder / "chats.jsonl", conversations(12))
    for name, packing in (("packed", "whole"), ("alone", "none")):
        prepare(folder, name, packing=packing)
    return folder


def prepare(folder: Path, name: str, **options: Any) -> None:
    values: dict[str, Any] = {
        "source": (f"chats={folder}/chats.jsonl",),
        "tokenizer": folder / "hf",
        "output": folder / name,
        "seq_length": SEQ_LENGTH,
        "valid_fraction": 0.0,
        "date_string": "1",
        **options,
    }
    prepare_chat(PrepareChatConfig(**values))


def make_config(folder: Path, rows: str, parallel: ParallelConfig, **changes: Any) -> SftConfig:
    num_rows = len(ChatRows(folder / rows / "train"))
    config = SftConfig(
        load=str(folder / "base"),
        train_iters=1,
        global_batch_size=num_rows,  # every conversation, once
        precision="fp32",
        memory=MemoryConfig(recompute_granularity="none", loss_tile_size=0),
        parallel=parallel,
        data=DataConfig(str(folder / rows), document_mask="block", reset_position_ids=True),
        optimizer=OptimizerConfig(lr=1e-3),
        checkpoint=CheckpointConfig(async_save=False, max_save_failures=2),
        log=LogConfig(tensorboard=False),
    )
    return dataclasses.replace(config, **changes)


def gradients(config: SftConfig) -> tuple[float, dict[str, np.ndarray]]:
    """Loss, and the gradient of every weight, over the whole set; every rank calls it."""
    inputs = check_sft(config, dist.get_world_size() if dist.is_initialized() else 1)
    config = inputs.config
    with parallel_groups(config.parallel, 0) as groups:
        timers = PhaseTimers()
        state = TrainingState(inputs, groups, None, timers)
        model = state.chunks[0].module
        step = LanguageModelStep([model], groups, timers, config)
        # Without DistributedDataParallel: sums over the tokens of this rank, as autograd has them.
        model.config.finalize_model_grads_func = None
        rows = ([inputs.train_rows.row(n)] for n in range(config.global_batch_size))
        loss = step(rows, forward_only=False).loss
        found = {}
        for name, parameter in model.named_parameters():
            gradient = parameter.main_grad.clone()
            dist.all_reduce(gradient, group=groups.cp)
            found[name] = gradient.numpy()
        return loss, found


@pytest.fixture(scope="module")
def alone(inputs: Path) -> tuple[float, dict[str, np.ndarray]]:
    """The oracle: one conversation a row, one rank."""
    return run_on_ranks(1, gradients, make_config(inputs, "alone", ParallelConfig()))[0]


@pytest.mark.parametrize("assignment", ["zigzag", "balanced"])
@pytest.mark.parametrize("cp_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_packed_rows_have_the_gradients_of_one_conversation_a_row(
    inputs: Path, alone: tuple[float, dict[str, np.ndarray]], cp_size: int, assignment: Any
) -> None:
    if cp_size == 1 and assignment == "balanced":
        return
    assert len(ChatRows(inputs / "packed" / "train")) < 12 / 2, "several conversations a row"
    config = make_config(
        inputs,
        "packed",
        ParallelConfig(context_parallel_size=cp_size, cp_assignment=assignment),
    )
    loss, packed = run_on_ranks(cp_size, gradients, config)[0]
    assert loss == pytest.approx(alone[0], rel=1e-6)
    worst = 0.0
    for name, exact in alone[1].items():
        difference = np.linalg.norm(packed[name] - exact) / np.linalg.norm(exact)
        worst = max(worst, float(difference))
    _log.info("CP %d %s: worst relative difference %.1e", cp_size, assignment, worst)
    # float32 sums in another order: about 1e-6; the bound is the one that was asked for
    assert worst <= 1e-5


def one_step(config: SftConfig) -> list[IterationRecord]:
    return sft(config)


def test_every_layout_trains_alike(inputs: Path) -> None:
    """The whole path: norm of the gradients as the optimizer sees it, and the loss."""
    base = run_on_ranks(1, one_step, make_config(inputs, "alone", ParallelConfig()))[0][0]
    layouts = [(1, ParallelConfig()), (2, ParallelConfig(context_parallel_size=2))]
    layouts += [(2, ParallelConfig(tensor_model_parallel_size=2))]
    for num_ranks, parallel in layouts:
        (record,) = run_on_ranks(num_ranks, one_step, make_config(inputs, "packed", parallel))[0]
        assert record.lm_loss == pytest.approx(base.lm_loss, rel=1e-6)
        assert record.grad_norm == pytest.approx(base.grad_norm, rel=1e-5)
        # the same conversations, however they are packed; padding is counted in neither
        assert record.num_loss_tokens == base.num_loss_tokens
        assert record.num_real_tokens == base.num_real_tokens
        assert 0 < record.num_loss_tokens < record.num_real_tokens < record.consumed_tokens
        speed = record.num_real_tokens / (record.elapsed_ms / 1000) / num_ranks
        assert record.tokens_per_second_per_rank == pytest.approx(speed)


def test_a_resumed_run_is_bit_equal(inputs: Path, tmp_path: Path) -> None:
    def run(save: str, **changes: Any) -> list[IterationRecord]:
        config = make_config(inputs, "packed", ParallelConfig(context_parallel_size=2))
        changes = {
            "global_batch_size": 1,
            "train_iters": 6,
            "save": str(tmp_path / save),
            **changes,
        }
        return run_on_ranks(2, one_step, dataclasses.replace(config, **changes))[0]

    whole = run("whole")
    first = run("parts", train_iters=3)
    rest = run("parts")
    assert len(first) == len(rest) == 3
    for one, other in zip(whole, [*first, *rest], strict=True):
        assert (one.iteration, one.lm_loss, one.grad_norm) == (
            other.iteration,
            other.lm_loss,
            other.grad_norm,
        )


def without_targets(config: SftConfig) -> tuple[float, float, float]:
    """Loss and largest gradient of a batch with nothing to learn, and the loss of half a batch."""
    inputs = check_sft(config, dist.get_world_size())

    class NoTargets:
        def __init__(self, row: ChatRow) -> None:
            self.row = row
            self.seq_length, self.cu_seqlens = row.seq_length, row.cu_seqlens
            self.num_real_tokens = row.num_real_tokens
            self.read_chunks = row.read_chunks

        def loss_mask(self, document_mask: str) -> np.ndarray:
            return 0 * self.row.loss_mask("block")

    with parallel_groups(config.parallel, 0) as groups:
        timers = PhaseTimers()
        state = TrainingState(inputs, groups, None, timers)
        one_row_each = dataclasses.replace(config, global_batch_size=dist.get_world_size())
        step = LanguageModelStep(state.chunks, groups, timers, one_row_each)
        row = inputs.train_rows.row(0)
        empty = NoTargets(row)
        result = step(iter([[empty]]), forward_only=False)
        # Each of the two ranks has this row; its padding is not work of the model.
        edges = np.minimum(row.cu_seqlens, row.num_real_tokens)
        assert result.num_real_tokens == 2 * row.num_real_tokens
        assert result.attention_area == 2 * causal_area(edges)
        buffers = [buffer.grad_data.abs().max().item() for buffer in state.chunks[0].buffers]
        state.chunks[0].zero_grad_buffer()
        half = step(iter([[row if dist.get_rank() == 0 else empty]]), forward_only=False)
        return result.loss, max(buffers), half.loss


def test_nothing_to_learn_gives_zero_and_never_nan(inputs: Path) -> None:
    """On one of two data-parallel ranks, and on both."""
    config = make_config(inputs, "packed", ParallelConfig(), global_batch_size=2)
    one, other = run_on_ranks(2, without_targets, config)
    assert one[:2] == other[:2] == (0.0, 0.0)
    assert one[2] == other[2] > 0.0


def test_a_run_keeps_the_template_and_its_export_has_it(inputs: Path, tmp_path: Path) -> None:
    prepare(inputs, "plain", chat_template="plain")
    config = make_config(inputs, "plain", ParallelConfig(), save=str(tmp_path / "run"))
    sft(dataclasses.replace(config, train_iters=0, num_epochs=1.0))
    export_checkpoint(ExportConfig(tmp_path / "run", tmp_path / "hf"))
    judge = PreTrainedTokenizerFast.from_pretrained(tmp_path / "hf")
    messages = conversations(1)[0]["messages"]
    text = judge.apply_chat_template(messages, tokenize=False)
    rows = ChatRows(inputs / "plain" / "train")
    found = {judge.decode(tokens) for n in range(len(rows)) for tokens, _ in rows.examples(n)}
    assert text in found


def test_more_epochs_are_advised_where_epochs_gave_the_length(inputs: Path, tmp_path: Path) -> None:
    """Doing what it says is enough, and less is not."""
    config = make_config(inputs, "packed", ParallelConfig(), save=str(tmp_path / "run"))
    config = dataclasses.replace(config, train_iters=0, num_epochs=0.5)
    sft(config)
    done = check_sft(config, 1).config.train_iters
    most = config.global_batch_size * done / len(ChatRows(inputs / "packed" / "train"))
    assert f": --num-epochs above {most:,.6g} trains on" in dry_run(check_sft(config, 1))
    for epochs, is_enough in ((most * 0.9999, False), (most * 1.0001, True)):
        said = dry_run(check_sft(dataclasses.replace(config, num_epochs=epochs), 1))
        assert ("trains on" not in said) == is_enough
    iters = dataclasses.replace(config, train_iters=done)
    assert f": --train-iters above {done} trains on" in dry_run(check_sft(iters, 1))


def file_of(config: SftConfig, path: Path, **changes: object) -> SftConfig:
    """What is read from the file that a run of ``config`` leaves, with values changed by hand."""
    values = yaml.safe_load(dry_run(check_sft(config, 1)))
    path.write_text(yaml.safe_dump({**values, **changes}))
    return load_config(path, SftConfig)


def test_epochs_of_a_file_count(inputs: Path, tmp_path: Path) -> None:
    """They were beside the iterations that they had made, which counted alone."""
    config = make_config(inputs, "alone", ParallelConfig(), global_batch_size=4)
    config = dataclasses.replace(config, train_iters=0, num_epochs=2.0)
    assert check_sft(config, 1).config.train_iters == 6
    file = tmp_path / "config.yaml"
    assert file_of(config, file) == dataclasses.replace(config, data=file_of(config, file).data)
    for changes, iterations in (
        ({}, 6),
        ({"num_epochs": 5.0}, 15),
        ({"global_batch_size": 2}, 12),
        ({"num_epochs": 1.0, "train_iters": 4}, 4),
    ):
        assert check_sft(file_of(config, file, **changes), 1).config.train_iters == iterations
    # as releases before wrote it
    assert check_sft(file_of(config, file, train_iters=6), 1).config.train_iters == 6
    with pytest.raises(
        InputError,
        match=r"train_iters \(7\) and num_epochs \(2, which is 6 iterations of 4 of 12 rows\) both",
    ):
        check_sft(file_of(config, file, train_iters=7), 1)


def test_a_run_by_epochs_resumes_as_it_began(inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, "alone", ParallelConfig(), save=str(tmp_path / "run"))
    config = dataclasses.replace(config, train_iters=0, num_epochs=1.0, global_batch_size=6)
    sft(config)
    written = load_config(tmp_path / "run" / "config.yaml", SftConfig)
    assert (written.train_iters, written.num_epochs) == (0, 1.0)
    assert "changed since" not in dry_run(check_sft(config, 1))
    assert "changed since" not in dry_run(check_sft(written, 1))
    more = dataclasses.replace(written, num_epochs=2.0)
    assert "changed since the start before: num_epochs was 1.0, is 2.0\n" in dry_run(
        check_sft(more, 1)
    )
    assert [record.iteration for record in sft(more)] == [3, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data-path", "chats.jsonl"), "prepare chat --source NAME={inputs}/chats.jsonl"),
        (("--document-mask", "none"), "reset_position_ids needs document_mask 'block', not 'none'"),
        (("--micro-batch-size", "2"), "document_mask 'block' needs micro_batch_size 1, not 2"),
        (("--eval-interval", "1"), "eval_interval (1) needs held-out conversations"),
        (("--num-epochs", "0"), "num_epochs must be above 0, not 0.0"),
        (("--seq-length", "256"), "seq_length (256) is not the length of the rows"),
    ],
)
def test_bad_input(
    inputs: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    command = ["sft", "llama3.1-8b-sft", "--load", str(inputs / "base"), "--dry-run"]
    command += ["--tensor-model-parallel-size", "1", "--no-sequence-parallel"]
    command += ["--lr-warmup-iters", "0", "--global-batch-size", "2"]
    path = str(inputs / (words[1] if words[0] == "--data-path" else "packed"))
    more = ("--data-path", path, *(words if words[0] != "--data-path" else ()))
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ultralong: error: ")
    assert message.format(inputs=inputs) in error


def test_rows_of_another_tokenizer_or_kind_are_refused(inputs: Path, tmp_path: Path) -> None:
    write_chat_model(tmp_path, max_position_embeddings=SEQ_LENGTH)
    write_tokenizer(tmp_path / "hf", text="other words", vocab_size=300)
    settings = {"eos_token": "e"}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    prepare(inputs, "other", tokenizer=tmp_path / "hf", chat_template="plain")
    config = make_config(inputs, "other", ParallelConfig())
    with pytest.raises(InputError, match=r"other \(sha256 \w+\) is not that of .* other text"):
        check_sft(config, 1)
    data = DataConfig(str(inputs / "packed"))
    with pytest.raises(InputError, match="rows of conversations, which `sft` trains on"):
        check_run(PretrainConfig(load=config.load, data=data, train_iters=1), 1)


def test_conversations_beyond_the_models_positions_are_refused(inputs: Path) -> None:
    """Rows may be longer than the model's positions, conversations may not."""
    prepare(inputs, "long rows", seq_length=4 * SEQ_LENGTH)
    config = make_config(inputs, "long rows", ParallelConfig())
    assert check_sft(config, 1).config.data.seq_length == 4 * SEQ_LENGTH
    write_jsonl(inputs / "long.jsonl", [long_conversation()])
    source = (f"x={inputs}/long.jsonl",)
    prepare(inputs, "long", seq_length=4 * SEQ_LENGTH, source=source)
    config = make_config(inputs, "long", ParallelConfig())
    with pytest.raises(InputError, match=r"longest conversation has \d+ tokens, beyond the 512"):
        check_sft(config, 1)


def long_conversation() -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "long " * (SEQ_LENGTH // 2)},
            {"role": "assistant", "content": "yes"},
        ]
    }


def test_a_run_of_pretraining_is_not_taken_up(inputs: Path, tmp_path: Path) -> None:
    save_config(tmp_path / "config.yaml", PretrainConfig(train_iters=1))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    config = make_config(inputs, "packed", ParallelConfig(), save=str(tmp_path))
    with pytest.raises(InputError, match="of a pretrain run, but sft needs its own"):
        RunFolder(config, check_sft(config, 1).result).check()
