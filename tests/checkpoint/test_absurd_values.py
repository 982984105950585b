"""Absurd sizes and numbers in a model's files: one message, before anything is built of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.disk.metadata import unseal
from tests.checkpoint.limits import check_refused, little_memory
from tests.checkpoint.verbs import OPENS, write_inputs

__all__ = ["little_memory"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("absurd")
    write_inputs(folder)
    return folder


HUGE = 10**9
NAN, INFINITY = "NaN", "Infinity"
CONFIGS: dict[str, tuple[str, object]] = {
    f"{key} {value!r:.70}": (key, value)
    for key, values in {
        "num_hidden_layers": (HUGE, 10**12, 0, -1, 2.5, "2", True, None, [2], 10**400),
        "hidden_size": (HUGE, 0, -64, {}),
        "intermediate_size": (10**12, 0),
        "num_attention_heads": (HUGE, 0, 3),
        "num_key_value_heads": (HUGE, -1, 3),
        "head_dim": (HUGE, 7),
        "vocab_size": (10**12, 0),
        "rms_norm_eps": (NAN, INFINITY, 0, -1, 2.0, "1e-5"),
        "rope_theta": (NAN, INFINITY, "-Infinity", 0, -1.0, "x", [1]),
        "max_position_embeddings": (0, 10**30),
        "tie_word_embeddings": ("no", 1),
        "architectures": ("LlamaForCausalLM", [1], {"a": 1}),
        "rope_scaling": (
            "x",
            [1],
            {"rope_type": ["linear"], "factor": 2.0},
            {"rope_type": "linear", "factor": INFINITY},
            {"rope_type": "linear", "factor": 1e300},
            {"rope_type": "linear", "factor": "8"},
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10**20},
            {"rope_type": "yarn", "factor": 2.0, "attention_factor": NAN},
            {"rope_type": "longrope", "factor": 2.0},
            {"rope_type": "linear", "factor": 2.0, "short_factor": [1.0]},
            {"rope_type": "linear", "type": "yarn", "factor": 2.0},
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0},
        ),
    }.items()
    for value in values
}


def write_values(path: Path, **changes: object) -> None:
    """JSON as Python writes it: strings that name numbers JSON has not become such."""
    text = json.dumps({**json.loads(path.read_text()), **changes})
    for name in (NAN, "-Infinity", INFINITY):
        text = text.replace(f'"{name}"', name)
    path.write_text(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copytree(inputs / "hf", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    key, value = CONFIGS[name]
    values = json.loads(path.read_text())
    if key == "rope_theta":  # in either place
        values.pop("rope_parameters")
        path.write_text(json.dumps(values))
    write_values(path, **{key: value})
    hf = str(tmp_path / "hf")
    for words in (
        ["convert", "import", hf, str(tmp_path / "out")],
        ["convert", "verify", str(inputs / "base"), hf],
        OPENS["evaluate loss"](inputs, hf),
        OPENS["evaluate passkey"](inputs, hf),
    ):
        check_refused(capsys, words, tmp_path / "hf", "config.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("rope")])
def test_rotary_embeddings_that_nothing_but_the_configuration_states(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """No weights are compared with them, so the message names the file of the value."""
    key, value = CONFIGS[name]
    values = json.loads((inputs / "hf" / "config.json").read_text())
    values.pop("rope_parameters")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    write_values(path, **{key: value})
    plan = ["plan", "llama3.1-8b-1m", "--gpus", "64", "--model", str(tmp_path)]
    for words in (["convert", "inspect", str(path)], plan):
        check_refused(capsys, words, path)


PARAMS: dict[str, dict[str, object]] = {
    "layers": {"n_layers": HUGE},
    "dim": {"dim": HUGE},
    "dim is text": {"dim": "64"},
    "heads": {"n_heads": 0},
    "epsilon": {"norm_eps": NAN},
    "theta": {"rope_theta": INFINITY},
    "factor": {"use_scaled_rope": True, "rope_scaling_factor": -8},
    "scaled": {"use_scaled_rope": "yes"},
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_of_meta(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / "meta"
    if not (inputs / "meta").exists():
        words = ["convert", "export", str(inputs / "base"), str(inputs / "meta")]
        from megatron_ultralong import cli

        cli.main([*words, "--format", "meta"])
    shutil.copytree(inputs / "meta", folder)
    write_values(folder / "params.json", **PARAMS[name])
    words = ["convert", "import", str(folder), str(tmp_path / "out"), "--no-tokenizer"]
    check_refused(capsys, words, folder, "params.json")


METADATA: dict[str, Callable[[dict[str, Any]], object]] = {
    "layers": lambda v: v["model"].update(num_layers=HUGE),
    "layers and no file for them": lambda v: v["model"].update(num_layers=4000),
    "hidden size": lambda v: v["model"].update(hidden_size=2**20),
    "vocabulary": lambda v: v["model"].update(vocab_size=2**26),
    "vocabulary is text": lambda v: v["model"].update(vocab_size="336"),
    "epsilon": lambda v: v["model"].update(norm_epsilon=NAN),
    "base": lambda v: v["model"].update(rotary_base=0),
    "heads": lambda v: v["model"].update(num_attention_heads=3),
    "a key too many": lambda v: v["model"].update(code="x"),
    "a key too few": lambda v: v["model"].pop("num_layers"),
    "no model": lambda v: v.update(model=[]),
    "no scaling": lambda v: v.update(rope_scaling=None),
    "method": lambda v: v.update(rope_scaling={"method": ["none"]}),
    "factor": lambda v: v.update(rope_scaling={"method": "linear", "scaling_factor": INFINITY}),
    "separators": lambda v: v.update(separator_ids=[-1]),
    "precision": lambda v: v.update(angle_precision="code"),
    "version": lambda v: v.update(format_version="1"),
    "length": lambda v: v.update(trained_seq_length=10**30),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("verb", ["convert export", "generate", "pretrain"])
def test_metadata_of_ours(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, verb: str
) -> None:
    checkpoint = tmp_path / "copy"
    shutil.copytree(inputs / "base", checkpoint)
    path = checkpoint / "ultralong.json"
    values = json.loads(path.read_text())
    METADATA[name](values)
    path.write_text("{}")
    write_values(path, **values)
    unseal(checkpoint)
    check_refused(capsys, OPENS[verb](inputs, str(checkpoint)), checkpoint, "ultralong.json")
