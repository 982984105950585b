"""Messages that say what to do instead: another verb, another program, words that can be read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.report import show
from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER
from megatron_ultralong.checkpoint.formats.gguf_file import readers
from megatron_ultralong.data.read.conversation import ConversationError
from megatron_ultralong.data.read.conversation_formats import keys_read
from megatron_ultralong.evaluation.models.facts import tokenizer_folder
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.model.yarn import YarnConfig
from megatron_ultralong.program.errors import InputError
from tests.command_line import refusal
from tests.data.source_files import texts_of

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_documents_and_conversations_are_sent_to_the_other_verb(tmp_path: Path) -> None:
    for key in ("messages", "conversations"):
        record = {key: [{"role": "user", "content": "a"}]}
        (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
        with pytest.raises(
            InputError, match="conversations are packed by `ultralong prepare chat`"
        ):
            texts_of(tmp_path)
    with pytest.raises(ConversationError, match="documents are packed by `ultralong prepare`"):
        keys_read({"text": "a"}, "auto")


def test_a_report_has_no_empty_rows(capsys: pytest.CaptureFixture[str]) -> None:
    show({"layer_differences": (), "files": [], "kl": 0.0, "bound": 1e-6}, as_json=False)
    shown = capsys.readouterr().out
    assert "layer differences" not in shown
    assert "files" not in shown
    assert "kl" in shown


def test_a_report_writes_names_of_files_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"tokenizer_config.json": ["a key"]}
    show({"good_for": {"new_files": 1}, "changed_files": changes}, as_json=False)
    shown = capsys.readouterr().out
    assert all(f"{word} " in shown for word in ("good for", "  new files", "changed files"))
    assert "  tokenizer_config.json  a key" in shown


def test_a_model_without_a_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "evaluate", "passkey", "--load", "after=", "--lengths", "512")
    assert "--load 'after=' names no folder: give FOLDER, or NAME=FOLDER" in message


def test_a_folder_may_have_the_name_of_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``runs/lr=1e-5`` is a folder where it is one, and never two."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs", "lr=1e-5")
    (run / SOURCE_FOLDER).mkdir(parents=True)
    for argument in (f"{run}", f"after={run}", str(tmp_path / run)):
        assert tokenizer_folder(argument).resolve() == (tmp_path / run / SOURCE_FOLDER)
    Path("1e-5").mkdir()
    message = refusal(capsys, "evaluate", "passkey", "--load", str(run), "--lengths", "512")
    first, second = f"runs/lr={tmp_path}/1e-5", f"runs/lr={run}"
    assert f"give {first} or {second}\n" in message
    assert tokenizer_folder(first).parent == tmp_path / "1e-5"
    assert tokenizer_folder(second).parent == run


def test_what_llama_cpp_does_with_an_export_is_a_verdict() -> None:
    told = readers(YarnConfig(128.0), MODELS["llama3.1-8b"])
    assert told == (
        "b11549 was run with such a file and rotated as trained, without any flag of the rotary "
        "embedding: rope_freqs.weight in the file says how"
    )


def test_a_change_in_words_is_not_shown_as_one_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--gpus", "64", "--tensor-model-parallel-size", "3")
    error = refusal(capsys, "plan", "llama3.1-8b-1m", *words)
    assert "change: without --tensor-model-parallel-size (TP " in error


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.sbatch")), ids=lambda path: path.name)
def test_a_batch_script_without_slurm_says_how_to_start_it(script: Path, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "start this file with sbatch" in done.stderr


@pytest.mark.parametrize("words", [[], ["6"], ["many", "script"]])
def test_the_chain_of_jobs_says_how_to_start_it(words: list[str]) -> None:
    command = ["bash", EXAMPLES / "slurm" / "submit_chain.sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "usage: SAVE=RUN bash submit_chain.sh COUNT SBATCH_WORD... SCRIPT"
    )
