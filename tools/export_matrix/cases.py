"""Small models and tokenizers of every kind, exported, for releases of transformers to read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from megatron_ultralong.checkpoint.convert.report import ConversionReport
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import FAMILIES

VOCABULARY = 420
SPECIALS = ("<|begin|>", "<|eot|>", "<|pad|>", "<|user|>", "<|tool|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
TOOL_TEMPLATE = "{{ tools | tojson }}" + TEMPLATE
YARN = yarn.YarnConfig(8.0, 32, 32.0, 1.0, "dimensions")
ROPES: dict[str, tuple[yarn.RopeScaling, int]] = {
    "none": (None, 256),
    "linear": (yarn.LinearConfig(8.0), 256),
    "ntk": (yarn.NtkConfig(8.0), 256),
    "llama3": (yarn.YarnConfig(8.0, 32), 256),
    "yarn": (YARN, 256),
    "yarn-longer": (YARN, 300),
    "yarn-temperature": (
        dataclasses.replace(YARN, attention_factor=yarn.yarn_attention_factor(8.0)),
        256,
    ),
    "yarn-not-rounded": (dataclasses.replace(YARN, truncate=False), 256),
    "yarn-own-temperature": (dataclasses.replace(YARN, attention_factor=1.25), 300),
}
"""Scaling and positions. Lengths of 96 are beyond the original context of 32."""


def _of_24(factor: float, **yarn_values: Any) -> yarn.YarnConfig:
    return yarn.YarnConfig(factor, 24, 32.0, 1.0, "dimensions", **yarn_values)


FAMILY_ROPES: dict[str, yarn.RopeScaling] = {
    "linear": yarn.LinearConfig(8.0),
    "llama3": yarn.YarnConfig(8.0, 24),
    "yarn": _of_24(8.0),
    "yarn-temperature": _of_24(8.0, attention_factor=yarn.yarn_attention_factor(8.0)),
}
"""Of every family but Llama: lengths of 96 are four times the original context of 24."""


def write_exports(folder: Path) -> dict[str, tuple[Path, ConversionReport]]:
    """Export a model for each rotary scaling and each kind of tokenizer.

    Returns the source's folder and the report of each export, by its name.
    """
    reports = {}
    for name, (scaling, positions) in ROPES.items():
        source = folder / "sources" / name
        save_model(source)
        save_tokenizer(source, "four")
        report = _export(folder, f"rope-{name}", source, scaling, positions)
        reports[f"rope-{name}"] = source, report
    for family in FAMILIES:
        for name, scaling in FAMILY_ROPES.items() if family != "llama" else ():
            source = folder / "sources" / family
            if not source.exists():
                save_model(source, family)
                save_tokenizer(source, "four")
            name = f"{family}-{name}"
            reports[name] = source, _export(folder, name, source, scaling, 192)
    source = folder / "sources" / "wide-heads"
    save_model(source, head_dim=48)
    save_tokenizer(source, "four")
    reports["wide-heads"] = source, _export(folder, "wide-heads", source, None, 256)
    for kind in KINDS:
        source = folder / "sources" / f"of-{kind}"
        save_model(source)
        save_tokenizer(source, kind)
        name = f"tokenizer-{kind}"
        reports[name] = source, _export(folder, name, source, None, 256)
        if kind in ("five", "llama-class"):
            name += "-strings"
            report = _export(folder, name, source, None, 256, tokenizer_merges="strings")
            reports[name] = source, report
    return reports


def _export(
    folder: Path,
    name: str,
    source: Path,
    scaling: yarn.RopeScaling,
    positions: int,
    **flags: Any,
) -> ConversionReport:
    checkpoint = folder / "checkpoints" / name
    checkpoint.parent.mkdir(exist_ok=True)
    import_checkpoint(ImportConfig(source, checkpoint))
    metadata = load_metadata(checkpoint)
    model = dataclasses.replace(metadata.model, max_position_embeddings=positions)
    save_metadata(checkpoint, dataclasses.replace(metadata, model=model, rope_scaling=scaling))
    output = folder / "exports" / name
    output.parent.mkdir(exist_ok=True)
    return export_checkpoint(ExportConfig(checkpoint, output, **flags))


def save_model(folder: Path, family: str = "llama", head_dim: int = 32) -> None:
    """A random model of two layers, as the installed transformers saves it."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        initializer_range=0.15,  # so that another rotary embedding moves logits by much
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=[1, 2],
        pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **FAMILIES[family].stated,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # zeros would hide one that is left out
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    model.generation_config.update(
        do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[1, 2], pad_token_id=2
    )
    model.save_pretrained(folder)


def _train(*, spaced: bool = False) -> Tokenizer:
    """A BPE tokenizer of this repository's source, with special tokens."""
    tokenizer = Tokenizer(models.BPE())
    if not spaced:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if spaced else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(text, special=True) for text in SPECIALS],
        initial_alphabet=alphabet or [chr(code) for code in range(32, 127)],
    )
    files = sorted(Path(yarn.__file__).parent.glob("*.py"))[:12]
    tokenizer.train_from_iterator([file.read_text("utf-8") for file in files], trainer)
    return tokenizer


def save_tokenizer(folder: Path, kind: str) -> None:
    """Save a tokenizer of a kind of :data:`KINDS`."""
    tokenizer = _train(spaced=kind == "spaced")
    if kind == "bare":
        tokenizer.save(str(folder / "tokenizer.json"))
        return
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|eot|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|tool|>"],
        model_max_length=32,
    )
    fast.chat_template = TEMPLATE
    if kind == "two-templates":
        fast.chat_template = {"default": TEMPLATE, "tool_use": TOOL_TEMPLATE}
    fast.save_pretrained(folder)
    if kind in ("four", "llama-class"):
        _as_four(folder, kind)


def _as_four(folder: Path, kind: str) -> None:
    """Say the same as transformers 4 says it."""
    file = folder / "tokenizer.json"
    fast = json.loads(file.read_text("utf-8"))
    if kind == "four":
        fast["model"]["merges"] = [" ".join(pair) for pair in fast["model"]["merges"]]
        file.write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    tokens = fast["added_tokens"]
    for key in ("backend", "is_local", "local_files_only"):
        values.pop(key, None)
    values["additional_special_tokens"] = values.pop("extra_special_tokens")
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    values["added_tokens_decoder"] = {str(token.pop("id")): token for token in tokens}
    values["chat_template"] = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    names = ("bos_token", "eos_token", "pad_token", "additional_special_tokens")
    if kind == "llama-class":  # DeepSeek's distilled Llamas: byte-level BPE under Llama's class
        values.update(tokenizer_class="LlamaTokenizerFast", add_bos_token=False)
    specials = {name: values[name] for name in names}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    path.write_text(json.dumps(values, indent=2))


KINDS = ("five", "four", "two-templates", "bare", "spaced", "llama-class")
"""Saved by transformers 5; by 4; with two templates; ``tokenizer.json`` alone; with spaces in its
merges; byte-level BPE under the class of sentencepiece."""
