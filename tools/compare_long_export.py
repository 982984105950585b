"""An extended checkpoint beside its export in transformers, on one long row: scores and text.

    ultralong convert export RUN EXPORTED
    python -m tools.compare_long_export RUN EXPORTED --data-path ROWS --length 131072

Both run in float32 on this machine's GPU, or its CPU. Printed: how far the log-probabilities of the
row's own tokens are apart, where both find the same token likeliest, and the greedy continuations.
Transformers computes rotary angles in float32, this program does not (docs/engines.md), so that
differences grow with the position. Exit status 1 where the continuations differ.
"""

from __future__ import annotations

import datetime
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.evaluation.models.interface import Scores
from megatron_ultralong.evaluation.models.language_models import (
    HuggingFaceModel,
    open_language_models,
)
from megatron_ultralong.evaluation.options import ModelsConfig

NEW_TOKENS = 24


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention [b, heads, s, d] over keys that are repeated for the heads that share them.

    PyTorch has no fused kernel of float32 for grouped queries, and transformers asks for one: the
    scores of 131,072 tokens would be 576 GiB.
    """
    assert mask is None, "rows are whole"
    group = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (key, value))
    is_causal = query.shape[2] > 1
    out = functional.scaled_dot_product_attention(
        query, keys, values, is_causal=is_causal, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


def report(found: Scores, expected: Scores) -> None:
    """Differences by position, in bins that double."""
    apart = np.abs(found.loss - expected.loss)[0]
    agree = (found.correct == expected.correct)[0]
    edges = [0, 512]
    while edges[-1] < apart.size:
        edges.append(min(2 * edges[-1], apart.size))
    print("| positions | mean difference, nats | largest | both or neither likeliest |")
    print("| --- " * 4 + "|")
    for start, stop in pairwise(edges):
        part = apart[start:stop]
        print(
            f"| {start:,}-{stop:,} | {part.mean():.2e} | {part.max():.2e} "
            f"| {agree[start:stop].mean():.3%} |"
        )


def main() -> None:
    """Run both, one after the other, and compare."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("run", help="Megatron checkpoint")
    parser.add_argument("exported", help="Hugging Face folder of its export")
    parser.add_argument("--data-path", required=True, help="rows; the first of train is read")
    parser.add_argument("--length", type=int, default=131_072, help="tokens of the row")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    packages = ("torch", "transformers", "megatron-core")
    print(
        f"{name}, {', '.join(f'{one} {version(one)}' for one in packages)}, "
        f"{datetime.date.today().isoformat()}, {arguments.length:,} tokens\n"
    )
    row = PackedRows(Path(arguments.data_path) / "train").read(0, 0, arguments.length)[None]
    prompt = row[0, :-NEW_TOKENS].tolist()
    with (
        open_language_models(ModelsConfig((arguments.run,), "fp32")) as models,
        torch.no_grad(),
    ):
        model = next(models)
        found, text = model.score(row), model.generate([prompt], max_new_tokens=NEW_TOKENS)
        del model
    transformers.AttentionInterface.register("repeated", attention)
    judge = HuggingFaceModel(arguments.exported, device=device)
    judge._model.set_attn_implementation("repeated")
    expected, expected_text = judge.score(row), judge.generate([prompt], max_new_tokens=NEW_TOKENS)
    report(found, expected)
    equal = sum(a == b for a, b in zip(text[0], expected_text[0], strict=True))
    print(f"\n{equal} of {NEW_TOKENS} greedy tokens equal behind {len(prompt):,}")
    sys.exit(text != expected_text)


if __name__ == "__main__":
    main()
