"""Mistakes of configuration are said before torch is imported, which takes seconds a rank."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import write_latest
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.cli.dispatch import read_training
from megatron_ultralong.cli.start_of_run import with_shorter_warm_up
from megatron_ultralong.cli.verbs import VERBS, TrainingVerb
from megatron_ultralong.config.recipes import RECIPES
from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.program.owner import take
from megatron_ultralong.training import early_checks
from megatron_ultralong.training.config_file import CONFIG_FILE, save_config
from megatron_ultralong.training.earlier_start import DATA_FILE
from tests.training.conftest import MakeConfig

_SLOW = ("torch", "megatron", "transformers")
_PROGRAM = """
import contextlib, io, json, sys
from megatron_ultralong.cli import main

for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
        contextlib.suppress(SystemExit),
    ):
        main(words)
        said.write("ended without an error")
    slow = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([said.getvalue(), slow]))
"""


def said_before_imports(lines: list[list[str]], **environment: str) -> list[tuple[str, list[str]]]:
    """Each command line in one fresh interpreter: its message, and what was imported till then."""
    command = [sys.executable, "-c", _PROGRAM, json.dumps(lines), json.dumps(_SLOW)]
    process = subprocess.run(
        command,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return [tuple(json.loads(line)) for line in process.stdout.splitlines()]


def begun_run(root: Path, make_config: MakeConfig, what: str) -> None:
    """A folder of a run that came to a checkpoint, of another seed, other rows or model."""
    early = early_checks.check_packed_run(make_config(root), 1)
    config, source = early.config, early.source
    if what == "seed":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, seed=7))
    if what == "model":
        model = dataclasses.replace(source.model, num_layers=99)
        source = dataclasses.replace(source, model=model)
    root.mkdir()
    save_config(root / CONFIG_FILE, config)
    save_metadata(root, early_checks.result_of(config, source))
    if what == "rows":
        (root / DATA_FILE).write_text(json.dumps({"data manifest.seed": "7"}))
    write_latest(root, 1)


def convert_cases(tiny: Path, folder: Path) -> dict[str, tuple[list[str], str]]:
    source, base, new, gone, empty, foreign = map(
        str, (tiny / "hf", tiny / "base", folder / "new", folder / "gone", folder / "empty",
              folder / "foreign"),
    )  # fmt: skip
    config = f"{source}/config.json"
    shutil.copytree(tiny / "hf", folder / "mistral")
    text = (tiny / "hf" / "config.json").read_text()
    text = text.replace("LlamaForCausalLM", "MistralForCausalLM")
    (folder / "mistral" / "config.json").write_text(text)
    shutil.copytree(tiny / "hf", folder / "mute")
    (folder / "mute" / "tokenizer.json").unlink()
    shutil.copytree(base, folder / "plain")
    (folder / "plain" / "ultralong.json").unlink()
    said = {
        "gone": "gone does not exist",
        "a file": f"{config} is a file: give the folder that it is in",
        "empty": "empty is not a model: it has no config.json",
    }
    cases = {
        f"{verb} {what}": ([*verb.split(), *words], said[what])
        for what, path in (("gone", gone), ("a file", config), ("empty", empty))
        for verb, words in (
            ("convert import", [path, new]),
            ("convert verify", [path, source]),
            ("convert verify ", [source, path]),
            *([] if what == "a file" else [("convert inspect", [path])]),
            *([] if what == "empty" else [("convert export", [path, new])]),
        )
    }
    return cases | {
        "import over": (["convert", "import", source, foreign], "foreign holds 1 entries"),
        "import again": (["convert", "import", base, new], "is a Megatron checkpoint already"),
        "import of Megatron-LM's own": (
            ["convert", "import", str(folder / "plain"), new],
            "plain has no ultralong.json: it is a checkpoint of Megatron-LM's own",
        ),
        "import of others": (["convert", "import", str(folder / "mistral"), new], "Mistral"),
        "import mute": (["convert", "import", str(folder / "mute"), new], "has no tokenizer"),
        "import range": (
            ["convert", "import", source, new, "--rope-scaling-factor", "0"],
            "rope_scaling_factor must be",
        ),
        "export over": (["convert", "export", base, foreign], "foreign holds 1 entries"),
        "export iteration": (
            ["convert", "export", base, new, "--iteration", "9"],
            "no complete iteration 9",
        ),
        "export engine": (["convert", "export", base, new, "--for", "vlm"], "vllm"),
        "export format": (
            ["convert", "export", base, new, "--for", "vllm", "--format", "meta"],
            "--format meta writes none",
        ),
        "inspect iteration": (
            ["convert", "inspect", base, "--iteration", "9"],
            "no complete iteration 9",
        ),
        "verify logits": (
            ["convert", "verify", source, base, "--logits", "--dtype", "bf16"],
            "--logits compares models of one dtype",
        ),
        "export gguf": (
            ["convert", "export", base, f"{new}.gguf"],
            "has the name of a GGUF file, and --format huggingface writes",
        ),
        "verify gguf": (["convert", "verify", base, f"{gone}.gguf"], "GGUF file"),
    }


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, make_config: MakeConfig
) -> dict[str, tuple[list[str], str]]:
    """Command lines by what is wrong with them, and a part of the message."""
    folder = tmp_path_factory.mktemp("early")
    base, rows = str(tiny / "base"), str(tiny / "rows")
    good = ["pretrain", "demo-cpu", "--load", base, "--data-path", rows, "--seq-length", "128"]
    good += ["--rope-scaling", "keep"]
    shutil.copytree(base, folder / "other")
    source = load_metadata(folder / "other")
    save_metadata(folder / "other", type(source)(**{**vars(source), "tokenizer_sha256": "0" * 64}))
    other = str(folder / "other")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "unknown.yaml").write_text("loud: true\n")
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("1")
    (folder / "a file").write_text("1")
    fits = [*good, "--original-max-position-embeddings", "64", "--rope-scaling", "yarn"]
    fits += ["--rope-scaling-factor", "2", "--context-parallel-size", "2"]
    run = ["pretrain", "--config", str(folder / "config.yaml"), "--save"]
    save_config(folder / "config.yaml", make_config(None, (1, 2)))
    for name in ("seed", "rows", "model"):
        begun_run(folder / name, make_config, name)
    return {
        "recipe": (["pretrain", "nothing"], "recipe 'nothing' is not known"),
        "file": (["pretrain", "--config", str(folder / "none.yaml")], "none.yaml"),
        "yaml": (["pretrain", "--config", str(folder / "list.yaml")], "list.yaml"),
        "key": (["pretrain", "--config", str(folder / "unknown.yaml")], "loud"),
        "flag": ([*good, "--bogus", "3"], "bogus"),
        "value": ([*good, "--train-iters", "three"], "three"),
        "no load": (["pretrain", "demo-cpu", "--data-path", rows], "--load is needed"),
        "range": ([*good, "--lr", "-1"], "lr must be"),
        "rule": ([*good, "--lr-warmup-iters", "100000"], "lr_warmup_iters (100000)"),
        "ranks": ([*good, "--context-parallel-size", "3"], "world_size (2) must be divisible"),
        "batch": (
            [*good, "--context-parallel-size", "1", "--global-batch-size", "3"],
            "global_batch_size (3) must be divisible",
        ),
        "checkpoint": ([*good, "--load", str(folder / "gone")], "gone does not exist"),
        "iteration": (
            [*good, "--load", str(tiny / "base" / "release")],
            f"it is inside the checkpoint {(tiny / 'base').resolve()}: give that folder",
        ),
        "not imported": (
            [*good, "--load", str(tiny / "hf")],
            f"make one with `ultralong convert import {tiny / 'hf'} DST`",
        ),
        "folder": (["pretrain", "--config", str(folder)], "is a folder: give the file in it, "),
        "no file": (["pretrain", "--config", str(folder / "empty")], "empty is not a file"),
        "no checkpoint": ([*good, "--load", str(folder / "empty")], "ultralong.json"),
        "heads": (
            [*good, "--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "3"],
            "world_size (2)",
        ),
        "rows": ([*good, "--data-path", str(folder / "empty")], "empty"),
        "length": ([*good, "--seq-length", "64"], "seq_length (64) is not the length"),
        "positions": ([*good], "seq_length (128) is beyond the 64 positions"),
        "tokenizer": (
            [*good, *["--rope-scaling", "linear", "--rope-scaling-factor", "2", "--load"], other],
            "is not that of",
        ),
        "save elsewhere": ([*fits, "--save", str(folder / "foreign")], "foreign is not empty"),
        "save a file": ([*fits, "--save", str(folder / "a file")], "a file is a file: name an"),
        "save of a seed": ([*run, str(folder / "seed")], "a run with seed 7, this one has 1234"),
        "save of rows": ([*run, str(folder / "rows")], "a run over other rows: data manifest.seed"),
        "save of a model": ([*run, str(folder / "model")], "another model: model.num_layers"),
        **convert_cases(tiny, folder),
        "file's rule": (
            [*run, str(folder / "new"), "--train-iters", "2"],
            "lr_warmup_iters (2) must be below train_iters (2)",
        ),
        "sft recipe": (["sft", "nothing"], "recipe 'nothing' is not known"),
        "sft rows": (["sft", "demo-sft-cpu", "--load", base, "--data-path", rows], "rows"),
        "sft no rows": (["sft", "demo-sft-cpu", "--load", base], "--data-path is needed"),
        "dry run": ([*good, "--lr", "-1", "--dry-run"], "lr must be"),
    }


def test_mistakes_are_said_before_torch_is_there(cases: dict[str, tuple[list[str], str]]) -> None:
    found = said_before_imports([words for words, _ in cases.values()], WORLD_SIZE="2", RANK="0")
    assert len(found) == len(cases)
    for (name, (_, part)), (said, slow) in zip(cases.items(), found, strict=True):
        assert part in said, f"{name}: {said}"
        assert said.count("error:") <= 1, f"{name}: {said}"
        assert "Traceback" not in said, f"{name}: {said}"
        assert not slow, name


def test_an_owner_of_the_folder_is_named_before_ranks_are_started(
    tiny: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    """Not by a rank: one that ended alone would leave the others waiting for it."""
    config = dataclasses.replace(make_config(None, (1, 2)), save=str(tmp_path / "run"))
    save_config(tmp_path / "config.yaml", config)
    (tmp_path / "run").mkdir()
    owner = take(tmp_path / "run", "pretrain", "--save run")
    words = ["pretrain", "--config", str(tmp_path / "config.yaml"), "--ranks", "2"]
    ((said, slow),) = said_before_imports([words])
    owner.release()
    assert f"run is in use by pretrain (process {os.getpid()} on " in said
    assert said.count("ultralong: error:") == 1
    assert not slow


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_short_trial_needs_no_other_warm_up(recipe: str) -> None:
    """A recipe's warm-up gives way to a shorter run, and a line says so; a typed one does not."""
    default = RECIPES[recipe]()
    for total in (1, 2, 5, default.optimizer.lr_warmup_iters, 1000):
        config = dataclasses.replace(default, train_iters=total)
        typed = [recipe, "--train-iters", str(total), "--lr-warmup-iters", "10"]
        assert with_shorter_warm_up(typed, config, total) == (config, "")
        found, said = with_shorter_warm_up(typed[:3], config, total)
        assert found.optimizer.lr_warmup_iters < total
        assert bool(said) == (found != config) == (total <= default.optimizer.lr_warmup_iters)
        assert not said or f"is {total // 2}, half of train_iters ({total}), where" in said


@pytest.mark.parametrize("where", ["flag", "rows"])
def test_a_short_budget_needs_no_other_warm_up(tiny: Path, where: str) -> None:
    """``--train-tokens`` too, whether the length of a row is typed or that of the rows."""
    verb = VERBS["pretrain"]
    assert isinstance(verb, TrainingVerb)
    length = 2**20 if where == "flag" else load_manifest(tiny / "rows").seq_length
    rows = ["--seq-length", "1M" if where == "flag" else "0"]
    words = ["llama3.1-8b-1m", "--train-tokens", str(6 * 8 * length), *rows]
    words += ["--global-batch-size", "8", "--load", "any", "--data-path", str(tiny / "rows")]
    options, _, _, how = read_training("pretrain", verb, words)
    assert options.optimizer.lr_warmup_iters == 3
    assert how.startswith("lr_warmup_iters is 3, half of train_iters (6), where the recipe")
    assert options.with_budget(length).train_iters == 6
    typed = read_training("pretrain", verb, [*words, "--lr-warmup-iters", "8"])
    assert (typed[0].optimizer.lr_warmup_iters, typed[3]) == (8, "")


@pytest.mark.slow
def test_what_is_right_is_imported(tiny: Path) -> None:
    """The other test can fail: a command line without a mistake does import torch."""
    words = ["pretrain", "demo-cpu", "--load", str(tiny / "base"), "--data-path"]
    words += [str(tiny / "rows"), "--rope-scaling", "linear", "--rope-scaling-factor", "2"]
    words += ["--seq-length", "128", "--dry-run"]
    ((said, slow),) = said_before_imports([words], WORLD_SIZE="2", RANK="0")
    assert "ended without an error" in said
    assert slow[:2] == ["torch", "megatron"]
