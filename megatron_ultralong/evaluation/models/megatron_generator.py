"""A Megatron checkpoint as a generator, in the training layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.generation.checkpoint import open_decoder
from megatron_ultralong.generation.continuation import Continuation
from megatron_ultralong.generation.prompts import check_prompts
from megatron_ultralong.program.ranks import is_main_rank


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
