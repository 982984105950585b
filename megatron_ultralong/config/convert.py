"""Options of ``convert import``, ``export``, ``verify`` and ``inspect``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.program.fields import Range

DtypeName = Literal["keep", "bf16", "fp16", "fp32"]
LogitsDtype = Literal["fp32", "fp64"]
LogitsMethod = Literal["auto", "whole", "layers"]


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Convert a Hugging Face or Meta model to a Megatron checkpoint."""

    src: Annotated[Positional[Path], arg(metavar="SRC")]
    """Hugging Face folder (config.json, safetensors or pytorch_model.bin, tokenizer), or Meta's
    (params.json, consolidated.*.pth, tokenizer.model)."""
    dst: Annotated[Positional[Path], arg(metavar="DST")]
    """New folder for the Megatron checkpoint."""
    verify: bool = True
    """Read all tensors back and compare them bit for bit."""
    tokenizer: bool = True
    """Refuse a source without tokenizer files."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Another rotary embedding than the source's, which the weights are not trained for."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Convert a Megatron checkpoint to a Hugging Face, Meta or GGUF model."""

    src: Annotated[Positional[Path], arg(metavar="SRC")]
    """Megatron checkpoint: a folder with latest_checkpointed_iteration.txt, or one iteration."""
    dst: Annotated[Positional[Path], arg(metavar="DST")]
    """New folder for the model."""
    format: Literal["huggingface", "meta", "gguf"] = "huggingface"
    """Format to write; gguf is llama.cpp's, one file (pip install gguf)."""
    iteration: Annotated[int | None, Range(0)] = None
    """Iteration to export; the latest by default, 0 for release."""
    dtype: DtypeName = "keep"
    """Dtype of the exported weights."""
    max_shard_size_gb: Annotated[float, Range(1e-6, 1_000_000)] = 5.0
    """Largest safetensors file, in 10^9 bytes."""
    num_shards: Annotated[int, Range(1, 2**16)] = 1
    """Files of a Meta model; Meta's own have 1 (8B) or 8 (70B)."""
    tokenizer_merges: Literal["keep", "strings"] = "keep"
    """strings: write the merges in tokenizer.json as transformers 4.43 and 4.44 read them too. The
    tokenizer is the same, the file's hash is another one."""
    verify: bool = True
    """Read all tensors back and compare them bit for bit."""
    verify_checksums: bool = True
    """Compare the bytes of SRC with its checksums.json."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """Compare all weights of two models, and their logits if asked, whatever their formats."""

    a: Annotated[Positional[Path], arg(metavar="A")]
    """Model that is right."""
    b: Annotated[Positional[Path], arg(metavar="B")]
    """Model to compare with it."""
    iteration: Annotated[int | None, Range(0)] = None
    """Iteration of the Megatron checkpoints; the latest by default."""
    dtype: DtypeName = "keep"
    """Convert the first model to this dtype before comparing."""
    logits: bool = False
    """Compute both models too, by transformers and Megatron-Core, and compare logits."""
    logits_seq_length: Annotated[int, Range(1)] = 9216
    """Tokens of the prompt of --logits."""
    logits_dtype: LogitsDtype = "fp32"
    """What --logits computes in. fp64 is slower, and judges alone where fp32 is in doubt."""
    logits_method: LogitsMethod = "auto"
    """Hold the models whole in memory, or one layer of each; auto takes what fits."""
    verify_checksums: bool = True
    """Compare the bytes of Megatron checkpoints with their checksums.json."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Show what a Hugging Face, Meta or Megatron model holds; nothing is written."""

    src: Annotated[Positional[Path], arg(metavar="SRC")]
    """Folder to look into; a config.json without weights is enough to see its rotary embedding."""
    iteration: Annotated[int | None, Range(0)] = None
    """Iteration of a Megatron checkpoint; the latest by default."""
    json: bool = False
    """Print JSON."""
    verify_checksums: bool = True
    """Compare the bytes of a Megatron checkpoint with its checksums.json."""
