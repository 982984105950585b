"""Needle retrieval over a grid of lengths and depths."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_ultralong.evaluation.config import NeedleConfig
from megatron_ultralong.evaluation.cost_config import CostConfig
from megatron_ultralong.evaluation.generator import Generator
from megatron_ultralong.evaluation.journal import Journal
from megatron_ultralong.evaluation.models import ModelFacts
from megatron_ultralong.evaluation.needle_haystack import made_up, of_files
from megatron_ultralong.evaluation.needle_prompt import PROMPT_VERSION, needle_prompt
from megatron_ultralong.evaluation.passkey_prompt import Encode, PasskeyPrompt
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.evaluation.retrieval import Grid, evaluate_grid, measure_grid
from megatron_ultralong.evaluation.scorer import Scorer


def evaluate_needle(
    config: NeedleConfig,
    model: Scorer | Generator,
    facts: ModelFacts,
    encode: Encode,
    tokenizer_sha256: str,
    cost: CostConfig,
) -> Result:
    """Measure needle retrieval, print a table, write JSON, a picture and every sample.

    Every rank calls this; the main one prints and writes. Arguments and errors are those of
    :func:`~megatron_ultralong.evaluation.passkey.evaluate_passkey`.
    """
    config.check()
    return evaluate_grid(_grid(config, encode, tokenizer_sha256), model, facts, cost)


def measure_needle(
    config: NeedleConfig,
    model: Scorer | Generator,
    encode: Encode,
    journal: Journal | None = None,
) -> Result:
    """Needle retrieval at every length and depth.

    Raises:
        InputError: as :func:`~megatron_ultralong.evaluation.passkey.measure_passkey` does.
    """
    config.check()
    return measure_grid(_grid(config, encode, ""), model, journal)


def _grid(config: NeedleConfig, encode: Encode, tokenizer_sha256: str) -> Grid:
    haystack = (
        of_files(encode, config.haystack) if config.haystack else made_up(encode, config.seed)
    )

    def make(length: int, depth: float, index: int) -> PasskeyPrompt:
        return needle_prompt(
            encode,
            length,
            depth,
            seed=config.seed,
            index=index,
            haystack=haystack,
            num_distractors=config.num_distractors,
        )

    digests = {f: hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in config.haystack}
    decides = {
        "version": PROMPT_VERSION,
        "seed": config.seed,
        "num_distractors": config.num_distractors,
        "haystack": list(digests.values()),
        "by": config.by,
        "tokenizer": tokenizer_sha256,
    }
    material = {f"haystack {k}": digest for k, digest in enumerate(digests.values(), 1)}
    return Grid(KINDS["needle"], config, make, decides, material)
