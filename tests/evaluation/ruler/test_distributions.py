"""RULER: what is hidden, and how it is drawn and placed, as upstream's parameters say."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter

import numpy as np
import pytest

from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples
from megatron_ultralong.evaluation.ruler.needles import Essays
from megatron_ultralong.evaluation.ruler.parameters import DEPTHS, NOISE, RulerConfig

from .conftest import TEXT, text_of

NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+(?: \S+)?) is: (\S+)\.")


def test_needles_are_hidden_as_asked(samples):
    for task, keys, values in (
        ("niah_single_1", 1, 1),
        ("niah_single_3", 1, 1),
        ("niah_multikey_1", 4, 1),
        ("niah_multivalue", 1, 4),
        ("niah_multiquery", 4, 1),
    ):
        found = NEEDLE.findall(text_of(samples, task, 6000, 0))
        assert len(found) == keys * values, task
        assert len({key for _, key, _ in found}) == keys
        references = samples.sample(task, 6000, 0).references
        asked = 4 if task == "niah_multiquery" else 1
        assert len(references) == asked * values
        assert set(references) <= {value for _, _, value in found}
    text = text_of(samples, "niah_multikey_2", 6000, 0)
    found = NEEDLE.findall(text)
    query = re.search(r"What is the special magic number for (.+?) mentioned", text)
    assert query is not None
    lines = text.split("\n")[1:-1]
    assert len(found) == len(lines) > 150  # nothing but needles
    matching = [value for _, key, value in found if key == query[1]]
    assert matching == list(samples.sample("niah_multikey_2", 6000, 0).references)
    uuids = NEEDLE.findall(text_of(samples, "niah_multikey_3", 6000, 0))
    shape = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(shape.fullmatch(key) and shape.fullmatch(value) for _, key, value in uuids)


def test_needles_are_drawn_and_placed_evenly(samples):
    """Means of 300 samples lie within four standard errors of what upstream's draws have."""
    places, values, keys = [], [], []
    for index in range(300):
        builder = samples.builder("niah_single_1", 4096, index)
        lines = "".join(*builder.turns(100)).split("\n")[1:-1]
        [place] = [k for k, line in enumerate(lines) if line != NOISE]
        places.append(place)
        values.append(int(builder.references(100)[0]))
        keys.append(NEEDLE.findall(lines[place])[0][1])
    assert abs(np.mean(places) - 49.5) < 4 * 100 / math.sqrt(12 * 300)
    assert min(values) >= 10**6
    assert max(values) < 10**7
    assert abs(np.mean(values) - 5.5e6) < 4 * 9e6 / math.sqrt(12 * 300)
    assert len(set(keys)) > 290
    adjectives, nouns = set(samples.words.adjectives), set(samples.words.nouns)
    for key in keys:
        splits = (key[:k] in adjectives and key[k + 1 :] in nouns for k in range(len(key)))
        assert any(splits), key


def test_depths_in_essays_are_upstreams_forty(tokenizer):
    assert tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40))) == DEPTHS
    essays = Essays(TEXT.strip(), tokenizer)
    size = len(essays.words)
    # The sentences by hand; abbreviations and initials end none.
    ends = [essays.words[k - 1] for k in essays._ends]
    assert ends == ["late.", "spoke!", "there?", "end.", 'will."', "left.", "in."]
    assert essays.context(size, [0], ["N."]) == f" N. {TEXT.strip()}"
    assert essays.context(size, [100], ["N."]) == f"{TEXT.strip()} N. "
    assert essays.context(size, [29], ["N."]).startswith("It was late. Nobody spoke! N. Was Mr.")
    two = essays.context(2 * size, [50, 97], ["N.", "M."])
    assert two.startswith(f"{TEXT.strip()} N. It was late.")
    assert two.endswith("M. Then J. R. Smith came in.")
    assert essays.context(3, [0, 100], ["N.", "M."]) == " N. It was late. M. "


def test_chains_of_variables_can_be_followed(samples):
    for index in range(5):
        text = text_of(samples, "vt", 6000, index)
        example, question = text.rsplit("\nMemorize and track", 1)
        for part, letters in ((example, 3), (question, 5)):
            found = re.findall(r"^VAR ([A-Z]+) = (?:VAR ([A-Z]+) |(\d{5}))$", part, re.MULTILINE)
            assert len(found) == 5
            value = found[0][2]
            assert 10000 <= int(value) < 99999
            chain = [found[0][0]]
            for name, before, _ in found[1:]:
                assert before == chain[-1]  # in order, each after the one it names
                chain.append(name)
            assert {len(name) for name in chain} == {letters}
            assert f"assigned the value {value} in the text above" in part
            if part is question:
                assert chain == samples.sample("vt", 6000, index).references
            else:
                assert part.rstrip("\n").endswith(" ".join(chain))


def test_the_solved_example_of_variables_has_upstreams_lines_of_noise(by_tokenizer):
    """As its scripts write with this vocabulary, see ``tools/compare_ruler.py``."""
    samples, _ = by_tokenizer["llama3"]
    for release, lines in (("c3f5e3b", 16), ("860f2bd", 10)):
        config = dataclasses.replace(samples._config, ruler_release=release)
        text = text_of(RulerSamples(config, samples._tokenizer), "vt", 4096, 0)
        example = text.rsplit("Memorize and track", 1)[0]
        assert example.count(NOISE) == lines, release


def test_the_early_release_is_of_its_time(samples):
    """What the later one changed: spelling and lines of ``vt``, a space and a limit of ``cwe``."""
    early = RulerSamples(
        dataclasses.replace(samples._config, ruler_release="860f2bd"), samples._tokenizer
    )
    text = text_of(early, "vt", 6000, 0)
    assert "5 variables are assgined the value" in text
    assert re.search(rf"{re.escape(NOISE)}\n VAR [A-Z]{{5}} = \d{{5}} The grass", text)
    assert re.search(r"they are: [A-Z ]+\n\n\n\nMemorize", text)
    assert "in the list are:1. " in text_of(early, "cwe", 9000, 0)
    assert "in the list are: 1. " in text_of(samples, "cwe", 9000, 0)
    # the prompts end where the material ends
    assert early.sample("cwe", 10**6, 0).num_units == len(early.words.base)
    assert early.sample("qa_1", 60_000, 0).num_units == 40
    words = len(early.essays.words)
    assert early.sample("niah_single_2", 200_000, 0).num_units == words
    assert samples.sample("niah_single_2", 200_000, 0).num_units > words


@pytest.mark.parametrize(("length", "common", "others"), [(20_000, 30, 3), (4000, 6, 1)])
def test_common_words_stand_thirty_times_and_others_three(samples, length, common, others):
    text = text_of(samples, "cwe", length, 0)
    lists = re.findall(r"often\.\n(1\. .*)\nQuestion", text)
    assert len(lists) == 2  # a solved one first
    counts = []
    for numbered in lists:
        entries = re.split(r"(?:^| )(?=\d+\. )", numbered)[1:]
        assert [int(entry.split(". ")[0]) for entry in entries] == [*range(1, len(entries) + 1)]
        counts.append(Counter(entry.split(". ", 1)[1] for entry in entries))
    sample = samples.sample("cwe", length, 0)
    assert {word for word, count in counts[1].items() if count == common} == set(sample.references)
    assert sorted(set(counts[1].values())) == [others, common]
    assert len(counts[1]) == sample.num_units
    solved = [word for word, count in counts[0].items() if count == (3 if length < 4096 else 10)]
    assert len(solved) == 10
    answer = text.split("the list are:")[1].split("\nBelow")[0]
    assert sorted(re.findall(r"\d+\. (\D+?)(?= \d+\.|$)", answer)) == sorted(solved)


def test_a_list_longer_than_the_vocabulary_is_of_pairs(config, tokenizer, tmp_path):
    for name in ("nounlist.txt", "adjectivelist.txt", "verblist.txt"):
        letters = {"n": "nqrs", "a": "abcd", "v": "vwxy"}[name[0]]
        (tmp_path / name).write_text("\n".join(f"{a}{b}" for a in letters for b in "klmnop"))
    few = RulerSamples(
        RulerConfig(lengths=(9000,), tasks=("cwe",), word_lists=str(tmp_path)), tokenizer
    )
    assert len(few.words.base) == 72
    sample = few.sample("cwe", 9000, 0)
    assert sample.num_units > 72
    base = set(few.words.base)
    assert all({*word.split("-")} <= base and "-" in word for word in sample.references)


def test_a_list_longer_than_the_vocabulary_is_of_english_words_alone(tokenizer, tmp_path):
    """And no shorter one, nor the solved example."""
    for name in ("nounlist.txt", "adjectivelist.txt", "verblist.txt"):
        (tmp_path / name).write_text("\n".join(f"{name[0]}{k}" for k in "abcdefghijklmnopqrst"))
    english = [f"English\u2028{k}" for k in range(400)]
    (tmp_path / "english.json").write_text(
        json.dumps({str(k): w for k, w in enumerate([*english, english[0]])})
    )
    flags = {"word_lists": str(tmp_path), "english_words": str(tmp_path / "english.json")}
    made = RulerSamples(RulerConfig(lengths=(9000,), tasks=("cwe",), **flags), tokenizer)
    base = {*made.words.base}
    assert len(base) == 60
    builder = made.builder("cwe", 9000, 0)
    assert {*builder.references(60)} <= base
    assert {*builder.references(61)} <= {*english}
    for units in (60, 61, 400):
        (example, answer), (text, _) = builder.turns(units)
        assert "English" not in example + answer
        assert ("English" in text) == (units > 60)
    assert made.sample("cwe", 10**6, 0).num_units == 400  # each of them once


def test_coded_words_follow_the_zeta_distribution(samples):
    sample = samples.sample("fwe", 6000, 0)
    text = text_of(samples, "fwe", 6000, 0)
    words = text.split("coded words. ")[1].split("\nQuestion")[0].split(" ")
    counts = Counter(words).most_common()
    total = sample.num_units
    vocabulary = 6000 // 50
    expected = [int(total * k**-2.0 / (math.pi**2 / 6)) for k in range(1, vocabulary + 1)]
    assert [count for _, count in counts] == [count for count in expected if count]
    assert counts[0][0] == "..."
    assert [word for word, _ in counts[1:4]] == sample.references
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in counts[1:])


def test_documents_of_a_question_are_among_the_others(samples):
    text = text_of(samples, "qa_1", 1500, 7)  # paragraph 2 of article 1
    assert text.endswith("Question: Which 1 2? Answer:")
    numbered = re.findall(r"Document (\d+):\nParagraph (\d \d) ", text)
    assert [int(number) for number, _ in numbered] == [*range(1, len(numbered) + 1)]
    found = [name for _, name in numbered]
    assert {f"1 {p}" for p in range(5)} <= set(found)  # its own article first
    assert len(set(found)) == len(found)
    assert samples.sample("qa_1", 1500, 7).references == ["answer 1 2"]
    text = text_of(samples, "qa_2", 3000, 4)
    titles = re.findall(r"Document \d+:\nTitle (\d+) (\d)\n", text)
    assert {("4", str(j)) for j in range(10)} <= set(titles)
    # More room than documents: all of them, over again.
    whole = re.findall(r"Document \d+:\nParagraph (\d \d) ", text_of(samples, "qa_1", 60_000, 0))
    assert len(set(whole)) == 40 < len(whole)
