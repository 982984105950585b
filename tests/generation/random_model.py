"""A small random model behind a decoder, the same on every layout, and steps that continue rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.decoding import Decoder
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.mcore.static_step import StepForm
from megatron_ultralong.model.shape import ModelConfig
from tests.shapes import llama_shape

SHAPE = llama_shape(layers=2, hidden=64, ffn=96, vocabulary=320, positions=4096)
Rows = Sequence[int]


@contextlib.contextmanager
def random_decoder(
    parallel: ParallelConfig, dtype: torch.dtype, shape: ModelConfig = SHAPE
) -> Iterator[Decoder]:
    """Weights depend on the layout's tensor parallelism alone."""
    with parallel_groups(parallel, seed=0) as groups:
        config = transformer_config(shape, parallel, params_dtype=dtype)
        model = build_model(
            *(shape, config, groups),
            seq_length=shape.max_position_embeddings,
            rope_scaling=None,
            recomputation=Recomputation(tile_size=64),
            loss_tile_size=64,
        ).to(dtype)
        generator = torch.Generator(device()).manual_seed(groups.tp.rank())
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.ones_(parameter)
            else:  # so that attention and logits are far from uniform
                deviation = 1.0 if "word_embeddings" in name else shape.hidden_size**-0.5
                torch.nn.init.normal_(parameter, std=deviation, generator=generator)
        yield Decoder(model, groups)


def continued(
    decoder: Decoder,
    form: StepForm,
    lengths: Sequence[int],
    steps: Sequence[Rows],
    *,
    chunk_size: int = 16,
    seed: int = 0,
) -> list[torch.Tensor]:
    """Logits behind random prompts of ``lengths``, then of every step, one more token of its rows.

    Tokens are drawn, not chosen: a last bit of a logit does not change those that follow.
    """
    draw: Any = np.random.default_rng(seed)
    decoder.set_steps(form)
    decoder.start([(length, len(steps)) for length in lengths])
    logits = [
        decoder.read(row, draw.integers(SHAPE.vocab_size, size=length), chunk_size)
        for row, length in enumerate(lengths)
    ]
    made = [torch.stack(logits)]
    made += [decoder.step(rows, draw.integers(SHAPE.vocab_size, size=len(rows))) for rows in steps]
    return made


def ending(num_rows: int, num_steps: int) -> list[Rows]:
    """Steps of rows that end one after the other, the first one last."""
    return [range(max(1, num_rows - num_rows * number // num_steps)) for number in range(num_steps)]
