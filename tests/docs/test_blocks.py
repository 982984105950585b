"""Every block of commands in README and docs is executed here, or says what it needs."""

from __future__ import annotations

import ast
import gzip
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import NEEDS, ROOT, Block, blocks, pages, prose
from tests.models import TEXT, write_llama
from tests.patience import patience

SECONDS = 120


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]


def test_every_block_of_commands_is_marked() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    wrong = []
    for block in all_blocks():
        if not block.is_commands:
            continue
        if not block.mark and not block.needs:
            wrong.append(f"{block.where}: above it no <!-- run --> or <!-- run by: make X -->, "
                         f"or its first line `# needs: X` with X of {', '.join(sorted(NEEDS))} "
                         "(CONTRIBUTING.md)")  # fmt: skip
        unknown = set(block.needs) - NEEDS
        wrong += [f"{block.where}: needs {need!r}" for need in sorted(unknown)]
        if block.mark == "run by" and block.words.removeprefix("make ") not in targets:
            wrong.append(f"{block.where}: the Makefile has no target for {block.words!r}")
    assert not wrong, "\n".join(wrong)


INPUTS = {
    "weights": r"(?<![\w/-])Llama-3\.1-8B(-Instruct)?(?![\w-])",
    "documents": r"(?<![\w/])data/",
    "megatron-lm": r"\$\{?MEGATRON_LM",
}
"""What a reader does not have by cloning this project, and how blocks call it."""
PLACEHOLDERS = r"(?<!\S)\.\.\.(?!\S)|PATH/TO|\[--|<[a-z]+>"


def test_a_block_says_what_a_reader_has_to_bring() -> None:
    """So that it runs as it is pasted, by whoever has what its first line names."""
    wrong = []
    for block in all_blocks():
        if block.is_commands:
            wrong += [
                f"{block.where}: its first line has to say `# needs: {need}`"
                for need, pattern in INPUTS.items()
                if re.search(pattern, block.text) and need not in block.needs
            ]
            if found := re.search(PLACEHOLDERS, block.text):
                wrong.append(f"{block.where}: {found[0]!r} cannot be pasted")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_stand_in_fences(page: Path) -> None:
    """Where they stand indented, no mark and no test sees them."""
    wrong = [
        f"{page.relative_to(ROOT)}:{number}: {line.strip()}"
        for number, line in prose(page)
        if re.match(r"^    (ultralong|torchrun|python3?|make|sbatch|pip) ", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_blocks_are_what_they_say() -> None:
    """Shell that parses, Python that compiles, JSON that reads."""
    for block in all_blocks():
        if block.is_commands:
            done = subprocess.run(
                ["bash", "-n"], input=block.text, text=True, capture_output=True, check=False
            )
            assert not done.returncode, f"{block.where}: {done.stderr}"
        elif block.language == "python":
            ast.parse(block.text, block.where)
        elif block.language == "json":
            json.loads(block.text)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands find: a model under its real name, and documents."""
    folder = tmp_path_factory.mktemp("inputs")
    write_llama(folder / "Llama-3.1-8B-Instruct", num_hidden_layers=2, num_key_value_heads=4)
    (folder / "Llama-3.1-8B").symlink_to(folder / "Llama-3.1-8B-Instruct")
    (folder / "data" / "web").mkdir(parents=True)
    lines = [json.dumps({"text": TEXT * (1 + i % 7) + f"{i}"}) + "\n" for i in range(300)]
    (folder / "data" / "code.jsonl").write_text("".join(lines[:150]))
    with gzip.open(folder / "data" / "web" / "0.jsonl.gz", "wt") as web:
        web.writelines(lines[150:])
    return folder


def runnable_pages() -> list[Path]:
    return [page for page in pages() if any(block.mark == "run" for block in blocks(page))]


def trains(page: Path) -> bool:
    """Whether commands of a page start training, on however few tokens."""
    text = "\n".join(block.text for block in blocks(page) if block.mark == "run")
    return re.search(r"\b(pretrain|sft) [a-z]|run_demo", text) is not None


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=pytest.mark.slow if trains(page) else (),
        )
        for page in runnable_pages()
    ],
)
def test_the_commands_of_a_page_run(
    page: Path, inputs: Path, warm_environment: dict[str, str], tmp_path: Path
) -> None:
    for name in inputs.iterdir():
        (tmp_path / name.name).symlink_to(name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks(page):
        if block.mark != "run" or "megatron-lm" in block.needs:  # tests/dropin runs these
            continue
        if block.language == "python":
            command = ["python", "-c", block.commands]
        else:
            command = ["bash", "-euo", "pipefail", "-c", block.commands]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=warm_environment,
            capture_output=True,
            text=True,
            timeout=patience(SECONDS),
            check=False,
        )
        assert done.returncode == 0, (
            f"{block.where}: exit status {done.returncode}\n{block.commands}\n"
            f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
