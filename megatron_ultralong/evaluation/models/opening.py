"""The models that an evaluation is asked for: Megatron checkpoints or Hugging Face folders."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch

from megatron_ultralong.evaluation.models.facts import ModelFacts, is_hugging_face, named_folders
from megatron_ultralong.evaluation.models.hugging_face import HuggingFaceModel
from megatron_ultralong.evaluation.models.interface import Model
from megatron_ultralong.evaluation.models.megatron import MegatronLanguageModel, MegatronScorer
from megatron_ultralong.evaluation.options import CostConfig, ModelsConfig
from megatron_ultralong.evaluation.results.result import Kind, Result, ScoreCell, plain_values
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.ranks import world_size

M = TypeVar("M", bound=Model, covariant=True)


@contextlib.contextmanager
def open_models(of_megatron: type[MegatronScorer], config: ModelsConfig) -> Iterator[Iterator[Any]]:
    """The models of ``config.load``, each loaded when the iterator comes to it.

    Every rank of the job enters it. Process groups are for the Megatron checkpoints among them.

    Raises:
        InputError: a folder is missing or of no known kind, or the layout is none for evaluations.
    """
    models = named_folders(config, world_size())
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with contextlib.ExitStack() as stack:
        groups = None
        if not all(is_hugging_face(folder) for _, folder in models):
            groups = stack.enter_context(parallel_groups(config.parallel, seed=0))
        yield (
            HuggingFaceModel(folder, name=name)
            if is_hugging_face(folder)
            else of_megatron(folder, config, groups, dtype=dtype, name=name)
            for name, folder in models
        )


open_scorers = functools.partial(open_models, MegatronScorer)
open_language_models = functools.partial(open_models, MegatronLanguageModel)


@dataclasses.dataclass(frozen=True)
class Subject(Generic[M]):
    """The model that a benchmark is put to."""

    model: M
    """Loaded, to score or to write."""
    facts: ModelFacts
    tokenizer: PromptTokenizer
    cost: CostConfig
    """What asking it may cost."""

    def result(self, kind: Kind, config: Any, cells: Sequence[ScoreCell], **others: Any) -> Result:
        """What was found of it by a verb with the flags ``config``."""
        name, facts = self.model.name, self.facts
        about = (kind, plain_values(config), name, facts.max_positions, tuple(cells))
        return Result(*about, model=facts.record, **others)
