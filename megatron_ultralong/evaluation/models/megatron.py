"""A Megatron checkpoint in the training layout, as a scorer and a generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.models.interface import Scores
from megatron_ultralong.generation.checkpoint import open_decoder
from megatron_ultralong.generation.continuation import Continuation
from megatron_ultralong.generation.prompts import check_prompts
from megatron_ultralong.mcore.batch import score_rows
from megatron_ultralong.program.ranks import is_main_rank


class MegatronScorer:
    """Scores rows with a checkpoint folder that :mod:`megatron_ultralong` wrote.

    Every rank of the job builds it inside ``mcore.parallel.parallel_groups`` and calls
    :meth:`score` with the same rows.
    """

    def __init__(
        self,
        folder: Path,
        parallel: ParallelConfig,
        groups: Any,
        *,
        dtype: torch.dtype,
        name: str | None = None,
        iteration: int | None = None,
        verify_checksums: bool = True,
    ) -> None:
        """Load the weights.

        Raises:
            InputError: ``folder`` is no checkpoint of ours, is damaged, or cannot be split this
                way.
        """
        checkpoint = MegatronCheckpoint(folder, iteration, verify_checksums=verify_checksums)
        self.iteration = checkpoint.iteration
        self.name = name or folder.name
        self.max_positions = checkpoint.metadata.trained_positions
        self.vocab_size = checkpoint.model.vocab_size
        self.is_main = is_main_rank()
        self._groups = groups
        self._model = load_model(checkpoint, parallel, groups, dtype=dtype)
        self._unit = 2 * parallel.context_parallel_size
        if parallel.sequence_parallel:
            self._unit *= parallel.tensor_model_parallel_size

    def score(self, tokens: npt.NDArray[np.int64]) -> Scores:
        """Scores of rows ``tokens``, [b, S], on every rank.

        Rows are filled up at the end to a length that the layout divides: no real token attends
        to what comes after it.
        """
        length = tokens.shape[1]
        padded = np.pad(tokens, ((0, 0), (0, -length % self._unit)))
        loss, correct = score_rows(self._model, padded, self._groups)
        return Scores(
            loss.numpy()[:, : length - 1], correct.numpy()[:, : length - 1].astype(np.bool_)
        )


class MegatronGenerator:
    """Continues prompts greedily with a checkpoint folder that :mod:`megatron_ultralong` wrote.

    Every rank of the job builds it inside ``mcore.parallel.parallel_groups`` and calls
    :meth:`generate` with the same prompts.
    """

    def __init__(
        self,
        folder: Path,
        parallel: ParallelConfig,
        groups: Any,
        *,
        dtype: torch.dtype,
        name: str | None = None,
        iteration: int | None = None,
        decoding: DecodingConfig | None = None,
        verify_checksums: bool = True,
    ) -> None:
        """Load the weights.

        Raises:
            InputError: ``folder`` is no checkpoint of ours, or cannot be split this way.
        """
        metadata = load_metadata(folder)
        self.name = name or folder.name
        self.max_positions = metadata.trained_positions
        self.vocab_size = metadata.model.vocab_size
        self.is_main = is_main_rank()
        decoder = open_decoder(
            *(folder, parallel, groups),
            dtype=dtype,
            iteration=iteration,
            verify_checksums=verify_checksums,
        )
        self._continuation = Continuation(decoder, config=decoding or DecodingConfig())

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> list[list[int]]:
        """Greedy continuations of ``prompts`` on every rank, see :class:`Generator`."""
        check_prompts(prompts, max_new_tokens, self.vocab_size, self.name)
        return self._continuation.generate(prompts, max_new_tokens, stop_ids)
