"""What inference engines make of a rope block: the table behind an export's ``good_for``.

``rope_readers.json`` holds, for each engine and version, which keys of a block its own code reads.
``tools/engine_conformance.py table`` measures it: it runs each engine's code with blocks that
differ in one key, and keeps the one reading that explains all of its tables of cos and sin (of
llama.cpp: all of its log-probabilities). Here that reading is applied to a block, and what comes
out is compared with what the model was trained with.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from megatron_ultralong.model.yarn import (
    LinearConfig,
    RopeScaling,
    YarnConfig,
    attention_factor,
    effective_rotary_base,
    inv_freq,
    yarn_attention_factor,
)
from megatron_ultralong.program.errors import InputError

TABLE = Path(__file__).with_suffix(".json")
_EQUAL = 1e-9
"""Relative: two readings, both in float64."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which keys of a rope block decide, in one engine. Fields of ``yarn`` except for the first."""

    types: tuple[str, ...] = ("linear", "llama3", "yarn")
    """Rope types that are read; others are refused, or run without scaling."""
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

    def scaling(self, block: Mapping[str, Any] | None, positions: int) -> RopeScaling:
        """What the engine makes of ``block`` in a model of ``positions``.

        Raises:
            InputError: it refuses the block, or gets a factor out of it that none can have.
        """
        kind = (block or {}).get("rope_type", "default")
        if block is None or kind == "default":
            return None
        if kind not in self.types:
            raise InputError(f"rope_type {kind!r} is not read")
        factor, length = block["factor"], block.get("original_max_position_embeddings", positions)
        if kind == "linear":
            return LinearConfig(factor)
        if kind == "llama3":
            return YarnConfig(factor, length, block["high_freq_factor"], block["low_freq_factor"])
        if self.factor != "block":
            factor = positions / length
        betas = (block.get("beta_fast", 32.0), block.get("beta_slow", 1.0))
        return YarnConfig(
            factor,
            length if self.original == "block" else positions,
            *(betas if self.betas == "block" else (32.0, 1.0)),
            "dimensions",
            self._temperature(block, factor),
            block.get("truncate", True) if self.truncate == "block" else True,
        )

    def _temperature(self, block: Mapping[str, Any], factor: float) -> float:
        usual = yarn_attention_factor(factor)
        mscale, all_dim = block.get("mscale"), block.get("mscale_all_dim")
        stretch = usual - 1.0
        if self.temperature == "0.1 ln s + 1":
            return usual
        if self.temperature.startswith("mscale"):
            if self.temperature.endswith("both are there") and None in (mscale, all_dim):
                return usual
            mscale = 1.0 if mscale is None else mscale
            return float((stretch * mscale + 1.0) / (stretch * (all_dim or 0.0) + 1.0))
        if block.get("attention_factor") is not None:
            return float(block["attention_factor"])
        if self.temperature != "attention_factor" and mscale and all_dim:
            return float((stretch * mscale + 1.0) / (stretch * all_dim + 1.0))
        return usual


def readings() -> Iterable[Reading]:
    """Every reading that the table can state, those that look at more keys first."""
    hints = get_type_hints(Reading)
    choices = [get_args(hints[field.name]) for field in dataclasses.fields(Reading)[1:]]
    return (Reading(Reading.types, *values) for values in itertools.product(*choices))


@dataclasses.dataclass(frozen=True)
class Engine:
    """One version of one engine."""

    name: str
    version: str
    reading: Reading
    flags: Mapping[str, str]
    """What says a trait of the block on its command line, where the block does not: by field."""


@functools.cache
def engines() -> tuple[Engine, ...]:
    """The table, oldest versions first."""
    rows = json.loads(TABLE.read_text("utf-8"))
    return tuple(
        Engine(
            name,
            version,
            Reading(**{**reading, "types": tuple(reading["types"])}),
            row.get("flags", {}),
        )
        for name, row in rows.items()
        for version, reading in row["versions"].items()
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one engine makes of one block."""

    engine: str
    version: str
    outcome: Literal["right", "right with flags", "wrong"]
    flags: str = ""
    """To serve with: then it is right."""
    why: str = ""
    """What it reads otherwise, and how far that is from the training."""

    @property
    def text(self) -> str:
        """For people."""
        if self.outcome == "right":
            return "right"
        return f"right with {self.flags}" if self.flags else f"wrong: {self.why}"


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotary embedding: what was trained, and the block that states it."""

    scaling: RopeScaling
    block: Mapping[str, Any] | None
    positions: int
    head_dim: int
    base: float

    def verdict(self, engine: Engine) -> Verdict:
        """What ``engine`` makes of the block, beside the training."""
        outcome = functools.partial(Verdict, engine.name, engine.version)
        try:
            read = engine.reading.scaling(self.block, self.positions)
        except InputError as error:
            return outcome("wrong", why=str(error))
        wrong = self._differences(read)
        if not wrong:
            return outcome("right")
        assert isinstance(self.scaling, YarnConfig), "only yarn blocks are read in several ways"
        flags = [
            engine.flags[name].format(
                **dataclasses.asdict(self.scaling),
                attn_factor=self.scaling.attention_factor
                / yarn_attention_factor(self.scaling.scaling_factor),
            )
            for name in wrong
            if name in engine.flags
        ]
        told = wrong.keys() & engine.flags.keys()
        # a flag says its own field alone: the rest of what was read has to be right without
        says = ("beta_fast", "beta_slow") if "betas" in told else ()
        says += ("attention_factor",) if "temperature" in told else ()
        assert isinstance(read, YarnConfig)
        repaired = dataclasses.replace(read, **{f: getattr(self.scaling, f) for f in says})
        if not self._differences(repaired):
            return outcome("right with flags", " ".join(flags))
        return outcome("wrong", why="; ".join(wrong.values()))

    def _differences(self, read: RopeScaling) -> dict[str, str]:
        """What differs in cos and sin, by the field that is read otherwise; empty where nothing."""
        base = effective_rotary_base(self.scaling, self.head_dim, self.base)
        exact = inv_freq(self.scaling, self.head_dim, self.base)
        read_frequencies = inv_freq(read, self.head_dim, base)
        differences = {}
        if not np.allclose(read_frequencies, exact, rtol=_EQUAL, atol=0):
            worst = float(np.abs(np.log(read_frequencies / exact)).max())
            what = "frequencies"
            if isinstance(read, YarnConfig) and isinstance(self.scaling, YarnConfig):
                what = _field(read, self.scaling)
            differences[what] = (
                f"{what} read otherwise: frequencies off by up to x{math.exp(worst):.3g}"
            )
        factors = attention_factor(read), attention_factor(self.scaling)
        if not math.isclose(*factors, rel_tol=_EQUAL):
            text = f"temperature {factors[0]:.6g} for {factors[1]:.6g}"
            differences["temperature"] = text
        return differences


def _field(read: YarnConfig, trained: YarnConfig) -> str:
    if read.original_max_position_embeddings != trained.original_max_position_embeddings:
        return "original_max_position_embeddings"
    if read.scaling_factor != trained.scaling_factor:
        return "factor"
    if (read.beta_fast, read.beta_slow) != (trained.beta_fast, trained.beta_slow):
        return "betas"
    return "truncate"


def float32_angle_error(frequencies: np.ndarray[Any, Any], positions: int) -> float:
    """Largest error of cos and sin where angles are float32, as in every engine of the table.

    Over the last 2,048 of ``positions``: 0.07 over 1M positions, 0.3 to 0.4 over 4M.
    """
    last = np.arange(max(0, positions - 2048), positions)
    rounded = last.astype(np.float32)[:, None] * frequencies.astype(np.float32)
    exact = last.astype(np.float64)[:, None] * frequencies
    return max(
        float(np.abs(of(rounded.astype(np.float64)) - of(exact)).max()) for of in (np.cos, np.sin)
    )
