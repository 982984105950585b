"""Folders of all kinds: loaded as transformers 5 loads them, or refused with the facts."""

from __future__ import annotations

import collections
import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.logits.megatron_model import megatron_logits
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program.errors import InputError
from tests.checkpoint import random_folders
from tests.checkpoint.random_folders import Folder
from tests.patience import patience

SAMPLE = range(40)
OTHERS = (range(40, 120), range(120, 210), range(210, 300))
TOKENS = torch.arange(40) * 7 % 17
CLOSE = 1e-5
"""Float32: sums of about 40 products in another order, and frequencies rounded by 2^-24."""


def judged(path: Path) -> torch.Tensor | None:
    """Logits by transformers; None: it does not load the folder, or not all of the model."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
    except Exception:  # whatever it raises, it does not load
        return None
    if info["missing_keys"] or info["mismatched_keys"]:
        return None
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS[None]).logits[0]
    return logits


def meant(folder: Folder, path: Path) -> torch.Tensor:
    """Logits of the model that is meant, where transformers does not read the folder itself."""
    random_folders.write_plain(folder, path)
    logits = judged(path)
    assert logits is not None
    return logits


def actual(source: Path, work: Path, *, by_megatron: bool) -> tuple[torch.Tensor | None, str]:
    """Logits after an import and an export, and what was said; None and why it was refused."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            import_checkpoint(ImportConfig(source, work / "megatron", tokenizer=False))
        except InputError as error:
            return None, str(error)
        export_checkpoint(ExportConfig(work / "megatron", work / "exported"))
        logits = judged(work / "exported")
        assert logits is not None, "transformers does not load the export"
        if by_megatron:
            computed = megatron_logits(MegatronCheckpoint(work / "megatron"), TOKENS)
            torch.testing.assert_close(computed, logits, atol=CLOSE, rtol=CLOSE)
    return logits, said.getvalue()


def check(seed: int, work: Path) -> str:
    """What became of a folder: ``loaded``, ``said`` or ``refused``."""
    folder = random_folders.draw(seed)
    random_folders.write(folder, work / "hf")
    names = [oddity.name for oddity in folder.oddities]
    must_refuse = [oddity for oddity in folder.oddities if oddity.refused]
    logits, said = actual(work / "hf", work, by_megatron=seed % 5 == 0)
    if logits is None:
        facts = [all(re.search(fact, said) for fact in oddity.refused) for oddity in must_refuse]
        assert any(facts), f"seed {seed}, {names}: refused without its facts: {said}"
        assert [path.name for path in work.iterdir()] == ["hf"], "something half-written"
        return "refused"
    assert not must_refuse, f"seed {seed}, {names}: loaded"
    for oddity in folder.oddities:
        assert re.search(oddity.said, said), f"seed {seed}, {oddity.name}: not said in {said!r}"
    expected = judged(work / "hf")
    was_said = any(oddity.said for oddity in folder.oddities)
    if expected is None and was_said:
        expected = meant(folder, work / "meant")
    assert expected is not None, f"seed {seed}, {names}: transformers does not load it"
    difference = (logits - expected).abs().max().item()
    assert difference <= CLOSE * max(1.0, expected.abs().max().item()), (
        f"seed {seed}, {names}: logits differ by {difference:.2g}"
    )
    return "said" if was_said else "loaded"


def check_all(seeds: range, tmp_path: Path) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        work = tmp_path / f"{seed}"
        work.mkdir()
        outcomes[check(seed, work)] += 1
        shutil.rmtree(work)
    return outcomes


def test_a_sample_of_folders(tmp_path: Path) -> None:
    outcomes = check_all(SAMPLE, tmp_path)
    assert set(outcomes) == {"loaded", "said", "refused"}, outcomes


@pytest.mark.slow
@pytest.mark.timeout(patience(600))
@pytest.mark.parametrize("seeds", OTHERS, ids=str)
def test_the_other_folders_of_300(tmp_path: Path, seeds: range) -> None:
    outcomes = check_all(seeds, tmp_path)
    assert set(outcomes) == {"loaded", "said", "refused"}
    assert min(outcomes.values()) > 3, outcomes
