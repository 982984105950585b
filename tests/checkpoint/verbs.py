"""Every verb of the command line, by what it does with a checkpoint, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from tests.data.chats import write_jsonl
from tests.evaluation.harness_process import IS_HERE, SITES
from tests.models import TEXT, prepare_rows
from tests.training.chats import conversations, write_chat_model

SEQ_LENGTH = 128
Words = Callable[[Path, str], list[str]]


def _training(verb: str, recipe: str, rows: str) -> Words:
    def words(folder: Path, checkpoint: str) -> list[str]:
        return [
            *(verb, recipe, "--load", checkpoint, "--data-path", str(folder / rows)),
            *(
                "--train-iters",
                "1",
                "--lr-warmup-iters",
                "0",
                "--global-batch-size",
                "1",
                "--seq-length",
                str(SEQ_LENGTH),
            ),
            *("--context-parallel-size", "1", "--precision", "fp32", "--no-tensorboard"),
        ]

    return words


def _evaluation(name: str, *more: str) -> Words:
    def words(folder: Path, checkpoint: str) -> list[str]:
        if name == "harness" and not (IS_HERE or SITES):
            pytest.skip("lm-evaluation-harness is not installed: make harness")
        filled = [word.replace("FOLDER", str(folder)) for word in more]
        return ["evaluate", name, "--load", checkpoint, "--precision", "fp32", *filled]

    return words


OPENS: dict[str, Words] = {
    "convert export": lambda folder, load: ["convert", "export", load, str(folder / "exported")],
    "convert verify": lambda folder, load: ["convert", "verify", str(folder / "hf"), load],
    "convert inspect": lambda folder, load: ["convert", "inspect", load],
    "pretrain": _training("pretrain", "demo-cpu", "rows"),
    "sft": _training("sft", "demo-sft-cpu", "chats"),
    "evaluate loss": _evaluation("loss", "--data-path", "FOLDER/rows"),
    "evaluate passkey": _evaluation("passkey", "--lengths", "64", "--num-samples", "1"),
    "evaluate needle": _evaluation("needle", "--lengths", "64", "--num-samples", "1"),
    "evaluate ruler": _evaluation("ruler", "--lengths", "64", "--tasks", "vt"),
    "evaluate harness": _evaluation("harness", "--tasks", "mmlu"),
    "evaluate chat": _evaluation("chat", "--data-path", "FOLDER/chats", "--split", "train"),
    "evaluate lv-eval": _evaluation("lv-eval", "--data", "FOLDER"),
    "evaluate infinitebench": _evaluation("infinitebench", "--data", "FOLDER"),
    "evaluate mrcr": _evaluation("mrcr", "--data", "FOLDER"),
    "evaluate graphwalks": _evaluation("graphwalks", "--lengths", "64"),
    "evaluate ruler2": _evaluation("ruler2", "--data", "FOLDER"),
    "evaluate nolima": _evaluation("nolima", "--data", "FOLDER", "--lengths", "64"),
    "evaluate longbench-v2": _evaluation("longbench-v2", "--data", "FOLDER"),
    "generate": lambda _, load: [
        *("generate", "--load", load, "--prompt", "def", "--max-new-tokens", "1"),
        *("--precision", "fp32"),
    ],
}
"""Verbs that read the weights of a Megatron checkpoint."""

OTHERS = {
    "prepare": "reads documents and a tokenizer",
    "prepare chat": "reads conversations and a tokenizer",
    "convert import": "reads a Hugging Face or Meta folder: tests below",
    "plan": "reads ultralong.json alone, and no pickle",
    "evaluate report": "reads results in JSON",
    "doctor": "reads nothing of a user",
}
"""All other verbs, and why they are not in the list."""


def write_inputs(folder: Path) -> None:
    """``hf`` and ``base``, a tiny model and its checkpoint; ``rows`` and ``chats`` for it."""
    write_chat_model(folder, num_hidden_layers=2, max_position_embeddings=SEQ_LENGTH)
    documents = (TEXT * 3 + str(n) for n in range(40))
    prepare_rows(folder, documents, folder / "hf", SEQ_LENGTH, valid_fraction=0.2)
    write_jsonl(folder / "chats.jsonl", conversations(12))
    prepare_chat(
        PrepareChatConfig(
            source=(f"chats={folder}/chats.jsonl",),
            tokenizer=folder / "hf",
            output=folder / "chats",
            seq_length=SEQ_LENGTH,
            too_long="drop",
            valid_fraction=0.0,
            date_string="1",
        )
    )


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one message of a command that must be refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert "Traceback" not in error
    messages = [line for line in error.splitlines() if line.startswith("ultralong: error: ")]
    assert len(messages) == 1, error
    return messages[0]
