"""Processor time a layer of an import, by the number of layers in one file.

    python tools/benchmark_layers.py

A Llama of hidden size 64 with all tensors in one safetensors file is imported and compared. The
share is the time of the most layers over that of the fewest, a layer: 1 where import is linear.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig

HIDDEN, FFN, VOCABULARY = 64, 96, 320
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


def write_model(folder: Path, num_layers: int) -> None:
    """A random Llama, all tensors in one file."""
    folder.mkdir()
    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN),
        "lm_head.weight": torch.randn(VOCABULARY, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for layer in range(num_layers):
        for name, shape in SHAPES.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| layers | processor time, s | ms a layer |\n| --- | --- | --- |")
    found = []
    with tempfile.TemporaryDirectory() as name:
        for layers in (arguments.layers[0], *arguments.layers):  # the first is to warm up
            folder = Path(name) / f"{len(found)}-{layers}"
            folder.mkdir()
            write_model(folder / "hf", layers)
            start = time.process_time()
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                import_checkpoint(ImportConfig(folder / "hf", folder / "megatron", tokenizer=False))
            found.append((time.process_time() - start) / layers)
            if len(found) > 1:
                print(
                    f"| {layers} | {found[-1] * layers:.2f} | {1000 * found[-1]:.2f} |", flush=True
                )
    print(f"\nshare: {found[-1] / found[1]:.2f}")


if __name__ == "__main__":
    main()
