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


def write_model(
    folder: Path,
    num_layers: int,
    *,
    hidden: int = 64,
    ffn: int = 96,
    vocabulary: int = 320,
    heads: int = 4,
) -> Path:
    """A random Llama, all tensors in one file; half as many key heads."""
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    folder.mkdir()
    tensors = {
        "model.embed_tokens.weight": torch.randn(vocabulary, hidden),
        "lm_head.weight": torch.randn(vocabulary, hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(num_layers):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": hidden // heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


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
