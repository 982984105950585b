"""Every block in every engine: what it computes, beside transformers and beside ``good_for``."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.checkpoint.formats.rope_readers import Engine, Verdict, engines
from megatron_ultralong.model.yarn import (
    YarnConfig,
    attention_factor,
    inv_freq,
    raw_context,
    yarn_attention_factor,
)
from megatron_ultralong.program.aside import write_aside

from .environments import llama_cpp, python, run
from .models import GREEDY, Model
from .readings import ALIKE, exact

RIGHT = 1e-3
"""Largest difference of log-probabilities of what is right. Healthy engines gave up to 2.4e-4, in
float32 over other orders of summation; another rotary embedding gives 0.1 and more."""
SOURCE_ONLY = ("sglang", "exllamav3")
"""Of these the rope code is run, and its cos and sin compared."""
_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Cell:
    """One block in one version of one engine."""

    block: str
    verdict: Verdict
    difference: float
    """Of log-probabilities, or of cos and sin; infinite where it was refused."""
    greedy: int | None
    """Tokens of :data:`GREEDY` that are transformers' own."""
    with_flags: tuple[float, int] | None = None
    """The same with the flags that the verdict names."""
    identical: bool | None = None
    """transformers: every logit is bit-identical without the keys that are said twice."""
    error: str = ""

    @property
    def is_right(self) -> bool:
        """By what was computed, without flags."""
        return _is_right(self.verdict.engine, self.difference, self.greedy)

    @property
    def trouble(self) -> str:
        """Empty: it is right, or wrong and named so, with flags that make it right."""
        outcome = self.verdict.outcome
        if self.error and outcome != "wrong":
            return f"called {outcome}, and refused: {self.error}"
        if self.is_right != (outcome == "right"):
            was = "right" if self.is_right else "wrong"
            return f"{was} by {self.difference:.3g}, and called {outcome}"
        if outcome == "right with flags":
            assert self.with_flags is not None, "flags are tried"
            if not _is_right(self.verdict.engine, *self.with_flags):
                return f"wrong by {self.with_flags[0]:.3g} with {self.verdict.flags}"
        if self.identical is False and outcome == "right":
            return "other logits without the keys that are said twice"
        return ""


def _is_right(engine: str, difference: float, greedy: int | None) -> bool:
    if engine in SOURCE_ONLY:
        return difference < ALIKE
    return difference < RIGHT and greedy == GREEDY


def cells(folder: Path, engine: Engine, models: Sequence[Model]) -> Iterator[Cell]:
    """Run one engine, installed below ``folder``, on all models."""
    print(f"{engine.name} {engine.version}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        work = Path(place)
        verdicts = [model.rope.verdict(engine) for model in models]
        if engine.name in SOURCE_ONLY:
            yield from _source_cells(folder, work, engine, models, verdicts)
            return
        jobs = [
            _job(work, engine, model, verdict, flags=flags)
            for flags in (False, True)
            for model, verdict in zip(models, verdicts, strict=True)
            if not flags or verdict.outcome == "right with flags"
        ]
        if conversions := [job.pop("converted") for job in jobs if "converted" in job]:
            convert(folder, conversions)
        plain = _plain_jobs(work, engine, models) if engine.name == "transformers" else []
        answers = _run(folder, work, engine, jobs + plain)
        told = iter(answers[len(models) :])
        for number, (model, verdict) in enumerate(zip(models, verdicts, strict=True)):
            flagged = verdict.outcome == "right with flags"
            with_flags = compared(model, next(told)) if flagged else None
            answer = answers[number]
            yield Cell(
                model.name,
                verdict,
                *compared(model, answer),
                with_flags,
                _identical(jobs[number], plain[number]) if plain else None,
                answer.get("error", ""),
            )


def _job(
    work: Path, engine: Engine, model: Model, verdict: Verdict, *, flags: bool
) -> dict[str, Any]:
    job: dict[str, Any] = {
        "model": str(model.folder),
        "prompt": model.prompt,
        "continuation": model.continuation,
        "logits": str(work / f"{model.name.replace('/', '-')}.npy"),
    }
    if engine.name == "llama.cpp":
        name = f"{model.name.replace('/', '-')}{'-flags' if flags else ''}.gguf"
        factor = _attn_factor(model) if flags and "attn_factor" in verdict.flags else None
        job["model"], job["converted"] = str(work / name), (model.folder, work / name, factor)
        scaling = model.rope.scaling
        if flags and "beta" in verdict.flags:
            assert isinstance(scaling, YarnConfig)
            betas = {"yarn_beta_fast": scaling.beta_fast, "yarn_beta_slow": scaling.beta_slow}
            job["flags"] = betas
    return job


def _attn_factor(model: Model) -> float:
    scaling = model.rope.scaling
    assert isinstance(scaling, YarnConfig)
    return scaling.attention_factor / yarn_attention_factor(scaling.scaling_factor)


def convert(folder: Path, jobs: Sequence[tuple[Path, Path, float | None]]) -> None:
    """Models in GGUF by llama.cpp's own converter: folder, output, ``attn_factor`` or None."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(jobs, file, default=str)
        file.flush()
        run(Path(sys.executable), _HERE / "llama_cpp_convert.py", llama_cpp(folder), file.name)


def _plain_jobs(work: Path, engine: Engine, models: Sequence[Model]) -> list[dict[str, Any]]:
    return [
        {
            "model": str(model.plain),
            "prompt": model.prompt,
            "continuation": model.continuation,
            "logits": str(work / f"{model.name.replace('/', '-')}-plain.npy"),
        }
        for model in models
    ]


def _run(
    folder: Path, work: Path, engine: Engine, jobs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    asked, answered = work / "jobs.json", work / "answers.json"
    asked.write_text(json.dumps(jobs))
    interpreter = python(folder, engine.name, engine.version)
    run(interpreter, _HERE / "logits_probe.py", engine.name, asked, answered)
    answers: list[dict[str, Any]] = json.loads(answered.read_text())
    return answers


def compared(model: Model, answer: dict[str, Any]) -> tuple[float, int]:
    """Largest difference of log-probabilities, and tokens that are the same."""
    if "error" in answer:
        return float("inf"), 0
    told = np.array(answer["log_probabilities"])
    return float(np.abs(told - model.log_probabilities).max()), sum(answer["greedy"])


def _identical(job: dict[str, Any], plain: dict[str, Any]) -> bool:
    paths = [Path(each["logits"]) for each in (job, plain)]
    if not all(path.is_file() for path in paths):
        return False
    with_keys, without = (np.load(path) for path in paths)
    return bool((with_keys.view(np.int32) == without.view(np.int32)).all())


def _source_cells(
    folder: Path, work: Path, engine: Engine, models: Sequence[Model], verdicts: Sequence[Verdict]
) -> Iterator[Cell]:
    """Cos and sin of the positions of each prompt, and some more."""
    jobs = [
        {
            "block": model.rope.block,
            "positions": model.rope.positions,
            "head_dim": model.rope.head_dim,
            "base": model.rope.base,
            "at": [[0, _scaled_positions(model)]],
            "family": model.rope.family,
        }
        for model in models
    ]
    (work / "jobs.json").write_text(json.dumps(jobs))
    interpreter = python(folder, engine.name)
    run(interpreter, _HERE / "rope_probe.py", engine.name, work / "jobs.json", work)
    errors = json.loads((work / "found.json").read_text())["errors"]
    for number, (model, verdict) in enumerate(zip(models, verdicts, strict=True)):
        if str(number) in errors:
            error = errors[str(number)]
            yield Cell(model.name, verdict, float("inf"), None, error=error)
            continue
        rope = model.rope
        frequencies = inv_freq(rope.scaling, rope.head_dim, rope.base)
        table = exact(frequencies, [(0, _scaled_positions(model))]) * attention_factor(rope.scaling)
        seen = np.load(work / f"{number}.npy").astype(np.float64)
        yield Cell(model.name, verdict, float(np.abs(table - seen).max()), None)


def _scaled_positions(model: Model) -> int:
    """The factor times the original context: SGLang's table is as long."""
    scaling, positions = model.rope.scaling, model.rope.positions
    factor = 1.0 if scaling is None else scaling.scaling_factor
    return min(positions, int(factor * raw_context(scaling, positions)))


def stored(path: Path) -> dict[str, tuple[str, Cell]]:
    """Cells of earlier calls, by model, block, engine and version, with the model's name."""
    found = {}
    for title, cell in json.loads(path.read_text()) if path.is_file() else []:
        flags = tuple(cell["with_flags"]) if cell["with_flags"] else None
        verdict = Verdict(**cell["verdict"])
        one = Cell(**{**cell, "verdict": verdict, "with_flags": flags})
        found[_place(title, one)] = title, one
    return found


def store(path: Path, cells: dict[str, tuple[str, Cell]], title: str, cell: Cell) -> None:
    """Add a cell to ``cells``, and write them all to ``path``."""
    cells[_place(title, cell)] = title, cell
    values = [(title, dataclasses.asdict(one)) for title, one in cells.values()]
    write_aside(path, json.dumps(values, indent=1))


def _place(title: str, cell: Cell) -> str:
    return f"{title}, {cell.block}, {cell.verdict.engine} {cell.verdict.version}"


def chosen(names: Sequence[str], releases: Sequence[str]) -> list[Engine]:
    """Engines of the table by name; of transformers the ``releases`` alone."""
    return [
        engine
        for engine in engines()
        if engine.name in names and (engine.name != "transformers" or engine.version in releases)
    ]
