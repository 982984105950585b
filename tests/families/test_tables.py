"""The tables of families: what is read, what is refused and why, sizes of published models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import megatron_ultralong
from megatron_ultralong.checkpoint.convert.report import inspect
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.hugging_face_config import model_config, read_config
from megatron_ultralong.checkpoint.logits.transformers_model import shape_values
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, InspectConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.model.families import ARCHITECTURES, FAMILIES
from megatron_ultralong.model.shape import MODELS, num_parameters
from megatron_ultralong.program.errors import InputError
from tests.families.shapes import write
from tests.models import write_tokenizer

# Of the published weights, tied ones counted once.
PUBLISHED = {
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_number_of_weights(name: str) -> None:
    assert num_parameters(MODELS[name]) == PUBLISHED[name]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_absent_keys_are_what_transformers_takes(tmp_path: Path, family: Any) -> None:
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 64,
        "vocab_size": 320,
    }
    stated = {**sizes, "architectures": [family.architecture], **family.stated}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    values = read_config(tmp_path)
    model = model_config(values)
    upstream = CONFIG_MAPPING[family.name](**sizes, **family.stated)
    head_dim = getattr(upstream, "head_dim", None) or 4096 // 64
    assert model.kv_channels == head_dim
    assert model.num_query_groups == upstream.num_key_value_heads
    assert model.max_position_embeddings == upstream.max_position_embeddings
    assert model.norm_epsilon == upstream.rms_norm_eps
    assert model.rotary_base == upstream.rope_parameters["rope_theta"]
    assert model.untie_embeddings_and_output_weights != upstream.tie_word_embeddings
    # and what the judge of logits is given is the same model
    given = CONFIG_MAPPING[family.name].from_dict({**shape_values(values), **family.stated})
    assert (getattr(given, "head_dim", None) or 64) == head_dim
    assert given.num_key_value_heads == upstream.num_key_value_heads
    assert getattr(given, "layer_types", None) in (None, ["full_attention"] * 2)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a window": ({"use_sliding_window": True}, "use_sliding_window True is not supported"),
    "windows in layers": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        r"layer_types \['full_attention', 'sliding_attention'\] is not supported: it must be \['f",
    ),
    "another type": ({"model_type": "llama"}, "model_type 'llama' .* which is 'qwen2'"),
    "chunks": ({"dual_chunk_attention_config": {"chunk_size": 4}}, "dual_chunk_attention_config"),
    "an odd list": ({"hidden_act": ["silu"]}, "hidden_act"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_another_attention_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    base = {"architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps({**base, **values}))
    with pytest.raises(InputError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("window", [{}, {"sliding_window": 4096}])
def test_a_mistral_with_a_window_is_refused(tmp_path: Path, window: dict[str, int]) -> None:
    values = {"architectures": ["MistralForCausalLM"], **window}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"sliding_window 4096.* it must be null"):
        read_config(tmp_path)


NEEDS = {
    "MixtralForCausalLM": "mixture of experts",
    "Qwen3MoeForCausalLM": "mixture of experts",
    "DeepseekV3ForCausalLM": r"latent attention \(MLA\) and a mixture of experts",
    "Gemma2ForCausalLM": "other norms",
    "GptOssForCausalLM": "mixture of experts .* and a sliding window",
    "MinistralForCausalLM": "a sliding window",
    "Qwen2_5_VLForConditionalGeneration": "sees or hears",
    "Phi3ForCausalLM": "in one tensor",
}


@pytest.mark.parametrize("architecture", NEEDS)
def test_what_a_family_needs_is_named(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(InputError, match=NEEDS[architecture]) as error:
        read_config(tmp_path)
    assert all(known in str(error.value) for known in ARCHITECTURES)


def test_no_other_architecture_of_transformers_passes(tmp_path: Path) -> None:
    """Every causal model that the installed transformers has, and what is refused of it."""
    for architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        if architecture in ARCHITECTURES:
            continue
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        with pytest.raises(InputError, match="is not supported"):
            read_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_stop_tokens_of_the_family_end_what_no_file_ends(tmp_path: Path, family: Any) -> None:
    write_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    marks = sorted({*family.stop_tokens, *(m for turns in family.turns for m in turns.marks)})
    known = Tokenizer.from_file(path)
    known.add_special_tokens([AddedToken(text, special=True) for text in marks])
    known.save(path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.name}))
    tokenizer = PromptTokenizer(tmp_path)
    assert tokenizer.stop_ids() == {known.token_to_id(text) for text in family.stop_tokens}
    assert tokenizer.turns in family.turns
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert PromptTokenizer(tmp_path).stop_ids() == {7}
    end = known.token_to_id(tokenizer.turns.after["assistant"][0])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    values = json.dumps({"model_type": family.name})  # a tune whose files are still its base's
    (tmp_path / "config.json").write_text(values)
    assert PromptTokenizer(tmp_path).stop_ids("chat") == {7, 8, end}


@pytest.mark.parametrize("direction", ["left", "right", None])
def test_padding_in_a_tokenizer_s_file_does_not_hide_its_bos(
    tmp_path: Path, direction: str | None
) -> None:
    write_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    known = Tokenizer.from_file(path)
    known.add_special_tokens([AddedToken("<bos>"), AddedToken("<pad>")])
    bos, pad = map(known.token_to_id, ("<bos>", "<pad>"))
    known.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    if direction:  # as it is saved behind a training
        known.enable_padding(direction=direction, pad_id=pad, pad_token="<pad>", length=8)
        known.enable_truncation(1)
    known.save(path)
    tokenizer = PromptTokenizer(tmp_path)
    assert tokenizer.begin_ids == [bos]
    assert tokenizer.encode("def f(x):").size > 1


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ("$A", []),
        ("$A <end>", []),  # as embedding models have it
        ("<begin> $A", ["<begin>"]),
        ("<begin> $A <end>", ["<begin>"]),
    ],
)
def test_what_a_tokenizer_puts_behind_a_text_is_not_put_before_it(
    tmp_path: Path, single: str, expected: list[str]
) -> None:
    write_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    known = Tokenizer.from_file(path)
    known.add_special_tokens([AddedToken("<begin>"), AddedToken("<end>")])
    ids = [(text, known.token_to_id(text)) for text in ("<begin>", "<end>")]
    known.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    known.save(path)
    assert PromptTokenizer(tmp_path).begin_ids == [known.token_to_id(text) for text in expected]


def test_defaults_that_change_greedy_texts_are_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "generation_config.json"
    usual = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "num_beams": 1, "min_length": 0}
    path.write_text(json.dumps({**usual, "repetition_penalty": 1.0, "suppress_tokens": None}))
    assert PromptTokenizer(tmp_path).not_applied() == ""
    path.write_text(json.dumps({**usual, "repetition_penalty": 1.05, "suppress_tokens": [3]}))
    said = PromptTokenizer(tmp_path).not_applied()
    assert said.startswith("repetition_penalty 1.05 and suppress_tokens [3] in the model's")


def test_whatever_writes_answers_names_them() -> None:
    package = Path(megatron_ultralong.__file__).parent
    texts = {
        file.relative_to(package).as_posix(): file.read_text() for file in package.rglob("*.py")
    }
    doors = {file for file, text in texts.items() if ".stop_ids(" in text}
    assert len(doors) >= 3
    for line in (".not_applied()", 'tell(f"warning: {note}")'):
        assert not [file for file in doors if line not in texts[file]]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama"])
def test_gguf_has_the_names_of_its_architecture(tmp_path: Path, family: str) -> None:
    """llama.cpp reads such a file (``tools/compare_gguf.py``), and no divisors of frequencies."""
    write(tmp_path / "hf", family, "plain", num_hidden_layers=1)
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "base"))
    export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "gguf", format="gguf"))
    reader = GGUFReader(tmp_path / "gguf" / "model.gguf")
    gguf = FAMILIES[family].gguf
    assert reader.fields["general.architecture"].contents() == gguf
    names = {tensor.name for tensor in reader.tensors}
    known = MODEL_TENSORS[next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == gguf)]
    templates = {TENSOR_NAMES[each].format(bid=0) for each in known}
    assert {name.rpartition(".")[0] for name in names} <= templates
    hf = load_file(tmp_path / "hf" / "model.safetensors")
    assert len(names) == len(hf)
    if gguf == "llama":
        return
    key = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_k.weight")
    assert np.array_equal(key.data, hf["model.layers.0.self_attn.k_proj.weight"].numpy())

    rope = RopeConfig("yarn", 4.0, 64)
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "scaled", rope=rope))
    with pytest.raises(InputError, match=f"no such rotary embedding for {gguf} .*--ramp dimens"):
        export_checkpoint(ExportConfig(tmp_path / "scaled", tmp_path / "no", format="gguf"))


def test_meta_s_format_is_llama_s(tmp_path: Path) -> None:
    write(tmp_path / "hf", "qwen3", "plain", num_hidden_layers=1)
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "base"))
    with pytest.raises(InputError, match=r"for Llama models, and this is Qwen3 \(dense\)"):
        export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "no", format="meta"))


def test_inspect_names_the_family(tmp_path: Path) -> None:
    write(tmp_path / "hf", "qwen2", "plain", num_hidden_layers=1)
    assert inspect(InspectConfig(tmp_path / "hf", json=True))["family"] == "Qwen2.5"
    lone = tmp_path / "config.json"
    shutil.copy(tmp_path / "hf" / "config.json", lone)
    assert inspect(InspectConfig(lone, json=True))["family"] == "Qwen2.5"


@pytest.mark.parametrize("page", ["README.md", "docs/checkpoint_conversion.md"])
def test_the_pages_name_every_family(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    for family in FAMILIES.values():
        assert f"`{family.architecture}`" in text
        assert family.title.split(" (")[0] in text
