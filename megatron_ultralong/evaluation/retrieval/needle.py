"""The grid of ``evaluate needle``: a sentence hidden at every length and depth."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_ultralong.evaluation.results.result import KINDS
from megatron_ultralong.evaluation.retrieval.config import NeedleConfig
from megatron_ultralong.evaluation.retrieval.grid import Grid
from megatron_ultralong.evaluation.retrieval.needle_haystack import made_up, of_files
from megatron_ultralong.evaluation.retrieval.needle_prompt import PROMPT_VERSION, needle_prompt
from megatron_ultralong.evaluation.retrieval.passkey_prompt import Encode, PasskeyPrompt


def needle_grid(config: NeedleConfig, encode: Encode, tokenizer_sha256: str = "") -> Grid:
    """Prompts with a sentence hidden in running text; arguments and errors of a passkey's."""
    config.check()
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
