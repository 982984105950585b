"""A Megatron checkpoint in the training layout, as a scorer and a generator."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.generation.continuation import Continuation, open_decoder
from megatron_ultralong.generation.end_scorer import EndScorer
from megatron_ultralong.generation.generate import check_prompts
from megatron_ultralong.mcore.batch import score_rows
from megatron_ultralong.program.ranks import is_main_rank


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

    _load = staticmethod(open_decoder)
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
        return Continuation(self._model, options.sampling).generate(
            prompts, max_new_tokens, stop_ids, has_ended=has_ended, names=names
        )
