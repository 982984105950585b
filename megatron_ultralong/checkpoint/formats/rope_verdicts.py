"""What inference engines make of a rope block, beside what the model was trained with."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from megatron_ultralong.checkpoint.formats.rope_readers import Engine, engines
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.model.shape import HeadDim, Positions, RotaryBase, check_even
from megatron_ultralong.program.errors import InputError, not_known
from megatron_ultralong.program.fields import check_ranges

_PARAMETERS = "it does not look into rope_parameters; an export has rope_scaling and rope_theta"
_EQUAL = 1e-9
"""Relative: two readings, both in float64."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one engine makes of one block."""

    engine: str
    version: str
    outcome: Literal["right", "right with flags", "wrong"]
    flags: str = ""
    """To serve with: then it is right."""
    why: str = ""
    """What it reads otherwise, and how far that is from the training; or why it is right."""

    @property
    def text(self) -> str:
        """For people."""
        if self.outcome == "right":
            return f"right {self.why}".rstrip()
        return f"right with {self.flags}" if self.flags else f"wrong: {self.why}"


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotary embedding: what was trained, and the block that states it.

    Its numbers are in the ranges of a model's, so that what is computed of it is bounded.

    Raises:
        InputError: a number is in no model.
    """

    scaling: yarn.RopeScaling
    block: Mapping[str, Any] | None
    positions: Positions
    """max_position_embeddings of a model."""
    head_dim: HeadDim
    """Size of one head: hidden_size over num_attention_heads where nothing else is stated."""
    base: RotaryBase
    """rope_theta, what rotary frequencies are powers of."""
    family: str = "llama"
    """model_type of the model, whose layers an engine runs."""
    in_parameters: bool = False
    """Its config.json has block or base in rope_parameters alone."""

    def __post_init__(self) -> None:
        check_ranges(self, where="rope")
        check_even(self.head_dim, "rope")

    def verdict(self, engine: Engine) -> Verdict:
        """What ``engine`` makes of the block, beside the training."""
        outcome = functools.partial(Verdict, engine.name, engine.version)
        reading = engine.of(self.family)
        if reading is None:
            return outcome("wrong", why=f"it loads no {FAMILIES[self.family].title}")
        if self.in_parameters and not reading.parameters:
            if self.base == engine.default_base(self.family) and not self._differences(None):
                return outcome("right", why=f"by its default (rope_theta {self.base:,.0f})")
            return outcome("wrong", why=_PARAMETERS)
        try:
            read = reading.scaling(self.block, self.positions)
        except InputError as error:
            return outcome("wrong", why=str(error))
        wrong = self._differences(read)
        if not wrong:
            return outcome("right")
        if not isinstance(self.scaling, yarn.YarnConfig) or not isinstance(read, yarn.YarnConfig):
            return outcome("wrong", why="; ".join(wrong.values()))
        flags = [
            engine.flags[name].format(
                **dataclasses.asdict(self.scaling),
                architecture=FAMILIES[self.family].gguf,
                attn_factor=self.scaling.attention_factor
                / yarn.yarn_attention_factor(self.scaling.scaling_factor),
            )
            for name in wrong
            if name in engine.flags
        ]
        told = wrong.keys() & engine.flags.keys()
        # a flag says its own field alone: the rest of what was read has to be right without
        says: tuple[str, ...] = ("beta_fast", "beta_slow") if "betas" in told else ()
        says += ("attention_factor",) if "temperature" in told else ()
        repaired = dataclasses.replace(read, **{f: getattr(self.scaling, f) for f in says})
        if not self._differences(repaired):
            return outcome("right with flags", " ".join(flags))
        return outcome("wrong", why="; ".join(wrong.values()))

    def _differences(self, read: yarn.RopeScaling) -> dict[str, str]:
        """What differs in cos and sin, by the field that is read otherwise; empty where nothing."""
        base = yarn.effective_rotary_base(self.scaling, self.head_dim, self.base)
        exact = yarn.inv_freq(self.scaling, self.head_dim, self.base)
        read_frequencies = yarn.inv_freq(read, self.head_dim, base)
        differences = {}
        if not np.allclose(read_frequencies, exact, rtol=_EQUAL, atol=0):
            worst = float(np.abs(np.log(read_frequencies / exact)).max())
            what = "rope_type"
            if isinstance(read, yarn.YarnConfig) and isinstance(self.scaling, yarn.YarnConfig):
                what = _field(read, self.scaling)
            differences[what] = (
                f"{what} read otherwise: frequencies off by up to x{math.exp(worst):.3g}"
            )
        factors = yarn.attention_factor(read), yarn.attention_factor(self.scaling)
        if not math.isclose(*factors, rel_tol=_EQUAL):
            text = f"temperature {factors[0]:.6g} for {factors[1]:.6g}"
            differences["temperature"] = text
        return differences


def _field(read: yarn.YarnConfig, trained: yarn.YarnConfig) -> str:
    if read.original_max_position_embeddings != trained.original_max_position_embeddings:
        return "original_max_position_embeddings"
    if read.scaling_factor != trained.scaling_factor:
        return "factor"
    if (read.beta_fast, read.beta_slow) != (trained.beta_fast, trained.beta_slow):
        return "betas"
    return "truncate"


def good_for(rope: Rope) -> dict[str, str]:
    """What every engine of the table makes of a block: ``{"vLLM 0.32.0": "right", ...}``.

    Versions that follow each other and do the same share a line.
    """
    verdicts = map(rope.verdict, engines())
    spans = itertools.groupby(verdicts, lambda verdict: (verdict.engine, verdict.text))
    return {f"{engine} {_span(same)}": text for (engine, text), same in spans}


def _span(same: Iterable[Verdict]) -> str:
    """Versions that follow each other in the table."""
    first, *others = (verdict.version for verdict in same)
    return f"{first} to {others[-1]}" if others else first


def oldest_transformers(rope: Rope) -> str:
    """``>=4.51``: from there on every release of transformers that was run reads the block."""
    oldest = ""
    for engine in reversed(engines()):
        if engine.name == "transformers":
            if rope.verdict(engine).outcome != "right":
                break
            oldest = engine.version
    if not oldest:
        return "none of those that were run"
    return f">={'.'.join(oldest.split('.')[:2])}"


def check_readers(rope: Rope, names: Iterable[str]) -> list[str]:
    """What to say of a block to those who serve it with the engines of ``names``.

    Raises:
        InputError: an engine is not known here, or its newest version reads the block otherwise.
    """
    said = []
    known = list(dict.fromkeys(engine.name for engine in engines()))
    for name in names:
        if name not in known:
            raise InputError(not_known("--for", name, known))
        verdicts = [rope.verdict(each) for each in engines() if each.name == name]
        newest = verdicts[-1]
        if newest.outcome == "wrong":
            raise InputError(
                f"--for {name}: {name} {newest.version} reads this rope block otherwise than it "
                f"was trained ({newest.why}): serve it with another engine, or leave --for out"
                + (_GGUF if (name, FAMILIES[rope.family].gguf) == ("llama.cpp", "llama") else "")
            )
        said += [
            f"{name} {_span(same)} {_NEEDS[outcome]} {flags}".rstrip()
            for (outcome, flags), same in itertools.groupby(
                verdicts, lambda verdict: (verdict.outcome, verdict.flags)
            )
            if outcome != "right"
        ]
    return said


_NEEDS = {"right with flags": "is right only with", "wrong": "reads this rope block otherwise"}
_GGUF = "; --format gguf states it as llama.cpp reads it"


def float32_angle_error(rope: Rope) -> float:
    """Largest error of cos and sin where angles are float32, as in every engine of the table.

    Over the last 2,048 positions: 0.07 over 1M positions, 0.3 to 0.4 over 4M.
    """
    frequencies = yarn.inv_freq(rope.scaling, rope.head_dim, rope.base)
    last = np.arange(max(0, rope.positions - 2048), rope.positions)
    rounded = last.astype(np.float32)[:, None] * frequencies.astype(np.float32)
    exact = last.astype(np.float64)[:, None] * frequencies
    wrong = rounded.astype(np.float64)
    return float(max(np.abs(of(wrong) - of(exact)).max() for of in (np.cos, np.sin)))
