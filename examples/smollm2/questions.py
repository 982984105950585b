"""Short conversations about a sentence in a text, for step 6: who has which number, where, when.

::

    python questions.py CORPUS OUTPUT.jsonl
    python questions.py CORPUS OUTPUT.jsonl --number 96 --shortest 260_000 --longest 440_000

Each is a passage of a document in CORPUS/train with sentences about made-up people put between its
lines, and the question about one of them; the answer is that sentence. A long passage is asked
about several of them, one after the other. They have neither the words nor the form of
``evaluate``'s passkeys and needles nor of RULER's.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from conversations import SYSTEM
from json_lines import with_new_file, write

SHORTEST, LONGEST = 400, 10_000
"""Characters of a passage, unless others are given: 100 to 3,000 tokens or so."""
CHARACTERS_A_QUESTION = 10_000
"""A passage has one question, and one more for each of these, up to MOST_QUESTIONS."""
MOST_QUESTIONS = 32
MOST_OTHERS = 7
"""Sentences that nobody asks for."""
FIRST_NAMES = (
    "Ada", "Bela", "Carla", "Dmitri", "Edda", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaito",
    "Lena", "Malik", "Nora", "Omar", "Petra", "Rosa", "Samir", "Tessa", "Viktor",
)  # fmt: skip
LAST_NAMES = (
    "Abele", "Brandt", "Castro", "Dahl", "Eriksen", "Fischer", "Gallo", "Horvat", "Ito", "Jansen",
    "Kovacs", "Lindgren", "Moreau", "Novak", "Okafor", "Petrov", "Quist", "Rossi", "Silva", "Weber",
    "Adeyemi", "Bianchi", "Cardoso", "Demir", "Engstrom", "Ferreira", "Grabowski", "Haddad",
    "Ivanov", "Jovanovic", "Kimura", "Larsen", "Mancini", "Nguyen", "Ortega", "Popescu", "Ramirez",
    "Suzuki", "Takala", "Vargas",
)  # fmt: skip
PLACES = (
    "the old mill", "the north gate", "the town library", "the river bank", "the market hall",
    "the lighthouse", "the railway station", "the school yard", "the boat house", "the bakery",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS = (
    "a silver spoon", "a green umbrella", "two brass keys", "a torn map", "a glass bottle",
    "a wool scarf", "a wooden flute", "an empty jar", "a tin whistle", "a paper boat",
)  # fmt: skip
FORMS = (
    ("The badge of {name} has the number {number}.", "What number does the badge of {name} have?"),
    ("{name} answers the telephone at {number}.", "At which number does {name} answer?"),
    ("The locker of {name} opens with {number}.", "With what does the locker of {name} open?"),
    ("{name} has ordered part {number}.", "Which part has {name} ordered?"),
    ("Parcel {number} belongs to {name}.", "Which parcel belongs to {name}?"),
    ("{name} keeps the spare bicycle at {place}.", "Where does {name} keep the spare bicycle?"),
    ("{name} comes to {place} every {day}.", "When does {name} come, and where to?"),
    ("{name} has left {thing} at {place}.", "What has {name} left, and where?"),
)
"""A sentence, and the question about it."""


def main() -> None:
    """Read passages, write conversations."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder of step 2")
    parser.add_argument("--number", type=int, default=4000)
    parser.add_argument("--shortest", type=int, default=SHORTEST, help="characters of a passage")
    parser.add_argument("--longest", type=int, default=LONGEST, help="the same")
    parser.add_argument("--seed", type=int, default=1)
    arguments = with_new_file(parser)
    shortest, longest = arguments.shortest, arguments.longest
    if not SHORTEST <= shortest <= longest:
        parser.error(
            f"--shortest {shortest} --longest {longest}: a passage has at least {SHORTEST} "
            "characters, and the longest at least as many as the shortest"
        )
    if arguments.number < 1:
        parser.error(f"--number {arguments.number} must be 1 or more: each is a conversation")
    files = sorted((arguments.corpus / "train").glob("*.jsonl"))
    if not files:
        sys.exit(f"{arguments.corpus / 'train'} has no .jsonl file; 02_get_corpus.sh writes them")
    files = _long_enough(files, shortest)
    if not files:
        sys.exit("no file has so many characters: a smaller --shortest takes shorter passages")
    drawn = random.Random(arguments.seed)
    texts = list(_some_texts(files, arguments.number, (shortest, longest), drawn))
    count = write(arguments.output, ({"messages": conversation(text, drawn)} for text in texts))
    print(f"{count:,} conversations: {arguments.output}")


def _some_texts(
    files: list[Path], number: int, characters: tuple[int, int], drawn: random.Random
) -> Iterator[str]:
    """Passages, the same number of each file, of the documents in turn that are long enough, or of
    several behind each other; the logarithms of their lengths are spread evenly.
    """
    shortest, longest = characters
    for place, path in enumerate(files):
        texts = _texts(path)
        documents = [text for text in texts if len(text) >= shortest] or _joined(texts, longest)
        for count in range(place, number, len(files)):
            text = documents[count // len(files) % len(documents)]
            length = round(shortest * math.exp(drawn.random() * math.log(longest / shortest)))
            start = drawn.randrange(max(1, len(text) - length))
            yield text[start : start + length]


def _texts(path: Path) -> list[str]:
    """Of the documents of a file; it ends here where a line is none."""
    texts = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                texts.append(json.loads(line)["text"])
            except (ValueError, TypeError, KeyError):
                sys.exit(
                    f"{path}:{number} is no document: make the corpus again with 02_get_corpus.sh"
                )
    return texts


def _long_enough(files: list[Path], shortest: int) -> list[Path]:
    """Files that hold so many characters; the others are named."""
    sizes = {path: sum(map(len, _texts(path))) for path in files}
    found = [path for path in files if sizes[path] >= shortest]
    for path in files:
        if path not in found:
            text = f"{path} has {sizes[path]:,} characters, fewer than --shortest {shortest:,}"
            print(f"{text}: no passage is taken from it", file=sys.stderr)
    return found


def _joined(texts: list[str], longest: int) -> list[str]:
    """Neighbours behind each other, of at least so many characters, or all if they have fewer."""
    joined, part = [], ""
    for text in texts:
        part = f"{part}\n{text}" if part else text
        if len(part) >= longest:
            joined.append(part)
            part = ""
    return joined or [part]


def conversation(passage: str, drawn: random.Random) -> list[dict[str, str]]:
    """A system turn, the passage with sentences in it, questions and answers.

    Three of four other sentences are of the same form, about other people, and all numbers have as
    many digits: a model that copies digits from the wrong one is told so. The first sentences are
    asked for, each in a turn of its own; where each stands is drawn.
    """
    asked = min(MOST_QUESTIONS, 1 + max(0, len(passage) - 1) // CHARACTERS_A_QUESTION)
    form, number = drawn.choice(FORMS), asked + drawn.randint(0, MOST_OTHERS)
    digits = drawn.randint(3, 7)
    names = [f"{drawn.choice(FIRST_NAMES)} {last}" for last in drawn.sample(LAST_NAMES, number)]
    forms = [form, *(form if drawn.random() < 0.75 else drawn.choice(FORMS) for _ in names[1:])]
    facts = [
        sentence.format(
            name=name,
            number=drawn.randrange(10 ** (digits - 1), 10**digits),
            place=drawn.choice(PLACES),
            day=drawn.choice(DAYS),
            thing=drawn.choice(THINGS),
        )
        for (sentence, _), name in zip(forms, names, strict=True)
    ]
    lines = passage.strip().splitlines() or [""]
    for fact in facts:
        lines.insert(drawn.randint(0, len(lines)), fact)
    text = "\n".join(lines)
    questions = [ask.format(name=name) for (_, ask), name in zip(forms, names, strict=True)]
    first = drawn.choice(
        (f"{text}\n\n{questions[0]}", f"{questions[0]}\n\n{text}\n\n{questions[0]}")
    )
    turns = [{"role": "system", "content": SYSTEM}]
    for question, answer in zip([first, *questions[1:asked]], facts, strict=False):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


if __name__ == "__main__":
    main()
