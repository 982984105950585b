"""Which keys of a rope block inference engines read, and what they make of one: ``good_for``.

``rope_readers.json`` holds, for each engine and version, which keys of a block its own code reads.
``tools/engine_conformance.py table`` measures it: it runs each engine's code with blocks that
differ in one key, and keeps the one reading that explains all of its tables of cos and sin (of
llama.cpp: all of its log-probabilities). A family of models has a row of its own where an engine
reads its blocks otherwise than a Llama's, or does not load it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_ultralong.model import shape, yarn
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.program import fields, json_file
from megatron_ultralong.program.errors import InputError, not_known

TABLE = Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which keys of a rope block decide, in one engine: of ``yarn``, behind the first three."""

    types: tuple[str, ...] = ("linear", "llama3", "yarn")
    """Rope types that are read; others are refused."""
    ignored: tuple[str, ...] = ()
    """Rope types that are run without scaling, and nothing is said."""
    parameters: bool = True
    """A block and a base in ``rope_parameters`` are read, where transformers 5 saves them."""
    original: Literal["block", "max_position_embeddings"] = "block"
    factor: Literal["block", "max_position_embeddings / original"] = "block"
    betas: Literal["block", "32 and 1"] = "block"
    temperature: Literal[
        "attention_factor",
        "attention_factor, else both mscales",
        "mscale over mscale_all_dim",
        "mscale over mscale_all_dim, where both are there",
        "0.1 ln s + 1",
    ] = "attention_factor, else both mscales"
    truncate: Literal["block", "true"] = "block"

    def drops(self) -> list[str]:
        """What is read otherwise than in an export, whose temperature is said in both ways."""
        others = [kind for kind in Reading.types if kind not in self.types]
        said = [f"{kind} is {_IGNORED[kind in self.ignored]}" for kind in others]
        for name, text in _DROPPED.items():
            value = getattr(self, name)
            if value in text:
                said.append(text[value])
        return said

    def scaling(self, block: Mapping[str, Any] | None, positions: int) -> yarn.RopeScaling:
        """What the engine makes of ``block`` in a model of ``positions``.

        Raises:
            InputError: it refuses the block, or gets a factor out of it that none can have.
        """
        kind = (block or {}).get("rope_type", "default")
        if block is None or kind == "default" or kind in self.ignored:
            return None
        if kind not in self.types:
            raise InputError(f"rope_type {kind!r} is not read")
        factor, length = block["factor"], block.get("original_max_position_embeddings", positions)
        if kind == "linear":
            return yarn.LinearConfig(factor)
        if kind == "llama3":
            return yarn.YarnConfig(
                factor, length, block["high_freq_factor"], block["low_freq_factor"]
            )
        if self.factor != "block":
            factor = positions / length
        fast, slow = 32.0, 1.0
        if self.betas == "block":
            fast, slow = block.get("beta_fast", fast), block.get("beta_slow", slow)
        return yarn.YarnConfig(
            factor,
            length if self.original == "block" else positions,
            fast,
            slow,
            "dimensions",
            self._temperature(block, factor),
            block.get("truncate", True) if self.truncate == "block" else True,
        )

    def _temperature(self, block: Mapping[str, Any], factor: float) -> float:
        usual = yarn.yarn_attention_factor(factor)
        mscale, all_dim = block.get("mscale"), block.get("mscale_all_dim")
        if self.temperature == "0.1 ln s + 1":
            return usual
        if self.temperature.startswith("mscale"):
            if self.temperature.endswith("both are there") and None in (mscale, all_dim):
                return usual
            mscale = 1.0 if mscale is None else mscale
            return yarn.mscale_attention_factor(factor, mscale, all_dim or 0.0)
        if block.get("attention_factor") is not None:
            return float(block["attention_factor"])
        if self.temperature != "attention_factor" and mscale and all_dim:
            return yarn.mscale_attention_factor(factor, mscale, all_dim)
        return usual


_IGNORED = ("not read", "run without scaling")
_DROPPED: Mapping[str, Mapping[str, str]] = {
    "original": {"max_position_embeddings": "its original length is max_position_embeddings"},
    "factor": {
        "max_position_embeddings / original": "its factor is max_position_embeddings / original"
    },
    "betas": {"32 and 1": "its betas are 32 and 1"},
    "temperature": {"0.1 ln s + 1": "its temperature is 0.1 ln s + 1"},
    "truncate": {"true": "the ends of its ramp are rounded"},
}


@dataclasses.dataclass(frozen=True)
class Engine:
    """One version of one engine."""

    name: str
    version: str
    reading: Reading
    flags: Mapping[str, str]
    """What says a trait of the block on its command line, where the block does not: by field."""
    families: Mapping[str, Reading | None] = dataclasses.field(default_factory=dict)
    """By ``model_type``, where it is another than a Llama's; None: it loads no such model."""

    def of(self, family: str) -> Reading | None:
        """How it reads the block of a model of ``family``; None: it loads no such model."""
        return self.families.get(family, self.reading)

    def default_base(self, family: str) -> float | None:
        """The base of a model whose ``config.json`` has no ``rope_theta`` where it looks for it."""
        return _DEFAULT_BASES.get(self.name, {}).get(family)

    def drops(self) -> list[str]:
        """What is read otherwise than in an export, also where it is so in one family alone."""
        said = self.reading.drops()
        for family, reading in self.families.items():
            its = reading.drops() if reading else ["no model"]
            said += [f"{FAMILIES[family].title}: {text}" for text in its if text not in said]
        return said


_DEFAULT_BASES: Mapping[str, Mapping[str, float]] = {
    "transformers": dict.fromkeys(FAMILIES, 10000.0),  # 4.43.4 to 4.57.6: their config classes
    "mlx-lm": {"llama": 10000.0, "mistral": 10000.0, "qwen2": 1000000.0},
}
"""Of the engines that do not look into ``rope_parameters``, by family."""


@functools.cache
def engines() -> tuple[Engine, ...]:
    """The table, oldest versions first."""
    rows = json_file.read_json(TABLE)
    return tuple(
        Engine(
            name,
            version,
            _reading(values),
            row["flags"],
            {
                family: _reading(its[version]) if its[version] else None
                for family, its in row["families"].items()
                if version in its
            },
        )
        for name, row in rows.items()
        for version, values in row["versions"].items()
    )


def _reading(values: Mapping[str, Any]) -> Reading:
    lists = {name: tuple(values[name]) for name in ("types", "ignored")}
    return Reading(**{**values, **lists})


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
    positions: shape.Positions
    """max_position_embeddings of a model."""
    head_dim: shape.HeadDim
    """Size of one head: hidden_size over num_attention_heads where nothing else is stated."""
    base: shape.RotaryBase
    """rope_theta, what rotary frequencies are powers of."""
    family: str = "llama"
    """model_type of the model, whose layers an engine runs."""
    in_parameters: bool = False
    """Its config.json has block or base in rope_parameters alone."""

    def __post_init__(self) -> None:
        fields.check_ranges(self, where="rope")
        shape.check_even(self.head_dim, "rope")

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
