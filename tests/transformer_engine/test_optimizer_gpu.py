"""Transformer Engine's FusedAdam: picked up, and with states as small as asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_ultralong.mcore.compat import has_transformer_engine
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.training.optimizer import adam_name
from megatron_ultralong.training.state import TrainingState
from megatron_ultralong.training.telling.phases import PhaseTimers
from megatron_ultralong.training.verbs import check_run
from tests.transformer_engine.comparison import STATES_LOSS, STATES_NORM, assert_close
from tests.transformer_engine.wide import LOWER, ONE, TE, Log, make_run, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not has_transformer_engine(), reason="no Transformer Engine"),
]
# FusedAdam keeps an FP8 moment twice, as it is and transposed (Transformer Engine 2.20).
STATE_BYTES = {"bf16": (4 + 2 + 2, 2), "fp8": (2 + 2 * 1 + 2, 4)}
"""Of a weight: master weight and moments; gradient."""


def test_it_is_picked_up() -> None:
    assert adam_name().startswith("FusedAdam of transformer_engine")


@pytest.mark.parametrize("name", LOWER)
def test_adams_states_take_as_little_as_asked(wide: Path, name: str) -> None:
    inputs = check_run(make_run(wide, TE, optimizer=LOWER[name]), 1)
    with parallel_groups(ONE, seed=1) as groups:
        state = TrainingState(inputs, groups, None, PhaseTimers())
        number = sum(x.numel() for x in state.chunks[0].parameters())
        gradients = sum(buffer.grad_data.nbytes for buffer in state.chunks[0].buffers)
        for buffer in state.chunks[0].buffers:
            buffer.grad_data.fill_(1e-3)
        before = torch.cuda.memory_allocated()
        assert state.optimizer.step()[0]
        taken = torch.cuda.memory_allocated() - before  # its first step makes them
    states, of_gradients = STATE_BYTES[name]
    # Buffers are padded to multiples of a few hundred numbers.
    assert number * of_gradients <= gradients <= 1.02 * number * of_gradients
    # Less would be as well.
    assert taken <= 1.02 * number * states


@pytest.mark.parametrize("name", LOWER)
def test_lower_states_train_alike_and_are_resumed(
    wide: Path, tmp_path: Path, local: dict[str, Log], name: str
) -> None:
    def run(save: str, train_iters: int) -> Log:
        config = make_run(wide, TE, optimizer=LOWER[name], deterministic_mode=True)
        folder = str(tmp_path / save)
        return train(dataclasses.replace(config, save=folder, train_iters=train_iters))

    whole, first, rest = run("whole", 4), run("parts", 2), run("parts", 4)
    assert_close(f"states {name}", whole, local["none"], STATES_LOSS, STATES_NORM)
    assert first + rest == whole
