"""``evaluate chat``: every assistant's turn of a conversation by one forward pass."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.rows.manifest import ChatManifest, load_chat_manifest
from megatron_ultralong.data.rows.stored import Int64Array, chat_rows_of
from megatron_ultralong.data.tokenize.trained_template import trained_template
from megatron_ultralong.evaluation.asking.questions import Entries, run_benchmark
from megatron_ultralong.evaluation.asking.samples import Prompt, Row, Sample, scoring
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.models.language_models import Subject
from megatron_ultralong.evaluation.options import ChatConfig, check_num_samples
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import KINDS, Result, ScoreCell, mean_cell
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.journal import sample_key

METRIC = "turns exact"
"""Share of turns of which every token, the end too, is the likeliest after all before it: those
that greedy decoding writes word for word."""
LAST_TURN = 4
"""Turns from this one on stand together."""
SHORTEST = 128
"""Tokens of the first column; each after it is twice as long."""


def evaluate_chat(config: ChatConfig, subject: Subject[interface.Scorer]) -> Result:
    """Measure the share of assistant's turns that greedy decoding writes, by turn and length.

    Every turn is given the conversation before it as it was, its own earlier answers included. What
    is written is as in :func:`run_benchmark`.

    Raises:
        InputError: as there, rows that are missing, damaged or of another tokenizer, or
            conversations beyond the trained positions.
    """
    config.check()
    scorer, tokenizer = subject.model, subject.tokenizer
    manifest = load_chat_manifest(config.data_path)
    if config.split not in manifest.splits:
        raise InputError(
            f"{config.data_path} has no split '{config.split}': prepare it with a --valid-fraction "
            "above 0, or give --split train"
        )
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            f"the conversations of {config.data_path} were made by another tokenizer "
            f"({manifest.tokenizer_sha256[:12]}...) than the one of checkpoint '{scorer.name}' "
            f"({tokenizer.sha256[:12]}...): prepare them with {tokenizer.folder}"
        )
    asked = _conversations(config, manifest, scorer.vocab_size)
    longest = max(sample.rows[0].num_tokens for sample in asked)
    interface.check_length(
        scorer,
        longest,
        config.beyond_trained_positions,
        what=f"a conversation of {longest} tokens",
        way_out=f"prepare conversations with --max-length {scorer.max_positions}",
    )
    template = trained_template(Path(config.data_path), manifest)
    foreign = [template.doubt] if template.doubt else []
    if has := template.lacks(tokenizer.folder):
        foreign += [f"not the chat template of '{scorer.name}': {tokenizer.folder} has {has}"]
    prefix = Path(config.data_path) / config.split
    return run_benchmark(
        *(asked, scoring(scorer), subject),
        kind=KINDS["chat"],
        config=config,
        cells=_cells,
        decides={"chat_template": manifest.chat_template},
        metrics={_turn(number): METRIC for number in range(1, LAST_TURN + 1)},
        notes=lambda entries: _notes(config, manifest.chat_template, entries) + foreign,
        material={
            file.name: file_sha256(file)
            for file in (prefix.with_name(f"{prefix.name}{end}.bin") for end in ("", ".targets"))
        },
        description="Conversations",
    )


def _conversations(
    config: ChatConfig, manifest: ChatManifest, vocab_size: int
) -> list[Sample[interface.Scores]]:
    rows = chat_rows_of(config.data_path, config.split, manifest, vocab_size)
    examples = itertools.chain.from_iterable(map(rows.examples, range(len(rows))))
    found = [_sample(*one) for one in itertools.islice(examples, config.num_samples or None)]
    what = f"conversations of {config.data_path} ({config.split})"
    check_num_samples(config.num_samples, len(found), what)
    return found


def _sample(tokens: npt.NDArray[np.integer], turns: Int64Array) -> Sample[interface.Scores]:
    """Losses of the assistant's turns, and how many of their tokens are the likeliest.

    ``turns``, shape [num_turns, 2], say where in ``tokens``, [T], they stand: ``[start, stop)``.
    """

    def judge(prompt: Prompt, scores: interface.Scores) -> dict[str, Any]:
        parts = [slice(start - 1, stop - 1) for start, stop in turns.tolist()]
        losses = [float(scores.loss[part].sum(dtype=np.float64)) for part in parts]
        right = [int(scores.correct[part].sum()) for part in parts]
        return {"turns": turns.tolist(), "losses": losses, "right": right}

    prompt = Prompt(tokens.astype(np.int64))
    row = Row(int(tokens.size), lambda: prompt, judge, "the conversations")
    return Sample(sample_key(tokens=tokens, turns=turns), (row,))


def _turn(number: int) -> str:
    return f"turn {number}" + (" and later" if number == LAST_TURN else "")


def _cells(entries: Entries) -> tuple[ScoreCell, ...]:
    """Turns by their number and by the tokens up to their end."""
    groups: dict[tuple[int, int], list[tuple[bool, int]]] = {}
    for entry in entries:
        turns = zip(entry["turns"], entry["right"], strict=True)
        for number, ((start, stop), right) in enumerate(turns, 1):
            place = (max(SHORTEST, 1 << (stop - 1).bit_length()), min(number, LAST_TURN))
            groups.setdefault(place, []).append((right == stop - start, start))
    return tuple(
        mean_cell(
            _turn(number),
            str(length),
            [float(exact) for exact, _ in group],
            {"num_prompt_tokens": sum(start for _, start in group) / len(group)},
        )
        for (length, number), group in sorted(groups.items())
    )


def _notes(config: ChatConfig, chat_template: str, entries: Entries) -> list[str]:
    num_tokens = sum(stop - start for entry in entries for start, stop in entry["turns"])
    num_right = sum(sum(entry["right"]) for entry in entries)
    total = sum(sum(entry["losses"]) for entry in entries)
    return [
        f"{counted(len(entries), 'conversation')} of split '{config.split}', template "
        f"{chat_template}; column: tokens up to the turn's end, at most",
        f"loss {total / num_tokens:.4f} nats a token over the {num_tokens} tokens to be learnt, "
        f"{100 * num_right / num_tokens:.1f} % of which are the likeliest",
    ]
