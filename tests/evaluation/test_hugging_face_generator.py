from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from megatron_ultralong.evaluation.models.language_models import (
    HuggingFaceModel,
    before_stop,
    open_language_models,
)
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.program.errors import InputError

from .conftest import VOCAB_SIZE, make_llama

RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(0, VOCAB_SIZE, size).tolist() for size in (9, 1, 9, 30, 9, 1, 17)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose folder asks for sampling, and to stop at ids that it writes often."""
    folder = tmp_path_factory.mktemp("llama") / "writer"
    model = make_llama(max_positions=64)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, eos_token_id=list(range(48))
    )
    model.save_pretrained(folder)
    return folder


def by_argmax(prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy decoding by its definition: the whole forward pass again for every token."""
    model, ids = make_llama(max_positions=64).eval(), list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_continuations_are_the_argmax_of_every_step_whatever_the_folder_asks_for(folder: Path):
    expected = [by_argmax(prompt, 12) for prompt in PROMPTS]
    with open_language_models(ModelsConfig((f"mine={folder}",))) as (generator,):
        assert generator.name == "mine"
        assert (generator.max_positions, generator.vocab_size) == (64, VOCAB_SIZE)
        assert generator.generate(PROMPTS, max_new_tokens=12) == expected
        stops = frozenset({expected[0][4], expected[3][2]})
        stopped = generator.generate(PROMPTS, max_new_tokens=12, stop_ids=stops)
    assert stopped == [before_stop(ids, stops) for ids in expected]
    assert len(stopped[0]) <= 4
    assert len({len(ids) for ids in stopped}) > 1
    alone = HuggingFaceModel(folder)
    alone.max_batch_size = 1
    assert alone.generate(PROMPTS, max_new_tokens=12, stop_ids=stops) == stopped


def test_bad_prompts_are_refused(folder: Path):
    generator = HuggingFaceModel(folder)
    with pytest.raises(InputError, match="prompt 1 has no tokens"):
        generator.generate([[1], []], max_new_tokens=4)
    with pytest.raises(InputError, match=r"prompt 0 has at position 1 token id 96, .* ids 0 to 95"):
        generator.generate([[1, 96]], max_new_tokens=4)
    with pytest.raises(InputError, match="max_new_tokens must be at least 1, not 0"):
        generator.generate([[1]], max_new_tokens=0)
