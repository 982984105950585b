"""The rope block of an export means in transformers what the training meant."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import edit_config, save_llama

SCALINGS: dict[str, yarn.RopeScaling] = {
    "none": None,
    "linear": yarn.LinearConfig(8.0),
    "ntk": yarn.NtkConfig(8.0),
    "paper-1m": yarn.YarnConfig(128.0),
    "paper-4m": yarn.YarnConfig(512.0),
    "dimensions": yarn.YarnConfig(128.0, ramp="dimensions"),
    "temperature": yarn.YarnConfig(
        512.0, ramp="dimensions", attention_factor=yarn.yarn_attention_factor(512.0)
    ),
    "any-temperature": yarn.YarnConfig(16.0, 1024, 32.0, 2.0, "dimensions", 1.25),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the head size and base of Llama 3.1."""
    folder = tmp_path_factory.mktemp("rope")
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    save_llama(
        folder / "hf", head_dim=128, num_hidden_layers=1, hidden_size=768, rope_parameters=rope
    )
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    return folder / "megatron"


def extend(checkpoint: Path, scaling: yarn.RopeScaling, positions: int) -> None:
    """Let the checkpoint say that it was trained with ``scaling``."""
    metadata = load_metadata(checkpoint)
    model = dataclasses.replace(metadata.model, max_position_embeddings=positions)
    save_metadata(checkpoint, dataclasses.replace(metadata, model=model, rope_scaling=scaling))


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_transformers_reads_our_frequencies(
    imported: Path, tmp_path: Path, scaling: yarn.RopeScaling
) -> None:
    extend(imported, scaling, 4_194_304)
    export_checkpoint(ExportConfig(imported, tmp_path / "out"))
    config = LlamaConfig.from_pretrained(tmp_path / "out")
    rotary = LlamaRotaryEmbedding(config)
    expected = yarn.inv_freq(scaling, 128, 500000.0)
    # transformers computes frequencies in float32: pow and two products round, 2^-24 each
    np.testing.assert_allclose(rotary.inv_freq.double().numpy(), expected, rtol=1e-6)
    assert rotary.attention_scaling == yarn.attention_factor(scaling)
    assert config.max_position_embeddings == 4_194_304


def test_versions_that_an_export_is_good_for(imported: Path, tmp_path: Path) -> None:
    dimensions = SCALINGS["dimensions"]
    cases = [
        (SCALINGS["paper-1m"], 128 * 8192, ">=4.43"),
        (dimensions, 128 * 8192, ">=4.51"),
        (dimensions, 1_073_152, ">=4.56"),
    ]
    for i, (scaling, positions, versions) in enumerate(cases):
        extend(imported, scaling, positions)
        report = export_checkpoint(ExportConfig(imported, tmp_path / f"out{i}"))
        assert report.good_for["transformers"] == versions


def test_a_training_no_block_can_express_is_refused(imported: Path, tmp_path: Path) -> None:
    extend(imported, yarn.YarnConfig(128.0, attention_factor=1.4852), 4_194_304)
    with pytest.raises(InputError, match=r"ramp 'rotations' with attention_factor 1\.4852"):
        export_checkpoint(ExportConfig(imported, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, r"rope_type 'longrope' is not supported"),
        ({"rope_type": "linear"}, r"rope_type 'linear': missing keys \['factor'\]"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_unknown_rope_blocks_are_refused(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    save_llama(tmp_path / "hf")
    edit_config(tmp_path / "hf", rope_parameters=values)
    with pytest.raises(InputError, match=message):
        import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "out"))
