"""A result that is there counts as done for the same question alone, and nothing overwrites it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from megatron_ultralong import cli
from tests.evaluation.harness_process import IS_HERE, SITES
from tests.test_sealed_machine import COMMANDS, inputs

__all__ = ["inputs"]
VERBS = sorted(
    name.removeprefix("evaluate ")
    for name in COMMANDS
    if name.startswith("evaluate ") and name != "evaluate report"
)
if not SITES and not IS_HERE:
    VERBS.remove("harness")
MORE = {
    "needle": "--haystack haystack.txt",
    "passkey": "--haystack haystack.txt",
    "ruler": "--essays essays.json",
    "harness": "--limit 2",
}
"""Flags beside those of each verb's command: files that samples are made of."""
LOADS = "--load hf", "--load one=hf two=hf"
"""One model, and several."""
TOGETHER = ("passkey", "loss")
"""Of several models here: one has folders in the output, the other one table."""


def command(verb: str, load: str, output: str, *more: str) -> str:
    words = COMMANDS[f"evaluate {verb}"]
    start = words.index("--load ")
    rest = words[start:].split(" --", 1)[1]
    return " ".join(
        (words[:start] + load, f"--{rest}", MORE.get(verb, ""), "--output", output, *more)
    )


def said_by(folder: Path, commands: Mapping[str, str], status: int = 0) -> dict[str, str]:
    """What commands say that all end with this status, each called in ``folder``."""
    found, here = {}, Path.cwd()
    for name, line in commands.items():
        said, ended = io.StringIO(), 0
        with redirect_stdout(said), redirect_stderr(said):
            try:
                os.chdir(folder)
                cli.main(line.split())
            except SystemExit as end:
                ended = int(end.code or 0)
            finally:
                os.chdir(here)
        found[name] = said.getvalue()
        assert ended == status, f"{name}: {line}: {found[name]}"
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def done(inputs: Path) -> Path:
    """Every benchmark of one model and of several, with what it was measured on."""
    text = "The cat sat on the mat. " * 3000
    (inputs / "haystack.txt").write_text(text)
    (inputs / "essays.json").write_text(json.dumps({"text": text}))
    said_by(inputs, every("done"))
    return inputs


def every(output: str, *more: str) -> dict[str, str]:
    return {
        f"{verb} {number}": command(verb, load, f"{output}/{verb}-{number}", *more)
        for verb in VERBS
        for number, load in enumerate(LOADS)
        if not number or verb in TOGETHER
    }


def test_the_same_command_says_that_it_is_done(done: Path) -> None:
    before = contents(done / "done")
    assert len({name.split("/")[0] for name in before}) == len(VERBS) + len(TOGETHER)
    # Neither flag changes an answer; of several models each says it.
    for more in ((), ("--micro-batch-size 3", "--beyond-trained-positions")):
        for name, said in said_by(done, every("done", *more)).items():
            verb, number = name.split()
            together = verb == "loss" and number == "1"
            expected = [["hf"], ["one", "two"]][int(number)]
            expected = ["one, two"] if together else expected
            for model in expected:
                assert f"{model}: already evaluated, see done/{verb}-{number}" in said, said
            assert "estimate:" not in said, "nothing is asked"
    assert contents(done / "done") == before


OTHERS: dict[str, tuple[tuple[str, str], ...]] = {
    "passkey": (
        *(("--seed 7", "seed was 1234, now it is 7"), ("--by decoding", "by was 'argmax', now")),
        ("--num-samples 2", "num_samples was 1, now it is 2"),
        *(("--lengths 200", "lengths was 256, now it is 200"), ("--depths 10", "depths was 50")),
    ),
    "needle": (
        ("--num-distractors 2", "num_distractors was 3, now it is 2"),
        ("--num-samples 3", "num_samples was 1, now it is 3"),
    ),
    "ruler": (
        ("--num-samples 2", "num_samples was 1, now it is 2"),
        ("--tasks niah_single_1", "tasks was niah_single_1, cwe, now it is niah_single_1"),
        ("--seed 3", "seed was 42, now it is 3"),
    ),
    "loss": (
        ("--num-samples 2", "num_samples was 0, now it is 2"),
        ("--smallest-bin 64", "smallest_bin was 128, now it is 64"),
        ("--split train", "split was 'valid', now it is 'train'"),
        ("--document-mask block", "document_mask was 'none', now it is 'block'"),
    ),
    "chat": (("--split train", "split was 'valid', now it is 'train'"),),
    "harness": (
        ("--limit 1", "limit was 2, now it is 1"),
        ("--num-fewshot 1", "num_fewshot was -1, now it is 1"),
        ("--system-instruction Be-brief", "system_instruction was '', now it is 'Be-brief'"),
    ),
    "graphwalks": (
        ("--seed 7", "seed was 1234, now it is 7"),
        ("--num-samples 2", "num_samples was 1, now it is 2"),
        ("--max-new-tokens 9", "max_new_tokens was 8, now it is 9"),
    ),
    "nolima": (
        ("--num-depths 2", "num_depths was 1, now it is 2"),
        ("--metric EM", "metric was 'contains', now it is 'EM'"),
        ("--lengths 250", "lengths was 500, now it is 250"),
    ),
    "infinitebench": (
        ("--max-length 1024", "max_length was 2048, now it is 1024"),
        ("--tasks passkey", "tasks was passkey, longbook_sum_eng, now it is passkey"),
    ),
    "lv-eval": (("--max-length 1024", "max_length was 4096, now it is 1024"),),
    "mrcr": (("--max-new-tokens 9", "max_new_tokens was 8, now it is 9"),),
    "ruler2": (("--max-new-tokens 9", "max_new_tokens was 8, now it is 9"),),
    "longbench-v2": (("--max-new-tokens 9", "max_new_tokens was 8, now it is 9"),),
}
"""Flags by verb, and what is said to differ by them."""
REFUSED = "holds the result of another evaluation: its "


@pytest.mark.slow
def test_other_flags_are_another_question(done: Path) -> None:
    assert {*VERBS} <= {*OTHERS}
    before = contents(done / "done")
    commands, expected = {}, {}
    for verb in VERBS:
        for k, (flag, words) in enumerate(OTHERS[verb]):
            name = f"{verb} 0 {k}"
            commands[name] = command(verb, LOADS[0], f"done/{verb}-0", flag)
            expected[name] = words
    for name, said in said_by(done, commands, status=2).items():
        verb, number, _ = name.split()
        assert f"--output done/{verb}-{number}" in said, said
        assert REFUSED + expected[name] in said, f"{name}: {said}"
        assert "name another --output, or remove that folder" in said
        assert said.count("ultralong: error: ") == 1
    assert contents(done / "done") == before


FILES = {
    "passkey": ("haystack.txt", "haystack was"),
    "needle": ("haystack.txt", "haystack was"),
    "ruler": ("essays.json", "material, essays was"),
    "lv-eval": ("lv-eval/factrecall_en_16k.jsonl", "material, factrecall_en_16k.jsonl was"),
    "infinitebench": ("infinite/passkey.jsonl", "material, passkey.jsonl was"),
    "mrcr": ("mrcr.jsonl", "material, mrcr.jsonl was"),
    "ruler2": ("ruler2/mk_niah_basic/test.jsonl", "material, "),
    "longbench-v2": ("longbench.jsonl", "material, longbench.jsonl was"),
    "nolima": ("nolima/haystack/rand_shuffle/rand_book_1.txt", "material, "),
    "loss": ("rows/manifest.json", "manifest.json was"),
}
"""A file by verb, and what is said to differ with other content."""


def test_other_files_under_the_same_names_are_another_question(done: Path) -> None:
    commands = {name: line for name, line in every("done").items() if name.split()[0] in FILES}
    before = contents(done / "done")
    kept = {file: (done / file).read_bytes() for file, _ in FILES.values()}
    try:
        for file, content in kept.items():
            text = content.decode()
            changed = (
                text.replace("cat sat", "dog sat").replace('"x1"', '"x2"').replace('"x"', '"y"')
            )
            changed = changed.replace('"seed": ', '"seed": 1')  # of the manifest
            (done / file).write_text(changed if changed != text else text + "\n")
        said = said_by(done, commands, status=2)
    finally:
        for file, content in kept.items():
            (done / file).write_bytes(content)
    for name, text in said.items():
        assert REFUSED + FILES[name.split()[0]][1] in text, f"{name}: {text}"
    assert contents(done / "done") == before
    said_by(done, commands)


def test_conversations_and_tasks_that_were_written_anew(done: Path) -> None:
    """Rows of another split of the same conversations; a task whose questions are others."""
    shutil.copytree(done / "chats", done / "kept-chats")
    shutil.copytree(done / "tasks", done / "kept-tasks")
    prepared = "prepare chat --source own=own.jsonl --tokenizer hf --output chats "
    try:
        shutil.rmtree(done / "chats")
        prepared += "--seq-length 128 --too-long drop --valid-fraction 0.5"
        said_by(done, {"chats": prepared})
        task = done / "tasks" / "answers.yaml"
        task.write_text(task.read_text().replace("Question:", "Asked:"))
        names = [name for name in every("done") if name.split()[0] in ("chat", "harness")]
        said = said_by(done, {name: every("done")[name] for name in names}, status=2)
    finally:
        for name in ("chats", "tasks"):
            shutil.rmtree(done / name)
            (done / f"kept-{name}").rename(done / name)
    assert said
    for name, text in said.items():
        assert REFUSED in text, f"{name}: {text}"
    said_by(done, {name: every("done")[name] for name in names})


def test_of_several_models_the_ones_that_are_done_are_kept(done: Path) -> None:
    """And one that is another is told before the new one is asked."""
    load = "--load one=hf three=base"
    before = contents(done / "done" / "passkey-1")
    (said,) = said_by(done, {"more": command("passkey", load, "done/passkey-1")}).values()
    assert "one: already evaluated, see done/passkey-1/one" in said
    after = contents(done / "done" / "passkey-1")
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after} == {"one", "two", "three"}
    load = "--load four=base one=hf"
    commands = {"other": command("passkey", load, "done/passkey-1", "--seed 5")}
    (said,) = said_by(done, commands, status=2).values()
    assert f"--output done/passkey-1/one {REFUSED}seed was 1234, now it is 5" in said
    assert contents(done / "done" / "passkey-1") == after


def test_another_model_benchmark_or_folder_is_refused(done: Path) -> None:
    shutil.copytree(done / "hf", done / "trained", copy_function=shutil.copyfile)
    (done / "mine").mkdir(exist_ok=True)
    (done / "mine" / "notes.txt").write_text("mine")
    commands = {
        "name": command("passkey", "--load b=hf", "done/passkey-0"),
        "weights": command("passkey", "--load hf=trained", "done/passkey-0"),
        "engine": command("passkey", "--load hf=base", "done/passkey-0"),
        "kind": command("needle", "--load hf", "done/passkey-0"),
        "kind of loss": command("loss", "--load hf", "done/passkey-0"),
        "loss": command("passkey", "--load hf", "done/loss-0"),
        "loss of others": command("loss", "--load hf base", "done/loss-0"),
        "loss of other weights": command("loss", "--load hf=trained", "done/loss-0"),
        "mine": command("passkey", "--load hf", "mine"),
    }
    expected = {
        "name": f"{REFUSED}checkpoint was 'hf', now it is 'b'",
        "weights": f"{REFUSED}weights was '",
        "engine": f"{REFUSED}engine was 'transformers', now it is 'megatron'",
        "kind": f"{REFUSED}kind was 'passkey', now it is 'needle'",
        "kind of loss": f"{REFUSED}kind was passkey, now it is loss",
        "loss": f"{REFUSED}kind was loss, now it is passkey",
        "loss of others": f"{REFUSED}checkpoints was hf, now it is hf, base",
        "loss of other weights": f"{REFUSED}hf, weights was '",
        "mine": "--output mine holds 1 entries, notes.txt among them: existing files are not",
    }
    for name, said in said_by(done, commands, status=2).items():
        assert expected[name] in said, f"{name}: {said}"


def test_damaged_answers_do_not_count_as_done(done: Path) -> None:
    copy = shutil.copytree(done / "done" / "passkey-0", done / "copy")
    line = {"again": command("passkey", "--load hf", "copy")}
    assert "already evaluated" in said_by(done, line)["again"]
    samples = (copy / "samples.jsonl").read_text()
    result = (copy / "passkey.json").read_text()
    damages = {
        "samples.jsonl": ("", "its samples was those in samples.jsonl, now it is others, 1 of 1"),
        "passkey.json": (result[:-20], "passkey.json is not JSON"),
        "evaluation.json": ("{", "evaluation.json is not JSON"),
    }
    for name, (text, words) in damages.items():
        before = (copy / name).read_text()
        (copy / name).write_text(text)
        assert words in said_by(done, line, status=2)["again"]
        (copy / name).write_text(before)
    (copy / "samples.jsonl").write_text(samples[:-5])
    assert "1 line of copy/samples.jsonl cannot be read" in said_by(done, line, 2)["again"]
