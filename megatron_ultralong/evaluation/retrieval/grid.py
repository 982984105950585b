"""Passkeys and needles over a grid of lengths and depths: asked for, judged, counted by cell."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.read.record import read_named_text
from megatron_ultralong.evaluation.asking.questions import Entries, run_benchmark
from megatron_ultralong.evaluation.asking.samples import Prompt, Put, Row, Sample, scoring, writing
from megatron_ultralong.evaluation.models.interface import Scores, check_length
from megatron_ultralong.evaluation.models.language_models import Subject
from megatron_ultralong.evaluation.options import GridConfig, NeedleConfig, PasskeyConfig
from megatron_ultralong.evaluation.results import result
from megatron_ultralong.evaluation.retrieval import needle_prompt, passkey_prompt
from megatron_ultralong.program.journal import sample_key
from megatron_ultralong.sequence.documents import unit_hash

_ANSWER = 5
"""Tokens of an answer, for the estimate: its digits."""


_TIGHT = 512
"""Tokens below which a prompt may have room for one key, and not for another."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Prompts by length and depth."""

    kind: result.Kind
    config: GridConfig
    make: Callable[..., passkey_prompt.PasskeyPrompt]
    """The prompt of a length, a depth from 0 to 1, and an ``index`` that decides the rest."""
    decides: Mapping[str, Any]
    """JSON of all that a prompt depends on beside those three, and how it is judged."""
    material: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts that needles are hidden in, files by their SHA-256."""

    def prompt(self, length: int, depth: float, number: int) -> passkey_prompt.PasskeyPrompt:
        """Prompt ``number`` of a cell: the same in every grid that has this cell."""
        index = int(unit_hash(self.config.seed, f"{length}:{depth:g}:{number}") * 2**53)
        return self.make(length, depth / 100, index=index)


def evaluate_grid(grid: Grid, subject: Subject[Any]) -> result.Result:
    """Ask all prompts, print a table, write ``KIND.json`` and ``KIND.png``; every rank calls it.

    ``by: argmax`` needs a scorer: a prompt counts as retrieved when every token of the answer is
    the argmax where it is predicted. As long as that holds greedy decoding goes the same way, so
    ``by: decoding``, which needs a generator, agrees.

    Raises:
        InputError: a length beyond the trained positions or too short for a prompt, token ids that
            the model does not know, an output folder in use, or a cost above the limit.
    """
    model, config = subject.model, grid.config
    lengths = sorted(config.lengths)
    check_length(model, lengths[-1], config.beyond_trained_positions)
    depths = sorted(map(float, config.depths))
    places = list(itertools.product(lengths, depths, range(config.num_samples)))
    # Before the work starts; all of a length that some keys do not fit.
    for place in places:
        is_first = place[1:] == (depths[0], 0) and place[0] in (lengths[0], lengths[-1])
        if is_first or place[0] < _TIGHT:
            grid.prompt(*place)
    put: Put[Any] = scoring(model) if config.by == "argmax" else writing(model)
    return run_benchmark(
        *([_sample(grid, *place) for place in places], put, subject),
        kind=grid.kind,
        config=config,
        cells=_cells,
        decides=grid.decides,
        material=grid.material,
    )


def _sample(grid: Grid, length: int, depth: float, number: int) -> Sample[Any]:
    # By argmax every token passes the output layer; decoding makes logits for the answer alone.
    room = _ANSWER if grid.config.by == "decoding" else 0

    def make() -> Prompt:
        prompt = grid.prompt(length, depth, number)
        tokens = prompt.tokens[: prompt.answer_start] if room else prompt.tokens
        return Prompt(tokens, prompt, max_new_tokens=prompt.answer.size if room else 0)

    def judge(asked: Prompt, reply: Scores | list[int]) -> dict[str, Any]:
        prompt: passkey_prompt.PasskeyPrompt = asked.references
        if isinstance(reply, Scores):
            hit = prompt.hits(reply.correct)
        else:
            written = reply[: prompt.answer.size]
            hit = np.asarray(written) == prompt.answer
        return {
            "length": length,
            "depth": depth,
            "number": number,
            "answer": prompt.key,
            "num_answer_tokens": int(hit.size),
            "num_right": int(hit.sum()),
            "first_wrong": None if hit.all() else int(hit.argmin()),
            "is_retrieved": bool(hit.all()),
        }

    name = grid.kind.name
    key = sample_key(kind=name, sample=[length, depth, number], decides=dict(grid.decides))
    row = Row(length - room, make, judge, f"the {name} prompt", room, batch=str(length))
    return Sample(key, (row,))


def _cells(entries: Entries) -> tuple[result.ScoreCell, ...]:
    """Prompts of one length and depth, in the order in which they were asked."""
    groups = itertools.groupby(entries, lambda entry: (entry["length"], entry["depth"]))
    cells = []
    for (length, depth), group in groups:
        of_cell = list(group)
        right, of = (sum(e[name] for e in of_cell) for name in ("num_right", "num_answer_tokens"))
        hits = [float(entry["is_retrieved"]) for entry in of_cell]
        figures = {"token_accuracy": right / of}
        cells.append(result.mean_cell(result.depth_row(depth), str(length), hits, figures))
    return tuple(cells)


def needle_grid(
    config: NeedleConfig, encode: passkey_prompt.Encode, tokenizer_sha256: str = ""
) -> Grid:
    """Prompts with a sentence hidden in running text; arguments and errors of a passkey's."""
    config.check()
    haystack = (
        needle_prompt.of_files(encode, config.haystack)
        if config.haystack
        else needle_prompt.made_up(encode, config.seed)
    )
    num = config.num_distractors
    make = functools.partial(
        needle_prompt.needle_prompt,
        encode,
        seed=config.seed,
        haystack=haystack,
        num_distractors=num,
    )
    digests = [
        hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for file in dict.fromkeys(config.haystack)
    ]
    decides = {
        **_decides(config, digests, tokenizer_sha256),
        "version": needle_prompt.PROMPT_VERSION,
        "num_distractors": num,
    }
    material = {f"haystack {k}": digest for k, digest in enumerate(digests, 1)}
    return Grid(result.KINDS["needle"], config, make, decides, material)


def passkey_grid(
    config: PasskeyConfig, encode: passkey_prompt.Encode, tokenizer_sha256: str = ""
) -> Grid:
    """Prompts with a number hidden in noise, or in a text.

    ``encode`` is the model's tokenizer, without special tokens, ``tokenizer_sha256`` tells it from
    others.

    Raises:
        InputError: a flag is missing or out of range, or the haystack cannot be read.
    """
    config.check()
    text = read_named_text("haystack", config.haystack) if config.haystack else ""
    digest = hashlib.sha256(text.encode()).hexdigest() if config.haystack else ""
    haystack = np.asarray(encode(text), dtype=np.int64) if config.haystack else None
    make = functools.partial(
        passkey_prompt.passkey_prompt, encode, seed=config.seed, haystack=haystack
    )
    material = {"haystack": digest} if digest else {}
    decides = _decides(config, digest, tokenizer_sha256)
    return Grid(result.KINDS["passkey"], config, make, decides, material)


def _decides(config: GridConfig, haystack: Any, tokenizer_sha256: str) -> dict[str, Any]:
    """What every prompt depends on."""
    of_all = {"seed": config.seed, "by": config.by, "tokenizer": tokenizer_sha256}
    return {"haystack": haystack, **of_all}
