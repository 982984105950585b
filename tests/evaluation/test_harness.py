"""`evaluate harness` against the harness's own model, through kills, and where it is refused.

The harness is in an environment of its own (make harness), which processes here add to theirs. Of
all layouts and tasks: ``python -m tools.compare_harness``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.results.asked_file import read_asked
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.model import yarn
from tests.docs.blocks import ROOT
from tests.evaluation.harness_process import IS_HERE, SITES, add_harness, apart
from tests.patience import patience
from tests.ranks import run_on_ranks
from tools.harness_data import write_five, write_tasks

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        not SITES and not IS_HERE, reason="lm-evaluation-harness is not installed: make harness"
    ),
]


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write_checkpoint(folder: Path) -> None:
    """The demo's model in Megatron's format, read with YaRN, a BOS before every text."""
    shutil.copytree(ROOT / "examples" / "demo" / "base", folder / "hf")
    file = folder / "hf" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.save(str(file))
    settings = folder / "hf" / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "chat_template": TEMPLATE}))
    import_checkpoint(ImportConfig(folder / "hf", folder / "run"))
    metadata = load_metadata(folder / "run")
    model = dataclasses.replace(metadata.model, max_position_embeddings=4096)
    scaling = yarn.YarnConfig(8.0, original_max_position_embeddings=512)
    save_metadata(folder / "run", dataclasses.replace(metadata, model=model, rope_scaling=scaling))


REACHES = """\
import urllib.request

def docs(**_):
    urllib.request.urlopen("http://203.0.113.7/")
"""
REACHING = """\
task: reaching
custom_dataset: !function reaching.docs
output_type: generate_until
test_split: test
doc_to_text: x
doc_to_target: y
"""


ODD = """\
def difference(doc, results):
    return {"difference": -1.5}
"""
ODD_LISTED = [{"metric": "difference", "aggregation": "mean", "higher_is_better": True}]


def write_odd(tasks: Path) -> None:
    """A task whose one score is no share and no perplexity."""
    (tasks / "odd.py").write_text(ODD)
    lines = (tasks / "answers.yaml").read_text().splitlines(keepends=True)
    start = next(k for k, line in enumerate(lines) if line.startswith("metric_list"))
    stop = next((k for k in range(start + 1, len(lines)) if lines[k][0] not in " -"), len(lines))
    rest = "".join(lines[:start] + lines[stop:]).replace("task: answers", "task: odd")
    listed = f"metric_list: {json.dumps(ODD_LISTED)}\nprocess_results: !function odd.difference\n"
    (tasks / "odd.yaml").write_text(rest + listed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model in both formats, tasks and data."""
    folder = tmp_path_factory.mktemp("harness")
    write_checkpoint(folder)
    export_checkpoint(ExportConfig(folder / "run", folder / "exported"))
    write_tasks(folder / "tasks")
    write_five(folder / "data")
    (folder / "tasks" / "reaching.py").write_text(REACHES)
    (folder / "tasks" / "reaching.yaml").write_text(REACHING)
    write_odd(folder / "tasks")
    os.environ["HF_HOME"] = str(folder / "cache")
    return folder


def agreements(folder: Path) -> dict[str, Any]:
    """Run on every rank: kinds of tasks and two of the five, by both models."""
    add_harness()
    from tools import compare_harness as tool

    layout = {"context 2": ParallelConfig(context_parallel_size=2)}
    tool.layouts = lambda num_ranks, run: layout
    cases = [case for case in tool.CASES if case.name in ("plain", "chat")]
    five = ("mmlu_anatomy", "gsm8k", "humaneval")
    cases.append(dataclasses.replace(tool.CASES[-1], tasks=five))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = tool.run_all(folder / "run", folder / "exported", cases, 2, folder)
    return {case: dataclasses.asdict(one) for (_, case), one in found.items()}


def test_answers_are_those_of_the_harness_own_model(folder: Path) -> None:
    """Perplexity, multiple choice, generation, chats and few-shot prompts over two ranks."""
    found, nothing = run_on_ranks(2, agreements, folder)
    assert not nothing  # the other rank asks nobody
    assert set(found) == {"plain", "chat", "five"}
    for case, one in found.items():
        assert not one["problems"], (case, one)
        assert one["num_answers"] > 20
        assert one["num_strings"] >= 4
    scores = read_result(folder / "context 2" / "five" / "harness.json")
    assert 0 < scores.cell("humaneval", "pass@1 (create_test)").score < 100


def words(folder: Path, output: str = "", *more: str) -> list[str]:
    """An evaluation of some twenty requests of every kind, or of those that ``more`` names."""
    load = ["--load", str(folder / "run")] * ("--load" not in more)
    tasks = ["choices_texts", "words_perplexity", "answers"]
    named = ["--tasks", *tasks] * ("--tasks" not in more)
    given = ["--output", str(folder / output)] if output else []
    return [
        *("evaluate", "harness", *load, "--precision", "fp32"),
        *("--include-path", str(folder / "tasks"), "--data", str(folder / "data")),
        *("--limit", "5", "--micro-batch-size", "2", *named, *given, *more),
    ]


def killed(folder: Path, output: str) -> list[int]:
    """Start in forks that have the harness, kill three, let one end; parts noted by then."""
    from lm_eval.tasks import TaskManager

    TaskManager(include_path=str(folder / "tasks"))
    journal = folder / f".{output}.partial" / "finished.jsonl"
    noted = [0]
    for number in range(4):
        pid = os.fork()
        if not pid:
            _run_and_leave(words(folder, output))
        goal = noted[-1] + 5
        deadline = time.monotonic() + patience(120)
        while True:
            is_there = number < 3 and journal.is_file()  # the last one moves it when it ends
            if is_there and journal.read_bytes().count(b"\n") >= goal:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            assert time.monotonic() < deadline, "it does not continue"
            time.sleep(0.002)
        if number < 3:
            assert os.WIFSIGNALED(status), "it has ended before it was killed"
            noted.append(journal.read_bytes().count(b"\n"))
        else:
            assert status == 0
    return noted


def _run_and_leave(arguments: list[str]) -> None:
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            cli.main(arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@dataclasses.dataclass
class Runs:
    """What commands in one process did, since the harness takes long to import."""

    noted: list[int]
    """Parts in the journal at the start and after each of three kills."""
    whole: tuple[int, str]
    """Status of the same without kills, and what it says."""
    exported: tuple[int, str]
    """The same of the export, by transformers."""
    odd: tuple[int, str]
    """The same of a task without a share."""
    drawn: list[tuple[int, str]]
    refused: dict[str, tuple[int, str]]


def run_all(folder: Path) -> Runs:
    """Those of all tests below."""
    return Runs(
        killed(folder, "often"),
        _status(words(folder, "once")),
        _status(words(folder, "exported once", "--load", str(folder / "exported"))),
        _status(words(folder, "odd", "--tasks", "odd")),
        drawn(folder),
        refusals(folder),
    )


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    found: Runs = apart(run_all, folder)
    return found


def test_killed_three_times_it_continues(folder: Path, runs: Runs) -> None:
    noted = runs.noted
    assert noted == sorted(set(noted))  # each went on behind the one before it
    assert runs.whole[0] == 0, runs.whole[1]
    lines = {
        name: [json.loads(line) for line in (folder / name / "samples.jsonl").open()]
        for name in ("often", "once")
    }
    keys = [entry["key"] for entry in lines["often"]]
    assert len(keys) == len(set(keys)) > noted[-1]  # no sample twice
    by_key = {
        name: {entry.pop("key"): entry for entry in entries} for name, entries in lines.items()
    }
    assert by_key["often"].keys() == by_key["once"].keys()
    for key, entry in by_key["once"].items():  # batches differ, and with them the last bits
        likelihoods = [one.pop("log_likelihood", 0.0) for one in (by_key["often"][key], entry)]
        assert likelihoods[0] == pytest.approx(likelihoods[1], rel=1e-5)
        assert by_key["often"][key] == entry
    often, once = (read_result(folder / name / "harness.json") for name in ("often", "once"))
    assert [dataclasses.replace(cell, score=0, error=0) for cell in often.cells] == [
        dataclasses.replace(cell, score=0, error=0) for cell in once.cells
    ]
    assert often.material == once.material
    assert set(often.material) == set(often.rows)
    scores = [[cell.score for cell in one.cells] for one in (often, once)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert (folder / "once" / "lm_eval" / "results.json").is_file()


def test_a_run_without_a_share_is_kept(folder: Path, runs: Runs) -> None:
    status, said = runs.odd
    assert status == 0, said
    assert "none of the scores is a share or perplexity" in " ".join(said.split())
    values = json.loads((folder / "odd" / "lm_eval" / "results.json").read_text())
    assert values["results"]["odd"]["difference,none"] == -1.5
    assert not (folder / "odd" / "harness.json").exists()
    assert read_asked(folder / "odd" / "asked.json").asked["tasks"] == ["odd"]


def _status(arguments: list[str]) -> tuple[int, str]:
    """Exit status of a command, and what it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(arguments)
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown": (["--tasks", "no_such_task"], "--tasks no_such_task: the harness has no task"),
    "no data": (
        ["--tasks", "arc_easy"],
        "data set allenai/ai2_arc is not on this machine",
    ),
    "network": (["--tasks", "reaching"], "reaches for the network (203.0.113.7)"),
    "programs": (["--tasks", "humaneval"], "allow it with --confirm-run-unsafe-code"),
    "too long": (["--max-length", "9000"], "--max-length 9000 is beyond the 4096 positions"),
    "too much": (["--max-cost", "1e-9"], "above --max-cost 1e-09"),
    "no room": (["--max-length", "20"], "fewer than --max-length (20)"),
    "options": (["--gen-kwargs", "num_beams=4"], "{'num_beams': 4}"),
    "no value": (["--gen-kwargs", "num_beams"], "give KEY=VALUE"),
}


def refusals(folder: Path) -> dict[str, tuple[int, str]]:
    """Commands that are refused, in one process."""
    return {name: _status(words(folder, "", *more)) for name, (more, _) in REFUSED.items()}


def test_a_folder_of_hugging_face_is_asked_the_same(folder: Path, runs: Runs) -> None:
    assert runs.exported[0] == 0, runs.exported[1]
    for task in ("answers", "choices_texts", "words_perplexity"):
        actual, expected = (
            [entry["resps"] for entry in map(json.loads, file.open())]
            for name in ("once", "exported once")
            for file in [folder / name / "lm_eval" / f"samples_{task}.jsonl"]
        )
        assert len(actual) == len(expected) == 5
        if task == "answers":
            assert actual == expected
        else:
            values = [np.ravel(np.asarray(one, float)) for one in (actual, expected)]
            np.testing.assert_allclose(*values, rtol=1e-4)  # float32; angles are rounded


DRAWN = ("--tasks", "answers", "--gen-kwargs", "do_sample=True", "temperature=0.9", "top_k=40")


def drawn(folder: Path) -> list[tuple[int, str]]:
    """The same draws in batches of one and of three."""
    sizes = ("1", "3")
    return [
        _status(words(folder, f"drawn {size}", *DRAWN, "--micro-batch-size", size))
        for size in sizes
    ]


def test_draws_do_not_depend_on_the_batch(folder: Path, runs: Runs) -> None:
    for status, said in runs.drawn:
        assert status == 0, said
    alone, together = (
        [
            one["resps"][0][0]
            for one in map(json.loads, (folder / name / "lm_eval/samples_answers.jsonl").open())
        ]
        for name in ("drawn 1", "drawn 3")
    )
    assert alone == together
    assert len(set(alone)) > 1


def test_what_cannot_be_is_refused(runs: Runs) -> None:
    assert runs.refused.keys() == REFUSED.keys()
    for name, (status, said) in runs.refused.items():
        assert status == 2, (name, said)
        assert REFUSED[name][1] in " ".join(said.split()), (name, said)
        assert "Traceback" not in said
