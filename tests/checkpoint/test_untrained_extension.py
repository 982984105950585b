"""``convert import --rope-scaling``: the export of an extension that nobody has trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.model.yarn import LinearConfig, YarnConfig, yarn_attention_factor
from tests.checkpoint.llama import save_llama
from tests.checkpoint.verbs import refusal

TOKENS = torch.arange(100)[None] * 7 % 130
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 positions, which llama3's block has scaled to 256."""
    folder = tmp_path_factory.mktemp("extension") / "hf"
    save_llama(folder, num_hidden_layers=2, rope_parameters={"rope_theta": 10000.0, **LLAMA3})
    return folder


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize(
    ("flags", "scaling", "positions"),
    [
        (
            "--rope-scaling yarn --rope-scaling-factor 16 --original-max-position-embeddings 64",
            YarnConfig(16.0, 64),
            1024,
        ),
        (
            "--rope-scaling yarn --rope-scaling-factor 8 --original-max-position-embeddings 64 "
            "--ramp dimensions --attention-factor yarn --beta-fast 32",
            YarnConfig(8.0, 64, 32.0, 1.0, "dimensions", yarn_attention_factor(8.0)),
            512,
        ),
        ("--rope-scaling linear --rope-scaling-factor 2", LinearConfig(2.0), 128),
        ("--rope-scaling none", None, 64),
    ],
)
def test_the_export_carries_it(
    source: Path, tmp_path: Path, flags: str, scaling: object, positions: int
) -> None:
    megatron, exported = str(tmp_path / "megatron"), str(tmp_path / "exported")
    cli.main(["convert", "import", str(source), megatron, *words(flags)])
    metadata = load_metadata(tmp_path / "megatron")
    assert metadata.rope_scaling == scaling
    assert metadata.model.max_position_embeddings == positions
    assert metadata.trained_positions == min(positions, 256)
    cli.main(["convert", "export", megatron, exported])
    # of one scaling by Megatron-Core too
    logits = words("--logits --logits-seq-length 60") if "dimensions" in flags else []
    cli.main(["convert", "verify", megatron, exported, *logits])
    values = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert values["max_position_embeddings"] == positions
    # the source's weights, under a block that transformers reads by itself
    wanted = LlamaForCausalLM.from_pretrained(source)
    wanted.config.rope_parameters = {"rope_theta": 10000.0, "rope_type": "default"}
    wanted.config.rope_parameters |= values["rope_scaling"] or {}
    wanted.model.rotary_emb = type(wanted.model.rotary_emb)(wanted.config)
    found = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(found(TOKENS).logits, wanted(TOKENS).logits, atol=0, rtol=0)


def test_the_source_is_said_to_have_another(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = tmp_path / "megatron", "--rope-scaling yarn --rope-scaling-factor 4"
    more = "--original-max-position-embeddings 64 --beta-fast 8"
    cli.main(["convert", "import", str(source), str(output), *words(f"{flags} {more}")])
    message = refusal(capsys, ["convert", "verify", str(source), str(output)])
    assert "the models differ in rotary embedding: " in message
    assert "All tensors are equal: one was imported or trained with another" in message


def test_another_base_is_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 20000.0
    (other / "config.json").write_text(json.dumps(config))
    message = refusal(capsys, ["convert", "verify", str(source), str(other)])
    assert "over base 10000 against yarn" in message
    assert "over base 20000. All tensors are equal" in message
    assert "or states another rope_theta" in message


def test_it_is_said(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = words("--rope-scaling linear --rope-scaling-factor 2 --beta-fast 8")
    cli.main(["convert", "import", str(source), str(tmp_path / "megatron"), *flags])
    said = capsys.readouterr().err
    assert (
        "rotary: llama3 x4 over 64, betas 1 and 4 (256 positions) -> linear x2 over 64 "
        "(128 positions); the weights are not trained for it" in said
    )
    assert "warning: beta_fast 8.0: without effect under rope_scaling 'linear'" in said


def test_an_export_says_which_positions_were_trained(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--rope-scaling yarn --rope-scaling-factor 16 --original-max-position-embeddings 64"
    for name, more, trained in (("plain", "", 256), ("extended", flags, 256)):
        folder = tmp_path / name
        cli.main(["convert", "import", str(source), str(folder), *words(more)])
        capsys.readouterr()
        cli.main(["convert", "export", str(folder), str(tmp_path / f"{name}-hf"), "--json"])
        printed = capsys.readouterr()
        assert json.loads(printed.out)["trained_positions"] == trained
        assert ("warning: the rotary embedding is made for 1,024 positions, and rows of 256 tokens "
                "train the first 256 alone" in printed.err) == bool(more)  # fmt: skip


def test_without_it_nothing_changes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["convert", "import", str(source), str(tmp_path / "megatron")])
    assert "rotary:" not in capsys.readouterr().err
    metadata = load_metadata(tmp_path / "megatron")
    assert metadata.rope_scaling == YarnConfig(4.0, 64)
    assert metadata.trained_seq_length is None
    cli.main(["convert", "verify", str(source), str(tmp_path / "megatron")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--rope-scaling yarn --rope-scaling-factor 8 --attention-factor 1.5",
            "no Hugging Face rope block expresses ramp 'rotations' with attention_factor 1.5",
        ),
        (
            "--rope-scaling yarn --rope-scaling-factor 0.5",
            "rope_scaling_factor must be at least 1, not 0.5",
        ),
        (
            "--rope-scaling yarn --rope-scaling-factor 9e5 "
            "--original-max-position-embeddings 1000000000",
            "max_position_embeddings must be",
        ),
    ],
)
def test_what_no_export_could_have_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    output = tmp_path / "megatron"
    assert message in refusal(
        capsys, ["convert", "import", str(source), str(output), *words(flags)]
    )
    assert not list(tmp_path.iterdir())
