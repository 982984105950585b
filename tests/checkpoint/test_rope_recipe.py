"""``convert inspect`` of a lone config.json: which recipe its rope block is, whatever its words."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.report import inspect
from megatron_ultralong.checkpoint.formats.rope_block import rope_scaling, rotary_base
from megatron_ultralong.cli.dispatch import _parse
from megatron_ultralong.cli.verbs import VERBS
from megatron_ultralong.config.convert import InspectConfig
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.rope_recipe import as_flags, flags, rope_recipe
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject
from tests.checkpoint.test_gguf import MORE
from tests.checkpoint.verbs import refusal
from tools.export_matrix.random_blocks import random_config

ULTRALONG = {"head_dim": 128, "rope_theta": 500000.0, "architectures": ["LlamaForCausalLM"]}
OVER_8192 = {"factor": 128.0, "original_max_position_embeddings": 8192}


def write(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**ULTRALONG, "max_position_embeddings": 1_073_152, **values}))
    return path


READINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama3": (
        {"rope_type": "llama3", **OVER_8192, "low_freq_factor": 1, "high_freq_factor": 4},
        "none (1.0; YaRN's own would be 0.1 ln s + 1 = 1.4852)",
        "llama3.1-8b-1m",
    ),
    "yarn": (
        {"type": "yarn", **OVER_8192, "beta_fast": 4, "beta_slow": 1, "finetuned": True},
        "YaRN's own (0.1 ln s + 1 = 1.4852)",
        "llama3.1-8b-1m with --ramp dimensions --attention-factor yarn",
    ),
    "yarn, said twice": (
        {"rope_type": "yarn", "type": "yarn", **OVER_8192, "beta_fast": 4.0, "beta_slow": 1.0,
         "attention_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": True},
        "none (1.0; YaRN's own would be 0.1 ln s + 1 = 1.4852)",
        "llama3.1-8b-1m with --ramp dimensions",
    ),
    "yarn with transformers' betas": (
        {"rope_type": "yarn", **OVER_8192, "attention_factor": 1.25},
        "1.25 (YaRN's own would be 0.1 ln s + 1 = 1.4852)",
        "llama3.1-8b-1m with --beta-fast 32 --ramp dimensions --attention-factor 1.25",
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("block", "temperature", "recipe"), READINGS.values(), ids=READINGS)
def test_readings_of_the_published_model(
    tmp_path: Path, block: dict[str, Any], temperature: str, recipe: str, key: str
) -> None:
    path = write(tmp_path, **{key: block})
    for where in (path, tmp_path):
        found = inspect(InspectConfig(where))["rope_recipe"]
        assert found["temperature"] == temperature
        assert found["recipes"] == [recipe]
        assert found["positions"] == "1,073,152, where factor x original is 1,048,576"
        scaling = rope_scaling(
            JsonObject({**ULTRALONG, key: block, "max_position_embeddings": 8}, "c")
        )
        assert of_flags(found["flags"]) == scaling


def of_flags(words: str) -> yarn.RopeScaling:
    """What ``convert import`` makes of the flags."""
    verb = next(verb for name, verb in VERBS.items() if name == "convert import")
    return _parse(verb, "convert import", ["SRC", "DST", *shlex.split(words)]).rope.scaling(None)


def test_flags_make_the_same_scaling() -> None:
    rng = random.Random(0)
    some: list[yarn.RopeScaling] = [*MORE.values()]
    for _ in range(10):
        factor, ramp = rng.uniform(1, 600), rng.choice(["rotations", "dimensions"])
        some.append(
            yarn.YarnConfig(factor, rng.randrange(1, 10**6), rng.uniform(2, 64), rng.uniform(0, 2),
                            ramp, rng.choice([1.0, yarn.yarn_attention_factor(factor), 0.7]))
        )  # fmt: skip
    for scaling in some:
        config = as_flags(scaling)
        if config is None:
            assert isinstance(scaling, yarn.YarnConfig)
            assert not scaling.truncate
        else:
            assert of_flags(flags(config)) == scaling


def test_recipes_are_recognised() -> None:
    for name, recipe in PRETRAIN_RECIPES.items():
        scaling = recipe().rope.scaling(None)
        assert name in rope_recipe(scaling, 4096)["recipes"], name


def test_what_is_shown_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, architectures=["Qwen3MoeForCausalLM"], rope_scaling=None)
    cli.main(["convert", "inspect", str(path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "it needs a mixture of experts (MoE)" in shown
    assert "plain frequencies of rope_theta" in shown
    write(tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert "'dynamic' is not supported; known: default, linear, llama3, yarn" in refusal(
        capsys, ["convert", "inspect", str(tmp_path)]
    )
    (tmp_path / "model.safetensors").write_bytes(b"")  # a model then, and not a whole one
    assert "key hidden_size is missing" in refusal(capsys, ["convert", "inspect", str(tmp_path)])


def judged(config: dict[str, Any]) -> tuple[np.ndarray, float] | None:
    """Frequencies and temperature in transformers; None: it does not run such a model."""
    try:
        rotary = LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(config))))
    except Exception:  # of any kind
        return None
    return rotary.inv_freq.double().numpy(), float(rotary.attention_scaling)


def read_here(config: dict[str, Any]) -> tuple[yarn.RopeScaling, float] | str:
    """Scaling and base, or why they are refused."""
    try:
        its = JsonObject(config, "c")
        return rope_scaling(its), rotary_base(its)
    except InputError as error:
        return str(error)


def test_any_block_is_read_as_transformers_reads_it_or_refused() -> None:
    """What is read here has transformers' frequencies; what is not is refused with a reason."""
    num_read = num_refused = 0
    for seed in range(1000):
        config = random_config(random.Random(seed))
        found = read_here(config)
        if isinstance(found, str):
            assert found.startswith("c: "), seed
            num_refused += 1
            continue
        scaling, base = found
        num_read += 1
        judge = judged(config)
        assert judge is not None, (seed, config)
        exact, plain = yarn.inv_freq(scaling, 64, base), yarn.rope_inv_freq(64, base)
        # float32 there: products round by 2^-24 each, and the ramp by 2^-22 of the plain frequency
        assert (abs(judge[0] - exact) <= 1e-6 * exact + 2.0**-22 * plain).all(), (seed, config)
        assert yarn.attention_factor(scaling) == pytest.approx(judge[1], rel=1e-9), (seed, config)
    assert num_read > 150
    assert num_refused > 300
