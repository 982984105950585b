"""The table of what engines read, and what ``good_for`` makes of it."""

import dataclasses
import importlib.metadata
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ultralong.checkpoint.convert.report import inspect
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.checkpoint.formats.rope_block import export_block
from megatron_ultralong.checkpoint.formats.rope_readers import (
    Engine,
    Reading,
    Rope,
    engines,
    good_for,
)
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, InspectConfig
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.doctor.software import serving_findings
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.program.errors import InputError
from tools.engine_matrix import matrix, models, rope_probe
from tools.engine_matrix.blocks import BASE, HEAD_DIM, MORE, scalings, telling
from tools.engine_matrix.logits_probe import of_transformers
from tools.engine_matrix.matrix import RIGHT, Cell
from tools.engine_matrix.readings import ALIKE, NEAR, TELLING, Table, explained, readings, table_of

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "base"
USUAL = scalings(512)["yarn usual"]
BOTH = scalings(512)["both"]


def engine(name: str, version: str = "") -> Engine:
    """The newest of the table, or the one named."""
    return [each for each in engines() if each.name == name and version in ("", each.version)][-1]


def rope(scaling: yarn.RopeScaling, positions: int = 4096, **block: Any) -> Rope:
    """As an export of a model of 512 positions states it, except for keys of ``block``."""
    stated = export_block(scaling)
    return Rope(scaling, {**stated, **block} if stated else None, positions, 32, 10000.0)


def installed(block: dict[str, Any] | None, positions: int, family: str = "llama") -> Table:
    """Tables of a model of the transformers that is installed."""
    job = {"family": family, "block": block, "positions": positions}
    job |= {"head_dim": HEAD_DIM, "base": BASE}
    return rope_probe.of_transformers(job, *NEAR[0]).astype(np.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_is_what_the_installed_transformers_does(family: str) -> None:
    seen = {name: installed(*given, family) for name, given in TELLING.items()}
    reading, worst = explained(seen, table_of, ALIKE)
    version = importlib.metadata.version("transformers")
    assert reading == engine("transformers", version).of(family)
    # float32, up to position 8,192: see ALIKE
    assert 0 < worst < ALIKE / 20


def test_telling_blocks_tell_every_two_readings_apart() -> None:
    tables = {
        reading: {name: table_of(reading, name) for name in TELLING} for reading in readings()
    }
    for one, other in itertools.combinations(tables, 2):
        differences = [
            float(np.abs(tables[one][name][:, ::64] - tables[other][name][:, ::64]).max())
            for name in TELLING
        ]
        assert max(differences) > 4 * ALIKE, (one, other)


def test_types_that_are_run_without_scaling_are_told_from_those_refused() -> None:
    seen = {name: table_of(Reading(), name) for name in TELLING}
    seen["llama3"], seen["linear"] = seen["none"], None
    wanted = Reading(types=("yarn",), ignored=("llama3",))
    assert explained(seen, table_of, ALIKE)[0] == wanted
    assert wanted.drops() == ["linear is not read", "llama3 is run without scaling"]
    assert explained(dict.fromkeys(TELLING), table_of, ALIKE)[0] is None


def test_what_no_reading_explains_is_said() -> None:
    seen = {name: table_of(Reading(), name) for name in TELLING}
    seen["yarn, betas"] = seen["llama3"]
    with pytest.raises(LookupError, match="0 readings explain"):
        explained(seen, table_of, ALIKE)


OUTCOMES = {
    "yarn a = 1": {"llama.cpp": "right with flags"},
    "yarn betas 4/1": {"llama.cpp": "right with flags"},
    "both": {"llama.cpp": "right with flags"},
    f"yarn usual{MORE}": {"exllamav3": "wrong"},
}


@pytest.mark.parametrize("name", scalings(512))
def test_every_engine_is_right_or_says_its_flags_or_is_wrong_and_named(name: str) -> None:
    stated = rope(scalings(512)[name], 4505 if name.endswith(MORE) else 4096)
    for verdict in map(stated.verdict, engines()):
        expected = OUTCOMES.get(name, {}).get(verdict.engine, "right")
        if verdict.engine == "transformers" and name not in ("none", "llama3", "linear"):
            release = tuple(map(int, verdict.version.split(".")))
            oldest = (4, 56) if name.endswith(MORE) else (4, 51)
            expected = "right" if release >= oldest else "wrong"
        assert verdict.outcome == expected, verdict


def test_flags_say_what_the_block_cannot() -> None:
    assert rope(BOTH).verdict(engine("llama.cpp")).flags == (
        "--yarn-beta-fast 4 --yarn-beta-slow 1 "
        "--override-kv llama.rope.scaling.attn_factor=float:0.827852841"
    )
    assert rope(USUAL).verdict(engine("llama.cpp")).flags == ""


def test_positions_that_are_not_the_factor_times_the_original() -> None:
    verdict = rope(USUAL, 5000).verdict(engine("exllamav3"))
    assert verdict.outcome == "wrong"
    assert verdict.why.startswith("factor read otherwise: frequencies off by up to x1.22")
    said = good_for(rope(USUAL, 5000))
    assert said["transformers 4.56.2 to 5.23.0"] == "right"
    assert said["transformers 4.51.3 to 4.55.4"].startswith("wrong: factor read otherwise")


def test_a_ramp_that_is_not_rounded_has_no_flag_in_llama_cpp() -> None:
    scaling = dataclasses.replace(BOTH, truncate=False)
    verdicts = {each: rope(scaling).verdict(engine(each)).outcome for each in ("llama.cpp", "vllm")}
    assert verdicts == {"llama.cpp": "wrong", "vllm": "right"}


def test_keys_said_twice_are_what_mlx_and_sglang_read() -> None:
    once = yarn.hf_rope_scaling(BOTH)
    for name in ("mlx-lm", "sglang"):
        assert Rope(BOTH, once, 4096, 32, 10000.0).verdict(engine(name)).outcome == "wrong"
        assert rope(BOTH).verdict(engine(name)).outcome == "right"


CHANGES: list[dict[str, Any]] = [
    {"beta_fast": 8.0},
    {"beta_slow": 2.0},
    {"factor": 4.0},
    {"original_max_position_embeddings": 256},
    {"attention_factor": 1.1},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_block_changed_by_one_key_is_noticed(change: dict[str, Any]) -> None:
    assert rope(BOTH, **change).verdict(engine("transformers")).outcome == "wrong"
    # and by the judge's own code, as the matrix compares engines' tables
    scaling = dataclasses.replace(BOTH, original_max_position_embeddings=1024)
    block = {**(export_block(scaling) or {}), **change}
    frequencies = yarn.inv_freq(scaling, HEAD_DIM, BASE)
    angles = np.arange(*NEAR[0])[:, None] * frequencies
    exact = np.stack([np.cos(angles), np.sin(angles)])
    assert np.abs(installed(block, 8192) - exact).max() > ALIKE


@pytest.fixture(scope="module")
def of_the_matrix(tmp_path_factory: pytest.TempPathFactory) -> models.Model:
    return models.make(tmp_path_factory.mktemp("matrix"), DEMO, "both", BOTH, 512)


@pytest.mark.parametrize("change", [{}, *CHANGES], ids=str)
def test_the_matrix_notices_a_block_changed_by_one_key(
    of_the_matrix: models.Model, tmp_path: Path, change: dict[str, Any]
) -> None:
    model = of_the_matrix
    folder = shutil.copytree(model.folder, tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_scaling"].keys() > change.keys()
    config["rope_scaling"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    job = {"model": str(folder), "prompt": model.prompt, "continuation": model.continuation}
    greedy, told = of_transformers(job)
    answer = {"greedy": greedy, "log_probabilities": told}
    verdict = model.rope.verdict(engine("transformers"))
    cell = Cell("both", verdict, *matrix.compared(model, answer))
    if change:
        assert cell.difference > 10 * RIGHT
        assert cell.trouble.startswith("wrong by ")
    else:
        assert not cell.trouble


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "megatron"
    import_checkpoint(ImportConfig(DEMO, folder))
    metadata = load_metadata(folder)
    model = dataclasses.replace(metadata.model, max_position_embeddings=4096)
    save_metadata(folder, dataclasses.replace(metadata, model=model, rope_scaling=BOTH))
    return folder


def test_an_export_says_what_its_engines_need(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_checkpoint(
        ExportConfig(checkpoint, tmp_path / "out", engines="vLLM, llama.cpp")
    )
    assert (
        "warning: llama.cpp b11549 is right only with --yarn-beta-fast 4" in capsys.readouterr().err
    )
    said = report.good_for["engines"]
    assert said["llama.cpp b11549"].startswith("right with --yarn-beta-fast 4")
    assert said["mlx-lm 0.32.2"] == said["vllm 0.32.0"] == "right"
    assert "in float32: cos and sin are off by up to" in report.good_for["angles"]


def test_inspect_says_the_same_of_the_checkpoint_and_its_export(
    checkpoint: Path, tmp_path: Path
) -> None:
    report = export_checkpoint(ExportConfig(checkpoint, tmp_path / "out"))
    (tmp_path / "lone").mkdir()
    shutil.copy(tmp_path / "out" / "config.json", tmp_path / "lone")
    for folder in (checkpoint, tmp_path / "out", tmp_path / "lone"):
        assert inspect(InspectConfig(folder))["good_for"] == report.good_for["engines"]


def test_a_checkpoint_that_no_block_expresses_is_inspected(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    metadata = load_metadata(checkpoint)
    scaling = yarn.YarnConfig(8.0, 512, attention_factor=1.2)
    save_metadata(other, dataclasses.replace(metadata, rope_scaling=scaling))
    said = inspect(InspectConfig(other))["good_for"]["no engine"]
    assert said.startswith("no Hugging Face rope block expresses ramp 'rotations' with attention_f")


def test_doctor_names_the_engines_that_are_there() -> None:
    version = importlib.metadata.version("transformers")
    text = f"{version} reads every key of an export's rope block"
    assert Finding("ok", "transformers", text) in list(serving_findings())


def test_what_an_engine_drops_is_said() -> None:
    assert engine("llama.cpp").reading.drops() == [
        "its betas are 32 and 1",
        "its temperature is 0.1 ln s + 1",
        "the ends of its ramp are rounded",
    ]
    assert engine("vllm").reading.drops() == engine("sglang").reading.drops() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"engines": "ollama"},
            "--for 'ollama' is not known; perhaps you meant 'llama.cpp'; known",
        ),
        ({"engines": "vllm", "format": "meta"}, "--for vllm asks about the rope block of a config"),
    ],
)
def test_engines_that_cannot_serve_an_export_are_refused(
    checkpoint: Path, tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_checkpoint(ExportConfig(checkpoint, tmp_path / "out", **flags))
    assert not list(tmp_path.iterdir())


def test_an_engine_that_reads_otherwise_refuses_the_export(
    checkpoint: Path, tmp_path: Path
) -> None:
    metadata = load_metadata(checkpoint)
    scaling = dataclasses.replace(BOTH, truncate=False)
    other = tmp_path / "other"
    import_checkpoint(ImportConfig(DEMO, other))
    save_metadata(other, dataclasses.replace(metadata, rope_scaling=scaling))
    with pytest.raises(InputError, match=r"llama.cpp b11549 reads this rope block otherwise than"):
        export_checkpoint(ExportConfig(other, tmp_path / "out", engines="llama.cpp"))
    assert not (tmp_path / "out").exists()


def test_telling_blocks_are_those_of_small_models_too() -> None:
    assert telling(512).keys() == TELLING.keys()
