"""RULER: prompts, lengths and distributions as upstream's parameters say, and its scores."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import llama_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.engines import open_reference
from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.prompt_tokenizer import PromptTokenizer, Special
from megatron_ultralong.evaluation.ruler.config import RulerConfig
from megatron_ultralong.evaluation.ruler.essay import Essays
from megatron_ultralong.evaluation.ruler.parameters import DEPTHS, NOISE, TASKS, family
from megatron_ultralong.evaluation.ruler.samples import RulerSamples
from megatron_ultralong.evaluation.ruler.scores import string_match
from megatron_ultralong.evaluation.ruler.words import _zeta
from tests.models import write_tokenizer

from .ruler_cases import CASES

BASE = Path(__file__).parents[2] / "examples" / "demo" / "base"
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+(?: \S+)?) is: (\S+)\.")
TEXT = (
    "It was late. Nobody spoke! Was Mr. Hill there? He said (as always) that the rain, e.g. in "
    'May, would end. "It will." So they waited, and 12 people left. Then J. R. Smith came in. '
)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer(BASE)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RulerConfig:
    """Essays, SQuAD and HotpotQA of their own making, in upstream's formats."""
    folder = tmp_path_factory.mktemp("ruler")
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(("def", "return", "for", "class", "self")) for _ in range(count))

    (folder / "essays.json").write_text(json.dumps({"text": TEXT * 40}))
    articles = []
    for a in range(8):
        paragraphs = []
        for p in range(5):
            answer = {"text": f"answer {a} {p}", "answer_start": 0}
            good = {"question": f"Which {a} {p}?", "answers": [answer], "is_impossible": False}
            bad = {"question": "None?", "answers": [], "is_impossible": True}
            paragraphs.append({"context": f"Paragraph {a} {p} {words(40)}", "qas": [bad, good]})
        articles.append({"title": f"t{a}", "paragraphs": paragraphs})
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    hotpot = [
        {
            "question": f"Who {k}?",
            "answer": "yes",
            "context": [[f"Title {k} {j}", [words(9) + ". ", words(7) + "."]] for j in range(10)],
        }
        for k in range(12)
    ]
    (folder / "hotpot.json").write_text(json.dumps(hotpot))
    return RulerConfig(
        lengths=(4096,),
        essays=str(folder / "essays.json"),
        squad=str(folder / "squad.json"),
        hotpotqa=str(folder / "hotpot.json"),
    )


@pytest.fixture(scope="module")
def samples(config: RulerConfig, tokenizer: PromptTokenizer) -> RulerSamples:
    return RulerSamples(config, tokenizer)


def text_of(samples: RulerSamples, task: str, length: int, index: int) -> str:
    """The prompt of a sample as text."""
    sample = samples.sample(task, length, index)
    parts = samples.builder(task, length, index).parts(sample.num_units)
    assert not any(isinstance(part, Special) for part in parts)
    return "".join(parts)


@pytest.fixture(scope="module")
def by_tokenizer(
    config: RulerConfig, tokenizer: PromptTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[RulerSamples, PromptTokenizer]]:
    """Makers of samples: code's vocabulary, one of little more than bytes, Llama 3's own."""
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    llama3 = Path(llama_models.__file__).parent / "llama3"
    found = {"code": tokenizer, "bytes": PromptTokenizer(folder), "llama3": PromptTokenizer(llama3)}
    return {name: (RulerSamples(config, one), one) for name, one in found.items()}


@pytest.mark.parametrize("task", TASKS)
@given(
    vocabulary=st.sampled_from(["code", "bytes", "llama3"]),
    length=st.integers(8_000, 40_000),  # a solved example of cwe has 3,200 bytes
    index=st.integers(0, 11),
)
@settings(max_examples=12, derandomize=True, deadline=None)
def test_a_prompt_is_as_long_as_it_can_be_and_never_longer(
    by_tokenizer, task, vocabulary, length, index
):
    samples, tokenizer = by_tokenizer[vocabulary]
    room = length - family(task).tokens_to_generate
    sample = samples.sample(task, length, index)
    begin = len(tokenizer.begin_ids)
    assert sample.tokens[:begin].tolist() == list(tokenizer.begin_ids)
    builder = samples.builder(task, length, index)
    exact = [
        begin + tokenizer.encode_parts(builder.parts(units)).size
        for units in (sample.num_units, sample.num_units + 1)
    ]
    assert exact[0] == sample.tokens.size <= room
    if exact[1] <= room:  # the estimate says that the next does not fit: within one unit
        unit = builder.estimate(sample.num_units + 1) - builder.estimate(sample.num_units)
        assert room - sample.tokens.size < unit


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_a_function_of_its_number(samples, task):
    first, again, other = (samples.sample(task, 6000, index) for index in (0, 0, 1))
    np.testing.assert_array_equal(again.tokens, first.tokens)
    assert again.references == first.references
    assert not np.array_equal(other.tokens, first.tokens)


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multikey_3", "cwe", "qa_2"])
def test_ids_are_those_of_the_reference_over_the_whole_prompt(samples, task):
    reference = open_reference(BASE)
    sample = samples.sample(task, 9000, 3)
    text = text_of(samples, task, 9000, 3)
    np.testing.assert_array_equal(sample.tokens, reference.encode_documents([text])[0])


def test_a_long_prompt_takes_a_few_passes_of_the_tokenizer(config, monkeypatch):
    tokenizer = PromptTokenizer(BASE)
    samples = RulerSamples(config, tokenizer)
    passes = []
    whole = tokenizer.encode_parts

    def counted(parts):
        ids = whole(parts)
        passes.append(ids.size)
        return ids

    monkeypatch.setattr(tokenizer, "encode_parts", counted)
    for task in TASKS:
        passes.clear()
        samples.sample(task, 150_000, 0)
        assert sum(passes) < 8 * 150_000, task


@pytest.mark.parametrize(
    ("task", "start", "end"),
    [
        (
            "niah_single_1",
            "A special magic number is hidden within the following text. Make sure to memorize "
            f"it. I will quiz you about the number afterwards.\n{NOISE}\n",
            f"{NOISE}\nWhat is the special magic number for KEY mentioned in the provided text? "
            "The special magic number for KEY mentioned in the provided text is",
        ),
        (
            "niah_single_3",
            "A special magic uuid is hidden within the following text.",
            " The special magic uuid for KEY mentioned in the provided text is",
        ),
        (
            "niah_multivalue",
            "Some special magic numbers are hidden within the following text. Make sure to "
            "memorize it. I will quiz you about the numbers afterwards.\n",
            "\nWhat are all the special magic numbers for KEY mentioned in the provided text? The "
            "special magic numbers for KEY mentioned in the provided text are",
        ),
        (
            "niah_multiquery",
            "Some special magic numbers are hidden",
            "numbers for KEY, KEY, KEY, and KEY mentioned in the provided text are",
        ),
        (
            "vt",
            "Memorize and track the chain(s) of variable assignment hidden in the following text."
            "\n\n",
            f"{NOISE}\nQuestion: Find all variables that are assigned the value N in the text "
            "above. Answer: According to the chain(s) of variable assignment in the text above, 5 "
            "variables are assgined the value N, they are: ",
        ),
        (
            "cwe",
            "Below is a numbered list of words. In these words, some appear more often than "
            "others. Memorize the ones that appear most often.\n1. ",
            "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 "
            "words that appear most often in the list are:",
        ),
        (
            "fwe",
            "Read the following coded text and track the frequency of each coded word. Find the "
            "three most frequently appeared coded words. ",
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are "
            "the three most frequently appeared words in the above coded text? Answer: According "
            "to the coded text above, the three most frequently appeared words are:",
        ),
        (
            "qa_1",
            "Answer the question based on the given documents. Only give me the answer and do not "
            "output any other words.\n\nThe following are given documents.\n\nDocument 1:\n"
            "Paragraph ",
            "\n\nAnswer the question based on the given documents. Only give me the answer and do "
            "not output any other words.\n\nQuestion: Which 0 2? Answer:",
        ),
    ],
)
def test_prompts_are_upstreams(samples, task, start, end):
    text = text_of(samples, task, 6000, 2)
    for key in getattr(samples.builder(task, 6000, 2), "_keys", ()):
        text = text.replace(key, "KEY")
    if task == "vt":
        text = re.sub(r"value \d{5}", "value N", text)
    assert text.startswith(start), text[:300]
    assert text.endswith(end), text[-300:]


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
        lines = "".join(builder.parts(100)).split("\n")[1:-1]
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
                assert tuple(chain) == samples.sample("vt", 6000, index).references
            else:
                assert part.rstrip("\n").endswith(" ".join(chain))
    noise = example.count(NOISE)
    assert noise % 5 == 0
    assert noise > 0


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
    (tmp_path / "english.json").write_text(json.dumps({"0": "extra", "1": "nk"}))
    more = RulerConfig(word_lists=str(tmp_path), english_words=str(tmp_path / "english.json"))
    assert len(RulerSamples(more, tokenizer).words.base) == 73


def test_coded_words_follow_the_zeta_distribution(samples):
    assert _zeta(2.0) == pytest.approx(math.pi**2 / 6, rel=1e-12)
    assert _zeta(4.0) == pytest.approx(math.pi**4 / 90, rel=1e-12)
    sample = samples.sample("fwe", 6000, 0)
    text = text_of(samples, "fwe", 6000, 0)
    words = text.split("coded words. ")[1].split("\nQuestion")[0].split(" ")
    counts = Counter(words).most_common()
    total = sample.num_units
    vocabulary = 6000 // 50
    expected = [int(total * k**-2.0 / (math.pi**2 / 6)) for k in range(1, vocabulary + 1)]
    assert [count for _, count in counts] == [count for count in expected if count]
    assert counts[0][0] == "..."
    assert tuple(word for word, _ in counts[1:4]) == sample.references
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in counts[1:])


def test_documents_of_a_question_are_among_the_others(samples):
    text = text_of(samples, "qa_1", 1500, 7)  # paragraph 2 of article 1
    assert text.endswith("Question: Which 1 2? Answer:")
    numbered = re.findall(r"Document (\d+):\nParagraph (\d \d) ", text)
    assert [int(number) for number, _ in numbered] == [*range(1, len(numbered) + 1)]
    found = [name for _, name in numbered]
    assert {f"1 {p}" for p in range(5)} <= set(found)  # its own article first
    assert len(set(found)) == len(found)
    assert samples.sample("qa_1", 1500, 7).references == ("answer 1 2",)
    text = text_of(samples, "qa_2", 3000, 4)
    titles = re.findall(r"Document \d+:\nTitle (\d+) (\d)\n", text)
    assert {("4", str(j)) for j in range(10)} <= set(titles)
    # More room than documents: all of them, over again.
    whole = re.findall(r"Document \d+:\nParagraph (\d \d) ", text_of(samples, "qa_1", 60_000, 0))
    assert len(set(whole)) == 40 < len(whole)


def test_the_chat_template_has_special_tokens_once(tokenizer, config, tmp_path):
    from tokenizers import AddedToken, Tokenizer

    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    own = Tokenizer.from_file(str(file))
    names = ["begin_of_text", "start_header_id", "end_header_id", "eot_id"]
    own.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    own.save(str(file))
    chat_tokenizer = PromptTokenizer(tmp_path)
    assert chat_tokenizer.has_chat_tokens
    assert not tokenizer.has_chat_tokens
    begin, start, end, turn = (own.token_to_id(f"<|{name}|>") for name in names)
    chat = RulerSamples(RulerConfig(lengths=(9000,), prompt_template="chat"), chat_tokenizer)
    for task, turns in (("niah_single_1", 1), ("vt", 1), ("cwe", 2)):
        ids = chat.sample(task, 9000, 0).tokens.tolist()
        assert ids[0] == begin
        assert ids.count(begin) == 1
        assert (ids.count(start), ids.count(end), ids.count(turn)) == (2 * turns, 2 * turns, turns)
        prefix = "\n\n" + family(task).answer_prefix.split("{")[0]
        written = own.decode(ids[len(ids) - ids[::-1].index(end) :])
        assert written.startswith(prefix)
    with pytest.raises(InputError, match=r"needs the special token '<\|start_header_id\|>'"):
        RulerSamples(RulerConfig(lengths=(9000,), prompt_template="chat"), tokenizer).sample(
            "niah_single_1", 9000, 0
        )


def test_scores_are_upstreams_on_a_hundred_cases():
    assert len(CASES) == 100
    for metric, prediction, references, expected in CASES:
        score = string_match(metric, prediction, references)
        assert score == pytest.approx(expected, abs=1e-12), (metric, prediction, references)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "--lengths is needed"),
        ({"tasks": ("niah",)}, "task 'niah' is not known; known: niah_single_1"),
        ({"tasks": ("vt", "vt")}, "tasks must be different values"),
        ({"essays": ""}, r"--essays is needed for niah_single_2, .*or leave them out by --tasks"),
        ({"squad": ""}, "--squad is needed for qa_1"),
        ({"num_samples": 0}, "num_samples must be at least 1, not 0"),
    ],
)
def test_bad_flags_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **changes).check()


def test_bad_files_and_lengths_are_refused(config, tokenizer, tmp_path):
    (tmp_path / "bad.json").write_text('{"data": [{}]}')
    bad = str(tmp_path / "bad.json")
    for changes, message in (
        ({"essays": bad}, r"--essays .*bad\.json cannot be read \(KeyError\('text'\)\)"),
        ({"squad": bad}, r"--squad .*bad\.json cannot be read .*dev-v2\.0\.json"),
        ({"hotpotqa": bad, "num_samples": 9}, r"--hotpotqa .*bad\.json cannot be read"),
        ({"word_lists": str(tmp_path)}, r"word list .*nounlist\.txt cannot be read"),
        ({"english_words": "absent"}, "--english-words absent cannot be read"),
        ({"num_samples": 41}, r"num_samples \(41\) is more than the 40 questions of --squad"),
    ):
        with pytest.raises(InputError, match=message):
            RulerSamples(dataclasses.replace(config, **changes), tokenizer).check()
    with pytest.raises(InputError, match=r"vt at length 256: 226 tokens are too few for a prompt"):
        RulerSamples(config, tokenizer).sample("vt", 256, 0)
