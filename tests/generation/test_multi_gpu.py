"""Decoding over NCCL writes what transformers writes on the exported folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.generation.continuation import Continuation, open_decoder
from megatron_ultralong.mcore.parallel import parallel_groups
from tests.generation.test_continuation import (
    CHUNK,
    LAYOUTS,
    PROMPTS,
    SIZES,
    decode_all,
    expected,
    folder,
)
from tests.ranks import run_on_gpus

__all__ = ["expected", "folder"]  # fixtures

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
]
NUM_TOKENS = 64
_log = logging.getLogger(__name__)
BF16_LAYOUTS = {
    "one": (1, ParallelConfig()),
    "cp2": (2, ParallelConfig(context_parallel_size=2)),
    "tp2": (2, ParallelConfig(tensor_model_parallel_size=2)),
}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_float32_writes_what_transformers_writes(
    folder: Path, expected: dict[str, list[Any]], ranks: int
) -> None:
    """Prompts to 8,000 tokens, read in chunks; CP, TP and PP on one, two and four GPUs."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"no {ranks} CUDA devices")
    for of_rank in run_on_gpus(ranks, decode_all, folder, LAYOUTS[ranks]):
        for (name, layout), (written, logits) in zip(LAYOUTS[ranks], of_rank, strict=True):
            for k, ids in enumerate(written):
                assert ids == expected[name][k][0], (name, layout, SIZES[name][k])
            for k, made in logits.items():
                # float32 on both sides, rotary angles too, from equal frequencies.
                reference = expected[name][k][1][:8]
                torch.testing.assert_close(made.cpu(), reference, atol=1e-4, rtol=0)


def write(folder: Path, layouts: list[ParallelConfig]) -> list[list[list[int]]]:
    """Run on every rank: ids behind every prompt, in bf16."""
    results = []
    for parallel in layouts:
        with parallel_groups(parallel, seed=0) as groups:
            checkpoint = MegatronCheckpoint(folder / "llama3")
            decoder = open_decoder(checkpoint, parallel, groups, torch.bfloat16)
            results.append(
                Continuation(decoder, config=DecodingConfig(CHUNK["llama3"])).generate(
                    PROMPTS["llama3"], NUM_TOKENS
                )
            )
    return results


def test_bf16_writes_likely_tokens(folder: Path) -> None:
    """Each token is the likeliest of transformers in float32, or within bf16's error of it."""
    judge = LlamaForCausalLM.from_pretrained(folder / "hf-llama3", dtype=torch.float32).cuda()
    rounded = LlamaForCausalLM.from_pretrained(folder / "hf-llama3", dtype=torch.bfloat16).cuda()
    layouts = list(BF16_LAYOUTS.values())
    one = run_on_gpus(1, write, folder, [parallel for ranks, parallel in layouts if ranks == 1])
    two = run_on_gpus(2, write, folder, [parallel for ranks, parallel in layouts if ranks == 2])
    for of_rank in two[1:]:
        assert of_rank == two[0]
    for name, written in zip(BF16_LAYOUTS, [*one[0], *two[0]], strict=True):
        same = total = 0
        for prompt, ids in zip(PROMPTS["llama3"], written, strict=True):
            assert len(ids) == NUM_TOKENS
            row = torch.tensor([prompt + ids], device="cuda")
            with torch.no_grad():
                exact, reference = (
                    model(row, logits_to_keep=NUM_TOKENS + 1).logits[0, :-1].float()
                    for model in (judge, rounded)
                )
            # What rounding to bf16 does to transformers' own logits at the worst of these places
            # may happen to the token that is taken and to the one that is left.
            margin = 2 * float((reference - exact).abs().max())
            best = exact.max(dim=-1)
            taken = exact.gather(1, torch.tensor(ids, device="cuda")[:, None])[:, 0]
            assert float((best.values - taken).max()) <= margin, (name, len(prompt))
            same += int((best.indices == torch.tensor(ids, device="cuda")).sum())
            total += len(ids)
        _log.info("%s: %d of %d tokens are float32's likeliest", name, same, total)
        # Where two tokens are closer than the margin either may be written; most are not.
        assert same >= 0.9 * total, name
