"""Which reading of rope blocks explains what an engine's own code computes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from megatron_ultralong.checkpoint.formats.rope_readers import Reading
from megatron_ultralong.model.yarn import RopeScaling, attention_factor, inv_freq
from megatron_ultralong.program.errors import InputError

from .blocks import BASE, FAR, HEAD_DIM, OTHER_BASE, telling
from .environments import python, run

TELLING = telling(1024)
NEAR = ((0, 8192),)
FAR_AT = ((1_048_064, 1_048_576), (4_193_792, 4_194_304))
"""Positions: all below 8,192, and the last 512 of 1M and of 4M."""
ALIKE = 0.02
"""Largest difference of cos and sin below position 8,192. float32 is off by 4e-4 there: 8,192
radians by 2^-24, and frequencies that went through powers. Two readings differ by 0.2."""
KEYS = ("rope_scaling", "rope_parameters")
"""Where a config.json has its block: in the second, as transformers 5 saves it, with the base."""
_PROBE = Path(__file__).parent / "rope_probe.py"
Table = npt.NDArray[np.float64]


def readings() -> Iterable[Reading]:
    """Every reading that the table can state, those that look at more keys first."""
    hints = get_type_hints(Reading)
    choices = [get_args(hints[field.name]) for field in dataclasses.fields(Reading)[3:]]
    return (Reading(Reading.types, (), True, *values) for values in itertools.product(*choices))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one version of an engine was seen to do."""

    version: str
    reading: Reading | None
    """None: it loads no such model."""
    worst: float
    """Largest difference from the reading's own table, up to position 8,192."""
    far: Mapping[str, float]
    """Largest error of cos and sin around 1M and 4M positions."""


def measure(
    folder: Path, engine: str, version: str = "", families: Sequence[str] = ("llama",)
) -> dict[str, Measured]:
    """Run an engine's rope code with every telling block, and find the reading that explains it.

    Args:
        folder: of the environments.
        engine: of them.
        version: of transformers.
        families: the ``model_type`` of each model that the code is asked of, where it is a model's.

    Returns: what was measured, by family; what it makes of far positions of the first alone.

    Raises:
        LookupError: none does, or several: :class:`Reading` cannot say what the engine does.
        subprocess.CalledProcessError: its code cannot be run.
    """
    jobs = {(family, name): job for family in families for name, job in _jobs(family).items()}
    jobs[families[0], "far"] = _job(*FAR, FAR_AT, families[0])
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "jobs.json").write_text(json.dumps(list(jobs.values())))
        interpreter = python(folder, engine, version)
        run(interpreter, _PROBE, engine, work / "jobs.json", work)
        found = json.loads((work / "found.json").read_text())
        seen: dict[str, dict[str, Table | None]] = {family: {} for family in families}
        for number, (family, name) in enumerate(jobs):
            path = work / f"{number}.npy"
            seen[family][name] = np.load(path).astype(np.float64) if path.is_file() else None
    measured = {}
    for family, its in seen.items():
        reading, worst = explained(its, table_of, ALIKE)
        reading = with_parameters(reading, its, ALIKE)
        measured[family] = Measured(found["version"], reading, worst, _far(its.get("far")))
    return measured


def _jobs(family: str) -> dict[str, dict[str, Any]]:
    jobs = {name: _job(*given, NEAR, family) for name, given in TELLING.items()}
    elsewhere = {**_job(*TELLING["llama3"], NEAR, family), "base": OTHER_BASE}
    return {**jobs, **{key: {**elsewhere, "key": key} for key in KEYS}}


def explained(
    seen: Mapping[str, Table | None],
    predicted: Callable[[Reading, str], Table | None],
    alike: float,
) -> tuple[Reading | None, float]:
    """The one reading under which all comes out as it was seen, and the largest difference.

    None: everything was refused, also what has no block.

    Args:
        seen: what an engine computed for each of the telling blocks; None: it refused it.
        predicted: the same, under a reading.
        alike: largest difference of what is the same.

    Raises:
        LookupError: no reading, or more than one.
    """

    def difference(reading: Reading, name: str) -> float:
        table, found = predicted(reading, name), seen[name]
        if table is None or found is None:
            return 0.0 if table is found else np.inf
        return float(np.abs(table - found).max())

    plain = seen["none"]
    if plain is None and not any(table is not None for table in seen.values()):
        return None, 0.0
    ignored = tuple(
        kind for kind in Reading.types if plain is not None and _alike(seen[kind], plain, alike)
    )
    refused = {kind for kind in Reading.types if seen[kind] is None}
    types = tuple(kind for kind in Reading.types if kind not in refused | set(ignored))
    # keys of a type that is not read decide nothing
    every = readings() if "yarn" in types else [Reading()]
    fitting = {}
    for reading in (dataclasses.replace(each, types=types, ignored=ignored) for each in every):
        worst = 0.0
        for name in TELLING:
            worst = max(worst, difference(reading, name))
            if worst >= alike:
                break
        else:
            fitting[reading] = worst
    if len(fitting) != 1:
        raise LookupError(f"{len(fitting)} readings explain what was computed: {list(fitting)}")
    return next(iter(fitting.items()))


def with_parameters(
    reading: Reading | None, seen: Mapping[str, Table | None], alike: float
) -> Reading | None:
    """``reading``, and whether block and base gave the same under both of :data:`KEYS`."""
    tables = [seen[key] for key in KEYS]
    if reading is None or tables[0] is None:
        return reading
    return dataclasses.replace(reading, parameters=_alike(tables[1], tables[0], alike))


def _alike(one: Table | None, other: Table, alike: float) -> bool:
    return one is not None and float(np.abs(one - other).max()) < alike


def table_of(reading: Reading, name: str) -> Table | None:
    """Cos and sin of a telling block under a reading, in float64; None where it is refused."""
    block, positions = TELLING[name]
    try:
        scaling = reading.scaling(block, positions)
    except InputError:
        return None
    return _near(scaling)


@functools.cache
def _near(scaling: RopeScaling) -> Table:
    return exact(inv_freq(scaling, HEAD_DIM, BASE), NEAR) * attention_factor(scaling)


def exact(frequencies: Table, at: Sequence[tuple[int, int]]) -> Table:
    """Cos and sin at stretches of positions, [2, n, D / 2]."""
    positions = np.concatenate([np.arange(*ends, dtype=np.float64) for ends in at])
    angles = positions[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)])


def _far(seen: Table | None) -> dict[str, float]:
    """By the last position of each stretch."""
    if seen is None:
        return {}
    scaling = Reading().scaling(*FAR)
    table = exact(inv_freq(scaling, HEAD_DIM, BASE), FAR_AT)
    sizes = np.cumsum([past - first for first, past in FAR_AT])[:-1]
    parts = np.split(np.abs(table - seen), sizes, axis=1)
    return {
        f"{past - 1:,}": round(float(part.max()), 3)
        for (_, past), part in zip(FAR_AT, parts, strict=True)
    }


def _job(
    block: Mapping[str, Any] | None, positions: int, at: Sequence[tuple[int, int]], family: str
) -> dict[str, Any]:
    return {
        "family": family,
        "block": block,
        "positions": positions,
        "head_dim": HEAD_DIM,
        "base": BASE,
        "at": at,
    }
