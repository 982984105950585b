"""The grid of ``evaluate passkey``: a number hidden at every length and depth."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read.bounded import read_text
from megatron_ultralong.evaluation.results.result import KINDS
from megatron_ultralong.evaluation.retrieval.config import PasskeyConfig
from megatron_ultralong.evaluation.retrieval.grid import Grid
from megatron_ultralong.evaluation.retrieval.passkey_prompt import (
    Encode,
    PasskeyPrompt,
    passkey_prompt,
)
from megatron_ultralong.program.errors import InputError


def passkey_grid(config: PasskeyConfig, encode: Encode, tokenizer_sha256: str = "") -> Grid:
    """Prompts with a number hidden in noise, or in a text.

    Args:
        config: lengths, depths, haystack and how the answers are judged.
        encode: the model's tokenizer: text to ids, without special tokens.
        tokenizer_sha256: what tells it from others.

    Raises:
        InputError: a flag is missing or out of range, or the haystack cannot be read.
    """
    config.check()
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
