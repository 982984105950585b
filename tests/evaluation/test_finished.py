"""A finished evaluation in --output: the same command is done, another one is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import cli
from megatron_ultralong.evaluation import commands, contents, finished, options
from megatron_ultralong.evaluation.models.facts import model_facts
from tests.evaluation.harness_process import IS_HERE, SITES
from tests.test_sealed_machine import COMMANDS, inputs

__all__ = ["inputs"]

FLAGS: dict[str, tuple[Any, Any]] = {
    "apply_chat_template": (False, True),
    "by": ("argmax", "decoding"),
    "depths": ((0.0, 50.0), (0.0, 100.0)),
    "document_mask": ("none", "block"),
    "gen_kwargs": ((), ("top_k=1",)),
    "length_levels": (("16k",), ("32k",)),
    "lengths": ((512,), (512, 1024)),
    "limit": (0, 1),
    "max_length": (0, 512),
    "max_new_tokens": (8, 9),
    "metric": ("contains", "EM"),
    "needle_set": ("needle_set", "needle_set_hard"),
    "num_depths": (1, 2),
    "num_distractors": (0, 3),
    "num_fewshot": (-1, 0),
    "num_haystacks": (0, 1),
    "num_samples": (1, 2),
    "prompt_template": ("base", "chat"),
    "ruler_release": ("c3f5e3b", "860f2bd"),
    "seed": (1, 2),
    "seq_length": (0, 64),
    "smallest_bin": (64, 128),
    "split": ("valid", "train"),
    "system_instruction": ("", "Be brief."),
    "tasks": (("one",), ("one", "other")),
}
"""Flags that decide figures, each with two values."""
FREE: dict[str, tuple[Any, Any]] = {
    "beyond_trained_positions": (False, True),
    "confirm_run_unsafe_code": (False, True),
    "micro_batch_size": (1, 8),
    "output": ("one", "other"),
}
"""Flags that decide none."""
FILES = (
    *("data", "data_path", "english_words", "essays", "haystack", "hotpotqa", "include_path"),
    *("length_tokenizer", "squad", "word_lists"),
)
"""Flags that name files or folders."""
MODELS = {"load": True, "precision": True, "verify_checksums": False, "parallel": False}
"""Flags of the models, and whether they decide figures."""


def test_every_flag_stands_in_one_of_these_tables() -> None:
    """A new one is here first: else nobody has said whether another value is another question."""
    fields = {field.name for cls in commands.FLAGS.values() for field in dataclasses.fields(cls)}
    tables = [*FLAGS, *FREE, *FILES]
    assert sorted(fields) == sorted(tables)
    assert {field.name for field in dataclasses.fields(options.ModelsConfig)} == {*MODELS}
    assert {*FREE} == finished.FREE
    assert {*FILES} == finished.FILES
    parts = {
        field.name
        for name, cls in commands.FLAGS.items()
        for field in dataclasses.fields(vars(commands)[cls.__name__.replace("Config", "Command")])
        if field.name != name
    }
    assert parts == {"models", "cost"}  # what an evaluation may cost decides no figure


@pytest.mark.parametrize("name", commands.FLAGS)
def test_flags_that_decide_figures_are_another_question(name: str) -> None:
    default = commands.FLAGS[name]()
    for field in dataclasses.fields(default):
        if field.name in FILES:
            continue
        one, other = (
            finished.question(name, dataclasses.replace(default, **{field.name: value}))
            for value in (FLAGS | FREE)[field.name]
        )
        assert (one == other) == (field.name in FREE), field.name
        assert json.loads(json.dumps(one)) == one, field.name


@pytest.mark.parametrize("name", commands.FLAGS)
def test_files_count_by_what_they_hold(name: str, tmp_path: Path) -> None:
    default = commands.FLAGS[name]()
    for field in dataclasses.fields(default):
        if field.name not in FILES:
            continue

        def asked(folder: Path, flag: str = field.name) -> dict[str, Any]:
            path = folder if flag in ("data_path", "include_path") else folder / "text"
            is_one = isinstance(getattr(default, flag), str)
            value = str(path) if is_one else (str(path),)
            return finished.question(name, dataclasses.replace(default, **{flag: value}))

        folders = [tmp_path / f"{field.name}-{k}" for k in range(3)]
        for folder, text in zip(folders, ("a: b", "a: b", "a: c"), strict=True):
            folder.mkdir()
            for file in ("text", "manifest.json", "chat_manifest.json", "task.yaml"):
                (folder / file).write_text(text)
        first, copied, changed = map(asked, folders)
        assert first == copied, field.name
        assert first != changed, field.name
        assert first != finished.question(name, default), field.name


def test_folders_count_by_their_files(tmp_path: Path) -> None:
    def asked() -> Any:
        config = commands.FLAGS["mrcr"](data=str(tmp_path))
        return finished.question("mrcr", config)["content of data"]

    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "rows.jsonl").write_text("{}")
    (tmp_path / "below" / "up").symlink_to(tmp_path)
    (before,) = asked()
    assert before.startswith("1 file, 2 bytes, names and times ")
    for left_out in (".cache/a", "__pycache__/b.pyc", ".c"):  # a program's own
        (tmp_path / left_out).parent.mkdir(exist_ok=True)
        (tmp_path / left_out).write_text("x")
    assert asked() == [before]
    os.utime(tmp_path / "below" / "rows.jsonl", ns=(0, 0))
    assert asked() != [before]


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_streams_are_never_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    config = commands.FLAGS["passkey"](haystack=name)
    monkeypatch.setattr(contents, "now", lambda: "2026-01-31T12:00:00+00:00")
    first = finished.question("passkey", config)
    monkeypatch.setattr(contents, "now", lambda: "2026-01-31T12:00:01+00:00")
    assert finished.question("passkey", config) != first


VERBS = [
    name.removeprefix("evaluate ")
    for name in COMMANDS
    if name.startswith("evaluate ") and name != "evaluate report"
]
if not SITES and not IS_HERE:
    VERBS.remove("harness")
MORE = {"passkey": "--haystack haystack.txt", "harness": "--limit 1"}
"""Flags beside those of a verb's command."""
PASSKEY = "evaluate passkey --lengths 256 --depths 50 --num-samples 1 --load"


def change_weights(file: Path) -> None:
    """Another last byte."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def said(line: str, status: int = 0) -> str:
    """What a command says that ends with this status."""
    text, ended = io.StringIO(), 0
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            cli.main(line.split())
        except SystemExit as end:
            ended = int(end.code or 0)
    assert ended == status, f"{line}: {text.getvalue()}"
    return text.getvalue()


def files(folder: Path) -> Mapping[str, tuple[bytes, int]]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def command(verb: str, load: str) -> str:
    before, behind = COMMANDS[f"evaluate {verb}"].split("--load ")
    flags = behind[behind.index(" --") :]
    return f"{before}--load {load}{flags} {MORE.get(verb, '')} --output out/{verb}"


@pytest.fixture
def here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(inputs)
    (inputs / "haystack.txt").write_text("The cat sat on the mat. " * 3000)
    yield inputs
    shutil.rmtree(inputs / "out", ignore_errors=True)


_SLOW = [pytest.param(v, marks=pytest.mark.slow) if v == "harness" else v for v in VERBS]


@pytest.mark.parametrize("verb", _SLOW)
def test_the_same_command_is_done(here: Path, verb: str) -> None:
    load = "one=hf two=hf" if verb == "loss" else "hf"
    said(command(verb, load))
    before = files(here / "out")
    names = "one, two" if verb == "loss" else "hf"
    again = said(command(verb, load) + " --micro-batch-size 2")
    assert again == f"{names}: already evaluated, see out/{verb}\n"
    assert files(here / "out") == before
    (file,) = [path for path in (here / "out" / verb).glob("*.json") if path.stem != "evaluation"]
    values = json.loads(file.read_text())
    values["results"][-1]["asked"]["trained positions"] = 5
    file.write_text(json.dumps(values))
    refusal = said(command(verb, load), 2)
    words = "the trained positions of its checkpoint were 5, now they are 4096"
    assert f"holds another evaluation: {words}" in refusal
    assert refusal.count("\n") == 1


def test_another_command_is_refused_with_the_first_difference(here: Path) -> None:
    first = f"{PASSKEY} hf --haystack haystack.txt --output out/one"
    said(first)
    before = files(here / "out")
    shutil.copytree(here / "hf", here / "copied", copy_function=shutil.copyfile)
    change_weights(here / "copied" / "model.safetensors")
    (here / "other.txt").write_text("The dog sat on the mat. " * 3000)
    for line, words in {
        f"{first} --seed 7": "--seed was 1234, now it is 7",
        first.replace("256", "300"): "--lengths was 256, now it is 300",
        f"{first} --haystack other.txt": "--haystack other.txt holds other contents than at",
        first.replace("hf", "copied"): "the name of its checkpoint was hf, now",
        first.replace("hf", "hf=copied"): "--load hf=copied holds other weights than at that time",
        first.replace(" --haystack haystack.txt", ""): "--haystack is not given now, and was at",
        first.replace("hf", "hf=base"): "what ran its checkpoint was 'transformers', now it",
    }.items():
        refusal = said(line, 2)
        assert f"--output out/one holds another evaluation: {words}" in refusal, refusal
        assert "are not overwritten: name another --output, or remove out/one" in refusal
    for line, words in {
        first.replace("passkey", "needle"): "--output out/one holds 4 entries, evaluation.json",
        first.replace("hf", "one=hf two=base"): "out/one holds evaluation.json, so it is one",
    }.items():
        assert words in said(line, 2)
    assert files(here / "out") == before


def test_an_unreadable_or_earlier_result_is_not_believed(here: Path) -> None:
    first = f"{PASSKEY} hf --output out/one"
    said(first)
    file = here / "out" / "one" / "passkey.json"
    text = file.read_text()
    values = json.loads(text)
    del values["results"][0]["asked"]
    for damaged, words in {
        text[:-20]: "--output out/one is there, and out/one/passkey.json",
        text.replace('"score": ', '"score": 7'): "out/one/passkey.json: results.0.cells.0",
        json.dumps(values): "was written by an earlier version, whose passkey.json does not say",
    }.items():
        file.write_text(damaged)
        refusal = said(first, 2)
        assert words in refusal, refusal
        assert "name another --output" in refusal
        assert "remove out/one" in refusal
        assert "evaluate again, or restore" not in refusal
        assert refusal.count("\n") == 1


def test_of_several_models_all_are_compared_before_one_is_asked(here: Path) -> None:
    both = f"{PASSKEY} one=hf two=hf --output out/both"
    said(both)
    before = files(here / "out")
    assert said(both) == "".join(
        f"{name}: already evaluated, see out/both/{name}\n" for name in ("one", "two")
    )
    shutil.rmtree(here / "out" / "both" / "two")
    again = said(both)
    assert again.count("one: already evaluated, see out/both/one") == 1
    after = files(here / "out")
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] == before[name]] == [
        name for name in after if "/one/" in name
    ]
    refusal = said(f"{PASSKEY} new=hf two=hf --seed 5 --output out/both", 2)
    assert "--output out/both/two holds another evaluation: --seed was 1234, now" in refusal
    assert files(here / "out") == after


def test_a_finished_one_starts_no_ranks(here: Path) -> None:
    line = f"{PASSKEY} base --output out/one"
    said(line)
    again = said(f"{line} --ranks 2 --context-parallel-size 2")
    assert again == "base: already evaluated, see out/one\n"
    refusal = said(f"{line} --ranks 2 --context-parallel-size 2 --precision fp32", 2)
    assert "holds another evaluation: --precision was 'bf16', now it is 'fp32'" in refusal
    assert "starting" not in refusal


def test_a_checkpoint_of_this_project_counts_with_its_precision_and_tokenizer(
    here: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(here / "base", tmp_path / "base")
    (base / "checksums.json").unlink()  # as its message says where a file was changed

    def asked(**changes: Any) -> dict[str, Any]:
        models = options.ModelsConfig(**{"load": (str(base),), **changes})
        return finished.asked(commands.PasskeyCommand(models))["base"]

    first = asked()
    assert first["weights"] == model_facts(str(base), "bf16").record.weights
    assert asked(load=(f"base={base}",)) == first
    assert asked(verify_checksums=False) == first
    assert asked(precision="fp32") != first
    (file,) = base.rglob("tokenizer_config.json")
    file.write_text(file.read_text() + "\n")
    assert asked() != first
