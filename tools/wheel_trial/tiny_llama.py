"""A tiny random Llama in Hugging Face's format, and the comparison of two such folders.

A program for an environment that has the wheel alone: it imports nothing of this repository::

    python tiny_llama.py write FOLDER
    python tiny_llama.py compare FOLDER FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, INTERMEDIATE, LAYERS, HEADS, GROUPS, VOCABULARY = 64, 96, 2, 4, 2, 320
HEAD_DIM = HIDDEN // HEADS


def write(folder: Path) -> None:
    """``config.json``, ``model.safetensors``, ``tokenizer.json``."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = numpy.random.default_rng(0)
    tensors = {
        name: generator.normal(size=shape, scale=0.1).astype(numpy.float32)
        for name, shape in shapes().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every tensor, by Hugging Face's name."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        of_layer = {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (GROUPS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (GROUPS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }
        found |= {f"model.layers.{layer}.{name}.weight": its for name, its in of_layer.items()}
    return found


def compare(first: Path, second: Path) -> None:
    """Exit with a message unless every tensor is there and bit-equal."""
    own, other = (load_all(folder) for folder in (first, second))
    if own.keys() != other.keys():
        sys.exit(f"tensors of one folder alone: {sorted(own.keys() ^ other.keys())}")
    different = [name for name in own if own[name].tobytes() != other[name].tobytes()]
    if different:
        sys.exit(f"not bit-equal: {different}")
    print(f"{len(own)} tensors are bit-equal")


def load_all(folder: Path) -> dict[str, numpy.ndarray]:
    """All tensors of a folder."""
    found: dict[str, numpy.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        compare(Path(sys.argv[2]), Path(sys.argv[3]))
