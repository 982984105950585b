"""A run of Megatron-LM over rows, resumed with other rows than it began with."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE
from megatron_ultralong.config.training import PretrainConfig
from tests.dropin.megatron_lm import (
    EXAMPLE,
    Tiny,
    flags,
    message,
    needs_megatron_lm,
    run,
    tiny_message,
    tiny_run,
)
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

needs_megatron_lm()


def trained(config: PretrainConfig, folder: Path, *more: str) -> list[float]:
    """Run on every rank: losses."""
    return run(EXAMPLE, [*flags(config), *more], folder / f"said-{dist.get_rank()}")


def refused(lines: list[list[str]], folder: Path) -> list[str]:
    """Run on a rank, one after the other: messages."""
    return [message(EXAMPLE, line, folder) for line in lines]


@pytest.fixture(scope="module")
def begun(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Two of four iterations, to be continued."""
    folder = tmp_path_factory.mktemp("begun")
    config = make_config(folder / "run", (1, 1), train_iters=4)
    run_on_ranks(1, trained, config, folder, "--exit-interval", "2")
    return dataclasses.replace(config, load=str(folder / "run"), save="")


OTHER = {
    "seed": (("--seed", "7"), "--seed is 7, and the run in"),
    "mask": (("--ultralong-document-mask", "block"), "--ultralong-document-mask is block, and the"),
    "rows": (("--ultralong-data-path", "OTHER"), "is over other rows: data manifest.seed was"),
    "data": (("--ultralong-data-path", ""), "and this one over data of Megatron-LM's own"),
    "context": (
        ("--ultralong-original-max-position-embeddings", "32"),
        "--ultralong-rope-scaling asks for",
    ),
    "save": (("--ultralong-data-path", "OTHER", "--finetune", "--save", "RUN"), "holds a run over"),
}


@pytest.mark.parametrize("what", OTHER)
def test_other_rows_are_refused(begun: PretrainConfig, tmp_path: Path, what: str) -> None:
    shutil.copytree(begun.data.data_path, tmp_path / "rows")
    path = tmp_path / "rows" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 4711}))
    words, said = OTHER[what]
    places = {"OTHER": str(tmp_path / "rows"), "RUN": begun.load}
    words = tuple(places.get(word, word) for word in words)
    more = ("--save-interval", "4") if what == "save" else ()
    [found] = run_on_ranks(1, refused, [[*flags(begun), *words, *more]], tmp_path)[0]
    assert said in found
    assert ("--finetune" in found) is (what != "save")


@pytest.mark.parametrize("verify", ["yes", "no"])
def test_a_checkpoint_of_another_name_is_refused(
    begun: PretrainConfig, tmp_path: Path, verify: str
) -> None:
    """As in the other programs; the run continued with what was saved, at what was saved."""
    shutil.copytree(begun.load, tmp_path / "run")
    (tmp_path / "run" / "iter_0000002").rename(tmp_path / "run" / "iter_0000003")
    (tmp_path / "run" / LATEST_FILE).write_text("3")
    words = flags(dataclasses.replace(begun, load=str(tmp_path / "run")))
    words += ["--ultralong-verify-checksums", verify]
    [found] = run_on_ranks(1, refused, [words], tmp_path)[0]
    assert "iter_0000003 is named after iteration 3, and iteration 2 was saved in it" in found


def test_a_resume_need_not_say_the_context_again(begun: PretrainConfig, tmp_path: Path) -> None:
    name = "--ultralong-original-max-position-embeddings"
    assert len(run_on_ranks(1, trained, begun, tmp_path, name, "0")[0]) == 2


SCHEDULES = {
    "longer": (("--train-iters", "6"), "--train-iters times --global-batch-size ({}) is {}, there"),
    "decay": (("--lr-decay-iters", "9"), "--lr-decay-iters times --global-batch-size ({}) is {}"),
    "warm-up": (("--lr-warmup-iters", "3"), "--lr-warmup-iters times --global-batch-size ({}) is"),
    "fraction": (
        ("--lr-warmup-iters", "0", "--lr-warmup-fraction", "0.75"),
        "--lr-warmup-fraction",
    ),
    "batch": (
        ("--global-batch-size", "8"),
        "--train-iters times --global-batch-size (8) is 32, th",
    ),
    "rate": (("--lr", "0.125"), "--lr is 0.125, there"),
    "least": (("--min-lr", "1e-9"), "--min-lr is 1e-09, there"),
    "style": (("--lr-decay-style", "linear"), "--lr-decay-style is linear, there"),
    "weight decay": (("--weight-decay", "0.25"), "--weight-decay is 0.25, there"),
    "growing": (
        (
            *("--weight-decay-incr-style", "linear", "--start-weight-decay", "0.25"),
            *("--end-weight-decay", "0.5"),
        ),
        "--end-weight-decay is 0.5, there",
    ),
}


@pytest.mark.parametrize("what", SCHEDULES)
def test_another_schedule_is_refused(begun: PretrainConfig, tmp_path: Path, what: str) -> None:
    words, said = SCHEDULES[what]
    [found] = run_on_ranks(1, refused, [[*flags(begun), *words]], tmp_path)[0]
    size = begun.global_batch_size
    assert said.format(size, int(words[1]) * size if "{}" in said else 0) in found
    assert "--override-opt-param-scheduler" in found
    assert "--use-checkpoint-opt-param-scheduler" in found


OF_COMMAND_LINE = "--override-opt-param-scheduler"
OF_CHECKPOINT = "--use-checkpoint-opt-param-scheduler"


@pytest.mark.parametrize("flag", [OF_COMMAND_LINE, OF_CHECKPOINT, "--finetune", "--no-load-optim"])
def test_another_schedule_can_be_meant(begun: PretrainConfig, tmp_path: Path, flag: str) -> None:
    losses = run_on_ranks(1, trained, begun, tmp_path, "--train-iters", "6", flag)[0]
    assert len(losses) == (6 if flag == "--finetune" else 4)


def test_another_schedule_is_refused_in_any_form(tmp_path: Path) -> None:
    """Megatron-LM's bare assertion was all that a user saw: it reads such a file late."""
    form = ("--ckpt-format", "torch")
    saving = ("--save", str(tmp_path / "run"), "--save-interval", "2")
    run_on_ranks(1, tiny_run, Tiny(tmp_path, (*form, *saving)))
    form = (*form, "--load", str(tmp_path / "run"))
    for words, part in (
        (("--train-iters", "6"), "total number of iterations, in samples .*, is 24, there 12: add"),
        (("--lr-decay-style", "cosine"), "is cosine, there linear: add --override-opt-param-sche"),
    ):
        [told] = run_on_ranks(1, tiny_message, Tiny(tmp_path, (*form, *words)))
        assert f"the schedule is not that of the run in {tmp_path / 'run'}" in told
        assert re.search(part, told), told


def samples(config: PretrainConfig, folder: Path, *more: str) -> tuple[list[int], list[int]]:
    """Run on a rank: samples that it trained on, and those that it looked at before."""
    from megatron_ultralong.training.row_source import PackedRowSource

    read: list[int] = []
    looked_at: list[int] = []
    row, check = PackedRowSource.row, PackedRowSource.check

    def noting_row(self: PackedRowSource, sample: int) -> Any:
        read.append(sample)
        return row(self, sample)

    def noting_check(self: PackedRowSource, which: range, *part: int) -> None:
        looked_at.extend(which)
        check(self, which, *part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedRowSource, "row", noting_row)
        patch.setattr(PackedRowSource, "check", noting_check)
        trained(config, folder, *more)
    return read, looked_at


@pytest.mark.parametrize("size", [1, 4])
def test_another_batch_continues_at_the_next_sample(
    begun: PretrainConfig, tmp_path: Path, size: int
) -> None:
    """Of two samples each were the two iterations before; none is repeated or left out."""
    words = ("--global-batch-size", str(size), OF_COMMAND_LINE)
    expected = [*range(4, 4 + 2 * size)]
    assert run_on_ranks(1, samples, begun, tmp_path, *words)[0] == (expected, expected)
