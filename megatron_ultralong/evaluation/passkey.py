"""Passkey retrieval over a grid of lengths and depths, by one forward pass a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from megatron_ultralong.documents import unit_hash
from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.conditions import now, versions
from megatron_ultralong.evaluation.config import PasskeyConfig
from megatron_ultralong.evaluation.output_folder import check_output_folder, new_output_folder
from megatron_ultralong.evaluation.passkey_prompt import Encode, PasskeyPrompt, passkey_prompt
from megatron_ultralong.evaluation.passkey_result import PasskeyCell, PasskeyResult
from megatron_ultralong.evaluation.scorer import Scorer, check_ids, check_length, scoring_progress
from megatron_ultralong.evaluation.tables import passkey_table

Haystack = npt.NDArray[np.int64] | None


def evaluate_passkey(config: PasskeyConfig, scorer: Scorer, encode: Encode) -> PasskeyResult:
    """Measure passkey retrieval, print a table, write JSON and a picture.

    Every rank calls this; the main one prints and writes.

    Args:
        config: grid, haystack and output folder.
        scorer: the checkpoint.
        encode: the model's tokenizer: text to ids, without special tokens.

    Raises:
        InputError: the output folder holds something, or as :func:`measure_passkey`.
    """
    if config.output:
        check_output_folder(config.output)
    result = measure_passkey(config, scorer, encode)
    if scorer.is_main:
        Console().print(passkey_table(result))
        if config.output:
            from megatron_ultralong.evaluation.pictures import passkey_picture

            with new_output_folder(config.output) as folder:
                result.save(folder / "passkey.json")
                passkey_picture([result], folder / "passkey.png")
    return result


def measure_passkey(config: PasskeyConfig, scorer: Scorer, encode: Encode) -> PasskeyResult:
    """Passkey retrieval at every length and depth.

    A prompt counts as retrieved when every token of the answer is the argmax where it is
    predicted: as long as that holds greedy decoding goes the same way, so both agree.

    Raises:
        InputError: a length that is too short for a prompt or beyond the trained positions, a
            haystack that is absent or too short, or token ids that the model does not know.
    """
    config.check()
    lengths, depths = sorted(config.lengths), sorted(config.depths)
    check_length(scorer, lengths[-1], config.beyond_trained_positions)
    haystack = _haystack(config, encode)
    for length in {lengths[0], lengths[-1]}:  # before the work starts
        _prompt(config, encode, haystack, length, depths[0], 0)
    num_tokens = sum(lengths) * len(depths) * config.num_samples
    cells: list[PasskeyCell] = []
    with scoring_progress(scorer, f"Passkey of {scorer.name}", num_tokens) as advance:
        for length in lengths:
            hits: dict[float, list[npt.NDArray[np.bool_]]] = {depth: [] for depth in depths}
            samples = list(itertools.product(depths, range(config.num_samples)))
            for start in range(0, len(samples), config.micro_batch_size):
                prompts = [
                    _prompt(config, encode, haystack, length, depth, sample)
                    for depth, sample in samples[start : start + config.micro_batch_size]
                ]
                for (depth, _), hit in zip(samples[start:], _hits(scorer, prompts), strict=False):
                    hits[depth].append(hit)
                advance(length * len(prompts))
            cells.extend(_cell(length, depth, hits[depth]) for depth in depths)
    return PasskeyResult(config, scorer.name, scorer.max_positions, tuple(cells), now(), versions())


def _prompt(
    config: PasskeyConfig,
    encode: Encode,
    haystack: Haystack,
    length: int,
    depth: float,
    number: int,
) -> PasskeyPrompt:
    """Prompt ``number`` of a cell: the same in every grid that has this cell."""
    index = int(unit_hash(config.seed, f"{length}:{depth:g}:{number}") * 2**53)
    return passkey_prompt(
        encode, length, depth / 100, seed=config.seed, index=index, haystack=haystack
    )


def _haystack(config: PasskeyConfig, encode: Encode) -> Haystack:
    if not config.haystack:
        return None
    try:
        text = Path(config.haystack).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"haystack {config.haystack} cannot be read ({error}): name a text file in UTF-8"
        ) from error
    return np.asarray(encode(text), dtype=np.int64)


def _hits(scorer: Scorer, prompts: Sequence[PasskeyPrompt]) -> list[npt.NDArray[np.bool_]]:
    """For every prompt which tokens of its answer are right, shape [num_answer_tokens] each."""
    tokens = np.stack([prompt.tokens for prompt in prompts])
    check_ids(scorer, tokens, "the passkey prompt")
    correct = scorer.score(tokens).correct
    return [row[prompt.answer_start - 1 :] for row, prompt in zip(correct, prompts, strict=True)]


def _cell(length: int, depth: float, hits: Sequence[npt.NDArray[np.bool_]]) -> PasskeyCell:
    return PasskeyCell(
        length=length,
        depth=depth,
        num_samples=len(hits),
        num_retrieved=sum(bool(hit.all()) for hit in hits),
        token_accuracy=float(np.concatenate(hits).mean()),
    )
