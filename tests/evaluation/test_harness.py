"""lm-evaluation-harness on an exported model, by the commands of docs/evaluation.md."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.model import yarn
from tests.docs.blocks import ROOT, blocks
from tests.patience import patience

# In an environment of its own (make harness), or beside this project in the same one.
PROGRAMS = [Path(sys.prefix) / "harness" / "bin", Path(sys.executable).parent]
FOUND = [folder for folder in PROGRAMS if (folder / "lm_eval").is_file()]

pytestmark = pytest.mark.skipif(
    not FOUND, reason="lm-evaluation-harness is not installed: make harness"
)


def write_checkpoint(folder: Path) -> None:
    """The demo's model in Megatron's format, read with YaRN, a BOS before every text."""
    shutil.copytree(ROOT / "examples" / "demo" / "base", folder / "hf")
    file = folder / "hf" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.save(str(file))
    import_checkpoint(ImportConfig(folder / "hf", folder / "run"))
    metadata = load_metadata(folder / "run")
    model = dataclasses.replace(metadata.model, max_position_embeddings=4096)
    scaling = yarn.YarnConfig(8.0, original_max_position_embeddings=512)
    save_metadata(folder / "run", dataclasses.replace(metadata, model=model, rope_scaling=scaling))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, warm_environment: dict[str, str]) -> Path:
    """A folder in which the page's commands have run, without a network."""
    folder = tmp_path_factory.mktemp("harness")
    write_checkpoint(folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    [block] = [
        block
        for block in blocks(ROOT / "docs" / "evaluation.md")
        if block.mark == "run by" and "lm_eval" in block.text
    ]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=warm_environment
        | {
            "PATH": os.pathsep.join([warm_environment["PATH"], str(FOUND[0])]),
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=patience(250),
        check=False,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("style", ["letters", "texts"])
def test_log_likelihoods_and_scores_are_ours(results: Path, style: str) -> None:
    """Megatron-Core by `evaluate choices`, transformers by the harness on what was exported."""
    actual = {
        entry["index"]: entry["losses"]
        for entry in map(json.loads, (results / style / "samples.jsonl").read_text().splitlines())
    }
    [file] = (results / "harness").rglob(f"samples_choices_{style}_*.jsonl")
    expected = {
        sample["doc_id"]: [-float(loglikelihood) for loglikelihood, _ in sample["filtered_resps"]]
        for sample in map(json.loads, file.read_text().splitlines())
    }
    assert len(actual) == 24
    assert actual.keys() == expected.keys()
    both = [np.concatenate([of[index] for index in sorted(actual)]) for of in (actual, expected)]
    # Float32 on both sides, sums of up to a dozen losses, and angles that transformers rounds.
    np.testing.assert_allclose(*both, atol=2e-4)  # 1.3e-5 was found
    assert np.std(both[0]) > 0.5  # far from uniform, so that a wrong one would show

    [file] = (results / "harness").rglob("results_*.json")
    scores = json.loads(file.read_text())["results"][f"choices_{style}"]
    result = read_result(results / style / "choices.json")
    cells = {cell.column: cell.score for cell in result.cells}
    metrics = {"accuracy": "acc,none", "accuracy by character": "acc_norm,none"}
    assert set(cells) == set(metrics) if style == "texts" else {"accuracy"}
    for column, score in cells.items():
        assert score == pytest.approx(100 * scores[metrics[column]])
