"""The list of words that are not used, over every file of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tools.check_words import files, problems, read_rules

RULES = read_rules()


def test_no_file_has_them() -> None:
    found = [line for path in files() for line in problems(path, RULES)]
    assert not found, "\n".join(found)


def test_pages_code_and_scripts_are_read() -> None:
    names = {str(path.relative_to(ROOT)) for path in files()}
    assert {"README.md", "docs/running.md", "megatron_ultralong/cli/help.py", "Makefile"} <= names
    assert {"examples/slurm/job.sh", "tests/docs/test_words.py"} <= names


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "page.md",
            "It is men" + "ded.\nThe weights are off\u002dloaded.",
            ["men" + "ded", "off\u002dloaded"],
        ),
        ("page.md", "The paper\u0027s is 5, and `the paper\u0027s is` code.", ["paper\u0027s"]),
        ("page.md", "```\nmen\u0064ed\n```\nThe paper\u0027s batch is 5.", []),
        ("code.py", '"""It go\u0065s\n    o\u006e."""\n', ["go" + "es on"]),
        ("code.py", f'raise InputError(f"{{x}} is {"no"} model")\n', ["is no"]),
        ("code.py", f"{'our' + 's'} = 1\n", ["our" + "s"]),
        ("code.py", f"colours = the_{'our' + 's'} = 1\n", []),
        ("job.sh", f"# see to it {'a' + 'new'}\n", ["a" + "new"]),
    ],
)
def test_what_is_found(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    (tmp_path / name).write_text(text)
    found = [
        line.split("'")[1] if "'" in line else line for line in problems(tmp_path / name, RULES)
    ]
    assert len(found) == len(words), found
    for line, word in zip(problems(tmp_path / name, RULES), words, strict=True):
        assert word in line
