"""The models that an evaluation is asked for: Megatron checkpoints or Hugging Face folders."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch

from megatron_ultralong.evaluation.models import hugging_face, megatron
from megatron_ultralong.evaluation.models.facts import ModelFacts, is_hugging_face, named_folders
from megatron_ultralong.evaluation.models.interface import (
    Generator,
    LanguageModel,
    Model,
    Scorer,
)
from megatron_ultralong.evaluation.options import CostConfig, ModelsConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.ranks import world_size

M = TypeVar("M", bound=Model, covariant=True)


@contextlib.contextmanager
def open_scorers(config: ModelsConfig) -> Iterator[Sequence[Scorer]]:
    """Load the models of ``config.load``; every rank of the job enters it.

    Raises:
        InputError: a folder is missing or of no known kind, or the layout is none for evaluations.
    """
    with scorers_in_turn(config) as scorers:
        yield list(scorers)


@contextlib.contextmanager
def open_generators(config: ModelsConfig) -> Iterator[Sequence[Generator]]:
    """The same, to generate text."""
    with generators_in_turn(config) as generators:
        yield list(generators)


def scorers_in_turn(config: ModelsConfig) -> AbstractContextManager[Iterator[Scorer]]:
    """The same as :func:`open_scorers`, but each model is loaded when the iterator comes to it."""
    return _opened(config, hugging_face.HuggingFaceScorer, megatron.MegatronScorer)


def generators_in_turn(config: ModelsConfig) -> AbstractContextManager[Iterator[Generator]]:
    """The same, to generate text."""
    return _opened(config, hugging_face.HuggingFaceGenerator, megatron.MegatronGenerator)


def language_models_in_turn(
    config: ModelsConfig,
) -> AbstractContextManager[Iterator[LanguageModel]]:
    """The same, to score and to generate text."""
    return _opened(config, hugging_face.HuggingFaceLanguageModel, megatron.MegatronLanguageModel)


@contextlib.contextmanager
def _opened(
    config: ModelsConfig, of_hugging_face: Callable[..., M], of_megatron: Callable[..., M]
) -> Iterator[Iterator[M]]:
    """The models; process groups are for the Megatron checkpoints among them."""
    models = named_folders(config, world_size())
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with contextlib.ExitStack() as stack:
        groups = None
        if not all(is_hugging_face(folder) for _, folder in models):
            groups = stack.enter_context(parallel_groups(config.parallel, seed=0))
        yield (
            of_hugging_face(folder, name=name)
            if is_hugging_face(folder)
            else of_megatron(folder, config, groups, dtype=dtype, name=name)
            for name, folder in models
        )


@dataclasses.dataclass(frozen=True)
class Subject(Generic[M]):
    """The model that a benchmark is put to."""

    model: M
    """Loaded, to score or to write."""
    facts: ModelFacts
    tokenizer: PromptTokenizer
    cost: CostConfig
    """What asking it may cost."""
