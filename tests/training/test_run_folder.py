"""A run keeps to its rows, and a folder holds what belongs to the run that is in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import iterations, write_latest
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.program.aside import partial_path
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner_record import is_owner_file
from megatron_ultralong.training.config_file import CONFIG_FILE
from megatron_ultralong.training.earlier_start import DATA_FILE
from megatron_ultralong.training.verbs import check_run, dry_run, pretrain
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig
from tests.training.job import Job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A run that began with other positions and came to no checkpoint, then began again."""
    root = tmp_path_factory.mktemp("folder") / "run"
    config = make_config(root, train_iters=4, save_interval=1)
    rope = dataclasses.replace(config.rope, rope_scaling_factor=8.0)
    with Job(dataclasses.replace(config, rope=rope, save_interval=0), 1) as job:
        assert job.until_iteration(1)
        job.kill()
    assert load_metadata(root).model.max_position_embeddings == 512
    run_on_ranks(1, pretrain, config)
    return root


def test_a_start_without_checkpoints_leaves_no_identity(run: Path) -> None:
    found = load_metadata(run)
    assert found.model.max_position_embeddings == found.trained_positions == 128


def test_rows_shorter_than_the_positions_are_told_of(make_config: MakeConfig) -> None:
    """And what the run's checkpoints call themselves trained for is the rows' length."""
    config = make_config(None, train_iters=4)
    assert "warning: the rotary embedding" not in dry_run(check_run(config, 1))
    rope = dataclasses.replace(config.rope, rope_scaling_factor=8.0)
    inputs = check_run(dataclasses.replace(config, rope=rope), 1)
    assert (
        "# warning: the rotary embedding is made for 512 positions, and rows of 128 tokens train "
        "the first 128 alone: expect little beyond them; prepare rows of 512 if you need all of "
        "them\n"
    ) in dry_run(inputs)
    extended = inputs.result
    assert (extended.trained_positions, inputs.source.trained_positions) == (128, 64)
    # Under the same rotary scaling the longest rows so far count; under another one the last.
    assert extended.after_training(extended, 32).trained_positions == 128
    assert extended.after_training(extended, 256).trained_positions == 256
    assert extended.after_training(inputs.source, 32).trained_positions == 32
    assert inputs.source.after_training(inputs.source, 32).trained_positions == 64


def test_a_start_that_was_killed_at_its_first_file_is_no_folder_of_others(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    begun = partial_path(tmp_path / "run" / CONFIG_FILE)
    begun.parent.mkdir()
    begun.write_text("half")
    run_on_ranks(1, pretrain, make_config(tmp_path / "run", train_iters=3))
    assert not begun.exists()


def test_other_rows_are_refused(run: Path, make_config: MakeConfig) -> None:
    config = make_config(run, train_iters=4)
    assert "continues from" in dry_run(check_run(config, 1))
    text = (run / DATA_FILE).read_text()
    values = json.loads(text)
    values["data manifest.seed"] = "99"
    (run / DATA_FILE).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"over other rows: data manifest.seed was 99, is \d+;"):
        dry_run(check_run(config, 1))
    values = json.loads(text)
    values["data manifest.inputs"] = values["data manifest.inputs"].replace(
        "path='", "path='old/", 1
    )
    (run / DATA_FILE).write_text(json.dumps(values))
    told = r"over other rows: the list of sources was (\w+)=old/(\S+), is \1=\2; a resumed run"
    with pytest.raises(InputError, match=told):
        dry_run(check_run(config, 1))
    (run / DATA_FILE).write_text("{")
    with pytest.raises(InputError, match=r"data\.json is not JSON .*: remove it if the rows"):
        dry_run(check_run(config, 1))
    (run / DATA_FILE).write_text(text)


def test_what_differs_from_the_start_before_is_named_by_its_flag(
    run: Path, make_config: MakeConfig
) -> None:
    config = make_config(run, train_iters=4)
    rope = dataclasses.replace(config.rope, rope_scaling_factor=4.0)
    with pytest.raises(InputError, match=r"rope_scaling_factor 2.0, this one has 4.0: .* use 2.0"):
        dry_run(check_run(dataclasses.replace(config, rope=rope), 1))
    inputs = check_run(config, 1)
    model = dataclasses.replace(inputs.result.model, ffn_hidden_size=8)
    other = dataclasses.replace(inputs, result=dataclasses.replace(inputs.result, model=model))
    with pytest.raises(
        InputError, match=r"of another model: model.ffn_hidden_size is \d+ in .* 8 in"
    ):
        dry_run(other)
    optimizer = dataclasses.replace(config.optimizer, lr=5e-4)
    text = dry_run(check_run(dataclasses.replace(config, optimizer=optimizer), 1))
    assert "# changed since the start before: optimizer.lr was 0.001, is 0.0005\n" in text
    moved = Path(config.load).parent / "moved"
    moved.symlink_to(config.load)
    text = dry_run(check_run(dataclasses.replace(config, load=str(moved)), 1))
    assert f"load was {config.load}, is {moved}, whose weights are not read: the run" in text
    moved.unlink()
    assert "no --save: nothing of this run is kept" in dry_run(
        check_run(make_config(None, train_iters=4), 1)
    )


@pytest.mark.parametrize("interval", range(8))
@pytest.mark.parametrize("total", range(4, 9))
def test_a_start_that_saves_at_its_end_alone_says_so(
    run: Path, make_config: MakeConfig, total: int, interval: int
) -> None:
    """From iteration 0, and resumed at 4."""
    for save, done in ((run.with_name("new"), 0), (run, 4)):
        config = make_config(save, train_iters=total, save_interval=interval)
        text = dry_run(check_run(config, 1))
        on_the_way = [i for i in range(done + 1, total) if interval and i % interval == 0]
        alone = done < total and not on_the_way
        assert (f"is that of the end, iteration {total}: " in text) == alone, (done, on_the_way)
        assert ("the only checkpoint is" in text) == (alone and not done)
        assert (
            f"the next checkpoint is that of the end, iteration {total}: a run that is killed "
            f"before it begins again at iteration {done};" in text
        ) == (alone and done > 0)
        assert ("--save-interval N saves every N iterations" in text) == alone


def test_a_run_that_was_set_back_leaves_nothing_of_its_other_way(
    run: Path, make_config: MakeConfig
) -> None:
    assert iterations(run) == [3, 4]
    write_latest(run, 3)
    # No checkpoint at iteration 4, which stands there from before the run was set back.
    config = make_config(run, train_iters=5, save_interval=0)
    run_on_ranks(1, pretrain, config)
    assert iterations(run) == [3, 5]


@pytest.mark.parametrize(("total", "state"), [(4, "complete"), (2, "past train_iters (2)")])
def test_a_start_with_nothing_left_says_so_and_changes_nothing(
    make_config: MakeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    total: int,
    state: str,
) -> None:
    root = tmp_path / "run"
    pretrain(make_config(root, train_iters=4))
    assert "resumed" not in capsys.readouterr().out
    before = files(root)
    config = make_config(root, train_iters=total)
    log = dataclasses.replace(config.log, tensorboard=True)
    other = dataclasses.replace(config.optimizer, lr=7e-4, lr_warmup_iters=0)
    config = dataclasses.replace(config, optimizer=other, log=log)
    said = f"the run is at iteration 4, {state}: --train-iters above 4 trains on\n"
    assert f"# {said}" in dry_run(check_run(config, 1))
    capsys.readouterr()
    assert pretrain(config) == []
    printed = capsys.readouterr().out
    assert said in printed
    assert "nothing was left to do; no checkpoint was written\n" in printed
    assert "resumed at" not in printed
    assert files(root) == before


def test_the_advice_is_of_the_flag_that_gave_the_length(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Doing what it says is enough, and less is not."""
    config = make_config(tmp_path / "run", train_iters=2)
    optimizer = dataclasses.replace(config.optimizer, lr_warmup_iters=0)
    config = dataclasses.replace(config, optimizer=optimizer)
    each = config.global_batch_size * 128
    pretrain(dataclasses.replace(config, train_tokens=2.0 * each - 5))
    for tokens, more in ((2 * each - 5, 2 * each), (each, 2 * each)):
        said = dry_run(check_run(dataclasses.replace(config, train_tokens=float(tokens)), 1))
        assert f": --train-tokens above {more:,} trains on\n" in said
        assert "--train-iters above" not in said
    for tokens, is_enough in ((2 * each, False), (2 * each + 1, True)):
        said = dry_run(check_run(dataclasses.replace(config, train_tokens=float(tokens)), 1))
        assert ("trains on" not in said) == is_enough


def files(root: Path) -> dict[Path, bytes]:
    """All but the records of who owned the folder."""
    found = (path for path in root.rglob("*") if path.is_file() and not is_owner_file(path))
    return {path: path.read_bytes() for path in found}


def test_a_checkpoint_is_no_folder_of_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    """A new run began in it, and wrote over its files; --save RUN/iter_N was meant to resume."""
    run = tmp_path / "run"
    run_on_ranks(1, pretrain, make_config(run, train_iters=3, save_interval=0))
    inside = run / "iter_0000003"
    before = {path.name: path.read_bytes() for path in inside.iterdir()}
    with pytest.raises(InputError, match=f"{inside} is one checkpoint of the run in {run}: give"):
        check_run(make_config(inside, train_iters=3), 1)
    assert {path.name: path.read_bytes() for path in inside.iterdir()} == before
