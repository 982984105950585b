"""``evaluate chat``: every assistant's turn of a conversation by one forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.chat_manifest import load_chat_manifest
from megatron_ultralong.data.chat_rows import ChatRows, Int64Array
from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.benchmark import show
from megatron_ultralong.evaluation.chat.config import ChatConfig
from megatron_ultralong.evaluation.cost import check_cost, estimate_cost
from megatron_ultralong.evaluation.cost_config import CostConfig
from megatron_ultralong.evaluation.journal import Journal, open_journal, sample_key
from megatron_ultralong.evaluation.local_data import file_sha256
from megatron_ultralong.evaluation.models import ModelFacts
from megatron_ultralong.evaluation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.evaluation.results.result import (
    KINDS,
    Result,
    mean_cell,
    plain_values,
)
from megatron_ultralong.evaluation.scorer import Scorer, check_length, scoring_progress
from megatron_ultralong.ranks import world_size

METRIC = "turns exact"
"""Share of turns of which every token, the end too, is the likeliest after all before it: those
that greedy decoding writes word for word."""
LAST_TURN = 4
"""Turns from this one on stand together."""
SHORTEST = 128
"""Tokens of the first column; each after it is twice as long."""


@dataclasses.dataclass(frozen=True)
class _Conversation:
    key: str
    tokens: Int64Array
    """Shape [T]."""
    turns: Int64Array
    """Assistant's turns ``[start, stop)``, shape [num_turns, 2]."""


def evaluate_chat(
    config: ChatConfig,
    scorer: Scorer,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
) -> Result:
    """Measure the share of assistant's turns that greedy decoding writes, by turn and length.

    Every turn is given the conversation before it as it was, its own earlier answers included.
    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: rows that are missing, damaged or of another tokenizer, conversations beyond
            the trained positions, an output folder in use, or a cost above the limit.
    """
    config.check()
    manifest = load_chat_manifest(config.data_path)
    if config.split not in manifest.splits:
        raise InputError(
            f"{config.data_path} has no split '{config.split}': prepare it with a --valid-fraction "
            "above 0, or give --split train"
        )
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            f"the conversations of {config.data_path} were made by another tokenizer "
            f"({manifest.tokenizer_sha256[:12]}...) than the one of checkpoint '{facts.name}' "
            f"({tokenizer.sha256[:12]}...): prepare them with {tokenizer.folder}"
        )
    asked = _conversations(config, scorer.vocab_size)
    longest = max(one.tokens.size for one in asked)
    check_length(
        scorer,
        longest,
        config.beyond_trained_positions,
        what=f"a conversation of {longest} tokens",
        way_out=f"prepare conversations with --max-length {scorer.max_positions}",
    )
    identity = {**facts.identity, "chat_template": manifest.chat_template}
    with open_journal(config.output, "chat", identity, is_main=scorer.is_main) as journal:
        _score(config, scorer, facts, cost, asked, journal)
        entries = [journal.get(one.key) for one in asked]
        result = _result(config, facts, asked, entries, manifest.chat_template)
        if scorer.is_main:
            show(result, journal)
    return result


def _conversations(config: ChatConfig, vocab_size: int) -> list[_Conversation]:
    rows = ChatRows(Path(config.data_path) / config.split, vocab_size)
    found: list[_Conversation] = []
    for number in range(len(rows)):
        for tokens, turns in rows.examples(number):
            key = sample_key(tokens=tokens, turns=turns)
            found.append(_Conversation(key, tokens.astype(np.int64), turns))
            if len(found) == config.num_samples:
                return found
    if len(found) < config.num_samples:
        raise InputError(
            f"num_samples ({config.num_samples}) is more than the {len(found)} conversations of "
            f"{config.data_path} ({config.split}): ask for at most {len(found)}"
        )
    return found


def _score(
    config: ChatConfig,
    scorer: Scorer,
    facts: ModelFacts,
    cost: CostConfig,
    asked: Sequence[_Conversation],
    journal: Journal,
) -> None:
    """Note every conversation's turns; those of like length are in one forward pass."""
    pending = [one for one in asked if journal.get(one.key) is None]
    pending.sort(key=lambda one: one.tokens.size)
    sizes = [(int(one.tokens.size), 0) for one in pending]
    estimate = estimate_cost(facts.model, sizes, cost, world_size())
    check_cost(estimate, cost, is_main=scorer.is_main)
    with scoring_progress(scorer, f"Conversations of {facts.name}", estimate.num_tokens) as advance:
        for start in range(0, len(pending), config.micro_batch_size):
            batch = pending[start : start + config.micro_batch_size]
            longest = max(one.tokens.size for one in batch)
            # Padding stands after the conversation, where nothing of it sees it.
            tokens = np.stack([np.pad(o.tokens, (0, longest - o.tokens.size)) for o in batch])
            scores = scorer.score(tokens)
            for one, loss, correct in zip(batch, scores.loss, scores.correct, strict=True):
                parts = [slice(start - 1, stop - 1) for start, stop in one.turns.tolist()]
                losses = [float(loss[part].sum(dtype=np.float64)) for part in parts]
                if not np.isfinite(losses).all():
                    raise InputError(
                        f"a conversation of {one.tokens.size} tokens has losses {losses}: the "
                        "checkpoint's weights or its precision are broken; try --precision fp32"
                    )
                right = [int(correct[part].sum()) for part in parts]
                journal.add(
                    one.key, {"turns": one.turns.tolist(), "losses": losses, "right": right}
                )
            advance(sum(one.tokens.size for one in batch))


def _result(
    config: ChatConfig,
    facts: ModelFacts,
    asked: Sequence[_Conversation],
    entries: Sequence[Any],
    chat_template: str,
) -> Result:
    prefix = Path(config.data_path) / config.split
    groups: dict[tuple[int, int], list[tuple[bool, int]]] = {}
    num_tokens, num_right, total = 0, 0, 0.0
    for entry in entries:
        turns = zip(entry["turns"], entry["losses"], entry["right"], strict=True)
        for number, ((start, stop), loss, right) in enumerate(turns, 1):
            place = (min(number, LAST_TURN), max(SHORTEST, 1 << (stop - 1).bit_length()))
            groups.setdefault(place, []).append((right == stop - start, start))
            num_tokens, num_right, total = (
                num_tokens + stop - start,
                num_right + right,
                total + loss,
            )
    cells = tuple(
        mean_cell(
            f"turn {turn}" + (" and later" if turn == LAST_TURN else ""),
            str(length),
            [float(exact) for exact, _ in group],
            {"num_prompt_tokens": sum(start for _, start in group) / len(group)},
        )
        for (turn, length), group in sorted(groups.items(), key=lambda item: item[0][::-1])
    )
    notes = (
        f"{len(asked)} conversations of split '{config.split}', template {chat_template}; column: "
        "tokens up to the turn's end, at most",
        f"loss {total / num_tokens:.4f} nats a token over the {num_tokens} tokens to be learnt, "
        f"{100 * num_right / num_tokens:.1f} % of which are the likeliest",
    )
    return Result(
        kind=KINDS["chat"],
        config=plain_values(config),
        checkpoint=facts.name,
        max_positions=facts.max_positions,
        cells=cells,
        metrics={cell.row: METRIC for cell in sorted(cells, key=lambda cell: cell.row)},
        notes=notes,
        material={
            file.name: file_sha256(file)
            for file in (prefix.with_name(f"{prefix.name}{end}.bin") for end in ("", ".targets"))
        },
        model=facts.record,
    )
