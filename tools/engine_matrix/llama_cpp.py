"""Which keys of a rope block llama.cpp reads: by its log-probabilities, it shows no cos and sin."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ultralong.checkpoint.formats.rope_readers import Reading
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError

from .blocks import OTHER_BASE, telling
from .environments import ENVIRONMENTS, python, run
from .matrix import convert
from .models import text
from .readings import KEYS, Measured, explained, with_parameters

_ORIGINAL = 512
"""Of the small model that is run."""
_LENGTH, _TOKENS = 1024, 8
_ALIKE = 2e-3
"""Largest difference of log-probabilities: float32 gives 3e-4, another reading 0.05 and more."""
_HERE = Path(__file__).parent


def measure(folder: Path, source: Path, text_of: Path) -> Measured:
    """Run the small model in ``source`` with every telling block, and find the one reading.

    Its prompt is in the tokens of ``text_of``.

    Raises:
        LookupError: no reading explains what comes out, or several do.
        subprocess.CalledProcessError: the converter or llama.cpp failed.
    """
    blocks = telling(_ORIGINAL)
    tokens = text(text_of, _LENGTH + _TOKENS)
    jobs = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        work = Path(place)
        conversions = []
        every: list[Any] = [(*given, {}) for given in blocks.values()]
        every += [(*blocks["llama3"], {"base": OTHER_BASE, "key": key}) for key in KEYS]
        for number, (block, positions, more) in enumerate(every):
            model = with_block(source, work / str(number), block, positions, **more)
            output = work / f"{number}.gguf"
            conversions.append((model, output, None))
            prompt, continuation = tokens[:_LENGTH], tokens[_LENGTH:]
            jobs.append({"model": str(output), "prompt": prompt, "continuation": continuation})
        convert(folder, conversions)
        (work / "jobs.json").write_text(json.dumps(jobs))
        interpreter = python(folder, "llama.cpp")
        probe = _HERE / "logits_probe.py"
        run(interpreter, probe, "llama.cpp", work / "jobs.json", work / "found.json")
        answers = json.loads((work / "found.json").read_text())
        seen = {
            name: None if "error" in answer else np.array(answer["log_probabilities"])
            for name, answer in zip((*blocks, *KEYS), answers, strict=True)
        }

        @functools.cache
        def computed(scaling: yarn.RopeScaling) -> np.ndarray[Any, Any]:
            block = yarn.hf_rope_scaling(scaling)
            aside = with_block(source, work / "judge", block, 8 * _ORIGINAL)
            found = _log_probabilities(aside, tokens)
            shutil.rmtree(aside)
            return found

        def predicted(reading: Reading, name: str) -> np.ndarray[Any, Any] | None:
            try:
                return computed(reading.scaling(*blocks[name]))
            except InputError:
                return None

        reading, worst = explained(seen, predicted, _ALIKE)
        reading = with_parameters(reading, seen, _ALIKE)
    return Measured(version(), reading, worst, {})


def version() -> str:
    """llama.cpp's build, out of the version of its package: ``b11549``."""
    (package,) = ENVIRONMENTS["llama.cpp"].packages
    found = re.search(r"\d+$", package)
    assert found
    return f"b{found.group()}"


def with_block(
    source: Path,
    folder: Path,
    block: dict[str, Any] | None,
    positions: int,
    base: float | None = None,
    key: str = "rope_scaling",
) -> Path:
    """``source`` in a new folder with another rope block, as it is given, and another base."""
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    own = config.pop("rope_parameters", None) or {}
    base = base or own.get("rope_theta") or config.pop("rope_theta")
    config.pop("rope_theta", None)
    config.pop("rope_scaling", None)
    rope: dict[str, Any] = {"rope_theta": base, "rope_scaling": block}
    if key != "rope_scaling":
        rope = {key: {"rope_theta": base, **(block or {})}}
    config |= {**rope, "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def _log_probabilities(folder: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(torch.tensor([tokens])).logits[0, _LENGTH - 1 : -1].double()
    wanted = torch.tensor(tokens[_LENGTH:])[:, None]
    return logits.log_softmax(-1).gather(1, wanted)[:, 0].numpy()
