"""Changes of what stands in the files of a run, one for each field that a start looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A change of what stands in the files of a run, or of its flags."""

    field: str
    """Of the dataclass that it is about: ``model.rotary_base``."""
    checkpoint: Callable[[dict[str, Any]], None] | None = None
    """Of ``ultralong.json``."""
    rows: Callable[[dict[str, Any]], None] | None = None
    """Of ``manifest.json``."""
    rope: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the flags of the rotary embedding."""
    mask: str = "none"
    says: str = ""
    """Of what the drop-in says alone: ``pretrain`` has no such argument, and takes the value."""


def sets(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        *path, last = name.split(".")
        for key in path:
            values = values[key]
        values[last] = value

    return change


def of_model(name: str, value: Any, says: str = "") -> Case:
    return Case(f"model.{name}", sets(f"model.{name}", value), says=says)


YARN = {"method": "yarn", "scaling_factor": 4.0, "original_max_position_embeddings": 32,
         "beta_fast": 4.0, "beta_slow": 1.0, "ramp": "rotations", "attention_factor": 1.0,
         "truncate": True}  # fmt: skip
CASES = (
    *(
        of_model(name, value, f"--{name.replace('_', '-')} is")
        for name, value in {
            "num_layers": 3,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 8,
            "num_query_groups": 2,
            "kv_channels": 32,
            "norm_epsilon": 3e-5,
        }.items()
    ),
    of_model("untie_embeddings_and_output_weights", False, "--untie-embeddings"),
    of_model("model_type", "qwen3", "--qk-layernorm is False"),
    of_model("rotary_base", 20000.0),
    of_model("max_position_embeddings", 96),
    of_model("vocab_size", 100),
    Case("rope_scaling", sets("rope_scaling", YARN)),
    Case("rope_scaling", sets("rope_scaling", YARN), rope={"rope_scaling": "keep"}),
    Case(
        "rope_scaling",
        sets("rope_scaling", YARN),
        rope={"rope_scaling": "linear", "rope_scaling_factor": 4.0},
    ),
    Case("tokenizer_sha256", sets("tokenizer_sha256", "0" * 64)),
    Case("separator_ids", sets("separator_ids", [7])),
    Case("angle_precision", sets("angle_precision", "float32")),
    Case("trained_seq_length", sets("trained_seq_length", 16)),
    Case("source_model", sets("source_model", "another")),
    Case("rope.rope_scaling", rope={"rope_scaling": "keep"}),
    Case("rope.rope_scaling", rope={"rope_scaling": "none"}),
    Case("rope.rope_scaling", rope={"rope_scaling": "ntk", "rope_scaling_factor": 2.0}),
    Case("rope.rope_scaling_factor", rope={"rope_scaling_factor": 8.0}),
    Case("rope.rope_scaling_factor", rope={"rope_scaling_factor": 1.5}),
    Case("rope.original_max_position_embeddings", rope={"original_max_position_embeddings": 512}),
    Case("rope.original_max_position_embeddings", rope={"original_max_position_embeddings": 40}),
    Case("rope.beta_fast", rope={"beta_fast": 8.0}),
    Case("rope.beta_slow", rope={"beta_slow": 2.0}),
    Case("rope.beta_slow", rope={"beta_slow": 5.0}),
    Case("rope.ramp", rope={"ramp": "dimensions"}),
    Case("rope.attention_factor", rope={"attention_factor": 1.5}),
    Case("rope.attention_factor", rope={"attention_factor": "yarn", "ramp": "dimensions"}),
    Case("rope.angle_precision", rope={"angle_precision": "float32"}),
    Case("rows.seq_length", rows=sets("seq_length", 64)),
    Case("rows.separator_ids", rows=sets("separator_ids", []), mask="block"),
    Case("rows.separator_ids", rows=sets("separator_ids", [9])),
    Case("rows.tokenizer_sha256", rows=sets("tokenizer_sha256", "0" * 64)),
    Case("rows.vocab_size", rows=sets("vocab_size", 10**6)),
    Case("rows.splits", rows=sets("splits.train.num_rows", 3)),
    Case("rows.packing", rows=sets("packing", "whole")),
    Case("rows.format_version", rows=sets("format_version", 99)),
)
