"""Retrieval over a grid of lengths and depths: prompts asked, judged, noted, counted by cell."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.documents import unit_hash
from megatron_ultralong.evaluation.config import NeedleConfig, PasskeyConfig
from megatron_ultralong.evaluation.cost import check_cost, estimate_cost
from megatron_ultralong.evaluation.cost_config import CostConfig
from megatron_ultralong.evaluation.generator import Generator
from megatron_ultralong.evaluation.journal import Journal, open_journal, sample_key
from megatron_ultralong.evaluation.models import ModelFacts
from megatron_ultralong.evaluation.passkey_prompt import PasskeyPrompt
from megatron_ultralong.evaluation.results.file import write_results
from megatron_ultralong.evaluation.results.result import (
    Kind,
    Result,
    ScoreCell,
    depth_row,
    mean_cell,
    plain_values,
)
from megatron_ultralong.evaluation.scorer import Scorer, check_ids, check_length, scoring_progress
from megatron_ultralong.evaluation.tables import score_table
from megatron_ultralong.model_config import ModelConfig
from megatron_ultralong.ranks import world_size
from megatron_ultralong.terminal import Console

GridConfig = PasskeyConfig | NeedleConfig


@dataclasses.dataclass(frozen=True)
class Grid:
    """Prompts by length and depth."""

    kind: Kind
    config: GridConfig
    make: Callable[[int, float, int], PasskeyPrompt]
    """The prompt of a length, a depth in per cent, and an index that decides the rest."""
    decides: Mapping[str, Any]
    """JSON of all that a prompt depends on beside those three, and how it is judged."""
    material: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts that needles are hidden in, files by their SHA-256."""

    @property
    def samples(self) -> list[tuple[int, float, int]]:
        """(length, depth, number) of every prompt, in the order in which they are asked."""
        config = self.config
        numbers = range(config.num_samples)
        depths = sorted(float(depth) for depth in config.depths)
        return list(itertools.product(sorted(config.lengths), depths, numbers))

    def prompt(self, length: int, depth: float, number: int) -> PasskeyPrompt:
        """Prompt ``number`` of a cell: the same in every grid that has this cell."""
        index = int(unit_hash(self.config.seed, f"{length}:{depth:g}:{number}") * 2**53)
        return self.make(length, depth / 100, index)

    def key(self, sample: tuple[int, float, int]) -> str:
        """Under which a sample is noted."""
        return sample_key(kind=self.kind.name, sample=list(sample), decides=dict(self.decides))


def evaluate_grid(
    grid: Grid, model: Scorer | Generator, facts: ModelFacts, cost: CostConfig
) -> Result:
    """Ask all prompts, print a table, write ``KIND.json`` and ``KIND.png``.

    Raises:
        InputError: a length beyond the trained positions, an output folder in use, or a cost
            above the limit.
    """
    check_grid(grid, model)
    identity = {**facts.identity, **grid.decides}
    kind = grid.kind.name
    with open_journal(grid.config.output, kind, identity, is_main=model.is_main) as journal:
        check_grid_cost(grid, journal, facts.model, cost, is_main=model.is_main)
        result = dataclasses.replace(
            measure_grid(grid, model, journal), model=facts.record, material=grid.material
        )
        if model.is_main:
            Console().print(score_table(result))
            if journal.folder is not None:
                _write(result, journal.folder)
    return result


def check_grid(grid: Grid, model: Scorer | Generator) -> None:
    """Check, before the work starts, that the model is made for the lengths, and they have room.

    Raises:
        InputError: a length is beyond the trained positions, or too short for a prompt.
    """
    lengths = sorted(grid.config.lengths)
    check_length(model, lengths[-1], grid.config.beyond_trained_positions)
    for length in {lengths[0], lengths[-1]}:
        grid.prompt(length, min(grid.config.depths), 0)


def check_grid_cost(
    grid: Grid, journal: Journal, model: ModelConfig, cost: CostConfig, *, is_main: bool
) -> None:
    """Print what is still to be done and what it costs, and refuse what is above the limit.

    Raises:
        InputError: it costs more than ``cost.max_cost``.
    """
    samples = [sample for sample in grid.samples if journal.get(grid.key(sample)) is None]
    # By argmax every token passes the output layer; decoding makes logits for the answer alone.
    answer = 5 if grid.config.by == "decoding" else 0
    sizes = [(length - answer, answer) for length, _, _ in samples]
    estimate = estimate_cost(model, sizes, cost, world_size())
    check_cost(estimate, cost, is_main=is_main)


def measure_grid(grid: Grid, model: Scorer | Generator, journal: Journal) -> Result:
    """Cells of the grid, by length and depth; what the journal has is not asked again.

    Raises:
        InputError: token ids that the model does not know.
    """
    config = grid.config
    pending = [sample for sample in grid.samples if journal.get(grid.key(sample)) is None]
    num_tokens = sum(length for length, _, _ in pending)
    with scoring_progress(model, f"{grid.kind.title} of {model.name}", num_tokens) as advance:
        for length, of_length in itertools.groupby(pending, lambda sample: sample[0]):
            samples = list(of_length)
            for start in range(0, len(samples), config.micro_batch_size):
                batch = samples[start : start + config.micro_batch_size]
                prompts = [grid.prompt(*sample) for sample in batch]
                hits = _hits(grid, model, prompts)
                for sample, prompt, hit in zip(batch, prompts, hits, strict=True):
                    journal.add(grid.key(sample), _entry(sample, prompt, hit))
                advance(length * len(batch))
    cells = itertools.groupby(grid.samples, lambda sample: sample[:2])
    return Result(
        kind=grid.kind,
        config=plain_values(config),
        checkpoint=model.name,
        max_positions=model.max_positions,
        cells=tuple(
            _cell(length, depth, [journal.get(grid.key(sample)) for sample in samples])
            for (length, depth), samples in cells
        ),
    )


def _hits(
    grid: Grid, model: Scorer | Generator, prompts: Sequence[PasskeyPrompt]
) -> list[npt.NDArray[np.bool_]]:
    """For every prompt which tokens of its answer are right, shape [num_answer_tokens] each."""
    tokens = np.stack([prompt.tokens for prompt in prompts])
    check_ids(model, tokens, f"the {grid.kind.name} prompt")
    if grid.config.by == "argmax":
        correct = model.score(tokens).correct  # type: ignore[union-attr]
        return [
            row[prompt.answer_start - 1 :] for row, prompt in zip(correct, prompts, strict=True)
        ]
    written = model.generate(  # type: ignore[union-attr]
        [prompt.tokens[: prompt.answer_start].tolist() for prompt in prompts],
        max_new_tokens=max(prompt.answer.size for prompt in prompts),
    )
    return [
        np.asarray(ids[: prompt.answer.size]) == prompt.answer
        for ids, prompt in zip(written, prompts, strict=True)
    ]


def _entry(
    sample: tuple[int, float, int], prompt: PasskeyPrompt, hit: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    length, depth, number = sample
    return {
        "length": length,
        "depth": depth,
        "number": number,
        "answer": prompt.key,
        "num_answer_tokens": int(hit.size),
        "num_right": int(hit.sum()),
        "is_retrieved": bool(hit.all()),
    }


def _cell(length: int, depth: float, entries: Sequence[dict[str, Any] | None]) -> ScoreCell:
    noted = [entry for entry in entries if entry is not None]
    assert len(noted) == len(entries), "a sample was left out"
    right, of = (sum(entry[name] for entry in noted) for name in ("num_right", "num_answer_tokens"))
    hits = [float(entry["is_retrieved"]) for entry in noted]
    return mean_cell(depth_row(depth), str(length), hits, {"token_accuracy": right / of})


def _write(result: Result, folder: Path) -> None:
    from megatron_ultralong.evaluation.pictures import retrieval_picture

    write_results(folder / f"{result.kind.name}.json", [result])
    retrieval_picture([result], folder / f"{result.kind.name}.png")
