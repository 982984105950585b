"""Which keys of a rope block inference engines read: the table behind an export's ``good_for``.

``rope_readers.json`` holds, for each engine and version, which keys of a block its own code reads.
``tools/engine_conformance.py table`` measures it: it runs each engine's code with blocks that
differ in one key, and keeps the one reading that explains all of its tables of cos and sin (of
llama.cpp: all of its log-probabilities). A family of models has a row of its own where an engine
reads its blocks otherwise than a Llama's, or does not load it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json

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


def readings() -> Iterable[Reading]:
    """Every reading that the table can state, those that look at more keys first."""
    hints = get_type_hints(Reading)
    choices = [get_args(hints[field.name]) for field in dataclasses.fields(Reading)[3:]]
    return (Reading(Reading.types, (), True, *values) for values in itertools.product(*choices))


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
    rows = read_json(TABLE)
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
