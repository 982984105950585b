"""Tensors as people have them: tied or not, in several dtypes, under other names."""

from __future__ import annotations

from collections.abc import Callable

import torch

from megatron_ultralong.checkpoint.formats.weight_map import EMBEDDING, LM_HEAD
from tests.checkpoint.odd_folder import Folder, Tensors


def choose_tied(folder: Folder) -> None:
    rng, stored = folder.rng, folder.stored
    tied = not folder.model.untie_embeddings_and_output_weights
    if "tied" not in folder.wild:
        return
    if not tied:
        del stored[LM_HEAD]
        folder.odd("no output", "no tensor lm_head.weight", "tie_word_embeddings")
        return
    kind = rng.random()
    if kind < 0.35:
        stored[LM_HEAD] = stored.pop(EMBEDDING)
        folder.odd("output alone")
    elif kind < 0.7:
        stored[LM_HEAD] = stored[EMBEDDING].clone()
        folder.odd("output and embedding")
    elif kind < 0.9:
        stored[LM_HEAD] = stored[EMBEDDING] + 1
        folder.odd("another output", "tie_word_embeddings is true", LM_HEAD, EMBEDDING)
    else:
        del stored[EMBEDDING]
        folder.odd("no embedding", f"no tensor {EMBEDDING}")


def choose_dtypes(folder: Folder) -> None:
    rng, stored = folder.rng, folder.stored
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
    for name in stored:
        stored[name] = stored[name].to(dtype)
    for name in folder.tensors:
        folder.tensors[name] = folder.tensors[name].to(dtype)
    if "dtypes" not in folder.wild:
        return
    kind = rng.random()
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    if kind < 0.5:
        name = rng.choice([n for n in (EMBEDDING, "model.norm.weight", LM_HEAD) if n in stored])
        stored[name] = stored[name].to(other)
        plain = name if name in folder.tensors else EMBEDDING
        folder.tensors[plain] = stored[name]
        is_whole = len([n for n in (EMBEDDING, LM_HEAD) if n in stored]) == 1
        tied = not folder.model.untie_embeddings_and_output_weights
        if tied and not is_whole and _differ(stored):
            folder.odd("a tied copy in another dtype", "differs from", "float")
        else:
            folder.odd("a dtype of its own")
    elif kind < 0.8:
        name = rng.choice(["self_attn.k_proj", "mlp.up_proj"])
        full = f"model.layers.0.{name}.weight"
        stored[full] = stored[full].to(other)
        folder.odd("two dtypes in a weight", "must have one dtype|dtype", "float")
    else:
        full = "model.layers.0.mlp.down_proj.weight"
        stored[full] = stored[full].mul(8).to(torch.int8)
        folder.odd("quantised", "torch.int8", "dequantize")


def _differ(stored: Tensors) -> bool:
    return not torch.equal(stored[EMBEDDING].double(), stored[LM_HEAD].double())


def choose_tensors(folder: Folder) -> None:
    rng, stored = folder.rng, folder.stored
    if "tensors" not in folder.wild:
        return
    kind = rng.random()
    norm = "model.layers.0.input_layernorm.weight"
    if kind < 0.3:
        stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        folder.odd("an old buffer")
    elif kind < 0.5:
        stored["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)
        folder.odd("a tensor too many", "1 tensor |2 tensors", "q_norm")
    elif kind < 0.75:
        del stored[norm]
        folder.odd("a tensor too few", f"no tensor {norm}")
    else:
        stored[norm] = torch.cat([stored[norm]] * 2)
        size = folder.model.hidden_size
        folder.odd("another shape", rf"shape \[{2 * size}\]", rf"\[{size}\]")


def _renamed(folder: Folder, change: Callable[[str], str]) -> None:
    folder.stored = {change(name): tensor for name, tensor in folder.stored.items()}


def _base_model(folder: Folder) -> None:
    _renamed(folder, lambda name: name.removeprefix("model."))
    folder.odd("names of the base model")


def _base_twice(folder: Folder) -> None:
    _renamed(folder, lambda name: "model." + name)
    folder.odd("model. twice")


def _wrapped(folder: Folder) -> None:
    prefix = folder.rng.choice(
        [
            *("_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod."),
            *("base_model.model.", "language_model.", "student.", "_forward_module.module."),
        ]
    )
    _renamed(folder, lambda name: prefix + name)
    said = "names are changed|names begin with"
    folder.odd(f"prefix {prefix}", said=said)


def _wrapped_inside(folder: Folder) -> None:
    part = folder.rng.choice(["_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module"])
    _renamed(folder, lambda name: name.replace("layers.0.", f"layers.0.{part}."))
    folder.odd(f"wrapper {part}", said="names are changed: .* is read as ")


def _half_wrapped(folder: Folder) -> None:
    _renamed(folder, lambda name: "module." + name if "layers." in name else name)
    folder.odd("half of the names", r"\d+ of \d+ tensors have the prefix 'module\.'", "rename")


def _twice_in_one_file(folder: Folder) -> None:
    copies = {"ema." + name: tensor + 1 for name, tensor in folder.stored.items()}
    folder.stored |= copies
    folder.odd("two models in one file", r"of \d+ tensors have the prefix 'ema\.'", "rename")


def _two_names(folder: Folder) -> None:
    folder.stored["norm.weight"] = folder.tensors["model.norm.weight"] + 1
    folder.odd("two names", "norm.weight and |norm.weight, and both", "remove one")


def _adapter_inside(folder: Folder) -> None:
    _renamed(folder, lambda name: "base_model.model." + name)
    name = "base_model.model.model.layers.0.self_attn.q_proj."
    folder.stored[name + "lora_A.weight"] = torch.ones(2, folder.model.hidden_size)
    folder.odd("an adapter inside", "adapter's", "merge")


NAME_ODDITIES = (
    *(_base_model, _base_twice, _wrapped, _wrapped, _wrapped, _wrapped_inside, _half_wrapped),
    *(_twice_in_one_file, _two_names, _adapter_inside),
)
