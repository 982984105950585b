"""Exports with every rope block, and what transformers computes of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.checkpoint.formats.rope_readers import Rope
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.model import yarn

from .blocks import MORE

GREEDY = 24
"""Tokens that every engine is compared on."""
_BEYOND = 256
"""Tokens of the prompts beyond the original context."""


@dataclasses.dataclass(frozen=True)
class Model:
    """An export, and the text that engines are compared on."""

    name: str
    folder: Path
    plain: Path
    """The same without the keys that the rope block says twice."""
    rope: Rope
    prompt: list[int]
    continuation: list[int]
    """Greedy, by transformers in float32."""
    log_probabilities: np.ndarray[Any, Any]


def make(work: Path, source: Path, name: str, scaling: yarn.RopeScaling, original: int) -> Model:
    """Import ``source``, say that it was trained with ``scaling``, export it, and run it.

    Args:
        work: a folder of its own for each call.
        source: Hugging Face folder of a model of ``original`` positions.
        name: of the block.
        scaling: what it stands for.
        original: positions before the extension; a tenth more than the factor times them where
            the name says so.
    """
    checkpoint, folder, plain = work / "megatron", work / "export", work / "plain"
    import_checkpoint(ImportConfig(source, checkpoint, verify=False))
    metadata = load_metadata(checkpoint)
    factor = 1.0 if scaling is None else scaling.scaling_factor
    positions = int(factor * original * (1.1 if name.endswith(MORE) else 1.0))
    shape = dataclasses.replace(metadata.model, max_position_embeddings=positions)
    save_metadata(checkpoint, dataclasses.replace(metadata, model=shape, rope_scaling=scaling))
    export_checkpoint(ExportConfig(checkpoint, folder, verify=False, dtype="fp32"))
    shutil.rmtree(checkpoint)
    config = json.loads((folder / "config.json").read_text())
    block = config["rope_scaling"]
    without = {k: v for k, v in (block or {}).items() if not k.startswith("mscale")} or None
    shutil.copytree(folder, plain, copy_function=_link)
    (plain / "config.json").unlink()
    (plain / "config.json").write_text(json.dumps({**config, "rope_scaling": without}))
    rope = Rope(scaling, block, positions, shape.kv_channels, shape.rotary_base, shape.family.name)
    length = original - 2 * GREEDY if scaling is None else original + _BEYOND
    prompt = text(folder, length)
    return Model(name, folder, plain, rope, prompt, *_run(folder, prompt))


def text(folder: Path, length: int) -> list[int]:
    """Source code of this package, as tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    files = sorted(Path(yarn.__file__).parents[1].rglob("*.py"))
    tokens: list[int] = []
    for file in files:
        tokens += tokenizer.encode(file.read_text("utf-8"), add_special_tokens=False).ids
        if len(tokens) >= length:
            return tokens[:length]
    raise AssertionError(f"the package has {len(tokens)} tokens, {length} are needed")


@torch.no_grad()
def _run(folder: Path, prompt: list[int]) -> tuple[list[int], np.ndarray[Any, Any]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, cache = torch.tensor([prompt]), None
    continuation: list[int] = []
    told = []
    for _ in range(GREEDY):
        out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        log_probabilities = out.logits[0, -1].double().log_softmax(-1)
        token = int(log_probabilities.argmax())
        continuation.append(token)
        told.append(float(log_probabilities[token]))
        tokens = torch.tensor([[token]])
    return continuation, np.array(told)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
