"""Weights of other families, imported here, in Megatron-LM alone and with the drop-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.logits.megatron_model import megatron_logits
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from tests.dropin.megatron_lm import Tiny, needs_megatron_lm, tiny_message, tiny_run
from tests.models import write_model
from tests.ranks import run_on_ranks

needs_megatron_lm()

FLAGS = {"qwen2": "--add-qkv-bias", "qwen3": "--qk-layernorm"}
_SHAPE = """
    --group-query-attention --num-query-groups 2 --kv-channels 32 --ffn-hidden-size 96
    --norm-epsilon 1e-6 --auto-detect-ckpt-format --ckpt-format torch_dist
    --finetune --no-load-optim --no-load-rng --calculate-per-token-loss
"""
SPEC = ("--spec", "megatron_ultralong.spec", "ring_local_spec")
CP2 = ("--context-parallel-size", "2")


def base(folder: Path, family: str) -> Path:
    """A model of :data:`~tools.dropin_flags.variants.BASE`'s shape, with heads of 32."""
    write_model(folder / "hf", family, num_hidden_layers=2, head_dim=32, vocab_size=201)
    import_checkpoint(ImportConfig(folder / "hf", folder / "base", tokenizer=False))
    return folder / "base"


def words(load: Path, family: str) -> tuple[str, ...]:
    return ("--load", str(load), *_SHAPE.split(), FLAGS[family])


@pytest.mark.parametrize("family", FLAGS)
def test_losses_are_those_of_megatron_lm_alone(tmp_path: Path, family: str) -> None:
    given = words(base(tmp_path, family), family)
    expected = run_on_ranks(1, tiny_run, Tiny(tmp_path / "plain", given, plain=True))[0]
    assert len(expected) == 3
    assert expected[-1] < expected[0]
    run = tmp_path / "run"
    save = ("--save", str(run), "--save-interval", "3")
    tiles = ("--ultralong-recompute-granularity", "keep_attention")
    tiles += ("--ultralong-sequence-tile-size", "12", "--ultralong-loss-tile-size", "12")
    found = {
        "one": run_on_ranks(1, tiny_run, Tiny(tmp_path / "one", given))[0],
        "cp2": run_on_ranks(2, tiny_run, Tiny(tmp_path / "cp2", (*given, *CP2, *save)))[0],
        "tiles": run_on_ranks(2, tiny_run, Tiny(tmp_path / "t", (*given, *CP2, *SPEC, *tiles)))[0],
    }
    for name, losses in found.items():
        assert losses == pytest.approx(expected, rel=1e-5), name  # float32 sums in another order

    # what it has trained is a model of its family
    assert load_metadata(run).model.model_type == family
    export_checkpoint(ExportConfig(run, tmp_path / "out"))
    tokens = torch.arange(60) * 3 % 200
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]
    torch.testing.assert_close(
        megatron_logits(MegatronCheckpoint(run), tokens), logits, atol=1e-4, rtol=0
    )


def test_flags_of_another_layer_are_refused(tmp_path: Path) -> None:
    load = base(tmp_path, "qwen3")
    for flags, said in (
        ((), "--qk-layernorm is False, and the Qwen3 (dense) in"),
        (("--qk-layernorm", "--add-qkv-bias"), "--qk-layernorm with --add-qkv-bias"),
    ):
        given = (*words(load, "qwen3")[:-1], *flags)
        message = run_on_ranks(1, tiny_message, Tiny(tmp_path / "run", given))[0]
        assert said in message or "--add-qkv-bias with --qk-layernorm" in message


@pytest.mark.parametrize("family", FLAGS)
def test_a_run_from_nothing_is_of_its_family(tmp_path: Path, family: str) -> None:
    save = ("--save", str(tmp_path / "run"), "--save-interval", "3", FLAGS[family])
    run_on_ranks(1, tiny_run, Tiny(tmp_path, save))
    export_checkpoint(ExportConfig(tmp_path / "run", tmp_path / "hf"))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == family
