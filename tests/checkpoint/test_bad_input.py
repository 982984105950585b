"""Bad input ends in one message with file, tensor and fix, and leaves nothing behind."""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint, verify
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, VerifyConfig
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import edit_config, save_llama


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    save_llama(folder / "single", num_hidden_layers=2)
    save_llama(folder / "tied", num_hidden_layers=2, tied=True)
    save_llama(folder / "sharded", num_hidden_layers=2, max_shard_size="100KB")
    import_checkpoint(ImportConfig(folder / "single", folder / "megatron"))
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(path: Path, count: int) -> None:
    os.truncate(path, path.stat().st_size - count)


def change_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = index["weight_map"]
    places["model.layers.1.mlp.up_proj.weight"] = places["model.embed_tokens.weight"]
    path.write_text(json.dumps(index))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


K = "model.layers.1.self_attn.k_proj.weight"
BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing shard": (
        "sharded",
        lambda f: first_shard(f).unlink(),
        r"index\.json names 1 file not there: model-00001-of-\d+\.safetensors",
    ),
    "truncated safetensors": (
        "sharded",
        lambda f: truncate(first_shard(f), 3),
        r"model-00001-of-\d+\.safetensors is not a complete safetensors file",
    ),
    "index names an absent tensor": (
        "sharded",
        change_index,
        r"says that model-00001.* holds tensor model\.layers\.1\.mlp\.up_proj\.weight, and it does",
    ),
    "damaged index": (
        "sharded",
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "index.json is damaged",
    ),
    "no config": ("single", lambda f: (f / "config.json").unlink(), "has no config.json"),
    "damaged config": ("single", lambda f: truncate(f / "config.json", 9), "is not JSON"),
    "no weights": (
        "single",
        lambda f: (f / "model.safetensors").unlink(),
        r"holds no weights: none of model\.safetensors, model\.safetensors\.index\.json",
    ),
    "no tokenizer": (
        "single",
        lambda f: (f / "tokenizer.json").unlink(),
        r"has no tokenizer\.json .* --no-tokenizer",
    ),
    "unknown architecture": (
        "single",
        lambda f: edit_config(f, architectures=["MixtralForCausalLM"]),
        r"architectures \['MixtralForCausalLM'\] is not supported: it needs a mixture of experts .*"
        r"known: LlamaForCausalLM \(Llama\), Qwen2",
    ),
    "bias": (
        "single",
        lambda f: edit_config(f, attention_bias=True),
        "attention_bias True is not supported",
    ),
    "uneven groups": (
        "single",
        lambda f: edit_config(f, num_key_value_heads=4),
        r"num_attention_heads \(6\) must be divisible by num_key_value_heads \(4\)",
    ),
    "wrong shape": (
        "single",
        lambda f: edit_config(f, head_dim=12),
        r"q_proj\.weight has shape \[96, 72\], config\.json makes it \[72, 72\]",
    ),
    "a layer too many": (
        "single",
        lambda f: edit_config(f, num_hidden_layers=1),
        r"holds 9 tensors that its config\.json leaves no place for: model\.layers\.1",
    ),
    "a layer too few": (
        "single",
        lambda f: edit_config(f, num_hidden_layers=3),
        r"holds no tensor model\.layers\.2\.input_layernorm\.weight of shape \[72\]",
    ),
    "untied without output": (
        "tied",
        lambda f: edit_config(f, tie_word_embeddings=False),
        r"holds no tensor lm_head\.weight .* set tie_word_embeddings true",
    ),
    "tied with another output": (
        "single",
        lambda f: edit_config(f, tie_word_embeddings=True),
        r"tie_word_embeddings is true in config\.json, but lm_head\.weight differs",
    ),
    "dtypes of one weight": (
        "single",
        lambda f: change_tensors(f, lambda t: t.update({K: t[K].bfloat16()})),
        r"k_proj\.weight': torch\.bfloat16.* must have one dtype",
    ),
    "dtypes of one stack": (
        "single",
        lambda f: change_tensors(
            f, lambda t: t.update({n: t[n].half() for n in t if "1.mlp.down" in n})
        ),
        r"layers\.1\.mlp\.down_proj\.weight is torch\.float16, .*layers\.0.* is torch\.float32",
    ),
    "quantised": (
        "single",
        lambda f: change_tensors(f, lambda t: t.update({K: t[K].to(torch.int8)})),
        r"k_proj\.weight is torch\.int8; .*dequantize",
    ),
}


@pytest.mark.parametrize(("source", "spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_source_is_refused(
    originals: Path, tmp_path: Path, source: str, spoil: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(originals / source, tmp_path / "hf")
    spoil(tmp_path / "hf")
    with pytest.raises(InputError, match=message):
        import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_tied_copy_of_the_embedding_is_no_confusion(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "tied", tmp_path / "hf")
    change_tensors(
        tmp_path / "hf",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "out"))
    verify(VerifyConfig(originals / "tied", tmp_path / "out"))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_does_not_run(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "single", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(
        pickle.dumps({"model.norm.weight": Malicious(tmp_path / "ran")}, protocol=2)
    )
    with pytest.raises(InputError, match=r"pytorch_model\.bin does not open as a file of weights"):
        import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "out"))
    assert not (tmp_path / "ran").exists()


def test_code_in_megatron_metadata_does_not_run(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "megatron", tmp_path / "in")
    metadata = tmp_path / "in" / "release" / ".metadata"
    metadata.write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"posix\.mkdir has no place in a checkpoint's metadata"):
        export_checkpoint(ExportConfig(tmp_path / "in", tmp_path / "out"))
    assert not (tmp_path / "ran").exists()


def change_model(folder: Path, **values: object) -> None:
    metadata = load_metadata(folder)
    model = dataclasses.replace(metadata.model, **values)  # type: ignore[arg-type]
    save_metadata(folder, dataclasses.replace(metadata, model=model))


BROKEN_MEGATRON: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda f: truncate(f / "release" / "__0_0.distcp", 100),
        r"__0_0\.distcp has \d+ bytes, the checkpoint needs \d+ bytes of it",
    ),
    "missing file": (
        lambda f: (f / "release" / "__0_0.distcp").unlink(),
        r"__0_0\.distcp is missing",
    ),
    "damaged index": (lambda f: truncate(f / "release" / ".metadata", 50), "metadata cannot be"),
    "not finished": (
        lambda f: (f / "release" / "metadata.json").unlink(),
        "holds no complete iteration release; it holds none",
    ),
    "no metadata of this project": (
        lambda f: (f / "ultralong.json").unlink(),
        "has no ultralong.json: it is a checkpoint of Megatron-LM's own, or a copy",
    ),
    "another shape": (
        lambda f: change_model(f, hidden_size=64),
        r"embedding\.word_embeddings\.weight has shape \[130, 72\], .* makes it \[130, 64\]",
    ),
    "tied by metadata alone": (
        lambda f: change_model(f, untie_embeddings_and_output_weights=False),
        r"holds output_layer\.weight, but its metadata says that embedding and output share",
    ),
    "another format": (
        lambda f: (f / "release" / "metadata.json").write_text('{"sharded_backend": "zarr"}'),
        r"metadata\.json: sharded_backend is 'zarr', 'torch_dist' is read",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN_MEGATRON.values(), ids=BROKEN_MEGATRON)
def test_a_broken_checkpoint_is_refused(
    originals: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(originals / "megatron", tmp_path / "in")
    spoil(tmp_path / "in")
    with pytest.raises(InputError, match=message):
        export_checkpoint(ExportConfig(tmp_path / "in", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["__0_0.distcp", "common.pt"])
def test_a_missing_file_is_told_once(originals: Path, tmp_path: Path, name: str) -> None:
    """Both the checksums and the checkpoint's own metadata miss it."""
    shutil.copytree(originals / "megatron", tmp_path / "in")
    (tmp_path / "in" / "release" / name).unlink()
    with pytest.raises(InputError) as refused:
        export_checkpoint(ExportConfig(tmp_path / "in", tmp_path / "out"))
    assert str(refused.value).count("is missing") == 1
    assert str(refused.value).count(name) == 1


@pytest.mark.parametrize("text", ["{}", '{"version": "1.0"'])
def test_a_tokenizer_that_nothing_can_read_is_refused(
    originals: Path, tmp_path: Path, text: str
) -> None:
    shutil.copytree(originals / "single", tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"in/tokenizer\.json is not"):
        import_checkpoint(ImportConfig(tmp_path / "in", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


SMALL = {
    **dict.fromkeys(("generation_config.json", "preprocessor_config.json"), "{}"),
    **dict.fromkeys(("tokenizer_config.json", "special_tokens_map.json"), '{"eos_token": "x"}'),
    **dict.fromkeys(("added_tokens.json", "vocab.json", "trainer_state.json"), "{}"),
    **dict.fromkeys(("chat_template.jinja", "additional_chat_templates/rag.jinja"), "{{ 1 }}"),
    "tokenizer.json": "",
    "LICENSE": "a",
    "merges.txt": "a b",
}


@pytest.mark.parametrize("damage", [b'{"a": ', b"[]", b"\xff\xfe"])
def test_what_an_export_cannot_read_is_told_by_the_import(
    originals: Path, tmp_path: Path, damage: bytes
) -> None:
    """Weeks of training may lie between them."""
    shutil.copytree(originals / "single", tmp_path / "in")
    for name, text in SMALL.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        if text:
            (tmp_path / "in" / name).write_text(text)
    refused = {}
    for name in SMALL:
        before = (tmp_path / "in" / name).read_bytes()
        (tmp_path / "in" / name).write_bytes(damage)
        try:
            import_checkpoint(ImportConfig(tmp_path / "in", tmp_path / name / "m", verify=False))
            export_checkpoint(ExportConfig(tmp_path / name / "m", tmp_path / name / "out"))
        except InputError as error:
            refused[name] = str(error)
        (tmp_path / "in" / name).write_bytes(before)
    expected = {name for name in SMALL if name.endswith(("config.json", "map.json"))}
    assert {*expected, "tokenizer.json"} <= {*refused}
    assert all(str(tmp_path / "in" / name) in said for name, said in refused.items())
    assert not {*refused} & {"LICENSE", "merges.txt", "vocab.json", "trainer_state.json"}


def test_damage_that_no_size_shows_is_found_by_verify(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "megatron", tmp_path / "in")
    path = tmp_path / "in" / "release" / "__0_0.distcp"
    weight = load_file(originals / "single" / "model.safetensors")["model.norm.weight"]
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes()) + 4 * 6] ^= 1
    path.write_bytes(data)
    # torch's own checksum of the record may speak first
    with pytest.raises(
        InputError, match=r"model\.norm\.weight: 1 of 72|final_layernorm\.weight can"
    ):
        verify(VerifyConfig(originals / "single", tmp_path / "in", verify_checksums=False))
    with pytest.raises(InputError, match=r"__0_0\.distcp has sha256 .*its bytes have changed"):
        verify(VerifyConfig(originals / "single", tmp_path / "in"))
