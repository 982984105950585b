"""Questions with four choices, in MMLU's schema, out of the dictionary GCIDE (GPL-3.0+).

::

    python choices.py OUTPUT.jsonl

A definition, and four words of the same part of speech. The words are of the part of the dictionary
behind what the corpus has of it, so that nobody trained on them.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

from corpus import source_files
from json_lines import with_new_file, write
from sources import SOURCES

(GCIDE,) = (source for source in SOURCES if source.packages == ("dict-gcide",))
NOT_TRAINED = GCIDE.most_bytes + 1_000_000
"""The first character behind the part that the corpus has, whose last document may be longer."""
_ENTRY = re.compile(
    r"^(?P<word>[A-Z][a-z]{3,11}) \\[^\\\n]+\\, (?P<part>n|a|adv|v\. t|v\. i)\.(?P<rest>.*)\n"
    r"(?P<text>(?:   .*\n)+)",
    re.MULTILINE,
)
"""A headword, its syllables, its part of speech and the lines below."""
_DEFINITION = re.compile(r"(?:^|\] |\) )(?:1\. )?([A-Z][^.;:\[\]{}()\"\\]{19,110})[.;]")
_RARE = re.compile(r"\[(?:Obs|R|Archaic|Prov|Scot|Local)|\b(?:See|Same as|Pertaining to|The act)\b")


def main() -> None:
    """Read the dictionary, write questions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--packages", type=Path, help="folder to keep what is fetched in")
    parser.add_argument("--number", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = with_new_file(parser)
    output: Path = arguments.output
    packages: Path = arguments.packages or output.parent / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (text,) = source_files(GCIDE, packages).values()
    words = list(definitions(text[NOT_TRAINED:]))
    asked = questions(words, random.Random(arguments.seed))
    count = write(output, itertools.islice(asked, arguments.number))
    print(f"{count:,} questions of {len(words):,} words: {output}")


def definitions(text: str) -> Iterator[tuple[str, str, str]]:
    """Words, parts of speech and definitions that do not contain the beginning of the word."""
    for entry in _ENTRY.finditer(text):
        lines = " ".join(line.strip() for line in entry["text"].splitlines())
        found = _DEFINITION.search(lines)
        if not found or _RARE.search(entry["rest"] + lines[: found.end() + 20]):
            continue
        if entry["word"][:4].lower() not in found[1].lower():
            yield entry["word"].lower(), entry["part"], found[1]


def questions(
    words: list[tuple[str, str, str]], drawn: random.Random
) -> Iterator[dict[str, object]]:
    """All words in a random order, each beside three others of its part of speech."""
    by_part: dict[str, list[str]] = {}
    for word, part, _ in words:
        by_part.setdefault(part, []).append(word)
    for word, part, definition in drawn.sample(words, len(words)):
        others = sorted({*by_part[part]} - {word})
        if len(others) < 3:
            continue
        choices = [word, *drawn.sample(others, 3)]
        drawn.shuffle(choices)
        yield {
            "question": f"Which word means: {definition[0].lower()}{definition[1:]}?",
            "choices": choices,
            "answer": choices.index(word),
            "subject": "words",
        }


if __name__ == "__main__":
    main()
