"""The next token from logits: the likeliest, or one drawn by its probability.

A draw takes a number ``u`` from the seed, the prompt's number and the token's, and returns the
first token, in falling order of probability, at which the cumulative probability passes ``u``. So
it is a function of (seed, prompt, token), whatever the batch and the layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ultralong.config.generate import SamplingConfig
from megatron_ultralong.sequence.documents import unit_hash


def choose(logits_BV: Tensor, config: SamplingConfig, prompts: Sequence[int], token: int) -> Tensor:
    """The next token of every row, int64 [b].

    Args:
        logits_BV: float32, [b, vocabulary].
        config: greedy, or how to draw.
        prompts: numbers of the prompts that the rows continue.
        token: number of the token, from 0.
    """
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BV, ids_BV = distribution(logits_BV, config)
    u_B1 = torch.tensor(
        [[unit_hash(config.seed, f"token:{prompt}:{token}")] for prompt in prompts],
        dtype=probabilities_BV.dtype,
        device=probabilities_BV.device,
    )
    passed_BV = probabilities_BV.cumsum(dim=-1)
    # Times the total: a sum of rounded numbers is not exactly one.
    place_B1 = torch.searchsorted(passed_BV, u_B1 * passed_BV[:, -1:], right=True)
    return ids_BV.gather(-1, place_B1.clamp_(max=ids_BV.shape[-1] - 1)).squeeze(-1)


def distribution(logits_BV: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Probabilities in falling order and their token ids, [b, vocabulary]; 0 where cut off.

    Temperature, then top-k (ties with the k-th stay), then top-p (the first token that completes
    the share stays): the order and the edges are those of transformers' logits processors.
    """
    scaled_BV = logits_BV.double() / config.temperature
    sorted_BV, ids_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    if 0 < config.top_k < sorted_BV.shape[-1]:
        smallest_B1 = sorted_BV[:, config.top_k - 1 : config.top_k]
        sorted_BV = sorted_BV.masked_fill(sorted_BV < smallest_B1, -torch.inf)
    probabilities_BV = sorted_BV.softmax(dim=-1)
    if config.top_p < 1:
        before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        probabilities_BV = probabilities_BV.masked_fill(before_BV >= config.top_p, 0.0)
        probabilities_BV = probabilities_BV / probabilities_BV.sum(dim=-1, keepdim=True)
    return probabilities_BV, ids_BV
