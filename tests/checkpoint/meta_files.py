"""Small random Llamas in Meta's format, cut into shards as Meta's model-parallel layers cut."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class MetaShape:
    dim: int
    heads: int
    groups: int
    ffn: int
    layers: int
    vocabulary: int

    def params(self, **more: Any) -> dict[str, Any]:
        """``params.json``."""
        return {
            "dim": self.dim,
            "n_heads": self.heads,
            "n_kv_heads": self.groups,
            "n_layers": self.layers,
            "norm_eps": 1e-5,
            "vocab_size": self.vocabulary,
            **more,
        }


def random_tensors(
    shape: MetaShape, tied: bool = False, dtype: torch.dtype = torch.float32
) -> Tensors:
    generator = torch.Generator().manual_seed(5)

    def weight(*sizes: int) -> torch.Tensor:
        return (torch.randn(*sizes, generator=generator) / sizes[-1] ** 0.5).to(dtype)

    keys = shape.dim * shape.groups // shape.heads
    tensors = {
        "tok_embeddings.weight": weight(shape.vocabulary, shape.dim),
        "norm.weight": 1 + weight(shape.dim),
        "output.weight": weight(shape.vocabulary, shape.dim),
        "rope.freqs": torch.ones(4),
    }
    for layer in range(shape.layers):
        shapes = {
            "attention.wq": (shape.dim, shape.dim),
            "attention.wk": (keys, shape.dim),
            "attention.wv": (keys, shape.dim),
            "attention.wo": (shape.dim, shape.dim),
            "feed_forward.w1": (shape.ffn, shape.dim),
            "feed_forward.w2": (shape.dim, shape.ffn),
            "feed_forward.w3": (shape.ffn, shape.dim),
        }
        for name, sizes in shapes.items():
            tensors[f"layers.{layer}.{name}.weight"] = weight(*sizes)
        for name in ("attention_norm", "ffn_norm"):
            tensors[f"layers.{layer}.{name}.weight"] = 1 + weight(shape.dim)
    if tied:
        tensors["output.weight"] = tensors["tok_embeddings.weight"].clone()
    return tensors


def axis(name: str, embedding_axis: int) -> int | None:
    """Columns of wo and w2, rows of the others; norms are whole in every shard."""
    if "norm" in name or "rope" in name:
        return None
    if "tok_embeddings" in name:
        return embedding_axis
    return 1 if ".wo." in name or ".w2." in name else 0


def save_files(
    folder: Path,
    tensors: Tensors,
    params: Mapping[str, Any],
    num_shards: int = 1,
    *,
    embedding_axis: int = 0,
    tokenizer: bytes = b"IQ== 0\n",
) -> None:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    for shard in range(num_shards):
        part = {}
        for name, tensor in tensors.items():
            cut = axis(name, embedding_axis)
            part[name] = tensor if cut is None else tensor.chunk(num_shards, cut)[shard].clone()
        torch.save(part, folder / f"consolidated.{shard:02d}.pth")


def load_meta(folder: Path, number: int = 0) -> Tensors:
    tensors: Tensors = torch.load(folder / f"consolidated.{number:02d}.pth", weights_only=True)
    return tensors
