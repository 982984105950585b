"""A model whose logits are no numbers has no score and writes nothing, whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.evaluation.asking.samples import Prompt, Put, Row, Sample, ask, scoring
from megatron_ultralong.evaluation.models.facts import model_facts
from megatron_ultralong.evaluation.models.interface import LanguageModel
from megatron_ultralong.evaluation.models.language_models import Subject, open_language_models
from megatron_ultralong.evaluation.options import CostConfig, ModelsConfig, PasskeyConfig
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, passkey_grid
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import Journal
from tests.models import write_llama, write_tokenizer

TOKENS = np.arange(3, 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    model = write_llama(folder / "hugging_face", num_hidden_layers=1, max_position_embeddings=512)
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(folder / "hugging_face")
    write_tokenizer(folder / "hugging_face")
    import_checkpoint(ImportConfig(folder / "hugging_face", folder / "megatron"))
    return folder


@pytest.fixture(params=["hugging_face", "megatron"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[LanguageModel]:
    with open_language_models(ModelsConfig((str(folder / request.param),), "fp32")) as (opened,):
        yield opened


def test_it_writes_nothing(model: LanguageModel) -> None:
    with pytest.raises(InputError, match="for token 0 of a continuation are not finite"):
        model.generate([[1, 2, 3]], max_new_tokens=4)


def test_its_argmax_is_not_counted(model: LanguageModel) -> None:
    """The position is that in the row, however few of its tokens are scored."""
    puts: dict[int, Put[Any]] = {
        0: scoring(model),
        4: lambda prompts: model.score_ends([(one.tokens, 3) for one in prompts]),
    }
    for position, put in puts.items():
        row: Row[Any] = Row(
            TOKENS.size, lambda: Prompt(TOKENS), lambda _, reply: reply.correct.tolist(), "a row"
        )
        journal = Journal()
        named = rf"'{model.name}': a row of 8 tokens has loss nan at position {position}: "
        with pytest.raises(InputError, match=named):
            ask([Sample("0", (row,))], put, model, journal, micro_batch_size=1, description="x")
        assert not journal.entries


@pytest.mark.parametrize("by", ["argmax", "decoding"])
def test_a_grid_of_it_is_no_clean_zero(folder: Path, tmp_path: Path, by: Any) -> None:
    load = str(folder / "hugging_face")
    tokenizer = PromptTokenizer(folder / "hugging_face")
    config = PasskeyConfig(lengths=(400,), num_samples=1, by=by, output=str(tmp_path / "out"))
    with open_language_models(ModelsConfig((load,), "fp32")) as (opened,):
        subject = Subject(opened, model_facts(load, "fp32"), tokenizer, CostConfig())
        with pytest.raises(InputError, match=r"loss nan at position 0|are not finite"):
            evaluate_grid(passkey_grid(config, tokenizer.encode), subject)
    assert not (tmp_path / "out" / "passkey.json").exists()
