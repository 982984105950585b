"""Figures of the demo's base model: loss by position, passkey accuracy by length and depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from megatron_ultralong.evaluation.retrieval.passkey_prompt import Encode, passkey_prompt

IntArray = npt.NDArray[np.integer]


@torch.no_grad()
def loss_by_position(
    model: Any, rows: IntArray, num_bins: int, batch_tokens: int = 65536
) -> list[float]:
    """Mean next-token loss in nats in equal bins of the position, from rows [num_rows, S]."""
    device = next(model.parameters()).device
    num_rows, length = rows.shape
    per_batch = max(1, batch_tokens // length)
    total = torch.zeros(length - 1, dtype=torch.float64)
    for start in range(0, num_rows, per_batch):
        ids = torch.as_tensor(rows[start : start + per_batch].astype(np.int64), device=device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        total += losses.view(ids.shape[0], -1).double().sum(dim=0).cpu()
    return [float(bin_.mean()) for bin_ in (total / num_rows).tensor_split(num_bins)]


@torch.no_grad()
def passkey_accuracy(
    model: Any,
    encode: Encode,
    length: int,
    depths: Sequence[float],
    num_samples: int,
    seed: int,
    batch_tokens: int = 65536,
) -> list[float]:
    """Share of the keys retrieved at every depth, standard prompt of ``length`` tokens."""
    device = next(model.parameters()).device
    prompts = [
        passkey_prompt(encode, length, depth, seed=seed, index=sample)
        for depth in depths
        for sample in range(num_samples)
    ]
    retrieved: list[bool] = []
    per_batch = max(1, batch_tokens // length)
    for start in range(0, len(prompts), per_batch):
        batch = prompts[start : start + per_batch]
        ids = torch.as_tensor(np.stack([prompt.tokens for prompt in batch]), device=device)
        predicted = model(input_ids=ids, use_cache=False).logits.argmax(dim=-1).cpu().numpy()
        retrieved += [
            bool(p.hits(row[:-1] == p.tokens[1:]).all())
            for p, row in zip(batch, predicted, strict=True)
        ]
    return np.asarray(retrieved).reshape(len(depths), num_samples).mean(axis=1).tolist()


def figures(
    model: Any, encode: Encode, valid: IntArray, context: int, num_samples: int
) -> dict[str, Any]:
    """Held-out loss and passkey accuracy inside the context, both small enough to print."""
    num_rows = min(256, valid.size // context)
    depths = [0.0, 0.25, 0.5, 0.75, 1.0]
    lengths = [length for length in (128, 192, 256, 384, 512) if length < context] + [context]
    return {
        "loss_by_position": loss_by_position(
            model, valid[: num_rows * context].reshape(num_rows, context), 8
        ),
        "passkey_depths": depths,
        "passkey_accuracy": {
            length: passkey_accuracy(model, encode, length, depths, num_samples, seed=99)
            for length in lengths
        },
    }
