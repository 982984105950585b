"""Look for words that this project does not use, in pages, texts, comments and names.

::

    python tools/check_words.py           # the files of the repository
    python tools/check_words.py FILE ...

`tools/words.txt` has the words and what to write instead. In Python files texts and comments are
read, and the names; in pages all but code; elsewhere everything. One line for each word found, and
exit status 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tools" / "words.txt"
SUFFIXES = {".py", ".md", ".sh", ".sbatch", ".yaml", ".yml", ".toml", ""}
_TEXTS = {tokenize.STRING, tokenize.COMMENT} | {
    getattr(tokenize, name) for name in ("FSTRING_MIDDLE",) if hasattr(tokenize, name)
}
_CODE = re.compile(r"^```.*?^```[ \t]*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A pattern, what to write instead, and what it is looked for in."""

    pattern: re.Pattern[str]
    instead: str
    where: str
    """``everywhere``, ``pages`` or ``names``."""


def read_rules(path: Path = LIST) -> list[Rule]:
    """The rules of the list."""
    rules, where = [], "everywhere"
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            where = line.strip("[] ")
        elif line and not line.startswith("#"):
            pattern, separator, instead = line.partition(" => ")
            assert separator, f"{path.name}: {line!r} is not `pattern => replacement`"
            spaced = pattern.replace(" ", r"\s+")
            rules.append(Rule(re.compile(rf"\b(?:{spaced})(?!\w)", re.IGNORECASE), instead, where))
    return rules


def parts_of(path: Path, text: str) -> Iterator[tuple[str, int, str]]:
    """What is read of a file: kind (``page``, ``text`` or ``name``), line, text."""
    if path.suffix == ".md":
        yield "page", 1, _CODE.sub(lambda code: re.sub(r"[^\n]", "_", code.group()), text)
    elif path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in _TEXTS:
                yield "text", token.start[0], token.string
            elif token.type == tokenize.NAME:
                yield "name", token.start[0], token.string
    else:
        yield "text", 1, text


_KINDS = {"everywhere": ("page", "text"), "pages": ("page",), "names": ("name",)}


def problems(path: Path, rules: list[Rule]) -> Iterator[str]:
    """A line for each word of a file that the rules refuse."""
    text = path.read_text(encoding="utf-8")
    left_out = {".md": "names", ".py": "pages"}.get(path.suffix)
    rules = [rule for rule in rules if rule.where != left_out and rule.pattern.search(text)]
    if not rules:  # as of nearly every file: nothing to take apart
        return
    for kind, line, part in parts_of(path, text):
        for rule in rules:
            if kind not in _KINDS[rule.where]:
                continue
            for found in rule.pattern.finditer(part):
                if kind == "name" and found.group() != part:
                    continue
                number = line + part[: found.start()].count("\n")
                word = " ".join(found.group().split())
                yield f"{path}:{number}: {word!r}: write {rule.instead}"


def files() -> list[Path]:
    """The files of the repository that are read."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in done.stdout.splitlines() if Path(name).suffix in SUFFIXES]
    left_out = ("tools/words.txt", "LICENSE", "requirements/", "CITATION.cff")
    return [
        ROOT / name
        for name in names
        if not name.startswith(left_out) and (ROOT / name).is_file() and not _is_binary(ROOT / name)
    ]


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(1024)


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: those of the repository")
    rules = read_rules()
    found = [
        line for path in parser.parse_args().files or files() for line in problems(path, rules)
    ]
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
