"""Every verb under ``--ranks``: mistakes end before a rank starts, and real ranks run and end."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata, unseal
from megatron_ultralong.program.owner_record import read_owners
from tests.models import TEXT, prepare_rows
from tests.patience import patience
from tests.training.chats import write_chat_model, write_chats
from tests.training.job import num_lines

Ended = tuple[int, str]

_PROGRAM = """
import contextlib, io, json, sys, time
from megatron_ultralong.cli import main

for words in json.loads(sys.argv[1]):
    said, begin, status = io.StringIO(), time.process_time(), 0
    with contextlib.redirect_stderr(said):
        try:
            main(words)
        except SystemExit as end:
            status = end.code
    slow = [name for name in ("torch", "megatron", "transformers") if name in sys.modules]
    print(json.dumps([said.getvalue(), status, time.process_time() - begin, slow]))
"""
MOST_SECONDS = 5.0
"""Of processor time."""


def mistakes(verb: str, folder: Path) -> dict[str, tuple[list[str], str]]:
    """Command lines of a verb on two ranks by what is wrong with them; a part of the message."""
    base, rows = str(folder / "base"), str(folder / "rows")
    recipe = {"pretrain": "small", "sft": "demo-sft-cpu"}.get(verb)
    words = [*verb.split(), *([recipe] if recipe else []), "--ranks", "2"]
    task = {
        "pretrain": ["--data-path", rows],
        "sft": ["--data-path", str(folder / "chats")],
        "evaluate loss": ["--data-path", rows],
        "evaluate chat": ["--data-path", str(folder / "chats")],
        "generate": ["--prompt", "x"],
    }.get(verb)
    if task is None:
        name = "--lengths" if verb.split()[1] in ("passkey", "needle", "ruler") else "--data"
        task = [name, "64" if name == "--lengths" else str(folder / "chats")]
        names = {"evaluate ruler": "vt", "evaluate harness": "mmlu"}
        task += ["--tasks", names[verb]] if verb in names else []
    damaged = str(folder / "damaged")
    other = "is not that of" if verb in ("pretrain", "sft") else "tokenizer"
    found = {
        "flag": ([*words, "--load", base, *task, "--bogus", "3"], "--bogus is not known"),
        "layout": (
            [*words, "--load", base, *task, "--context-parallel-size", "3"],
            "world_size (2) must be divisible by tensor x pipeline x context parallel size",
        ),
        "folder": ([*words, "--load", str(folder / "gone"), *task], "gone does not exist"),
        "tokenizer": ([*words, "--load", damaged, *task], other),
    }
    if verb.startswith("evaluate"):
        words += ["--load", base, *task, "--output", rows]
        found["output"] = (words, f"--output {rows} holds")
    start = [*verb.split(), "--ranks", "2", "--load", base]
    if "--lengths" in task:
        longer = [*start, "--lengths", "1M", *task[1:]]
        found["length"] = (longer, "length 1048576 is beyond the 256 positions that checkpoint 'b")
    for owner, flag in (
        *(("evaluate passkey", "--haystack"), ("evaluate needle", "--haystack")),
        *(("evaluate ruler", "--essays"), ("evaluate harness", "--include-path")),
        ("generate", "--prompt-file"),
    ):
        if owner == verb:
            gone = str(folder / "gone")
            found["file"] = ([*start, *task, flag, gone], f"{flag} {gone} does not exist")
    if verb in ("evaluate harness", "evaluate longbench-v2"):
        longer = [*start, *task, "--max-length", "257"]
        found["length"] = (
            longer,
            "--max-length 257 is beyond the 256 positions that ",
        )
    if verb in ("generate", "evaluate harness"):
        chat = "--chat" if verb == "generate" else "--apply-chat-template"
        found["template"] = ([*start, *task, chat], "has no chat template")
    if verb in ("pretrain", "sft"):
        words += ["--load", base, *task, "--save", rows]
        found["save"] = (words, f"--save {rows} is not empty and holds no checkpoints")
    if verb == "evaluate loss":  # it compares ids, and needs no tokenizer
        del found["tokenizer"]
    return found


VERBS = [verb for verb, its in cli.VERBS.items() if its.is_for_ranks]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``rows`` and ``chats``; ``damaged``, a base whose tokenizer is another one."""
    folder = tmp_path_factory.mktemp("launch")
    write_chat_model(folder, max_position_embeddings=256)
    prepare_rows(folder, (TEXT * 2 + str(n) for n in range(300)), folder / "hf", 128)
    write_chats(folder, 60)
    shutil.copytree(folder / "base", folder / "damaged")
    source = load_metadata(folder / "damaged")
    unseal(folder / "damaged")
    (folder / "damaged" / "huggingface" / "tokenizer.json").write_text("{}")
    save_metadata(folder / "damaged", dataclasses.replace(source, tokenizer_sha256="0" * 64))
    return folder


def test_mistakes_end_before_a_rank_is_started(inputs: Path) -> None:
    """A wrong flag, layout, folder or tokenizer of every verb: one message, status 2, no torch."""
    cases = {(verb, name): case for verb in VERBS for name, case in mistakes(verb, inputs).items()}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps([words for words, _ in cases.values()])],
        capture_output=True,
        text=True,
        check=True,
        timeout=patience(200),
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases) >= 4 * 10
    for (which, (_, part)), line in zip(cases.items(), lines, strict=True):
        said, status, seconds, slow = json.loads(line)
        assert said.count("\n") == 1, f"{which}: {said}"
        assert part in said, f"{which}: {said}"
        assert said.startswith("ultralong: error: ")
        assert (status, slow) == (2, []), which
        assert seconds < MOST_SECONDS, f"{which}: {seconds:.1f} s of processor time"


@pytest.fixture
def ultralong(warm_environment: dict[str, str], tmp_path: Path) -> Callable[..., Ended]:
    """Status of ``ultralong`` with real ranks, and what it has said."""

    def call(*words: str) -> Ended:
        done = subprocess.run(
            ["ultralong", *words],
            env={**warm_environment, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=patience(200),
        )
        assert not list(tmp_path.glob("ultralong-ranks-*"))
        return done.returncode, done.stdout

    return call


def test_two_real_ranks_train_and_generate(
    ultralong: Callable[..., Ended], inputs: Path, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    words = ["--load", str(inputs / "base"), "--data-path", str(inputs / "rows"), "--save", run]
    status, said = ultralong("pretrain", "small", *words, "--train-iters", "3", "--ranks", "2")
    assert status == 0, said
    assert said.count("small: ") == 1, "one rank tells it"
    assert "states spread over 2 ranks" in said
    assert "torchrun" not in said
    layout = ("--tensor-model-parallel-size", "2", "--precision", "fp32", "--ranks", "2")
    words = ["generate", "--load", run, "--prompt", "ab", "--max-new-tokens", "3"]
    status, said = ultralong(*words, *layout)
    assert status == 0, said
    assert "decode" in said


def test_an_error_that_only_ranks_can_find_is_told_once(
    ultralong: Callable[..., Ended], inputs: Path, tmp_path: Path
) -> None:
    words = ["--load", str(inputs / "base"), "--data-path", str(inputs / "rows"), "--ranks", "2"]
    status, said = ultralong(
        "pretrain", "small", *words, "--transformer-impl", "transformer_engine"
    )
    assert status == 2
    errors = [line for line in said.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, said
    assert errors[0] == said.splitlines()[-1]
    assert errors[0].startswith("ultralong: error: transformer_impl")
    assert "Traceback" not in said


@pytest.mark.faults
def test_a_killed_rank_and_a_stop_of_real_ranks(
    warm_environment: dict[str, str], inputs: Path, tmp_path: Path
) -> None:
    """Kill a rank: 69 and its name. Then SIGTERM to the whole: saved, 75. Then it resumes."""
    words = ["pretrain", "small", "--load", str(inputs / "base"), "--ranks", "2"]
    words += ["--data-path", str(inputs / "rows"), "--save", str(tmp_path / "run")]
    words += ["--train-iters", "100000", "--save-interval", "5", "--log-interval", "1"]
    for number, status in ((signal.SIGKILL, 69), (signal.SIGTERM, 75)):
        with (tmp_path / "said").open("w+") as said:
            process = subprocess.Popen(["ultralong", *words], env=warm_environment, stderr=said)
            before, deadline = num_lines(tmp_path / "run"), time.monotonic() + patience(120)
            saved = tmp_path / "run" / "latest_checkpointed_iteration.txt"
            while num_lines(tmp_path / "run") < before + 8 or not saved.exists():
                assert process.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if number == signal.SIGKILL:
                owner = read_owners(tmp_path / "run")[-1]
                os.kill(owner.pid, number)
            else:
                process.send_signal(number)
            assert process.wait(timeout=patience(120)) == status
        text = (tmp_path / "said").read_text()
        if status == 69:
            assert re.search(r"^ultralong: rank 0 .* was ended by SIGKILL", text, re.MULTILINE)
            assert re.search(r"the same command resumes from iteration \d+ in ", text), text
        else:
            assert text.splitlines()[-1].startswith("ultralong: stopped: "), text
