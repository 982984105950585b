"""Every family of shapes, all layers and heads at reduced width, through all three formats."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from tests.checkpoint.meta_files import MetaShape, load_meta, random_tensors, save_files

SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
TIKTOKEN = b"IQ== 0\n"


@dataclasses.dataclass(frozen=True)
class Family:
    """A model's own numbers; heads are of 2, so that the width is twice their number."""

    layers: int
    heads: int
    groups: int
    num_shards: int
    tied: bool = False
    scaled_by: float | None = None
    llama_2: bool = False

    @property
    def shape(self) -> MetaShape:
        return MetaShape(2 * self.heads, self.heads, self.groups, 7 * self.heads, self.layers, 96)

    @property
    def params(self) -> dict[str, Any]:
        if (
            self.llama_2
        ):  # its files say neither theta nor the vocabulary, nor groups equal to heads
            values = self.shape.params(multiple_of=8, vocab_size=-1)
            return {k: v for k, v in values.items() if (k, v) != ("n_kv_heads", self.heads)}
        scaled = {"use_scaled_rope": True} if self.scaled_by else {}
        factor = {"rope_scaling_factor": self.scaled_by} if self.scaled_by else {}
        return self.shape.params(rope_theta=500000.0, multiple_of=8, **scaled, **factor)


FAMILIES = {
    "llama-2-7b": Family(32, 32, 32, 1, llama_2=True),
    "llama-2-70b": Family(80, 64, 8, 8, llama_2=True),
    "llama-3-8b": Family(32, 32, 8, 1),
    "llama-3.1-8b": Family(32, 32, 8, 1, scaled_by=8.0),
    "llama-3.1-405b": Family(126, 128, 8, 8, scaled_by=8.0),
    "llama-3.2-1b": Family(16, 32, 8, 1, tied=True, scaled_by=32.0),
    "llama-3.2-3b": Family(28, 24, 8, 1, tied=True, scaled_by=32.0),
    "llama-3.3-70b": Family(80, 64, 8, 8, scaled_by=8.0),
}
COVERING = ("llama-2-7b", "llama-3.1-8b", "llama-3.2-3b", "llama-3.3-70b")
"""Of the default tests: both tokenizers, groups or none, tied or not, scaled or not, shards."""


def stored(folder: Path) -> dict[str, bytes]:
    """Bytes of every tensor of a Hugging Face folder, read by the safetensors library."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                found[name] = file.get_tensor(name).view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name, marks=() if name in COVERING else pytest.mark.slow)
        for name, family in FAMILIES.items()
    ],
)
def test_meta_hugging_face_and_back_by_megatron(tmp_path: Path, family: Family) -> None:
    tensors = random_tensors(family.shape, family.tied, torch.bfloat16)
    tokenizer = SENTENCEPIECE if family.llama_2 else TIKTOKEN
    meta, hf, count = tmp_path / "meta", tmp_path / "hf", family.num_shards
    save_files(
        meta,
        tensors,
        family.params,
        count,
        embedding_axis=int(family.llama_2),
        tokenizer=tokenizer,
    )
    quick = {"verify": False}  # what it compares is compared below
    import_checkpoint(ImportConfig(meta, tmp_path / "a", **quick))
    export_checkpoint(ExportConfig(tmp_path / "a", hf, **quick))
    import_checkpoint(ImportConfig(hf, tmp_path / "b", **quick))
    flags: dict[str, Any] = {"format": "meta", "num_shards": count}
    export_checkpoint(ExportConfig(tmp_path / "b", tmp_path / "back", **flags, **quick))
    export_checkpoint(ExportConfig(tmp_path / "b", tmp_path / "hf-back", **quick))

    assert stored(hf) == stored(tmp_path / "hf-back")
    shards = [load_meta(tmp_path / "back", number) for number in range(count)]
    for name, tensor in tensors.items():
        if name != "rope.freqs":  # frequencies, which are made again
            parts = [shard[name] for shard in shards]
            # the writer cuts Llama 2's embedding by rows, as Llama 3's
            dim = 1 if ".wo." in name or ".w2." in name else 0
            whole = parts[0] if tensor.ndim == 1 else torch.cat(parts, dim)
            assert torch.equal(whole, tensor), name
    config = json.loads((hf / "config.json").read_text())
    assert config["num_key_value_heads"] == family.groups
    assert config["tie_word_embeddings"] == family.tied
    assert (config["rope_scaling"] or {}).get("factor") == family.scaled_by
    assert config["rope_theta"] == (10000.0 if family.llama_2 else 500000.0)
    for folder in (hf, tmp_path / "back"):
        assert (folder / "tokenizer.model").read_bytes() == tokenizer
