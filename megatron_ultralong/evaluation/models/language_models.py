"""The models that an evaluation is asked for: Megatron checkpoints or Hugging Face folders."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_model
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.models.facts import ModelFacts, is_hugging_face, named_folders
from megatron_ultralong.evaluation.options import CostConfig, ModelsConfig
from megatron_ultralong.evaluation.results.result import Kind, Result, ScoreCell, plain_values
from megatron_ultralong.generation import continuation
from megatron_ultralong.generation.end_scorer import EndScorer
from megatron_ultralong.generation.generate import check_prompts
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.mcore.batch import score_rows
from megatron_ultralong.mcore.float32 import whole_products
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import optional_package
from megatron_ultralong.program.ranks import is_main_rank, world_size


class MegatronScorer:
    """A checkpoint folder that :mod:`megatron_ultralong` wrote, to score rows.

    Every rank builds it inside ``mcore.parallel.parallel_groups`` and makes the same calls.

    Raises:
        InputError: ``folder`` is no such checkpoint, is damaged, or cannot be split this way.
    """

    _load: Callable[..., Any] = staticmethod(load_model)
    """What makes the model, or the decoder, of a checkpoint in a layout."""

    def __init__(
        self, folder: Path, models: ModelsConfig, groups: Any, *, dtype: torch.dtype, name: str
    ) -> None:
        self._parallel, self.groups = models.parallel, groups
        checkpoint = MegatronCheckpoint(folder, verify_checksums=models.verify_checksums)
        self.name = name
        self.max_positions = checkpoint.metadata.trained_positions
        self.vocab_size = checkpoint.model.vocab_size
        self.is_main = is_main_rank()
        self._model: Any = self._load(checkpoint, models.parallel, groups, dtype=dtype)

    def score(self, tokens: npt.NDArray[np.int64]) -> interface.Scores:
        """Scores of rows ``tokens``, [b, S], on every rank.

        Rows are filled up at the end to a length that the layout divides: no real token attends
        to what comes after it.
        """
        return self._score(self._model, tokens)

    def _score(self, model: Any, tokens: npt.NDArray[np.int64]) -> interface.Scores:
        unit = 2 * self._parallel.context_parallel_size
        if self._parallel.sequence_parallel:
            unit *= self._parallel.tensor_model_parallel_size
        length = tokens.shape[1]
        padded = np.pad(tokens, ((0, 0), (0, -length % unit)))
        loss, correct = score_rows(model, padded, self.groups)
        return interface.Scores(
            loss.numpy()[:, : length - 1], correct.numpy()[:, : length - 1].astype(np.bool_)
        )


class MegatronLanguageModel(MegatronScorer):
    """Continues prompts, and scores, by one copy of the weights."""

    _load = staticmethod(continuation.open_decoder)
    _end_scorer: EndScorer | None = None

    def score(self, tokens: npt.NDArray[np.int64]) -> interface.Scores:
        """Scores of rows ``tokens``, [b, S], on every rank, see :class:`MegatronScorer`."""
        with self._model.whole_rows() as model:
            return self._score(model, tokens)

    def score_ends(
        self, rows: Sequence[tuple[npt.NDArray[np.integer], int]]
    ) -> list[interface.Scores]:
        """Scores of the last tokens of rows, see :class:`LanguageModel`."""
        if self._end_scorer is None:
            size = self._parallel.context_parallel_size
            self._end_scorer = EndScorer(self._model, DecodingConfig().prefill_chunk_size, size)
        return [
            interface.Scores(loss.numpy(), correct.numpy() > 0.5)
            for loss, correct in self._end_scorer.score(rows)
        ]

    def generate(
        self,
        prompts: interface.Prompts,
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        options: interface.GenerationOptions = interface.GREEDY,
    ) -> list[list[int]]:
        """Continuations of ``prompts`` on every rank, see :class:`Generator`."""
        check_prompts(prompts, max_new_tokens, self.vocab_size, self.name)
        has_ended, names = options.has_ended, options.names
        return continuation.Continuation(self._model, options.sampling).generate(
            prompts, max_new_tokens, stop_ids, has_ended=has_ended, names=names
        )


def before_stop(ids: Sequence[int], stop_ids: frozenset[int]) -> list[int]:
    """What comes before the first id of ``stop_ids``: ``[5, 6, 2, 2]`` and ``{2}``: ``[5, 6]``."""
    stop = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return [int(token) for token in ids[:stop]]


class HuggingFaceModel:
    """A model in a Hugging Face folder, run by transformers in float32 in this process.

    It scores rows, and ``generate`` of transformers continues prompts greedily: those of one length
    make a batch, so that none is padded and no continuation depends on other prompts. ``name`` is
    that in tables and pictures, by default the folder's own.

    Raises:
        InputError: the folder holds no model of a known family, or a damaged one.
    """

    logits_chunk_size = 4096
    """Positions whose logits are held together: a row of 1M tokens and 128,256 ids would need
    0.5 TB of them at once."""
    max_batch_size = 16
    """Prompts that are continued together, at most."""

    def __init__(
        self, folder: str | Path, *, name: str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        transformers = optional_package("transformers", f"{folder} is run by transformers")
        folder = Path(folder)
        opened = HuggingFaceFolder(folder)
        self._device = torch.device(device)
        self._model: Any = transformers_model(opened).to(self._device)
        # The folder's own would fill in what is left open: sampling, and ids to stop at.
        self._model.generation_config = transformers.GenerationConfig()
        self.name = name or folder.resolve().name
        self.max_positions = opened.model.max_position_embeddings  # with what YaRN adds
        self.vocab_size: int = self._model.config.vocab_size
        self.is_main = True
        self.groups = None

    @whole_products()
    @torch.inference_mode()
    def score(self, tokens: npt.NDArray[np.int64]) -> interface.Scores:
        """Scores of rows ``tokens``, shape [b, S], see :class:`Scorer`."""
        tokens_bs = torch.from_numpy(np.ascontiguousarray(tokens)).to(self._device)
        hidden_bsh = self._model.model(input_ids=tokens_bs, use_cache=False).last_hidden_state
        losses, hits = [], []
        for start in range(0, tokens.shape[1] - 1, self.logits_chunk_size):
            stop = min(start + self.logits_chunk_size, tokens.shape[1] - 1)
            labels_bc = tokens_bs[:, start + 1 : stop + 1]
            logits_bcv = self._model.lm_head(hidden_bsh[:, start:stop])
            label_logits_bc = logits_bcv.gather(2, labels_bc[..., None]).squeeze(2)
            losses.append((logits_bcv.logsumexp(2) - label_logits_bc).cpu())
            hits.append((logits_bcv.argmax(2) == labels_bc).cpu())
        return interface.Scores(torch.cat(losses, dim=1).numpy(), torch.cat(hits, dim=1).numpy())

    def score_ends(
        self, rows: Sequence[tuple[npt.NDArray[np.integer], int]]
    ) -> list[interface.Scores]:
        """Scores of the last tokens of rows, see :class:`LanguageModel`; every row is read."""
        found = []
        for tokens, last in rows:
            one = self.score(np.asarray(tokens, np.int64)[None])
            found.append(interface.Scores(one.loss[0, -last:], one.correct[0, -last:]))
        return found

    def generate(
        self,
        prompts: interface.Prompts,
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        options: interface.GenerationOptions = interface.GREEDY,
    ) -> list[list[int]]:
        """Greedy continuations of ``prompts``, see :class:`Generator`."""
        if temperature := options.sampling.temperature:
            raise InputError(
                f"a task samples with temperature {temperature:g}, and Hugging Face "
                f"folders are continued greedily: import {self.name} with `ultralong convert "
                "import`, or give --gen-kwargs do_sample=False"
            )
        check_prompts(prompts, max_new_tokens, self.vocab_size, self.name)
        continuations: dict[int, list[int]] = {}
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        for _, group in itertools.groupby(by_length, lambda number: len(prompts[number])):
            while batch := list(itertools.islice(group, self.max_batch_size)):
                its = [prompts[k] for k in batch]
                written = self._continue(its, max_new_tokens, stop_ids, options.has_ended)
                for number, ids in zip(batch, written, strict=True):
                    continuations[number] = before_stop(ids, stop_ids)
        return [continuations[number] for number in range(len(prompts))]

    @whole_products()
    @torch.inference_mode()
    def _continue(
        self,
        prompts: interface.Prompts,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        has_ended: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        """What follows ``prompts`` of one length, with the stop id and padding after it."""
        rows = [list(map(int, prompt)) for prompt in prompts]
        prompt_bs = torch.tensor(rows, device=self._device)
        ends: list[int | None] = [None] * len(rows)

        def stops(ids_bs: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            for number, ids in enumerate(ids_bs[:, prompt_bs.shape[1] :].tolist()):
                if ends[number] is None and has_ended(ids):
                    ends[number] = len(ids)
            return torch.tensor([end is not None for end in ends], device=self._device)

        def checked(ids_bs: torch.Tensor, logits_bv: torch.Tensor) -> torch.Tensor:
            if not continuation.are_finite(logits_bv).all():
                raise continuation.not_finite(ids_bs.shape[1] - prompt_bs.shape[1], self.name)
            return logits_bv

        whole_bs = self._model.generate(
            prompt_bs,
            attention_mask=torch.ones_like(prompt_bs),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=min(stop_ids, default=0),
            stopping_criteria=[stops],
            logits_processor=[checked],
        )
        written = whole_bs[:, prompt_bs.shape[1] :].tolist()
        return [row[:end] for row, end in zip(written, ends, strict=True)]


M = TypeVar("M", bound=interface.Model, covariant=True)


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
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What its results state of the question, see ``finished.asked``; empty: nothing."""

    def result(self, kind: Kind, config: Any, cells: Sequence[ScoreCell], **others: Any) -> Result:
        """What was found of it by a verb with the flags ``config``."""
        name, facts = self.model.name, self.facts
        about = (kind, plain_values(config), name, facts.max_positions, tuple(cells))
        return Result(*about, model=facts.record, asked=self.asked, **others)


Answerer = Subject[interface.Generator]
"""A model that answers in writing."""
