"""What recipe a rotary scaling is, in words, and the flags that train with it."""

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.rope import OF_YARN, RopeConfig
from megatron_ultralong.model import yarn

_RAMPS = {
    "rotations": "by rotations (the YaRN paper's equation; rope_type llama3)",
    "dimensions": "by dimensions (rope_type yarn, Megatron-Core)",
}


def rope_recipe(scaling: yarn.RopeScaling, positions: int) -> dict[str, Any]:
    """A rotary scaling of a model with ``positions``, for people: texts and numbers by name.

    ``flags`` make the same scaling in ``pretrain`` and ``convert import``; None where no flags do.
    """
    if scaling is None:
        said: dict[str, Any] = {
            "method": "no scaling is stated: plain frequencies of rope_theta. (A model that was "
            "extended by NTK-aware scaling, a larger rope_theta, cannot be told from this)",
        }
    elif isinstance(scaling, yarn.YarnConfig):
        said = _of_yarn(scaling)
    else:
        name = "linear" if isinstance(scaling, yarn.LinearConfig) else "NTK-aware"
        said = {"method": f"{name} scaling", "factor": scaling.scaling_factor}
    config = as_flags(scaling)
    return {
        **said,
        "positions": _positions(scaling, positions),
        "recipes": [] if config is None else list(_recipes(config)),
        "flags": None if config is None else flags(config),
    }


def _of_yarn(scaling: yarn.YarnConfig) -> dict[str, Any]:
    usual = yarn.yarn_attention_factor(scaling.scaling_factor)
    factor = scaling.attention_factor
    if factor == 1.0:
        temperature = f"none (1.0; YaRN's own would be 0.1 ln s + 1 = {usual:.6g})"
    elif factor == usual:
        temperature = f"YaRN's own (0.1 ln s + 1 = {usual:.6g})"
    else:
        temperature = f"{factor:.6g} (YaRN's own would be 0.1 ln s + 1 = {usual:.6g})"
    ramp = _RAMPS[scaling.ramp]
    return {
        "method": "YaRN over the unscaled rope_theta",
        "ramp": ramp + ("" if scaling.truncate else ", its ends not rounded (truncate false)"),
        "factor": scaling.scaling_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "temperature": temperature,
    }


def _positions(scaling: yarn.RopeScaling, positions: int) -> str:
    text = f"{positions:,}"
    if not isinstance(scaling, yarn.YarnConfig):
        return text
    implied = scaling.scaling_factor * scaling.original_max_position_embeddings
    if positions == implied:
        return f"{text}, which is factor x original"
    return f"{text}, where factor x original is {implied:,.10g}"


def as_flags(scaling: yarn.RopeScaling) -> RopeConfig | None:
    """The options that make ``scaling``; None: ends of a ramp that are not rounded have none."""
    if scaling is None:
        return RopeConfig("none")
    if isinstance(scaling, yarn.LinearConfig):
        return RopeConfig("linear", scaling.scaling_factor)
    if isinstance(scaling, yarn.NtkConfig):
        return RopeConfig("ntk", scaling.scaling_factor)
    factor = scaling.attention_factor
    is_usual = factor == yarn.yarn_attention_factor(scaling.scaling_factor) != 1.0
    config = RopeConfig(
        "yarn",
        scaling.scaling_factor,
        scaling.original_max_position_embeddings,
        scaling.beta_fast,
        scaling.beta_slow,
        scaling.ramp,
        "yarn" if is_usual else factor,
    )
    return config if config.scaling(None) == scaling else None


def _recipes(config: RopeConfig) -> Iterator[str]:
    """Recipes with that factor over that context, and the options that differ."""
    for name, recipe in PRETRAIN_RECIPES.items():
        rope = recipe().rope
        if any(getattr(rope, key) != getattr(config, key) for key in _NAMES[:3]):
            continue
        differing = [key for key in _NAMES[3:] if getattr(rope, key) != getattr(config, key)]
        yield name + (f" with {_said(config, differing)}" if differing else "")


_NAMES = ("rope_scaling", *OF_YARN)


def flags(config: RopeConfig) -> str:
    """The command line of ``config``: every option that its method looks at."""
    return _said(config, ("rope_scaling", *config.read_fields))


def _said(config: RopeConfig, names: Sequence[str]) -> str:
    words = ((name.replace("_", "-"), getattr(config, name)) for name in names)
    return " ".join(f"--{name} {_number(value)}" for name, value in words)


def _number(value: str | float) -> str:
    """Read back it is the same number."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
