"""The fenced blocks of README and docs, each with the mark above it.

A block of commands (``bash``, ``sh``, ``console`` or no language) carries an HTML comment above it:

* ``<!-- run -->``: a test executes it, in a folder with small inputs, after those above it on its
  page; ``<!-- run: 1048576 => 128; llama3.1-8b-1m => demo-cpu -->`` with other words in it;
* ``<!-- run by: make demo -->``: that command executes it.

What a reader has to have, beside this project and a shell, stands in the block where all can see
it: its first line is ``# needs: gpus (8 of 80 GB), weights``, one or more of :data:`NEEDS`, with
more about each in parentheses. A block without a comment above it says there why no test runs it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NEEDS = {
    *("gpu", "gpus", "hours", "network", "slurm", "docker", "vllm", "megatron-lm"),
    *("weights", "checkpoint", "documents", "conversations", "benchmarks"),
}
"""What a machine has to have, and what the reader."""
_COMMAND_LANGUAGES = {"", "bash", "sh", "shell", "console"}
_FENCE = re.compile(r"^( *)(```+)\s*([A-Za-z0-9_+-]*)")
_MARK = re.compile(r"^\s*<!--\s*(run by|run)\s*(?::\s*(.*?))?\s*-->\s*$")
_NEEDS = re.compile(r"# needs: (.*)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what stands in it, and how it is marked."""

    page: Path
    line: int
    """Of its opening fence, from 1."""
    language: str
    text: str
    mark: str
    """run, run by, or empty."""
    words: str
    """What follows the mark's colon."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_commands(self) -> bool:
        return self.language in _COMMAND_LANGUAGES

    @property
    def needs(self) -> list[str]:
        """What its first line says, without what stands in parentheses."""
        found = _NEEDS.match(self.text)
        return re.split(r",\s*", re.sub(r"\s*\([^)]*\)", "", found[1])) if found else []

    @property
    def commands(self) -> str:
        """The text with the words of its mark replaced."""
        text = self.text
        for pair in filter(None, (part.strip() for part in self.words.split(";"))):
            old, separator, new = pair.partition(" => ")
            assert separator, f"{self.where}: {pair!r} is not `OLD => NEW`"
            assert old in text, f"{self.where}: {old!r} is not in the block any more"
            text = text.replace(old, new)
        return text


def pages() -> list[Path]:
    """README, the pages of the site, and those beside the examples."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(found)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if not fence:
            number += 1
            continue
        indent, ticks, language = fence.groups()
        end = number + 1
        while end < len(lines) and not re.match(rf"^ *{ticks}\s*$", lines[end]):
            end += 1
        assert end < len(lines), f"{page}:{number + 1}: the fence is not closed"
        text = "\n".join(line.removeprefix(indent) for line in lines[number + 1 : end]) + "\n"
        mark = _MARK.match(_line_above(lines, number))
        kind, words = (mark.group(1), mark.group(2) or "") if mark else ("", "")
        found.append(Block(page, number + 1, language, text, kind, words))
        number = end + 1
    return found


def prose(page: Path) -> list[tuple[int, str]]:
    """Numbered lines outside fenced blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    inside: set[int] = set()
    for block in blocks(page):
        inside.update(range(block.line, block.line + block.text.count("\n") + 2))
    return [(n, line) for n, line in enumerate(lines, start=1) if n not in inside]


def _line_above(lines: list[str], number: int) -> str:
    above = number - 1
    while above >= 0 and not lines[above].strip():
        above -= 1
    return lines[above] if above >= 0 else ""
