"""What examples/smollm2 asks: questions.py, choices.py and essays.py."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong.evaluation.retrieval import needle_prompt, passkey_prompt
from tests.test_smollm2 import SCRIPTS, module


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files to train on, one held out."""
    for side, name, word in (("train", "a", "red"), ("train", "b", "blue"), ("held_out", "c", "x")):
        folder = tmp_path / "corpus" / side
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{word} {line} lies on the table\n" for line in range(900))
        documents = [{"text": text, "package": name}, {"text": f"{word} again\n", "package": name}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    return tmp_path / "corpus"


def test_an_answer_stands_once_in_its_text_and_the_question_names_one_person(
    corpus: Path, tmp_path: Path
) -> None:
    questions = module("questions")
    done = run("questions.py", corpus, tmp_path / "q.jsonl", "--number", 200)
    assert done.returncode == 0, done.stderr
    conversations = [
        json.loads(line)["messages"] for line in (tmp_path / "q.jsonl").read_text().splitlines()
    ]
    assert len(conversations) == 200
    names = [f"{first} {last}" for first in questions.FIRST_NAMES for last in questions.LAST_NAMES]
    shared = 0
    for system, user, assistant in conversations:
        assert system == {"role": "system", "content": questions.SYSTEM}
        lines = user["content"].splitlines()
        assert lines.count(assistant["content"]) == 1
        asked = [name for name in names if name in lines[-1]]
        assert len(asked) == 1
        assert asked[0] in assistant["content"]
        last = asked[0].split()[1]
        assert sum(last in line for line in {*lines}) == 2, "the question and its answer alone"
        kind = re.sub(r"\d+", "", assistant["content"].replace(asked[0], ""))
        shared += sum(re.sub(r"\d+", "", re.sub("|".join(names), "", x)) == kind for x in lines) > 1
        assert "held_out" not in user["content"]
        assert not re.search(r"^x \d", user["content"], re.MULTILINE), "a held-out text"
    assert shared > 50, "others of the same form stand beside it"
    words = {user["content"].split()[0] for _, user, _ in conversations}
    assert len(words) > 2, "passages of both files, and questions first"
    assert max(len(user["content"]) for _, user, _ in conversations) < questions.LONGEST + 1000


def test_a_long_passage_is_asked_about_several_sentences(corpus: Path, tmp_path: Path) -> None:
    questions = module("questions")
    words = ("--number", 60, "--longest", 60_000)
    run("questions.py", corpus, tmp_path / "q.jsonl", *words)
    turns_of_lengths = set()
    for line in (tmp_path / "q.jsonl").read_text().splitlines():
        _, first, *turns = json.loads(line)["messages"]
        text = first["content"].splitlines()
        asked = [first["content"], *(turn["content"] for turn in turns[1::2])]
        answers = [turn["content"] for turn in turns[::2]]
        assert len(asked) == len(answers) <= questions.MOST_QUESTIONS
        assert [turn["role"] for turn in turns] == ["assistant", "user"] * (len(asked) - 1) + [
            "assistant"
        ]
        assert all(text.count(answer) == 1 for answer in answers)
        for question, answer in zip(asked, answers, strict=True):
            people = [last for last in questions.LAST_NAMES if last in question.splitlines()[-1]]
            assert len(people) == 1
            assert people[0] in answer
        assert len(set(answers)) == len(answers)
        turns_of_lengths.add(len(asked))
    assert {1, 2, 3} <= turns_of_lengths, "the corpus of this test has 25,000 characters a text"


@pytest.mark.parametrize("words", [("--longest", 399), ("--shortest", 399), ("--shortest", 10_001)])
def test_lengths_of_passages_are_checked(
    corpus: Path, tmp_path: Path, words: tuple[str, int]
) -> None:
    refused = run("questions.py", corpus, tmp_path / "no", *words)
    assert refused.returncode == 2
    assert f"{words[0]} {words[1]}" in refused.stderr
    assert "a passage has at least 400 characters, and the longest at least" in refused.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("line", [b'{"text": "cut off', b"", b'{"other": 1}', b"[1]", b'"\xff"'])
def test_a_damaged_corpus_is_told_with_its_line(corpus: Path, tmp_path: Path, line: bytes) -> None:
    """There was a trace without the name of the file."""
    file = corpus / "train" / "a.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines, line, b""]))
    refused = run("questions.py", corpus, tmp_path / "no")
    assert refused.returncode == 1
    (message,) = refused.stderr.splitlines()
    assert message.startswith(f"{file}:{len(lines) + 1} is no document: make the corpus again")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("number", [0, -3])
def test_a_number_of_none_is_refused(corpus: Path, tmp_path: Path, number: int) -> None:
    """An empty file was written, and `prepare chat` did not know what it was."""
    refused = run("questions.py", corpus, tmp_path / "no", "--number", number)
    assert refused.returncode == 2
    assert f"--number {number} must be 1 or more" in refused.stderr
    assert not (tmp_path / "no").exists()


def test_passages_have_at_least_as_many_characters_as_asked_for(
    corpus: Path, tmp_path: Path
) -> None:
    words = ("--number", 40, "--shortest", 15_000, "--longest", 20_000)
    run("questions.py", corpus, tmp_path / "q.jsonl", *words)
    for line in (tmp_path / "q.jsonl").read_text().splitlines():
        first = json.loads(line)["messages"][1]["content"]
        assert 15_000 <= len(first) < 21_500, "sentences stand in it too"


def test_passages_longer_than_every_text_are_of_several(corpus: Path, tmp_path: Path) -> None:
    file = corpus / "train" / "a.jsonl"
    lines = file.read_text().splitlines()
    assert len(json.loads(lines[0])["text"]) < 40_000
    file.write_text("\n".join(5 * lines) + "\n")
    words = ("--number", 10, "--shortest", 40_000, "--longest", 50_000)
    done = run("questions.py", corpus, tmp_path / "q.jsonl", *words)
    found = [json.loads(line)["messages"] for line in (tmp_path / "q.jsonl").open()]
    assert len(found) == 10
    assert all(40_000 <= len(turns[1]["content"]) < 52_500 for turns in found), "three at a time"
    assert "b.jsonl has " in done.stderr
    assert "characters, fewer than --shortest 40,000: no passage is taken from it" in done.stderr
    refused = run("questions.py", corpus, tmp_path / "no", *words[:2], "--shortest", 10**6,
                  "--longest", 10**6)  # fmt: skip
    assert refused.returncode == 1
    assert "no file has so many characters: a smaller --shortest" in refused.stderr
    assert not (tmp_path / "no").exists()


def test_the_longest_passages_have_names_for_all_their_sentences() -> None:
    questions = module("questions")
    assert len(set(questions.LAST_NAMES)) >= questions.MOST_QUESTIONS + questions.MOST_OTHERS
    drawn = random.Random(1)
    for _ in range(20):
        turns = questions.conversation("x\n" * 200_000, drawn)
        assert len(turns) == 1 + 2 * questions.MOST_QUESTIONS
    names = [*questions.FIRST_NAMES, *questions.LAST_NAMES]
    assert not [(a, b) for a in names for b in names if a != b and a in b], "one stands in another"


def test_the_forms_are_not_those_of_the_evaluation() -> None:
    forms = " ".join(text for form in module("questions").FORMS for text in form).lower()
    for text in ("pass key", "passkey", "door code", "city hall", "magic number", "special"):
        assert text not in forms
    for text in (needle_prompt.NEEDLE, needle_prompt.QUESTION, passkey_prompt.NEEDLE):
        trigrams = zip(*(text.lower().split()[k:] for k in range(3)), strict=False)
        assert not [words for words in trigrams if " ".join(words) in forms]


def test_the_same_seed_asks_the_same(corpus: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("questions.py", corpus, tmp_path / name, "--number", 20, "--seed", seed)
    made = {name: (tmp_path / name).read_text() for name in "abc"}
    assert made["a"] == made["b"]
    assert made["a"] != made["c"]


def test_what_is_not_there_is_said(corpus: Path, tmp_path: Path) -> None:
    for script, side in (("questions.py", "train"), ("essays.py", "held_out")):
        done = run(script, tmp_path, tmp_path / "new")
        assert done.returncode == 1
        assert f"{tmp_path / side} has no" in done.stderr
        assert "02_get_corpus.sh writes" in done.stderr
        assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_text("kept")
    done = run("questions.py", corpus, tmp_path / "old")
    assert done.returncode == 1
    assert "is there; name a new file, or remove it" in done.stderr
    assert (tmp_path / "old").read_text() == "kept"


def test_essays_are_the_held_out_book_or_all_held_out_texts(corpus: Path, tmp_path: Path) -> None:
    run("essays.py", corpus, tmp_path / "all.txt")
    assert (tmp_path / "all.txt").read_text().endswith("x 899 lies on the table\n\nx again\n")
    book = json.dumps({"text": "a book\n", "package": module("essays").BOOK})
    (corpus / "held_out" / "book.jsonl").write_text(f"{book}\n{book}\n")
    run("essays.py", corpus, tmp_path / "book.txt")
    assert (tmp_path / "book.txt").read_text() == "a book\n\na book\n"


ENTRY = """{word} \\{word[0]}a*b\\, {part}.{more}
   {definition}
   [1913 Webster]

"""


def dictionary(entries: list[tuple[str, str, str, str]]) -> str:
    names = ("word", "part", "more", "definition")
    return "".join(ENTRY.format(**dict(zip(names, entry, strict=True))) for entry in entries)


def test_definitions_are_clear_and_do_not_name_their_word() -> None:
    choices = module("choices")
    text = dictionary(
        [
            ("Gable", "n", " [OF. gable.]", "The triangular upper part of an end wall; a wall."),
            ("Gabble", "v. i", "", "To utter inarticulate sounds quickly, as geese do."),
            (
                "Gaby",
                "n",
                "",
                "A person without sense, who is called a gaby by others.",
            ),  # names it
            ("Gad", "n", " [Obs.]", "A pointed bar of iron used to break ore."),  # short, obsolete
            ("Gadding", "a", " [Obs.]", "Roving about without any purpose at all."),
            ("Gadfly", "n", "", "See {Botfly}."),
            ("Gaffer", "n", "", "Short."),
        ]
    )
    assert [(word, part) for word, part, _ in choices.definitions(text)] == [
        ("gable", "n"),
        ("gabble", "v. i"),
    ]


def test_choices_are_four_of_one_kind_and_one_is_right() -> None:
    choices = module("choices")
    words = [(f"{part}word{k}", part, f"Meaning {part}{k}") for part in "na" for k in range(30)]
    words += [("lone", "adv", "Meaning lone")]
    made = list(choices.questions(words, random.Random(1)))
    assert len(made) == 60, "a word without three others is left out"
    places = set()
    for each in made:
        assert len({*each["choices"]}) == 4
        right = each["choices"][each["answer"]]
        assert each["question"].endswith(
            f"meaning {right[0]}{right.removeprefix(right[0] + 'word')}?"
        )
        assert {word[0] for word in each["choices"]} == {right[0]}
        places.add(each["answer"])
    assert places == {0, 1, 2, 3}


def test_the_words_are_of_a_part_that_nobody_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = module("choices")
    trained = dictionary([("Trained", "n", "", "A thing that stands in the corpus of step two.")])
    later = dictionary(
        [(f"Late{chr(97 + k)}", "n", "", f"A thing of some kind, number {k}.") for k in range(9)]
    )
    filler = "x" * (choices.NOT_TRAINED) + "\n"
    monkeypatch.setattr(
        choices, "source_files", lambda source, packages: {"gcide": trained + filler + later}
    )
    monkeypatch.setattr(sys, "argv", ["choices.py", str(tmp_path / "c.jsonl")])
    choices.main()
    made = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert len(made) == 9
    assert not [each for each in made if "trained" in each["choices"]]
