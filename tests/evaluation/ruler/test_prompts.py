"""RULER: prompts as upstream writes them; flags and files that are refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples
from megatron_ultralong.evaluation.ruler.parameters import NOISE, RulerConfig, family
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tests.models import write_tokenizer

from .conftest import text_of


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
            "variables are assigned the value N, they are: ",
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "--lengths is needed"),
        (
            {"tasks": ("niah",)},
            "task 'niah' is not known; perhaps you meant 'niah_single_1'; known",
        ),
        ({"tasks": ("vt", "vt")}, "tasks must be different values"),
        ({"essays": ""}, r"--essays is needed for niah_single_2, .*or leave them out with --tasks"),
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


SQUAD = {
    "a number as an answer": (lambda part: part["qas"][1].update(answers=[{"text": 5}]), "has 5"),
    "a list as a question": (lambda part: part["qas"][1].update(question=["q"]), r"has \['q'\] in"),
    "no answer": (lambda part: part["qas"][1].update(answers=[]), "question 1 has no answer"),
    "no object": (lambda part: part.update(qas=[[1]]), "has no attribute 'get'"),
    "half a character": (lambda part: part.update(context="\ud800"), "is not JSON"),
}
"""What is changed in the first paragraph, and what the message says of it."""


@pytest.mark.parametrize("damage", SQUAD)
def test_questions_that_are_no_texts_are_told_before_they_are_asked(
    config, tokenizer, tmp_path, damage
):
    """Answers that are numbers ended the evaluation in a trace, after the model's first answer."""
    change, message = SQUAD[damage]
    values = json.loads(Path(config.squad).read_text())
    change(values["data"][0]["paragraphs"][0])
    (tmp_path / "bad.json").write_text(json.dumps(values))
    changed = dataclasses.replace(config, tasks=("qa_1",), squad=str(tmp_path / "bad.json"))
    told = rf"--squad .*bad\.json cannot be read \(.*{message}"
    with pytest.raises(InputError, match=told) as found:
        RulerSamples(changed, tokenizer).check()
    assert "InputError" not in str(found.value)
