"""A Megatron checkpoint, opened to continue rows in a layout of one's choice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import AnglePrecision
from megatron_ultralong.mcore.decoding import Decoder


def open_decoder(
    folder: Path,
    parallel: ParallelConfig,
    groups: Any,
    *,
    dtype: torch.dtype,
    iteration: int | None = None,
    angle_precision: AnglePrecision | None = None,
    verify_checksums: bool = True,
) -> Decoder:
    """The checkpoint's weights in ``parallel``; every rank calls it inside ``parallel_groups``.

    ``sequence_parallel`` is left out: it splits the tokens of a pass over tensor-parallel ranks,
    and a step of decoding has one. The weights are the same with and without.

    Args:
        folder: the checkpoint.
        parallel: the layout.
        groups: Megatron's process groups.
        dtype: of weights, activations, keys and values.
        iteration: which checkpoint of the folder; None: the newest.
        angle_precision: precision of the rotary angles; None: the checkpoint's own. ``float32`` is
            as transformers has them, off by up to 5e-4 rad at position 8,192.
        verify_checksums: compare the bytes with what was written.

    Raises:
        InputError: ``folder`` is no checkpoint of ours, is damaged, or cannot be split this way.
    """
    checkpoint = MegatronCheckpoint(folder, iteration, verify_checksums=verify_checksums)
    parallel = dataclasses.replace(parallel, sequence_parallel=False)
    model = load_model(
        *(checkpoint, parallel, groups), dtype=dtype, angle_precision=angle_precision
    )
    return Decoder(model, groups)
