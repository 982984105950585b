"""The estimate of an evaluation's cost: FLOPs that torch counts too, hours, and the limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_ultralong.checkpoint.formats.hugging_face_config import model_config, read_config
from megatron_ultralong.evaluation.asking.samples import check_cost, estimate_cost
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import check_ranges
from tests.models import write_llama

LLAMA_8B = ModelConfig(32, 4096, 14336, 32, 8, 128, 128256, 1e-5, 5e5, 8192, True)


def test_a_forward_at_four_million_tokens_is_that_of_the_recipe() -> None:
    """2 N a token and 2 L h S of causal attention, which benchmarks and papers count with."""
    tokens = 4_194_304
    config = CostConfig(estimated_tflops=500.0)
    estimate = estimate_cost(LLAMA_8B, [(tokens, 0)], config, num_ranks=256)
    num_weights = 8.03e9 - 128256 * 4096  # the embedding is looked up
    by_hand = 2 * num_weights * tokens + 2 * 32 * 4096 * tokens**2
    assert estimate.flops == pytest.approx(by_hand, rel=1e-3)
    assert estimate.gpu_hours == pytest.approx(by_hand / 500e12 / 3600, rel=1e-3)
    assert estimate.gpu_hours * 3600 / 256 == pytest.approx(by_hand / 500e12 / 256, rel=1e-3)


def test_prefill_and_decoding_are_what_torch_counts(tmp_path: Path) -> None:
    judge = write_llama(tmp_path)
    judge.config._attn_implementation = "eager"
    model = model_config(read_config(tmp_path))
    prompt, generated = 24, 8
    estimate = estimate_cost(model, [(prompt, generated)] * 3, CostConfig(estimated_tflops=1.0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        state = judge.model(input_ids=torch.zeros(1, prompt, dtype=torch.long), use_cache=True)
        cache = state.past_key_values
        for _ in range(generated):
            state = judge.model(
                input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True
            )
            judge.lm_head(state.last_hidden_state)
    # torch counts the upper half of the prompt's square too; one causal half of the diagonal.
    extra = model.num_layers * 4 * model.num_attention_heads * model.kv_channels
    extra *= prompt**2 - prompt * (prompt + 1) // 2
    assert 3 * (counter.get_total_flops() - extra) == pytest.approx(estimate.flops, rel=1e-9)
    assert (estimate.num_samples, estimate.num_tokens) == (3, 96)


def test_what_costs_too_much_is_refused_before_the_start(capsys) -> None:
    config = CostConfig(max_cost=100.0, estimated_tflops=400.0)
    dear = estimate_cost(LLAMA_8B, [(4_194_304, 128)] * 130, config, num_ranks=64)
    with pytest.raises(InputError) as refusal:
        check_cost(dear, config)
    message = str(refusal.value)
    assert (
        f"estimated at {dear.gpu_hours:.0f} GPU-hours (130 samples, 545,276,160 tokens" in message
    )
    assert "above --max-cost 100" in message
    assert "lower --num-samples or the lengths, or raise --max-cost" in message
    assert capsys.readouterr().err == ""
    check_cost(dear, CostConfig(estimated_tflops=400.0))
    assert "GPU-hours at 400 TFLOP/s a GPU" in capsys.readouterr().err
    check_cost(estimate_cost(LLAMA_8B, [(131_072, 128)], config), config)


def test_numbers_below_zero_are_refused() -> None:
    for config in (CostConfig(max_cost=-1.0), CostConfig(estimated_tflops=float("nan"))):
        with pytest.raises(InputError, match="must be at least 0, not"):
            check_ranges(config)
