"""A tiny model with the turns of Llama 3."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from megatron_ultralong.evaluation.models.facts import model_facts
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel, Subject
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from tests.evaluation.long.data import COST
from tests.models import write_llama


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokenizer has the turns of Llama 3."""
    folder = tmp_path_factory.mktemp("long") / "tiny"
    write_llama(folder, num_hidden_layers=1, max_position_embeddings=4096)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ["begin_of_text", "start_header_id", "end_header_id", "eot_id"]
    taken = own.get_vocab_size()
    own.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    assert taken + len(names) <= 320
    own.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="package")
def subject(model: Path) -> Subject:
    generator = HuggingFaceModel(model, name="tiny")
    return Subject(generator, model_facts(f"tiny={model}", "fp32"), PromptTokenizer(model), COST)
