"""Random rope blocks in releases of transformers, beside how this project reads them.

::

    python -m tools.compare_rope_blocks FOLDER                 # 1,500 blocks, twelve releases
    python -m tools.compare_rope_blocks FOLDER --release 4.44.2

FOLDER keeps the environments, as in ``tools.try_exports``. What is read here has the frequencies
and the temperature of every release from 5.0 on. Releases 4.x read some blocks otherwise, for
reasons that are counted: they do not look at ``rope_parameters``, nor at a ``rope_theta`` in a
block or a length beside it, and older ones compute ``yarn`` from the positions. Exit status 1 where
a block is read otherwise for none of these reasons.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.checkpoint.convert.report import TRIED
from megatron_ultralong.checkpoint.formats.rope_block import rope_scaling, rotary_base
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject
from tools.export_matrix.random_blocks import random_config
from tools.export_matrix.releases import install
from tools.page_tables import table

PROBE = Path(__file__).parent / "export_matrix" / "rope_probe.py"
HEAD_DIM = 64
Read = tuple[yarn.RopeScaling, float]
SAME, REFUSED, BOTH_REFUSE = "the same", "refused here alone", "by neither"
UNEXPLAINED = "otherwise, without a reason"


def read_here(config: dict[str, Any]) -> Read | None:
    """Scaling and base; None: it is refused."""
    try:
        its = JsonObject(config, "c")
        return rope_scaling(its), rotary_base(its)
    except InputError:
        return None


def verdict(
    config: dict[str, Any], release: str, here: Read | None, there: tuple[list[float], float] | None
) -> str:
    """How the release reads a block, beside us."""
    if here is None:
        return REFUSED if there else BOTH_REFUSE
    if there and _is_same(here, there):
        return SAME
    number = tuple(map(int, release.split(".")[:2]))
    block = config.get("rope_scaling") or {}
    if number[0] == 4 and "rope_parameters" in config:
        return "4.x does not look at rope_parameters"
    if number[0] == 4 and "rope_theta" in block:
        return "4.x does not look at rope_theta in a block"
    if number[0] == 4 and "original_max_position_embeddings" in config:
        return "4.x does not look at a length beside the block"
    if number[0] == 4 and there is None and "factor" in block and block["factor"] is None:
        return "4.x runs no factor of null"
    if number < (4, 56) and block.get("rope_type", block.get("type")) == "yarn":
        return "before 4.56: yarn from the positions"
    return UNEXPLAINED


def _is_same(here: Read, there: tuple[list[float], float]) -> bool:
    scaling, base = here
    actual, plain = yarn.inv_freq(scaling, HEAD_DIM, base), yarn.rope_inv_freq(HEAD_DIM, base)
    # float32 there: products round by 2^-24 each, and the ramp by 2^-22 of the plain frequency
    is_near = abs(np.array(there[0]) - actual) <= 1e-6 * actual + 2.0**-22 * plain
    return bool(is_near.all()) and abs(yarn.attention_factor(scaling) - there[1]) < 1e-9


def main() -> None:
    """Ask every release, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--release", action="append", choices=TRIED)
    parser.add_argument("--count", type=int, default=1500)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    configs = [random_config(random.Random(seed)) for seed in range(arguments.count)]
    here = [read_here(config) for config in configs]
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as work:
        given, output = Path(work, "configs.json"), Path(work, "found.json")
        given.write_text(json.dumps(configs))
        for release in arguments.release or TRIED:
            subprocess.run([install(folder, release), PROBE, given, output], check=True, cwd=work)
            there = json.loads(output.read_text())
            counts = collections.Counter(
                verdict(config, release, actual, expected)
                for config, actual, expected in zip(configs, here, there, strict=True)
            )
            wrong += counts[UNEXPLAINED]
            known = (SAME, REFUSED, BOTH_REFUSE, UNEXPLAINED)
            others = [f"{what}: {n}" for what, n in counts.items() if what not in known]
            rows.append((release, *(str(counts[kind]) for kind in known), "; ".join(others)))
    print(table(("transformers", SAME, REFUSED, BOTH_REFUSE, UNEXPLAINED, "otherwise"), rows))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
