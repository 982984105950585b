"""A Megatron checkpoint in the training layout, as a scorer and a generator."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.config.generate import DecodingConfig, SamplingConfig
from megatron_ultralong.evaluation.models.interface import Prompts, Scores
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.generation.continuation import Continuation, open_decoder
from megatron_ultralong.generation.end_scorer import EndScorer
from megatron_ultralong.generation.generate import check_prompts
from megatron_ultralong.mcore.batch import score_rows
from megatron_ultralong.program.ranks import is_main_rank


class _Checkpoint:
    """A checkpoint folder that :mod:`megatron_ultralong` wrote.

    Every rank of the job builds it inside ``mcore.parallel.parallel_groups`` and calls its methods
    with the same arguments.

    Raises:
        InputError: ``folder`` is not a checkpoint of this project, is damaged, or cannot be split
            this way.
    """

    _load: Callable[..., Any]
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

    def _score(self, model: Any, tokens: npt.NDArray[np.int64]) -> Scores:
        unit = 2 * self._parallel.context_parallel_size
        if self._parallel.sequence_parallel:
            unit *= self._parallel.tensor_model_parallel_size
        length = tokens.shape[1]
        padded = np.pad(tokens, ((0, 0), (0, -length % unit)))
        loss, correct = score_rows(model, padded, self.groups)
        return Scores(
            loss.numpy()[:, : length - 1], correct.numpy()[:, : length - 1].astype(np.bool_)
        )


class MegatronScorer(_Checkpoint):
    """Scores rows."""

    _load = staticmethod(load_model)

    def score(self, tokens: npt.NDArray[np.int64]) -> Scores:
        """Scores of rows ``tokens``, [b, S], on every rank.

        Rows are filled up at the end to a length that the layout divides: no real token attends
        to what comes after it.
        """
        return self._score(self._model, tokens)


class MegatronGenerator(_Checkpoint):
    """Continues prompts greedily."""

    _load = staticmethod(open_decoder)

    def generate(
        self, prompts: Prompts, *, max_new_tokens: int, stop_ids: frozenset[int] = frozenset()
    ) -> list[list[int]]:
        """Greedy continuations of ``prompts`` on every rank, see :class:`Generator`."""
        check_prompts(prompts, max_new_tokens, self.vocab_size, self.name)
        return Continuation(self._model).generate(prompts, max_new_tokens, stop_ids)


class MegatronLanguageModel(MegatronGenerator):
    """Scores and continues, by one copy of the weights."""

    _end_scorer: EndScorer | None = None

    def score(self, tokens: npt.NDArray[np.int64]) -> Scores:
        """Scores of rows ``tokens``, [b, S], on every rank, see :class:`MegatronScorer`."""
        with self._model.whole_rows() as model:
            return self._score(model, tokens)

    def score_ends(self, rows: Sequence[tuple[npt.NDArray[np.integer], int]]) -> list[Scores]:
        """Scores of the last tokens of rows, see :class:`LanguageModel`."""
        if self._end_scorer is None:
            size = self._parallel.context_parallel_size
            self._end_scorer = EndScorer(self._model, DecodingConfig().prefill_chunk_size, size)
        return [
            Scores(loss.numpy(), correct.numpy() > 0.5)
            for loss, correct in self._end_scorer.score(rows)
        ]

    def write(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        has_ended: Callable[[Sequence[int]], bool],
        sampling: SamplingConfig,
        names: Sequence[str],
    ) -> list[list[int]]:
        """Continuations of ``prompts`` on every rank, see :class:`LanguageModel`."""
        check_prompts(prompts, max_new_tokens, self.vocab_size, self.name)
        continuation = Continuation(self._model, sampling)
        return continuation.generate(
            prompts, max_new_tokens, stop_ids, has_ended=has_ended, names=names
        )
