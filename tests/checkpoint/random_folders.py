"""Random model folders, as people have them: plain ones, odd ones that load, and wrong ones."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_ultralong.checkpoint.weight_map import EMBEDDING, LM_HEAD, weight_map
from megatron_ultralong.model_config import ModelConfig

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Oddity:
    """What is not plain about a folder, and what has to become of it."""

    name: str
    refused: tuple[str, ...] = ()
    """The message must hold all of these; empty: it is loaded."""
    said: str = ""
    """Loaded where transformers does not, or with a choice: the program must say this."""


@dataclasses.dataclass
class Folder:
    """A folder in the making."""

    rng: random.Random
    config: dict[str, Any]
    model: ModelConfig
    tensors: Tensors
    """Of the model that is meant, under transformers' names."""
    stored: Tensors
    """What is written."""
    wild: frozenset[str] = frozenset()
    """Parts of it that may be odd; the others are as everybody has them."""
    oddities: list[Oddity] = dataclasses.field(default_factory=list)

    def odd(self, name: str, *refused: str, said: str = "") -> None:
        self.oddities.append(Oddity(name, refused, said))


PARTS = ("rope", "keys", "tied", "dtypes", "tensors", "names", "layout", "layout")


def draw(seed: int) -> Folder:
    """A folder of a few thousand parameters, with some of everything below."""
    rng = random.Random(seed)
    heads, head_dim = rng.choice([(2, 4), (4, 8), (4, 4), (6, 8)])
    model = ModelConfig(
        num_layers=rng.choice([1, 2]),
        hidden_size=heads * rng.choice([head_dim, 4, 6]),
        ffn_hidden_size=rng.choice([12, 20]),
        num_attention_heads=heads,
        num_query_groups=rng.choice([1, 2, heads]),
        kv_channels=head_dim,
        vocab_size=rng.choice([17, 32, 40]),
        norm_epsilon=rng.choice([1e-5, 1e-6]),
        rotary_base=10000.0,
        max_position_embeddings=rng.choice([64, 256]),
        untie_embeddings_and_output_weights=rng.random() < 0.5,
    )
    tensors = random_tensors(model, seed)
    wild = frozenset(rng.sample(PARTS, rng.choice([0, 0, 1, 1, 1, 2])))
    folder = Folder(rng, config_of(model), model, tensors, dict(tensors), wild)
    for choose in (choose_rope, choose_keys, choose_tied, choose_dtypes, choose_tensors):
        choose(folder)
    if "names" in wild:
        rng.choice(NAME_ODDITIES)(folder)
    return folder


def random_tensors(model: ModelConfig, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3
        for weight in weight_map(model)
        for name, shape in zip(weight.names, weight.shapes, strict=True)
    }
    return {n: t.abs() + 0.5 if t.dim() == 1 else t for n, t in tensors.items()}


def config_of(model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_epsilon,
        "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
    }


# ---- rotary embedding


def choose_rope(folder: Folder) -> None:
    rng = folder.rng
    block = rng.choice([_default, _linear, _llama3, _yarn, _yarn])(rng)
    theta = rng.choice([10000.0, 500000.0])
    if "rope" in folder.wild:
        rng.choice(ROPE_ODDITIES)(folder, block)
    key = rng.choice(["rope_scaling", "rope_parameters"])
    if block == {"rope_type": "default"} and rng.random() < 0.3:
        block = {}
    elif rng.random() < 0.3 and "type" not in block:
        block["type"] = block.pop("rope_type")
    if rng.random() < 0.5 or not block:
        folder.config.setdefault("rope_theta", theta)
    else:
        block.setdefault("rope_theta", theta)
    if block or rng.random() < 0.5:
        folder.config[key] = block or None
    if "rope" in folder.wild and rng.random() < 0.2 and block:
        _second_block(folder, key, block, theta)


def _default(rng: random.Random) -> dict[str, Any]:
    return {"rope_type": "default"}


def _linear(rng: random.Random) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": rng.choice([2, 4.0, 1.5])}


def _llama3(rng: random.Random) -> dict[str, Any]:
    block = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rng.random() < 0.8:
        block["original_max_position_embeddings"] = rng.choice([16, 32])
    return block


def _yarn(rng: random.Random) -> dict[str, Any]:
    block: dict[str, Any] = {"rope_type": "yarn", "factor": rng.choice([4.0, 16.0])}
    if rng.random() < 0.8:
        block["original_max_position_embeddings"] = rng.choice([16, 32])
    if rng.random() < 0.4:
        block |= {"beta_fast": rng.choice([4, 32.0]), "beta_slow": rng.choice([1, 2.0])}
    if rng.random() < 0.4:
        block["attention_factor"] = rng.choice([1.0, 1.25, None])
    if rng.random() < 0.2:
        block["truncate"] = rng.choice([True, False])
    return block


def _second_block(folder: Folder, key: str, block: dict[str, Any], theta: float) -> None:
    other = "rope_parameters" if key == "rope_scaling" else "rope_scaling"
    second = dict(block)
    if folder.rng.random() < 0.5:
        folder.odd("two blocks that agree")
    else:
        second = folder.rng.choice(
            [
                {**block, "rope_theta": theta * 2},
                {"rope_type": "linear", "factor": 3.0, "rope_theta": theta},
            ]
        )
        folder.odd("two blocks that disagree", "rope_scaling|two|rope_theta", "disagree|rope_theta")
    folder.config[other] = second


def _outer_length(folder: Folder, block: dict[str, Any]) -> None:
    if block["rope_type"] in ("yarn", "llama3"):
        inside = block.get("original_max_position_embeddings")
        folder.config["original_max_position_embeddings"] = outside = folder.rng.choice([16, 32])
        if inside in (None, outside):
            folder.odd("length beside the block")
        else:
            folder.odd("two lengths", f"is {outside} beside", f"{inside} in it")


def _two_scales(folder: Folder, block: dict[str, Any]) -> None:
    block |= {"mscale": 1.0, "mscale_all_dim": 0.5}
    if block["rope_type"] != "yarn":
        folder.odd("mscale elsewhere", "mscale", "unknown keys")
    elif block.get("attention_factor"):
        folder.odd("mscale beside a factor", "attention_factor is", "mscale 1.0")
    else:
        folder.odd("mscale and mscale_all_dim")


def _one_scale(folder: Folder, block: dict[str, Any]) -> None:
    block[folder.rng.choice(["mscale", "mscale_all_dim"])] = 1.0
    folder.odd("one mscale", "mscale", "unknown keys|attention_factor")


def _finetuned(folder: Folder, block: dict[str, Any]) -> None:
    block["finetuned"] = True
    folder.odd("finetuned")


def _whole_heads(folder: Folder, block: dict[str, Any]) -> None:
    block["partial_rotary_factor"] = folder.rng.choice([1.0, 0.5])
    if block["partial_rotary_factor"] == 0.5:
        folder.odd("half heads", "partial_rotary_factor is 0.5", "1.0")


def _half_heads_outside(folder: Folder, block: dict[str, Any]) -> None:
    folder.config["partial_rotary_factor"] = 0.5
    folder.odd("half heads outside", "partial_rotary_factor 0.5", "1.0")


def _two_types(folder: Folder, block: dict[str, Any]) -> None:
    other = "linear" if block["rope_type"] != "linear" else "default"
    block["type"] = other
    folder.odd("two types", f"rope_type is '{block['rope_type']}'", f"type is '{other}'")


def _two_bases(folder: Folder, block: dict[str, Any]) -> None:
    block["rope_theta"], folder.config["rope_theta"] = 77.0, 88.0
    folder.odd("two bases", "rope_theta is 88.0", "77.0 in the rope block")


def _no_factor(folder: Folder, block: dict[str, Any]) -> None:
    if block["rope_type"] == "yarn":
        block["factor"] = None
        block.setdefault("original_max_position_embeddings", 32)
        folder.odd("factor of null")
    elif block["rope_type"] != "default":
        del block["factor"]
        folder.odd("no factor", block["rope_type"], r"missing keys \['factor'\]")


def _unknown_type(folder: Folder, block: dict[str, Any]) -> None:
    block["rope_type"] = folder.rng.choice(["dynamic", "longrope", "proportional", "mrope"])
    block |= {"short_factor": [1.0], "long_factor": [1.0], "factor": 2.0}
    folder.odd("unknown type", f"rope_type '{block['rope_type']}' is not supported", "known: ")


def _unknown_key(folder: Folder, block: dict[str, Any]) -> None:
    key = "low_freq_factor" if block["rope_type"] != "llama3" else "beta_fast"
    block[key] = 2.0
    folder.odd("a key of another type", f"unknown keys.*{key}", block["rope_type"])


ROPE_ODDITIES = (
    *(_outer_length, _two_scales, _one_scale, _finetuned, _whole_heads, _half_heads_outside),
    *(_two_types, _two_bases, _no_factor, _unknown_type, _unknown_key),
)


# ---- other keys of config.json


def choose_keys(folder: Folder) -> None:
    rng, config, model = folder.rng, folder.config, folder.model
    if model.num_query_groups == model.num_attention_heads and rng.random() < 0.5:
        del config["num_key_value_heads"]
    whole = model.hidden_size == model.num_attention_heads * model.kv_channels
    if whole and rng.random() < 0.5:
        config["head_dim"] = None
    if model.norm_epsilon == 1e-6 and rng.random() < 0.5:
        del config["rms_norm_eps"]
    if model.untie_embeddings_and_output_weights and rng.random() < 0.3:
        del config["tie_word_embeddings"]
    if rng.random() < 0.5:
        config[rng.choice(["dtype", "torch_dtype"])] = rng.choice(["float32", "bfloat16"])
    if "keys" not in folder.wild:
        return
    if rng.random() < 0.5:
        config["model_type"] = "mistral"
        folder.odd("another model", "model_type 'mistral'", "'llama'")
    else:
        config["per_layer_config"] = {"0": {"intermediate_size": 8}}
        folder.odd("layers of their own", "per_layer_config", "None")


# ---- tensors


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
        folder.odd("quantised", "torch.int8", "dequantise")


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
        folder.odd("a tensor too many", "1 tensors|2 tensors", "q_norm")
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


# ---- files


def write(folder: Folder, path: Path) -> None:
    """Write a folder in one of the layouts; its oddity is added."""
    path.mkdir()
    folder.rng.choice(ODD_LAYOUTS if "layout" in folder.wild else PLAIN_LAYOUTS)(folder, path)
    values = {key: value for key, value in folder.config.items() if value is not None}
    if folder.rng.random() < 0.2:
        values = dict(folder.config)  # with its nulls
        if values.get("head_dim", 1) is None:
            del values["head_dim"]
    (path / "config.json").write_text(json.dumps(values))


def write_plain(folder: Folder, path: Path) -> None:
    """The model that is meant, under its own names, in one file."""
    path.mkdir()
    _save(folder.tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(folder.config))


def _save(tensors: Tensors, path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(dict(tensors), path)
    else:
        copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, path, metadata={"format": "pt"})


def _shards(tensors: Tensors, path: Path, stem: str = "model", suffix: str = "safetensors") -> None:
    """Two files and their index."""
    names = sorted(tensors)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        _save({name: tensors[name] for name in part}, path / file)
        places |= dict.fromkeys(part, file)
    _index(path / f"{stem}.{suffix}.index.json", places)


def _index(path: Path, places: dict[str, str]) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def _edit_index(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    change(places)
    _index(index, places)


def _older(folder: Folder) -> Tensors:
    return {name: tensor + 0.25 for name, tensor in folder.stored.items()}


SINGLE, INDEX = "model.safetensors", r"model\.safetensors\.index\.json"


def _one_file(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / SINGLE)


def _two_files(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)


def _one_pickle(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / "pytorch_model.bin")


def _two_pickles(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path, "pytorch_model", "bin")


def _stale_index(folder: Folder, path: Path) -> None:
    _shards(_older(folder) if folder.rng.random() < 0.7 else folder.stored, path)
    _one_file(folder, path)
    folder.odd("an index and a file", "2 complete sets", rf"{SINGLE} and {INDEX}", "move")


def _pickle_too(folder: Folder, path: Path) -> None:
    folder.rng.choice([_one_file, _two_files])(folder, path)
    other = _older(folder)
    if folder.rng.random() < 0.5:
        _save(other, path / "pytorch_model.bin")
    else:
        _shards(other, path, "pytorch_model", "bin")
    folder.odd("pickles too", "2 complete sets", r"model\.safetensors", r"pytorch_model\.bin")


def _meta_too(folder: Folder, path: Path) -> None:
    folder.rng.choice([_one_file, _two_files, _one_pickle])(folder, path)
    torch.save({"tok_embeddings.weight": torch.ones(2)}, path / "consolidated.00.pth")
    (path / "params.json").write_text('{"dim": 8}')
    folder.odd("Meta's too", "2 complete sets", r"consolidated\.00\.pth", "move")


def _index_of_lost_files(folder: Folder, path: Path) -> None:
    _shards(_older(folder), path)
    (path / "model-00001-of-00002.safetensors").unlink()
    _one_file(folder, path)
    folder.odd("an index of lost files", said=rf"{INDEX} .* is not read .*{SINGLE} is")


def _damaged_index(folder: Folder, path: Path) -> None:
    _one_file(folder, path)
    (path / "model.safetensors.index.json").write_text(folder.rng.choice(["{", "{}", "[]"]))
    folder.odd("a damaged index", said=rf"{INDEX} is not read .*{SINGLE} is")


def _lost_file(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    lost = folder.rng.choice([1, 2])
    (path / f"model-0000{lost}-of-00002.safetensors").unlink()
    if folder.rng.random() < 0.5:
        _one_pickle(folder, path)
    folder.odd("a lost file", rf"{INDEX} names 1 files that are not there", f"model-0000{lost}")


def _lost_index(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    (path / "model.safetensors.index.json").unlink()
    folder.odd("a lost index", "holds no weights", "shards: their index is missing")


def _index_of_the_file(folder: Folder, path: Path) -> None:
    _one_file(folder, path)
    _index(path / "model.safetensors.index.json", dict.fromkeys(folder.stored, SINGLE))
    folder.odd("an index of the one file")


def _index_with_a_gap(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    _edit_index(path, lambda places: places.pop(next(iter(places))))
    folder.odd("a tensor that the index does not name")


def _index_of_another_place(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    _edit_index(path, lambda places: places.update({min(places): files[1]}))
    folder.odd("another place", f"{files[1]} holds tensor {min(folder.stored)}", "does not")


def _tensor_in_two_files(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    name = min(folder.stored)
    second = {n: folder.stored[n] for n in sorted(folder.stored)[len(folder.stored) // 2 :]}
    _save({**second, name: folder.stored[name] + 1}, path / "model-00002-of-00002.safetensors")
    folder.odd("a tensor in two files", f"tensor {name} stands in model-00001", "model-00002")


def _files_by_rank(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / "shard-00000-model-00001-of-00001.safetensors")
    more = folder.rng.random() < 0.5
    if more:
        _one_file(folder, path)
    folder.odd("files by rank", "shard-00000-model-00001", SINGLE if more else "with transformers")


def _named_in_the_config(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / "weights-of-step-9.safetensors")
    folder.config["transformers_weights"] = "weights-of-step-9.safetensors"
    if folder.rng.random() < 0.5:
        _save(_older(folder), path / SINGLE)
        folder.odd("named, beside another", said="transformers_weights .*weights-of-step-9")
    else:
        folder.odd("named in the config")


def _other_format(folder: Folder, path: Path) -> None:
    name = folder.rng.choice(
        ["model.gguf", "model.fp16.safetensors", "adapter_model.safetensors", "tf_model.h5"]
    )
    _save(folder.stored, path / name)
    folder.odd("another format", "holds no weights", "tf_model|" + name.replace(".", r"\."))


PLAIN_LAYOUTS = (_one_file, _two_files, _one_file, _two_files, _one_pickle, _two_pickles)
ODD_LAYOUTS = (
    *(_stale_index, _pickle_too, _meta_too, _index_of_lost_files, _damaged_index, _lost_file),
    *(_lost_index, _index_of_the_file, _index_with_a_gap, _index_of_another_place),
    *(_tensor_in_two_files, _files_by_rank, _named_in_the_config, _other_format),
)
