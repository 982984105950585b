"""Any value at any place of config.json and of a tokenizer's files: read, or refused in words."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.convert.report import inspect, inspect_config
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import unseal
from megatron_ultralong.checkpoint.formats import rope_readers
from megatron_ultralong.checkpoint.formats.gguf_file import GgufContents
from megatron_ultralong.checkpoint.formats.gguf_tokenizer import _LLAMA3
from megatron_ultralong.checkpoint.formats.gguf_values import array, float32, int32, string, uint32
from megatron_ultralong.checkpoint.formats.hugging_face_config import _FIXED
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.rope_readers import Engine, Reading, Rope, check_readers
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, InspectConfig
from megatron_ultralong.model.families.llama import LLAMA
from megatron_ultralong.model.yarn import YarnConfig, hf_rope_scaling
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.absurd_values import changed, every_change, random_change
from tests.checkpoint.limits import little_memory
from tests.checkpoint.llama import save_llama

__all__ = ["little_memory"]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_attention_heads": 4,
    "head_dim": 64, "rope_theta": 10000.0, "max_position_embeddings": 4096,
    "original_max_position_embeddings": 512,
}  # fmt: skip
OVER = {"factor": 8.0, "original_max_position_embeddings": 512}
BLOCKS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "llama3", **OVER, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", **OVER, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.0,
     "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": True},
    {"type": "yarn", "factor": None, "partial_rotary_factor": 1.0, "finetuned": True},
]  # fmt: skip
BOS = "<|begin_of_text|>"
TOKENIZER: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 4, "content": BOS, "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [4], "tokens": [BOS]}},
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
              "ignore_merges": True, "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, BOS: 4},
              "merges": [["a", "b"]]},
}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {
        "tokenizer_class": "LlamaTokenizerFast", "bos_token": BOS, "eos_token": {"content": "ab"},
        "add_bos_token": True, "add_eos_token": False, "add_prefix_space": False,
        "extra_special_tokens": ["a"], "additional_special_tokens": ["b"],
        "chat_template": [{"name": "default", "template": "x"}, {"name": "t", "template": "y"}],
    },
    "generation_config.json": {"top_k": 50, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7,
                               "repetition_penalty": 1.1},
    "config.json": {"bos_token_id": 4, "eos_token_id": 3, "pad_token_id": 0},
}  # fmt: skip


def accepts(action: Callable[[], object], path: Path) -> bool:
    """Whether it succeeds; it may refuse, in a short message that names the file."""
    try:
        action()
    except InputError as error:
        said = str(error)
    else:
        return True
    assert str(path.parent) in said
    assert len(said) < 1500
    return False


def some_configs() -> Iterator[dict[str, Any]]:
    for block in BLOCKS:
        whole = {"rope_scaling": block} if block is not BLOCKS[3] else CONFIG
        for place, value in every_change(whole):
            yield changed({**CONFIG, "rope_scaling": block}, place, value)
    for seed in range(300):
        rng = random.Random(seed)
        config = {**CONFIG, rng.choice(["rope_scaling", "rope_parameters"]): rng.choice(BLOCKS)}
        yield random_change(rng.choice([config, config, {"text_config": config}]), rng)


def test_a_lone_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    num_read = num_refused = 0
    for config in some_configs():
        path.write_text(json.dumps(config))
        is_read = accepts(lambda: inspect_config(path), path)
        num_read, num_refused = num_read + is_read, num_refused + (not is_read)
    assert num_read > 200
    assert num_refused > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 4_000_000_000}, "head_dim must be between 2 and 16384, not 4000000000"),
        ({"head_dim": 7}, "head_dim is 7, it must be even"),
        ({"head_dim": -4}, "head_dim must be .*not -4"),
        ({"head_dim": None, "hidden_size": 1}, "head_dim must be .*not 0.* over num_attention_h"),
        ({"rope_theta": 1.0}, r"base must be above 1, not 1.0: rope_theta"),
        ({"rope_theta": -5}, "base must be above 1, not -5"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, it must be"),
    ],
)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(next(iter(block.values()))))
def test_numbers_of_no_model(
    tmp_path: Path, change: dict[str, Any], message: str, block: dict[str, Any]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "rope_scaling": block, **change}))
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        inspect_config(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"model_type": "gemma"}, "model_type 'gemma' is not that of its architecture"),
        ({"text_config": {"a": 1}}, "text_config .* is not supported"),
        ({"architectures": ["GemmaForCausalLM"]}, r"\['GemmaForCausalLM'\] is not supported"),
        ({"architectures": []}, r"architectures \[\] is not supported"),
        *(
            ({key: "other"}, f"{key} .*other.* is not supported")
            for key in [*_FIXED, *LLAMA.fixed, *LLAMA.stated]
            if key != "text_config"  # no object: damaged
        ),
    ],
)
def test_engines_are_named_for_models_that_an_import_takes_alone(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = {**CONFIG, "architectures": ["LlamaForCausalLM"], "rope_scaling": None, **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not message:
        assert inspect_config(tmp_path / "config.json")["conversion"] is None
        assert "right" in inspect_config(tmp_path / "config.json")["good_for"].values()
        return
    said = inspect_config(tmp_path / "config.json")
    assert re.search(message, said["conversion"])
    assert said["good_for"] == {"no engine": f"was run with such a model: {said['conversion']}"}


def test_a_lone_config_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"config\.json leads out of"):
        inspect(InspectConfig(tmp_path / "model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> MegatronCheckpoint:
    folder = tmp_path_factory.mktemp("small_files")
    save_llama(folder / "hf", vocab_size=8, num_hidden_layers=1)
    for name in set(FILES) - {"config.json"}:
        (folder / "hf" / name).write_text(json.dumps(FILES[name]))
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    unseal(folder / "megatron")
    return MegatronCheckpoint(folder / "megatron")


@pytest.fixture
def small(source: MegatronCheckpoint) -> Path:
    for name, values in FILES.items():
        (source.source_folder / name).write_text(json.dumps(values))
    return source.source_folder


def hugging_face_files(folder: Path) -> None:
    files = TokenizerFiles(folder)
    files.config(files.values)
    files.readers()
    files.write_string_merges(folder.parent / "strings")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("count", [150, pytest.param(10**6, marks=pytest.mark.faults)])
def test_small_files_of_exports(
    source: MegatronCheckpoint, small: Path, name: str, count: int
) -> None:
    rng = random.Random(name)
    values = FILES[name]
    every = [changed(values, *change) for change in every_change(values)]
    some = rng.sample(every, min(count, len(every)))
    several = [random_change(values, rng) for _ in range(min(count, 1000) // 3)]
    num_read = 0
    for one in [values, *some, *several]:
        (small / name).write_text(json.dumps(one))
        num_read += accepts(
            lambda: GgufContents(source, None).header(small / "header"), small / name
        )
        accepts(lambda: hugging_face_files(small), small / name)
    assert num_read >= 1
    assert name == "config.json" or num_read <= len(some) + len(several)


ODD_TOKENIZERS: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "normalizer": (("normalizer",), {}, "not a tokenizer|key type is missing"),
    "pattern": (("pre_tokenizer", "pretokenizers", 0, "pattern"), "x", "not a tokenizer"),
    "regex": (
        ("pre_tokenizer", "pretokenizers", 0, "pattern"),
        {"Regex": ["a"]},
        "not a tokenizer",
    ),
    "parts": (("pre_tokenizer", "pretokenizers"), 5, "not a tokenizer"),
    "merges": (("model", "merges"), [1], "not a tokenizer"),
    "no merges": (("model", "merges"), [], "no merges, and llama.cpp loads no such tokenizer"),
    "a panic": (("post_processor", "special_tokens"), {}, "no tokens for 'a'|not a tokenizer"),
    "an id": (("model", "vocab", "c"), 4_000_000_000, "a token of id 4,000,000,000"),
}


@pytest.mark.parametrize("name", ODD_TOKENIZERS)
def test_odd_tokenizers(source: MegatronCheckpoint, small: Path, name: str) -> None:
    place, value, message = ODD_TOKENIZERS[name]
    (small / "tokenizer.json").write_text(json.dumps(changed(TOKENIZER, place, value)))
    with pytest.raises(InputError, match=rf"tokenizer\.json.*({message})"):
        GgufContents(source, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("top_k", 2**40, "beyond 2147483647"), ("temperature", 1e300, "not a number of 32 bits")],
)
def test_sampling_beyond_gguf(
    source: MegatronCheckpoint, small: Path, key: str, value: float, message: str
) -> None:
    (small / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(InputError, match=rf"generation_config\.json: {key}: .*{message}"):
        GgufContents(source, None)


def test_values_that_gguf_has_not() -> None:
    refused: list[tuple[Callable[[Any], object], Any]] = [
        *((uint32, number) for number in (-1, 2**32)),
        *((int32, number) for number in (-(2**31) - 1, 2**31)),
        *((float32, number) for number in (1e39, -1e300, float("nan"), float("inf"), 10**400)),
        *((string, "\ud800"), (array, []), (array, ["a", "\udfff"]), (array, [2**31])),
    ]
    for kind, value in refused:
        with pytest.raises(InputError):
            kind(value)
    assert (uint32(2**32 - 1).value, int32(-(2**31)).value) == (2**32 - 1, -(2**31))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_small_files_out_of_their_folder(
    source: MegatronCheckpoint, small: Path, tmp_path: Path, file: str
) -> None:
    shutil.move(small / file, tmp_path / file)
    (small / file).symlink_to(tmp_path / file)
    try:
        with pytest.raises(InputError, match=f"{file} leads out of"):
            GgufContents(source, None)
    finally:
        (small / file).unlink()


@pytest.mark.parametrize("engines", ["Meta's code", "meta", "llama.cpp"])
def test_no_engine_reads_meta(small: Path, tmp_path: Path, engines: str) -> None:
    config = ExportConfig(small.parent, tmp_path / "out", format="meta", engines=engines)
    with pytest.raises(InputError, match=f"--for {engines} asks .* --format meta writes none: lea"):
        export_checkpoint(config)


def test_versions_that_read_otherwise_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Reading(), Reading(betas="32 and 1")
    table = [Engine("e", f"{n}", one, {}) for n, one in enumerate((bad, bad, good, bad, good))]
    monkeypatch.setattr(rope_readers, "engines", lambda: tuple(table))
    scaling = YarnConfig(8.0, 512, ramp="dimensions")
    rope = Rope(scaling, hf_rope_scaling(scaling), 4096, 64, 10000.0)
    wrong = "reads this rope block otherwise"
    assert check_readers(rope, ["e"]) == [f"e 0 to 1 {wrong}", f"e 3 {wrong}"]
