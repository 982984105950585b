"""Every verb on a node without network, home folder or compiler, and without temporary files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.cli.verbs import VERBS
from megatron_ultralong.evaluation.results.file import write_results
from tests.evaluation.harness_process import IS_HERE, SITES
from tests.evaluation.long.data import mrcr_row, nolima_data, question, write_jsonl
from tests.evaluation.results import AFTER, BEFORE, loss_of
from tests.evaluation.test_local_benchmarks import infinite_records
from tests.models import TEXT, prepare_rows
from tests.patience import patience
from tests.sealed_machine import refused, sealed
from tests.training.chats import write_chat_model, write_chats
from tools.harness_data import write_tasks

COMMANDS = {
    "doctor": "doctor --megabytes 1",
    "plan": "plan extend --model llama3.1-8b --gpus 8 --seq-length 128K --json plan.json",
    "prepare": "prepare --source a=documents.jsonl --seq-length 64 --tokenizer hf --workers 2 "
    "--valid-fraction 0.2 --output rows-2",
    "prepare chat": "prepare chat --source own=own.jsonl --tokenizer hf --output chats-2 "
    "--seq-length 128 --too-long drop --valid-fraction 0.3",
    "convert import": "convert import hf imported",
    "convert export": "convert export base exported",
    "convert verify": "convert verify base hf --logits --logits-seq-length 64",
    "convert inspect": "convert inspect base",
    "pretrain": "pretrain small --load base --data-path rows --save run --train-iters 2 --ranks 2",
    "sft": "sft demo-sft-cpu --load base --data-path chats --save tuned --train-iters 1 "
    "--context-parallel-size 1",
    "evaluate loss": "evaluate loss --load base hf --data-path rows",
    "evaluate passkey": "evaluate passkey --load base --lengths 256 --depths 50 --num-samples 1",
    "evaluate needle": "evaluate needle --load base --lengths 512 --depths 50 --num-samples 1",
    "evaluate ruler": "evaluate ruler --load base --lengths 2048 --tasks niah_single_1 cwe "
    "--num-samples 1",
    "evaluate harness": "evaluate harness --load base --tasks answers --include-path tasks",
    "evaluate chat": "evaluate chat --load base --data-path chats",
    "evaluate lv-eval": "evaluate lv-eval --load base --data lv-eval --length-levels 16k "
    "--tasks dureader_mixup factrecall_en",
    "evaluate infinitebench": "evaluate infinitebench --load base --data infinite "
    "--tasks passkey longbook_sum_eng --max-length 2048",
    "evaluate mrcr": "evaluate mrcr --load base --data mrcr.jsonl --tasks 2needle "
    "--prompt-template base --max-new-tokens 8",
    "evaluate graphwalks": "evaluate graphwalks --load base --lengths 4096 --num-samples 1 "
    "--max-new-tokens 8",
    "evaluate ruler2": "evaluate ruler2 --load base --data ruler2 --prompt-template base "
    "--tasks mk_niah_basic --max-new-tokens 8",
    "evaluate nolima": "evaluate nolima --load base --data nolima --prompt-template base "
    "--lengths 500 --num-haystacks 1 --num-depths 1 --max-new-tokens 8",
    "evaluate longbench-v2": "evaluate longbench-v2 --load base --data longbench.jsonl "
    "--prompt-template base --max-new-tokens 8",
    "evaluate report": "evaluate report results --output page",
    "generate": "generate --load base --prompt ab --max-new-tokens 2",
}
"""A command of each verb, in a folder with what it reads."""
HARNESS = "evaluate harness"
TRIED = {f"/nonexistent/{name}/matplotlib" for name in (".config", ".cache")}
"""matplotlib's folders, which it does without."""

_PROGRAM = """
import importlib, json, os, sys
from megatron_ultralong import cli
from megatron_ultralong.mcore.cpu import compile_at_first_call

with compile_at_first_call():  # once; every command is a fork
    for name in ("training.verbs", "evaluation.run_command", "generation.generate"):
        importlib.import_module(f"megatron_ultralong.{name}")
for name, line in json.loads(sys.argv[1]).items():
    if not (pid := os.fork()):
        said = os.open(name.replace(" ", "-") + ".said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.argv = ["ultralong", *line.split()]
        status = 1
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sep="\\t", flush=True)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("sealed")
    write_chat_model(folder, max_position_embeddings=4096, num_hidden_layers=2)
    prepare_rows(folder, (TEXT * 2 + str(n) for n in range(300)), folder / "hf", 128)
    write_chats(folder, 40)
    for name, losses in (("before", BEFORE), ("after", AFTER)):
        (folder / "results" / name).mkdir(parents=True)
        write_results(folder / "results" / name / "results.json", [loss_of(name, 2048, losses)])
    write_tasks(folder / "tasks")
    write_jsonl(folder / "mrcr.jsonl", [mrcr_row(2, 50)])
    nolima_data(folder / "nolima")
    write_jsonl(folder / "longbench.jsonl", [question()])
    for task in ("passkey", "longbook_sum_eng"):
        write_jsonl(folder / "infinite" / f"{task}.jsonl", [infinite_records(task)])
    row: dict[str, Any] = {"input": "谁", "context": TEXT, "answers": ["x1"], "length": 100}
    for task in ("dureader_mixup", "factrecall_en"):
        write_jsonl(folder / "lv-eval" / f"{task}_16k.jsonl", [row | {"answer_keywords": "x1"}])
    row = {"index": 0, "question": "Find it.", "expected_answer": ["x"], "length": 1000}
    write_jsonl(folder / "ruler2" / "mk_niah_basic" / "test.jsonl", [row])
    return folder


def wrong(
    folder: Path, commands: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """The commands that do not end well on such a machine, and what they say."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(commands)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=patience(250),
    )
    statuses = dict(line.split("\t") for line in done.stdout.splitlines())
    assert statuses.keys() == commands.keys()
    return {
        name: (folder / f"{name.replace(' ', '-')}.said").read_text()
        for name, status in statuses.items()
        if status != "0"
    }


def test_every_verb_has_a_command_here() -> None:
    assert COMMANDS.keys() == VERBS.keys()


def test_verbs_need_no_network_and_no_home(inputs: Path, tmp_path: Path) -> None:
    """They write to the folder they are called in and to that of temporary files alone."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    commands = {name: line for name, line in COMMANDS.items() if name != HARNESS}
    environment = sealed(tmp_path, [inputs, temporary, Path("/dev/shm")])
    environment |= {"TMPDIR": str(temporary), "PATH": "/"}
    failed = wrong(inputs, commands, environment)
    assert not failed, "\n".join(f"{name}: {said}" for name, said in failed.items())
    assert refused(tmp_path) <= TRIED


@pytest.mark.faults
@pytest.mark.skipif(
    not SITES and not IS_HERE, reason="lm-evaluation-harness is not installed: make harness"
)
def test_the_harness_needs_a_cache_and_says_so(inputs: Path, tmp_path: Path) -> None:
    environment = sealed(tmp_path, [inputs, Path("/dev/shm")])
    environment |= {"TMPDIR": str(inputs), "PATH": "/"}
    cache = {"HF_DATASETS_CACHE": str(inputs / "cache")}
    failed = wrong(inputs, {HARNESS: COMMANDS[HARNESS]}, environment | cache)
    assert not failed, failed
    assert refused(tmp_path) <= TRIED
    (inputs / "file").touch()
    cache = {"HF_DATASETS_CACHE": str(inputs / "file" / "cache")}
    said = wrong(inputs, {HARNESS: COMMANDS[HARNESS]}, environment | cache)[HARNESS]
    assert "set HF_DATASETS_CACHE to a folder that can" in said
    assert said.count("\n") == 1


_LIGHT = """
import contextlib, io, json, sys
from megatron_ultralong.cli import main

for name, line in json.loads(sys.argv[1]).items():
    said, status = io.StringIO(), 0
    with contextlib.redirect_stderr(said):
        try:
            main(line.split())
        except SystemExit as end:
            status = end.code
    print(json.dumps([name, status, said.getvalue(), "torch" in sys.modules]))
"""


def test_a_machine_without_temporary_files_is_told_at_once(inputs: Path, tmp_path: Path) -> None:
    """Before torch is imported, and by the doctor among its findings."""
    commands = {name: line for name, line in COMMANDS.items() if not VERBS[name].takes_words}
    options: dict[str, Any] = {"cwd": inputs, "capture_output": True, "text": True}
    options |= {"timeout": patience(100), "env": sealed(tmp_path, [tmp_path / "none"])}
    program = [sys.executable, "-c", _LIGHT, json.dumps(commands)]
    done = subprocess.run(program, check=True, **options)
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands)
    for name, status, said, is_slow in map(json.loads, lines):
        assert (status, is_slow) == (2, False), f"{name}: {said}"
        assert said.startswith(
            "ultralong: error: no folder takes temporary files, neither /tmp "
        ), f"{name}: {said}"
        assert "set TMPDIR to a folder" in said
        assert said.count("\n") == 1
    words = [sys.executable, "-m", "megatron_ultralong", "doctor", "--no-communication"]
    done = subprocess.run(words, check=False, **options)
    assert done.returncode == 1
    assert "problem  temporary files  no folder takes temporary files" in done.stdout
