"""Bad input on the command line: one message with both values and the fix, exit status 2."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megatron_ultralong import __main__ as start
from megatron_ultralong import cli
from tests.command_line import DOCUMENTS, pretrain_words, refusal, write_inputs
from tests.docs.blocks import ROOT
from tests.models import prepare_rows, write_tokenizer
from tests.patience import patience
from tests.ranks import run_on_ranks


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.mark.parametrize(
    ("world_size", "more", "parts"),
    [
        (
            3,
            ("--context-parallel-size", "3"),
            ("seq_length (128)", "2 * context_parallel_size (6)", "rows of 126 or 132"),
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
            ("seq_length (128) is beyond the 96 positions", "or give --rope-scaling-factor 2"),
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
    assert "existing files are not overwritten" in refusal(capsys, *words)
    assert "existing files are not overwritten" in refusal(
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
    """Where that would give it a row: the documents have 11,473 tokens."""
    for sampling, length, says in (
        ("fu", 8192, True),
        ("fu", 2**20, False),
        ("none", 2**20, False),
    ):
        words = ["prepare", "--source", f"code={inputs / 'documents.jsonl'}"]
        words += ["--tokenizer", str(inputs / "hf"), "--seq-length", str(length)]
        words += ["--length-sampling", sampling, "--output", str(tmp_path / sampling)]
        with pytest.raises(SystemExit):
            cli.main(words)
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"under one row of seq_length ({length})" in error
        assert ("--length-sampling none (now fu: " in error) == says
        assert "--length-sampling fu" not in error


def test_the_fraction_that_a_message_names_is_enough(
    inputs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["prepare", "--source", f"code={inputs / 'documents.jsonl'}", "--tokenizer"]
    words += [str(inputs / "hf"), "--seq-length", "1024", "--length-sampling", "none", "--output"]
    with pytest.raises(SystemExit):
        cli.main([*words, str(tmp_path / "few"), "--valid-fraction", "0.02"])
    error = capsys.readouterr().err
    found = re.search(r"raise --valid-fraction \(0\.02\) to about (\S+), set it to 0", error)
    assert found, error
    cli.main([*words, str(tmp_path / "rows"), "--valid-fraction", found[1]])
    assert (tmp_path / "rows" / "valid.bin").is_file()


def test_evaluating_beyond_the_trained_positions_has_to_be_asked_for(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(
        *(capsys, "evaluate", "loss", "--load", str(inputs / "megatron")),
        *("--data-path", str(inputs / "rows"), "--precision", "fp32"),
    )
    assert "length 128 is beyond the 64 positions" in error
    assert "--beyond-trained-positions" in error


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


INTERRUPTING = """\
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("megatron_ultralong.cli", "megatron_ultralong.evaluation"):
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


SCRIPTS = re.findall(r'"(ultralong\S*) = ([\w.]+):(\w+)"', (ROOT / "setup.py").read_text())
"""Commands that an installation has, as setup.py names them."""


def test_ctrl_c_while_it_is_imported_shows_no_trace(tmp_path: Path) -> None:
    """Ranks of ``--ranks`` are signalled in their first second; and SIGINT may be ignored."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "megatron_ultralong", "--help"]
    assert [name for name, *_ in SCRIPTS] == ["ultralong", "ultralong-lm-eval"]
    scripts = [
        f"import sys; from {module} import {run}; sys.exit({run}())" for _, module, run in SCRIPTS
    ]
    for words in (command, *([sys.executable, "-c", text, "--help"] for text in scripts)):
        found = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, "", "")
    command = ["bash", "-c", 'trap "" INT; exec "$@"', "bash", *command]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0
    assert found.stdout.startswith("usage: ultralong VERB")


def test_a_handler_that_python_does_not_know_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding program's: signal.signal cannot set it again."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", None)
    ran: list[str] = []
    monkeypatch.setattr(cli, "main", lambda: ran.append("cli"))
    start.main()
    assert ran == ["cli"]
