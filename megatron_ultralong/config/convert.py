"""Options of ``convert import``, ``export``, ``verify`` and ``inspect``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.program.fields import Range
from megatron_ultralong.program.quantity import LENGTH

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
    """Rotary embedding to use instead of the source's."""
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
    """Iteration to export; default: the latest. 0: release."""
    dtype: DtypeName = "keep"
    """Dtype of the exported weights."""
    max_shard_size_gb: Annotated[float, Range(1e-6, 1_000_000)] = 5.0
    """Largest safetensors file, in 10^9 bytes."""
    num_shards: Annotated[int, Range(1, 2**16)] = 1
    """Files of a Meta model; Meta's own models have 1 (8B) or 8 (70B)."""
    tokenizer_merges: Literal["keep", "strings"] = "keep"
    """strings: write the merges in tokenizer.json in the form that transformers 4.43 and 4.44 can
    read too. The tokenizer is the same, but the file's hash differs."""
    engines: Annotated[str, arg(name="for", metavar="ENGINES")] = ""
    """Engines that will serve the model, such as llama.cpp,vllm. The export is refused if one of
    them reads the rope block differently; flags that an engine needs are printed."""
    verify: bool = True
    """Read all tensors back and compare them bit for bit."""
    verify_checksums: bool = True
    """Compare the bytes of SRC with its checksums.json."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """Compare all weights of two models of any format, and optionally their logits."""

    a: Annotated[Positional[Path], arg(metavar="A")]
    """Reference model."""
    b: Annotated[Positional[Path], arg(metavar="B")]
    """Model to compare with the reference."""
    iteration: Annotated[int | None, Range(0)] = None
    """Iteration of the Megatron checkpoints; default: the latest."""
    dtype: DtypeName = "keep"
    """Convert A to this dtype before comparing: A is the run, B its export in that dtype."""
    logits: bool = False
    """Also run both models, with transformers and Megatron-Core, and compare their logits."""
    logits_seq_length: Annotated[int, Range(1), LENGTH] = 9216
    """Tokens of the prompt of --logits."""
    logits_dtype: LogitsDtype = "fp32"
    """Type for --logits. fp64 is slower; use it if fp32 is not conclusive."""
    logits_method: LogitsMethod = "auto"
    """whole: hold the models in memory. layers: hold one layer of each. auto: what fits."""
    verify_checksums: bool = True
    """Compare the bytes of Megatron checkpoints with their checksums.json."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Show the contents of a Hugging Face, Meta or Megatron model. Nothing is written."""

    src: Annotated[Positional[Path], arg(metavar="SRC")]
    """Folder to inspect; a config.json without weights is enough to show its rope block."""
    iteration: Annotated[int | None, Range(0)] = None
    """Iteration of a Megatron checkpoint; default: the latest."""
    json: bool = False
    """Print JSON."""
    verify_checksums: bool = True
    """Compare the bytes of a Megatron checkpoint with its checksums.json."""
