"""Every flag in README, docs and examples is a flag of the program that it is given to."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from megatron_ultralong.dropin.arguments import DropInConfig
from megatron_ultralong.dropin.known_arguments import KNOWN
from tests.docs.blocks import ROOT, blocks, pages, prose
from tests.docs.commands import FLAG, commands, known_flags

OTHERS = {
    "--spec": "Megatron-LM",
    "--use-checkpoint-args": "Megatron-LM",
    "--make-vocab-size-divisible-by": "Megatron-LM",
    "--no-create-attention-mask-in-dataloader": "Megatron-LM",
    "--untie-embeddings-and-output-weights": "Megatron-LM",
    "--no-gradient-accumulation-fusion": "Megatron-LM",
    "--mock": "examples/llama3.1-8b",
    "--kv-cache-memory-bytes": "vLLM",
    "--max-num-seqs": "vLLM",
    "--override-kv": "llama.cpp",
    "--yarn-beta-fast": "llama.cpp",
    "--yarn-beta-slow": "llama.cpp",
    "--cpu": "examples/smollm2",
    "--indexes": "examples/smollm2/corpus.py",
    "--json": "plan, convert",
    "--signal": "sbatch",
    "--job-name": "sbatch",
    "--dependency": "sbatch",
    "--requeue": "sbatch",
    "--wait": "srun",
    "--build-arg": "docker",
    "--ulimit": "docker",
    "--ipc": "docker",
    "--shm-size": "docker",
    "--gpus": "docker, ultralong plan",
    "--max-restarts": "torchrun",
    "--standalone": "torchrun",
    "--rdzv-backend": "torchrun",
    "--signals-to-handle": "torchrun",
    "--nproc-per-node": "torchrun",
}
"""Flags of other programs that our pages name."""


def drop_in_flags() -> set[str]:
    """Flags inside a user's own Megatron-LM: of its parser, and ours."""
    actual = {f"ultralong_{field.name}" for field in dataclasses.fields(DropInConfig)}
    return {"--" + name.replace("_", "-") for name in KNOWN | actual} | {"--norm-epsilon"}


def scripts() -> list[Path]:
    """Shell scripts that users start."""
    return sorted(path for kind in ("*.sh", "*.sbatch") for path in (ROOT / "examples").rglob(kind))


def unknown(text: str, where: str) -> list[str]:
    """Flags in shell text that their program does not have."""
    wrong = []
    for command in commands(text):
        try:
            known = known_flags(command.verb)
        except SystemExit as end:
            raise AssertionError(f"{where}: `ultralong {command.verb}` is not a verb") from end
        wrong += [
            f"{where}: {command.verb} has no {flag}"
            for flag in command.flags
            if flag not in known and flag.replace("--no-", "--", 1) not in known
        ]
    return wrong


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_commands_exist(page: Path) -> None:
    wrong = [
        problem
        for block in blocks(page)
        if block.is_commands
        for problem in unknown(block.text, block.where)
    ]
    for number, line in prose(page):
        for span in re.findall(r"`([^`]+)`", line):
            wrong += unknown(span, f"{page.relative_to(ROOT)}:{number}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_prose_exist_somewhere(page: Path) -> None:
    from megatron_ultralong import cli

    known = {flag for verb in cli.VERBS for flag in known_flags(verb)} | set(OTHERS)
    if page.name == "dropin.md":
        known |= drop_in_flags()
    wrong = [
        f"{page.relative_to(ROOT)}:{number}: {flag} is a flag of no verb"
        for number, line in prose(page)
        for span in re.findall(r"`(--[^`]+)`", line)
        for flag in FLAG.findall(span)
        if flag not in known and flag.replace("--no-", "--", 1) not in known
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("script", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_in_scripts_exist(script: Path) -> None:
    wrong = unknown(script.read_text(encoding="utf-8"), str(script.relative_to(ROOT)))
    assert not wrong, "\n".join(wrong)


def test_a_flag_that_does_not_exist_is_found() -> None:
    text = (
        "torchrun --nproc-per-node 2 -m megatron_ultralong pretrain demo-cpu \\\n  --seq-len 4 -x"
    )
    assert unknown(text, "here") == ["here: pretrain has no --seq-len"]
    assert unknown("ultralong convert export a b --no-verify | tee --log", "here") == []
    assert unknown("torchrun --nodes 2 -m megatron_ultralong doctor", "here") == [
        "here: torchrun has no --nodes"
    ]
