"""RULER: a prompt is as long as it can be, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.tokenize.engines import open_reference
from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples
from megatron_ultralong.evaluation.ruler.parameters import TASKS, family
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer

from .conftest import BASE, text_of


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
        samples.prompt(builder, units).size for units in (sample.num_units, sample.num_units + 1)
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
