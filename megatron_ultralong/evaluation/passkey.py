"""Passkey retrieval over a grid of lengths and depths."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.bounded import read_text
from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.config import PasskeyConfig
from megatron_ultralong.evaluation.cost_config import CostConfig
from megatron_ultralong.evaluation.generator import Generator
from megatron_ultralong.evaluation.journal import Journal
from megatron_ultralong.evaluation.models import ModelFacts
from megatron_ultralong.evaluation.passkey_prompt import Encode, PasskeyPrompt, passkey_prompt
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.evaluation.retrieval import Grid, evaluate_grid, measure_grid
from megatron_ultralong.evaluation.scorer import Scorer


def evaluate_passkey(
    config: PasskeyConfig,
    model: Scorer | Generator,
    facts: ModelFacts,
    encode: Encode,
    tokenizer_sha256: str,
    cost: CostConfig,
) -> Result:
    """Measure passkey retrieval, print a table, write JSON, a picture and every sample.

    Every rank calls this; the main one prints and writes.

    Args:
        config: grid, haystack and output folder.
        model: the checkpoint; a scorer for ``by: argmax``, a generator for ``by: decoding``.
        facts: what is known of it, for the cost and the journal.
        encode: the model's tokenizer: text to ids, without special tokens.
        tokenizer_sha256: what tells it from others.
        cost: what the evaluation may cost.

    Raises:
        InputError: the output folder holds something, the cost is above the limit, or as
            :func:`measure_passkey`.
    """
    config.check()
    return evaluate_grid(_grid(config, encode, tokenizer_sha256), model, facts, cost)


def measure_passkey(
    config: PasskeyConfig,
    model: Scorer | Generator,
    encode: Encode,
    journal: Journal | None = None,
) -> Result:
    """Passkey retrieval at every length and depth.

    A prompt counts as retrieved when every token of the answer is the argmax where it is
    predicted: as long as that holds greedy decoding goes the same way, so both agree.

    Raises:
        InputError: a length that is too short for a prompt or beyond the trained positions, a
            haystack that is absent or too short, or token ids that the model does not know.
    """
    config.check()
    return measure_grid(_grid(config, encode, ""), model, journal)


def _grid(config: PasskeyConfig, encode: Encode, tokenizer_sha256: str) -> Grid:
    haystack, digest = _haystack(config, encode)

    def make(length: int, depth: float, index: int) -> PasskeyPrompt:
        return passkey_prompt(
            encode, length, depth, seed=config.seed, index=index, haystack=haystack
        )

    decides = {
        "seed": config.seed,
        "haystack": digest,
        "by": config.by,
        "tokenizer": tokenizer_sha256,
    }
    material = {"haystack": digest} if digest else {}
    return Grid(KINDS["passkey"], config, make, decides, material)


def _haystack(config: PasskeyConfig, encode: Encode) -> tuple[npt.NDArray[np.int64] | None, str]:
    """Ids of the haystack, and a hash of its text; None and empty for the noise line."""
    if not config.haystack:
        return None, ""
    try:
        text = read_text(Path(config.haystack))
    except ValueError as error:
        raise InputError(
            f"haystack {config.haystack} cannot be read ({error}): name a text file in UTF-8"
        ) from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    return np.asarray(encode(text), dtype=np.int64), digest
