"""Bad input on the command line: one message with both values and the fix, exit status 2."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.cli.verbs import load
from megatron_ultralong.config.convert import ImportConfig
from tests.models import TEXT, prepare_rows, write_llama, write_tokenizer
from tests.patience import patience
from tests.ranks import run_on_ranks

DOCUMENTS = [TEXT * 3 + str(n) for n in range(200)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model with 64 positions, and rows of 128 tokens."""
    folder = tmp_path_factory.mktemp("cli")
    write_llama(folder / "hf", num_hidden_layers=2)
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    prepare_rows(folder, DOCUMENTS, folder / "hf", 128)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must be refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ultralong: error: ")
    assert error.count("\n") == 1, "one message, no traceback"
    return error


def pretrain_words(inputs: Path, *more: str) -> tuple[str, ...]:
    return (
        *("pretrain", "demo-cpu", "--load", str(inputs / "megatron"), "--train-iters", "10"),
        *("--data-path", str(inputs / "rows"), "--save", str(inputs / "saved")),
        *("--seq-length", "128", "--original-max-position-embeddings", "64", *more),
    )


@pytest.mark.parametrize(
    ("world_size", "more", "parts"),
    [
        (
            3,
            ("--context-parallel-size", "3"),
            ("seq_length (128)", "2 * context_parallel_size (6)", "use 126 or 132"),
        ),
        (
            8,
            ("--tensor-model-parallel-size", "8", "--context-parallel-size", "1"),
            (
                "num_attention_heads (4)",
                "tensor_model_parallel_size (8)",
                "use --tensor-model-parallel-size 1, 2 or 4",
            ),
        ),
        (
            2,
            ("--rope-scaling-factor", "1.5"),
            ("seq_length (128) is beyond the 96 positions", "rope_scaling_factor of at least 2"),
        ),
        (
            2,
            ("--ramp", "rotations", "--attention-factor", "1.2"),
            ("no Hugging Face rope block expresses", "attention_factor 1.2", "ramp 'dimensions'"),
        ),
        (2, ("--seq-length", "64"), ("seq_length (64)", "length of the rows", "(128)")),
        (3, (), ("world_size (3)", "(1 x 1 x 2 = 2)", "multiple of 2 ranks")),
        (2, ("--load", "nowhere"), ("nowhere does not exist", "ultralong convert import")),
        (2, ("--data-path", "nowhere"), ("nowhere/manifest.json", "output folder of `prepare`")),
    ],
)
def test_pretrain_refuses(
    inputs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    more: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    # Every rank checks before it meets the others: one rank shows what all of them say.
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    error = refusal(capsys, *pretrain_words(inputs, *more))
    for part in parts:
        assert part in error
    assert not (inputs / "saved").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_tokenizer(inputs / "other", text="other words make other merges")
    prepare_rows(inputs, DOCUMENTS, inputs / "other", 128, "other-rows")
    error = refusal(capsys, *pretrain_words(inputs, "--data-path", str(inputs / "other-rows")))
    assert "sha256" in error
    assert "prepare the data with the model's own tokenizer" in error


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    larger = Tokenizer.from_file(str(inputs / "hf" / "tokenizer.json"))
    larger.add_tokens([f"<more{i}>" for i in range(500)])
    (inputs / "larger").mkdir()
    larger.save(str(inputs / "larger" / "tokenizer.json"))
    prepare_rows(inputs, DOCUMENTS, inputs / "larger", 128, "larger-rows")
    error = refusal(capsys, *pretrain_words(inputs, "--data-path", str(inputs / "larger-rows")))
    assert re.search(r"larger-rows has \d+ ids, the model in .* has \d+ embeddings", error), error


def test_a_truncated_file_is_refused(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shutil.copytree(inputs / "rows", inputs / "cut")
    data = (inputs / "cut" / "train.bin").read_bytes()
    (inputs / "cut" / "train.bin").write_bytes(data[:-100])
    error = refusal(capsys, *pretrain_words(inputs, "--data-path", str(inputs / "cut")))
    assert "train.bin" in error
    assert str(len(data)) in error
    assert str(len(data) - 100) in error


def test_a_folder_in_use_is_not_written_to(
    inputs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    words = pretrain_words(inputs, "--save", str(tmp_path), "--context-parallel-size", "1")
    assert "is not empty" in refusal(capsys, *words)
    words = ("convert", "import", str(inputs / "hf"), str(tmp_path))
    assert "nothing is written over" in refusal(capsys, *words)
    assert "nothing is written over" in refusal(
        *(capsys, "prepare", "--source", f"code={inputs / 'documents.jsonl'}"),
        *("--tokenizer", str(inputs / "hf"), "--seq-length", "128", "--output", str(tmp_path)),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_source_without_text_is_refused(
    inputs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    error = refusal(
        *(capsys, "prepare", "--source", f"nothing={tmp_path / 'empty.jsonl'}"),
        *("--tokenizer", str(inputs / "hf"), "--seq-length", "128", "--length-sampling", "none"),
        *("--output", str(tmp_path / "rows")),
    )
    assert "nothing" in error
    assert "empty.jsonl" in error
    assert not (tmp_path / "rows").exists()


def test_a_split_of_less_than_a_row_says_how_to_sample_less_strictly(
    inputs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for sampling, says in (("fu", True), ("none", False)):
        words = ["prepare", "--source", f"code={inputs / 'documents.jsonl'}"]
        words += ["--tokenizer", str(inputs / "hf"), "--seq-length", "1048576"]
        words += ["--length-sampling", sampling, "--output", str(tmp_path / sampling)]
        with pytest.raises(SystemExit):
            cli.main(words)
        error = capsys.readouterr().err.splitlines()[-1]
        assert "under one row of seq_length (1048576)" in error
        assert ("--length-sampling none (now fu: " in error) == says
        assert "--length-sampling fu" not in error


def test_evaluating_beyond_the_trained_positions_has_to_be_asked_for(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(
        *(capsys, "evaluate", "loss", "--load", str(inputs / "megatron")),
        *("--data-path", str(inputs / "rows"), "--precision", "fp32"),
    )
    assert "length 128 is beyond the 64 positions" in error
    assert "--beyond-trained-positions" in error


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("train",), "known: prepare, prepare chat, convert import"),
        (("pretrian",), "perhaps you meant 'pretrain'"),
        (("convert", "import", "meta-llama/Llama-3.1-8B", "x"), "Hub is not downloaded: `hf downl"),
        (("convert", "import", "./nowhere", "x"), "checkpoint folder nowhere does not exist"),
        (("convert", "merge"), "convert 'merge' is not known; known: import, export"),
        (("pretrain", "llama"), "recipe 'llama' is not known"),
        (
            ("pretrain", "--load", "base"),
            "no recipe given: write `ultralong pretrain RECIPE --load",
        ),
        (("plan", "--model", "m"), "no recipe given: write `ultralong plan RECIPE --model ...`"),
        (
            ("plan", "/", "--gpus", "2"),
            "/ is no recipe but a folder: write `ultralong plan RECIPE --m",
        ),
        (("pretrain", "llama3.1-8b-sft"), "llama3.1-8b-sft is a recipe of `ultralong sft`, not of"),
        (("sft", "llama3.1-8b-1m"), "llama3.1-8b-1m is a recipe of `ultralong pretrain`, not of"),
        (
            ("plan", "demo-cpu", "--gpu", "8"),
            "--gpu 8: that is no GPU's name; their number is --gpus",
        ),
        (("plan", "demo-cpu", "--gpu=8"), "their number is --gpus 8"),
        (("pretrain", "--config", "nowhere.yaml"), "configuration nowhere.yaml does not exist"),
    ],
)
def test_unknown_words_are_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], part: str
) -> None:
    assert part in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "pretrain demo-cpu --rope-scaling-facto 8",
            "--rope-scaling-facto is not known; perhaps you meant --rope-scaling-factor",
        ),
        ("pretrain demo-cpu --iters=8", "--iters is not known; perhaps you meant --train-iters"),
        ("pretrain demo-cpu --xyzzy", "--xyzzy is not known"),
        (
            "prepare --source a=b --tokenizer t --output o --seq-len 1024",
            "--seq-len is not known; perhaps you meant --seq-length; --seq-length is needed: "
            "Tokens per row",
        ),
        ("pretrain demo-cpu more", "'more': no flag takes it"),
        ("pretrain demo-cpu --train-iters two", "--train-iters must be a whole number, not 'two'"),
        ("pretrain demo-cpu --lr high", "--lr must be a number, not 'high'"),
        (
            "pretrain demo-cpu --lr",
            "--lr needs a value: Peak learning rate (the paper's 3e-5)",
        ),
        (
            "pretrain demo-cpu --precision fp3",
            "--precision 'fp3' is not known; perhaps you meant fp32; known: bf16, fp32",
        ),
        (
            "convert inspect",
            "SRC is needed: Folder to inspect; a config.json without weights is enough to show "
            "its rope block",
        ),
    ],
)
def test_what_the_parser_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    words = line.split()
    verb = " ".join(words[:2]) if words[0] == "convert" else words[0]
    expected = f"ultralong: error: {message}; see `ultralong {verb} --help`\n"
    assert refusal(capsys, *words) == expected


@pytest.mark.parametrize("verb", [name for name, verb in cli.VERBS.items() if name != "doctor"])
def test_every_verb_refuses_a_flag_in_one_line(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    recipes = cli.VERBS[verb].recipes
    recipe = [next(iter(load(recipes)))] if recipes else []
    error = refusal(capsys, *verb.split(), *recipe, "--xyzzy", "3")
    assert error.startswith("ultralong: error: --xyzzy is not known")


def test_doctor_refuses_a_flag_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """By the standard library's parser: the other may be broken."""
    error = refusal(capsys, "doctor", "--xyzzy")
    assert error.endswith("unrecognized arguments: --xyzzy; see `ultralong doctor --help`\n")


def test_a_message_says_what_the_recipe_set(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--load", str(inputs / "megatron"), "--data-path", str(inputs / "rows"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    error = refusal(capsys, "pretrain", "llama3.1-8b-1m", *words, "--dry-run")
    assert "num_attention_heads (4) must be divisible by tensor_model_parallel_size (8)" in error
    assert "use --tensor-model-parallel-size 1, 2 or 4; the recipe" in error
    assert error.endswith("; the recipe llama3.1-8b-1m sets tensor_model_parallel_size 8\n")
    error = refusal(capsys, "pretrain", "demo-cpu", *words, "--dry-run")
    assert "seq_length (4096) is not the length of the rows" in error
    assert error.endswith(
        "(128): use --seq-length 128, or prepare rows of 4096; the recipe demo-cpu sets "
        "seq_length 4096\n"
    )
    error = refusal(capsys, "pretrain", "demo-cpu", *words, "--dry-run", "--seq-length", "64")
    assert error.endswith("or prepare rows of 64\n"), "a flag is not the recipe's"
    monkeypatch.setenv("WORLD_SIZE", "1")
    error = refusal(capsys, "pretrain", "llama3.1-8b-1m", *words)
    assert "or change --tensor-model-parallel-size, --pipeline-model-parallel-size or" in error
    assert error.endswith("sets tensor_model_parallel_size 8, context_parallel_size 4\n")
    for flag in ("--load", "--data-path"):  # paths come before the number of ranks
        assert "nowhere" in refusal(capsys, "pretrain", "llama3.1-8b-1m", *words, flag, "nowhere")


def test_torchrun_says_the_message_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    message = refusal(capsys, "pretrian")
    failure = ProcessFailure(0, 1, 2, str(tmp_path / "error.json"))
    told = str(ChildFailedError("megatron_ultralong", {0: failure}))
    assert message.strip() in told.split("Root Cause")[1]
    assert "pytorch.org" not in told


def disagree(inputs: Path, rank_flag: str) -> str:
    """Run on every rank: rank 1 asks for something else."""
    import os

    more = (rank_flag, "2e-4") if os.environ["RANK"] == "1" else ()
    try:
        cli.main(pretrain_words(inputs, *more))
    except SystemExit as stop:
        return f"exit {stop.code}"
    return "trained"


def test_ranks_that_disagree_all_stop(inputs: Path) -> None:
    assert run_on_ranks(2, disagree, inputs, "--lr") == ["exit 2", "exit 2"]
    assert not (inputs / "saved").exists()


def test_the_message_of_ranks_that_disagree(inputs: Path) -> None:
    messages = run_on_ranks(2, disagreement)
    assert "optimizer.lr: rank 0 has 0.1, rank 1 has 0.2" in messages[0]
    assert messages[0] == messages[1]


def disagreement() -> str:
    """Run on every rank."""
    import torch.distributed as dist

    from megatron_ultralong.program.errors import InputError
    from megatron_ultralong.program.rank_values import check_agreement

    try:
        check_agreement({"seed": 1, "optimizer.lr": 0.1 + 0.1 * dist.get_rank()})
    except InputError as error:
        return str(error)
    return ""


def test_a_dry_run_prints_the_resolved_configuration(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    cli.main(pretrain_words(inputs, "--dry-run"))
    assert "rope_scaling_factor: 8.0" in capsys.readouterr().out
    assert not (inputs / "saved").exists()


def test_a_dry_run_says_what_it_assumed(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside torchrun: as many ranks as the layout needs, here CP 2."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cli.main(pretrain_words(inputs, "--dry-run"))
    shown = capsys.readouterr().out
    assert "# assumed: 2 ranks, the fewest that the layout allows (WORLD_SIZE is not set" in shown
    assert "# assumed: 1 rank on this host" in shown
    assert "plan for 2 x " in shown
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    cli.main(pretrain_words(inputs, "--dry-run", "--global-batch-size", "2"))
    shown = capsys.readouterr().out
    assert "assumed" not in shown
    assert "plan for 4 x " in shown


def test_a_written_configuration_works_from_another_folder(
    inputs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(inputs)
    words = [word.removeprefix(f"{inputs}/") for word in pretrain_words(inputs, "--dry-run")]
    assert "megatron" in words
    cli.main(words)
    text = capsys.readouterr().out
    assert f"load: {inputs / 'megatron'}\n" in text
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    cli.main(["pretrain", "--config", "config.yaml", "--dry-run"])
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if not line.startswith("#")] == [
        line for line in text.splitlines() if not line.startswith("#")
    ]


@pytest.fixture(scope="module")
def scaled(inputs: Path) -> Path:
    """A checkpoint of 64 positions that llama3's block has scaled to 512."""
    block = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0}
    block |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    block |= {"original_max_position_embeddings": 64}
    write_llama(
        inputs / "scaled-hf",
        num_hidden_layers=2,
        max_position_embeddings=512,
        rope_parameters=block,
    )
    import_checkpoint(ImportConfig(inputs / "scaled-hf", inputs / "scaled"))
    return inputs / "scaled"


@pytest.mark.parametrize(
    ("more", "after", "warning"),
    [
        ((), "the same", ""),
        (("--rope-scaling", "none"), "not scaled (64 positions)", "beyond the 64 positions"),
        (
            ("--rope-scaling", "linear", "--rope-scaling-factor", "4"),
            "linear x4 over 64 (256 positions)",
            "",
        ),
        (
            ("--rope-scaling", "yarn", "--rope-scaling-factor", "2"),
            "llama3 x2 over 8,192, betas 1 and 4 (16,384 positions)",
            "# warning: original_max_position_embeddings is 8,192, and the checkpoint's context "
            "before any scaling is 64",
        ),
        (
            ("--rope-scaling-factor", "4"),
            "the same",
            "# warning: rope_scaling_factor 4.0: without effect under rope_scaling 'keep'",
        ),
    ],
)
def test_a_start_says_what_becomes_of_the_rotary_embedding(
    inputs: Path,
    scaled: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    more: tuple[str, ...],
    after: str,
    warning: str,
) -> None:
    """From a file that does not speak of it: the checkpoint's stays."""
    (tmp_path / "run.yaml").write_text("train_iters: 1\noptimizer: {lr: 1e-4}\n")
    words = ("pretrain", "--config", str(tmp_path / "run.yaml"), "--load", str(scaled), *more)
    words += ("--data-path", str(inputs / "rows"), "--dry-run")
    if "beyond" in warning:
        assert warning in refusal(capsys, *words)
        return
    cli.main(words)
    shown = capsys.readouterr().out
    before = "llama3 x8 over 64, betas 1 and 4 (512 positions)"
    assert f"# rotary: {before} -> {after}\n" in shown
    assert warning in shown
    assert ("original_max_position_embeddings is" in shown) == ("original" in warning)


def test_a_run_says_it_too(
    inputs: Path, scaled: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("train_iters: 1\nprecision: fp32\n")
    words = ("pretrain", "--config", str(tmp_path / "run.yaml"), "--load", str(scaled))
    cli.main((*words, "--data-path", str(inputs / "rows"), "--no-tensorboard"))
    shown = " ".join("".join(capfd.readouterr()).split())
    assert "rotary: llama3 x8 over 64, betas 1 and 4 (512 positions) -> the same" in shown


def test_the_module_and_the_tools_are_the_same_program() -> None:
    for command in (["-m", "megatron_ultralong"], ["tools/evaluate.py", "--help"]):
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=True,
        )
        assert "usage: ultralong" in done.stdout
