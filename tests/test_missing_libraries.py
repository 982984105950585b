"""Each library taken away in turn from the verbs that run without torch: one message, or no need.

A verb runs once as it is, and says which libraries it imports; then once without each of these.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_ultralong.program.libraries import LIBRARIES
from tests.command_line import status_and_output
from tests.evaluation.results import loss_results, saved
from tests.models import TEXT
from tests.patience import patience
from tests.training.chats import write_chat_model

_HOOK = """
import atexit, json, os, sys

taken = os.environ["TAKEN_AWAY"].split()

class Finder:
    def find_spec(name, path=None, target=None):
        if name in taken:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder)
if there := os.environ.get("IMPORTED"):
    main = os.getpid()
    def write():
        if os.getpid() == main:
            with open(there, "w") as file:
                json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)
    atexit.register(write)
"""
_ROWS = "--tokenizer hf --valid-fraction 0 --output rows"
VERBS = {
    "version": "--version",
    "help": "--help",
    "doctor": "doctor --no-communication",
    "plan": "plan extend --model llama3.1-8b --gpus 8 --seq-length 128K --json plan.json",
    "prepare": f"prepare --source a=a.jsonl --seq-length 64 {_ROWS}",
    "prepare chat": f"prepare chat --source c=chat.jsonl --seq-length 256 {_ROWS}",
    "convert inspect": "convert inspect hf",
    "evaluate report": "evaluate report results.json --output page",
    "pretrain": "pretrain small --load nothing --data-path rows --ranks 2",
    "generate": "generate --load nothing --prompt x",
}
"""A start of each; the last two end before torch is imported."""
ENDS_EARLY = ("pretrain", "generate")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    write_chat_model(folder)
    (folder / "a.jsonl").write_text(json.dumps({"text": TEXT * 40}) + "\n")
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    (folder / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 8)
    saved(loss_results(), folder / "results.json")
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(_HOOK)
    return folder


def start(
    folder: Path, words: Sequence[str], taken: str, there: Path | None = None
) -> tuple[int, str]:
    """Status and output of ``ultralong`` in a folder of links to the inputs."""
    folder.mkdir()
    inputs = folder.parent
    for name in ("hf", "a.jsonl", "chat.jsonl", "results.json"):
        (folder / name).symlink_to(inputs / name)
    path = os.pathsep.join([str(inputs / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = [sys.executable, "-m", "megatron_ultralong", *words]
    hook = {"PYTHONPATH": path, "TAKEN_AWAY": taken, "IMPORTED": str(there or "")}
    return status_and_output(program, 100, cwd=folder, env={**os.environ, **hook})


def test_the_doctor_names_all_that_are_not_there(inputs: Path) -> None:
    status, said = start(inputs / "none", VERBS["doctor"].split(), " ".join(LIBRARIES))
    assert (status, "Traceback" in said) == (1, False), said
    for requirement in LIBRARIES.values():
        assert f"-> pip install '{requirement}'" in said


HEAVY = {"doctor": [pytest.mark.slow]}
"""It imports torch and Megatron-Core, sixteen times."""


@pytest.mark.parametrize("verb", [pytest.param(verb, marks=HEAVY.get(verb, ())) for verb in VERBS])
def test_a_library_that_is_not_there_has_one_message(verb: str, inputs: Path) -> None:
    words, name = VERBS[verb].split(), verb.replace(" ", "-")
    there = inputs / f"{name}.imported"
    status, said = start(inputs / f"{name}-whole", words, "", there)
    assert status == (2 if verb in ENDS_EARLY else 0), said
    needed = sorted(set(json.loads(there.read_text())) & set(LIBRARIES))
    assert bool(needed) == (verb not in ("version", "help"))
    for library in LIBRARIES if verb == "doctor" else needed:
        status, said = start(inputs / f"{name}-{library}", words, library)
        assert "Traceback" not in said, f"without {library}: {said}"
        install = f"pip install '{LIBRARIES[library]}'"
        if verb == "doctor":
            assert status == 1
            assert f"-> {install}" in said, f"without {library}: {said}"
        elif f"{install}; `ultralong doctor` looks at all" in said:
            assert status == 2
            lines = [line for line in said.splitlines() if line.startswith("ultralong: error: ")]
            assert len(lines) == 1
            assert lines[0] == said.splitlines()[-1]
        else:  # one that it asks for, and works without
            assert status == (2 if verb in ENDS_EARLY else 0), f"without {library}: {said}"
            assert not re.search(r"ultralong: error: .*(install|Import)", said), said


def test_the_program_of_the_harness_names_one_too(inputs: Path) -> None:
    program = "from megatron_ultralong.__main__ import lm_eval; lm_eval()"
    path = os.pathsep.join([str(inputs / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "TAKEN_AWAY": "numpy"},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(100),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ultralong: error: the package numpy is not installed")
    assert done.stderr.count("\n") == 1
