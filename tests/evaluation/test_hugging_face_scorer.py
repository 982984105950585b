from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ultralong.checkpoint.logits.transformers_model import transformers_config
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.models.interface import Scorer
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel, open_scorers
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.program.errors import InputError
from tests.models import write_llama

from .conftest import make_llama


def test_scores_are_those_of_transformers(scorer: Scorer, rows):
    model = make_llama(max_positions=64).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(rows)).logits.double()
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), torch.from_numpy(rows)[:, 1:], reduction="none"
    )
    scores = scorer.score(rows)
    assert scores.loss.shape == scores.correct.shape == (5, 63)
    assert (scores.loss.dtype, scores.correct.dtype) == (np.float32, np.bool_)
    # float32 logits of magnitude 10 carry errors of 1e-6 each.
    np.testing.assert_allclose(scores.loss, expected.numpy(), atol=1e-5)
    hits = logits[:, :-1].argmax(2).numpy() == rows[:, 1:]
    np.testing.assert_array_equal(scores.correct, hits)
    assert (scorer.name, scorer.max_positions, scorer.vocab_size) == ("base", 64, 96)


@pytest.mark.parametrize("chunk", [1, 7, 62, 63])
def test_the_chunk_of_logits_does_not_matter(llama_folder, scorer: Scorer, rows, chunk: int):
    whole = scorer.score(rows)
    other = HuggingFaceModel(llama_folder)
    other.logits_chunk_size = chunk
    chunked = other.score(rows)
    # Matrix products of other shapes sum in another order.
    np.testing.assert_allclose(chunked.loss, whole.loss, atol=1e-5)
    np.testing.assert_array_equal(chunked.correct, whole.correct)


def test_a_transformers_that_misreads_the_rope_block_judges_nothing(tmp_path, monkeypatch):
    """As 4.49 and 4.50 do: evaluations of such a model were of another one."""
    block = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    write_llama(tmp_path, rope_parameters={**block, "rope_theta": 1e4, "attention_factor": 1.0})
    HuggingFaceModel(tmp_path)
    plain = ROPE_INIT_FUNCTIONS["yarn"]

    def misread(*args, **kwargs):
        frequencies, factor = plain(*args, **kwargs)
        return frequencies, factor + 0.1

    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "yarn", misread)
    with pytest.raises(InputError, match=r"reads the rope block in another way: .* 1\.1 and 1;"):
        HuggingFaceModel(tmp_path)


def test_a_transformers_that_is_older_than_the_family_is_named():
    family = SimpleNamespace(architecture="NewForCausalLM")
    folder = SimpleNamespace(folder="new", model=SimpleNamespace(family=family))
    with pytest.raises(
        InputError, match=r"^new is a NewForCausalLM, and transformers \d.* has none"
    ):
        transformers_config(folder)


def test_a_layout_for_a_folder_of_one_process_is_refused(llama_folder):
    parallel = ParallelConfig(context_parallel_size=2)
    with (
        pytest.raises(InputError, match=r"--context-parallel-size 2: a layout is for Megatron"),
        open_scorers(ModelsConfig(load=(str(llama_folder),), parallel=parallel)),
    ):
        pass


def test_a_folder_without_a_llama_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json: it is not a Hugging Face model"):
        HuggingFaceModel(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(InputError, match=r"architectures \['GPT2LMHeadModel'\] .*known: Llama"):
        HuggingFaceModel(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        HuggingFaceModel(tmp_path)
