"""Samples put to a model: the one loop of all evaluations, with journal, cost and progress.

A sample is one or more rows of tokens, which the model continues or scores, and what is noted of
them. Rows are made one batch before they are asked; a sample is noted as soon as all its rows are
answered, so that a killed evaluation continues where it was.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.generation.prompt_tokenizer import IdArray
from megatron_ultralong.model.flops import forward_flops, peak_tflops
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program import ending, quantity, ranks
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.journal import Journal
from megatron_ultralong.program.progress import progress
from megatron_ultralong.sequence.documents import causal_area


@dataclasses.dataclass(frozen=True)
class CostEstimate:
    """The work of an evaluation."""

    num_samples: int
    num_tokens: int
    """Tokens that pass through the model: prompts and what is generated."""
    flops: float
    tflops: float
    """Assumed speed of one rank in TFLOP/s."""
    num_ranks: int

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU."""
        return self.flops / (self.tflops * 1e12) / 3600

    def __str__(self) -> str:
        """One line, as it stands above an evaluation."""
        seconds = self.gpu_hours * 3600 / self.num_ranks
        return (
            f"{counted(self.num_samples, 'sample')}, {self.num_tokens:,} tokens, "
            f"{self.flops:.3g} FLOP: {_hours(self.gpu_hours)} GPU-hours at {self.tflops:g} "
            f"TFLOP/s a GPU, {quantity.duration(seconds)} on {self.num_ranks}"
        )


def estimate_cost(
    model: ModelConfig, samples: Iterable[tuple[int, int]], config: CostConfig, num_ranks: int = 1
) -> CostEstimate:
    """Cost of one forward pass over every prompt, and one for every token generated after it.

    ``samples`` are tokens of the prompt and tokens to generate. The output layer counts for
    generated tokens alone where there are any, else for all tokens.
    """
    num_samples, num_tokens, flops = 0, 0, 0.0
    for prompt, generated in samples:
        num_samples += 1
        num_tokens += prompt + generated
        whole = prompt + generated
        # Token i attends to i + 1 of them, in prefill and in decoding alike.
        parts = forward_flops(model, whole, causal_area([0, whole]))
        output = parts.output * (generated / whole if generated else 1.0)
        flops += parts.projections + parts.attention + parts.mlp + output
    return CostEstimate(num_samples, num_tokens, flops, _assumed_tflops(config), num_ranks)


SHARE_OF_PEAK = 0.4
"""Share of a device's dense bf16 peak that long forward passes are assumed to reach: 2,048-token
rows reach less, one rank of an 8B model at 1M tokens reached 52-58 % in training
(benchmarks/training.md)."""
CPU_TFLOPS = 0.03
"""Assumed of a rank on a CPU: float32 products of one or two cores."""


def _assumed_tflops(config: CostConfig) -> float:
    """The speed that the estimate assumes, in TFLOP/s of one rank.

    Raises:
        InputError: the device's peak is not known, and no speed is given.
    """
    if config.estimated_tflops:
        return config.estimated_tflops
    if not torch.cuda.is_available():
        return CPU_TFLOPS
    name = torch.cuda.get_device_name()
    peak = peak_tflops(name)
    if peak is None:
        raise InputError(
            f"the peak of device '{name}' is not known, which the estimate of the cost takes: "
            "give the TFLOP/s to assume as --estimated-tflops"
        )
    return SHARE_OF_PEAK * peak


def check_cost(estimate: CostEstimate, config: CostConfig, *, is_main: bool = True) -> None:
    """Print the estimate, and refuse an evaluation above ``--max-cost``.

    Raises:
        InputError: it costs more than ``config.max_cost``.
    """
    if config.max_cost and estimate.gpu_hours > config.max_cost:
        share = config.max_cost / estimate.gpu_hours
        raise InputError(
            f"the evaluation is estimated at {_hours(estimate.gpu_hours)} GPU-hours ({estimate}), "
            f"above --max-cost {config.max_cost:g}: {100 * share:.2g} % of it would fit; lower "
            "--num-samples or the lengths, or raise --max-cost"
        )
    if is_main and estimate.num_samples:
        ending.tell(f"estimate: {estimate}")


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


Reply = TypeVar("Reply")
"""Ids that a model wrote, or the :class:`Scores` of one row, of shape [T - 1] each."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is put to the model, in tokens."""

    tokens: IdArray
    """Shape [T]; with the answer where it is scored."""
    references: Any = None
    """What the reply is held against."""
    was_truncated: bool = False
    """Whether the middle of its text was left out."""
    max_new_tokens: int = 0
    """To be written; 0: the tokens are scored."""


@dataclasses.dataclass(frozen=True)
class Row(Generic[Reply]):
    """A prompt before it is made."""

    num_tokens: int
    """Of the prompt, at most or estimated, for the cost and the progress."""
    make: Callable[[], Prompt]
    judge: Callable[[Prompt, Reply], Any]
    """JSON of what the reply says."""
    source: str
    """What a message calls it."""
    max_new_tokens: int = 0
    """To be written, at most or estimated; 0: it is scored."""
    batch: str = ""
    """Rows of other batches are not asked together with it; those of one keep their order."""

    @property
    def keeps_place(self) -> bool:
        """Whether it is asked where it was given, and not by its length."""
        return bool(self.max_new_tokens or self.batch)

    @property
    def num_all_tokens(self) -> int:
        """Tokens that it is about."""
        return self.num_tokens + self.max_new_tokens


@dataclasses.dataclass(frozen=True)
class Sample(Generic[Reply]):
    """What is noted as one."""

    key: str
    """Hash of all that decides it, beside the model."""
    rows: tuple[Row[Reply], ...]
    note: Callable[[list[Any]], dict[str, Any]] = lambda judged: dict(judged[0])
    """What the journal notes of it, from what was judged of its rows, in their order."""


Put = Callable[[Sequence[Prompt]], Sequence[Reply]]
"""How a batch of prompts is put to a model."""


def writing(
    generator: interface.Generator, stop_ids: frozenset[int] = frozenset()
) -> Put[list[int]]:
    """Prompts are continued greedily, up to the first of ``stop_ids``."""
    return lambda prompts: generator.generate(
        [prompt.tokens.tolist() for prompt in prompts],
        max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
        stop_ids=stop_ids,
    )


def scoring(scorer: interface.Scorer) -> Put[interface.Scores]:
    """Prompts are scored by one forward pass; padding stands after them, where nothing sees it."""

    def put(prompts: Sequence[Prompt]) -> list[interface.Scores]:
        sizes = [prompt.tokens.size for prompt in prompts]
        padded = [np.pad(p.tokens, (0, max(sizes) - p.tokens.size)) for p in prompts]
        scores = scorer.score(np.stack(padded))
        return [
            interface.Scores(scores.loss[k, : size - 1], scores.correct[k, : size - 1])
            for k, size in enumerate(sizes)
        ]

    return put


def ask(
    samples: Sequence[Sample[Reply]],
    put: Put[Reply],
    model: interface.Model,
    journal: Journal,
    *,
    micro_batch_size: int,
    description: str,
    shape: ModelConfig | None = None,
    cost: CostConfig | None = None,
) -> list[dict[str, Any]]:
    """What the journal has of ``samples``, in their order, when all are asked.

    Every rank calls it and gets all. Samples that the journal has are not asked again. Rows that
    are scored go by their length, so that padding is short; those that are continued in the order
    given, at most ``micro_batch_size`` at once. Without the ``shape`` of the model and ``cost`` no
    estimate is made.

    Raises:
        InputError: the evaluation is estimated above ``cost.max_cost``, a row has ids that the
            model does not know, or a loss is not a number.
    """
    pending = {sample.key: sample for sample in samples if sample.key not in journal.entries}
    rows = [(key, k, row) for key, one in pending.items() for k, row in enumerate(one.rows)]
    rows.sort(key=lambda one: 0 if one[2].keeps_place else one[2].num_tokens)
    if shape and cost:
        sizes = [(row.num_tokens, row.max_new_tokens) for _, _, row in rows]
        estimate = estimate_cost(shape, sizes, cost, ranks.world_size())
        check_cost(estimate, cost, is_main=model.is_main)
    judged: dict[str, dict[int, Any]] = {}
    for key, sample in pending.items():
        if not sample.rows:  # an empty text
            journal.add(key, sample.note([]))
    total = sum(row.num_all_tokens for _, _, row in rows)
    is_told = model.is_main and rows
    with progress(description, total, "tokens") if is_told else contextlib.nullcontext() as bar:
        for batch in _batches(rows, micro_batch_size):
            prompts = [row.make() for _, _, row in batch]
            for (_, _, row), prompt in zip(batch, prompts, strict=True):
                interface.check_ids(model, prompt.tokens, row.source)
            for (key, number, row), prompt, reply in zip(batch, prompts, put(prompts), strict=True):
                if isinstance(reply, interface.Scores):
                    size = prompt.tokens.size
                    what = f"checkpoint '{model.name}': {row.source} of {size} tokens"
                    interface.check_finite(reply, size, what)
                sample, found = pending[key], judged.setdefault(key, {})
                found[number] = row.judge(prompt, reply)
                if len(found) == len(sample.rows):
                    del judged[key]
                    note = sample.note([found[k] for k in range(len(found))])
                    journal.add(key, note, sync=lambda: None)  # on the disk with all of its batch
            journal.flush()
            if bar:
                bar.advance(sum(row.num_all_tokens for _, _, row in batch))
    return [journal.entries[one.key] for one in samples if one.key in journal.entries]


Part = tuple[str, int, Row[Reply]]
"""A row by the key of its sample and its number there."""


def _batches(rows: Sequence[Part[Reply]], size: int) -> Iterator[list[Part[Reply]]]:
    """Rows that are asked together: neighbours that are asked for answers of one length."""
    groups = itertools.groupby(rows, lambda part: (part[2].batch, part[2].max_new_tokens))
    for _, group in groups:
        while batch := list(itertools.islice(group, size)):
            yield batch
