"""Exports in the hands of inference engines: which keys they read, and what they compute.

::

    python -m tools.engine_conformance table FOLDER             # measure rope_readers.json
    python -m tools.engine_conformance table FOLDER --write
    python -m tools.engine_conformance matrix FOLDER            # the demo's model, light engines
    python -m tools.engine_conformance matrix FOLDER --engine vllm --smollm2 CACHE
    python -m tools.engine_conformance matrix FOLDER --heavy --write docs/engines.md

FOLDER keeps what was found of cells, and the engines' environments: 100 MB for each release of
transformers, 0.2 GB for llama.cpp, 0.4 GB for mlx-lm, 3.5 GB for vLLM. ``table`` runs each engine's
own rope code with blocks that differ in one key. ``matrix`` runs the model of the demo, 512
positions made 4,096, with eight rope blocks and a prompt beyond the original context in every
engine: log-probabilities of 24 greedy tokens to 1e-3 of transformers', 24 of 24 tokens the same, as
``good_for`` says, with the flags that it names; random models of the other families with four of
the blocks. ``--smollm2`` runs SmolLM2-135M beyond 8,192 tokens too; mlx's wheel for Linux has the
reference BLAS, which multiplies at 4 GFLOP/s, and ``LD_PRELOAD`` of an OpenBLAS (Debian's
libopenblas.so.0) makes it 20 times faster. Exit status 1 where the table is another one, or a cell
is wrong and not named so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.convert.report import TRIED
from megatron_ultralong.checkpoint.formats.rope_readers import TABLE, Engine
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.program.aside import write_aside
from tools.engine_matrix import llama_cpp
from tools.engine_matrix.blocks import scalings
from tools.engine_matrix.family_models import write_family_model
from tools.engine_matrix.matrix import SOURCE_ONLY, cells, chosen, store, stored
from tools.engine_matrix.models import Model, make
from tools.engine_matrix.page import page, table_of_cells
from tools.engine_matrix.readings import Measured, measure
from tools.export_matrix.cases import save_model, save_tokenizer

BASE = Path(__file__).parent.parent / "examples" / "demo" / "base"
DEMO, RANDOM, SMOLLM2 = "demo", "random weights", "SmolLM2-135M"
"""Models that are run; that of random weights in releases which cannot load the demo's."""
RELEASES = ("4.44.2", "4.48.3", "4.57.6", "5.23.0")
"""Of transformers, in the matrix."""
LIGHT = ("transformers", "mlx-lm", "llama.cpp", "sglang", "exllamav3")
ENGINES = (*LIGHT, "vllm")
OF_A_MODEL = ("transformers", "mlx-lm", "llama.cpp")
"""Of these the table is of a model of each family, of the others of a function without a family."""
OTHERS = {family.title: name for name, family in FAMILIES.items() if name != "llama"}
"""Families whose random models are run, by their titles."""
_OF_OTHERS = ("llama3", "linear", "yarn usual", "both")
"""Blocks of these: every rope type, and what most engines misread."""
_LONG = ("llama3", "both")
"""Blocks that SmolLM2 is run with: the recipe's, and the one that most engines misread."""
_FLAGS = {
    "llama.cpp": {
        "betas": "--yarn-beta-fast {beta_fast:g} --yarn-beta-slow {beta_slow:g}",
        "temperature": "--override-kv "
        "{architecture}.rope.scaling.attn_factor=float:{attn_factor:.9g}",
    }
}
"""What each engine can be told on its command line, by field of a reading."""


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)
    for name, what in (("table", table), ("matrix", matrix)):
        command = commands.add_parser(name)
        command.set_defaults(what=what)
        command.add_argument("folder", type=Path)
        command.add_argument("--engine", action="append", choices=ENGINES)
        command.add_argument("--heavy", action="store_true", help="vLLM too")
    commands.choices["table"].add_argument("--write", action="store_true")
    commands.choices["matrix"].add_argument("--smollm2", type=Path, metavar="CACHE")
    commands.choices["matrix"].add_argument("--block", action="append", choices=scalings(1))
    commands.choices["matrix"].add_argument("--model", choices=(DEMO, RANDOM, *OTHERS, SMOLLM2))
    commands.choices["matrix"].add_argument("--write", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    arguments.engine = arguments.engine or (ENGINES if arguments.heavy else LIGHT)
    sys.exit(arguments.what(arguments))


def table(arguments: argparse.Namespace) -> str | None:
    """Measure the engines' readings; compare with the table, or write it."""
    known = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    other = []
    for name in arguments.engine:
        row = _row(arguments.folder, name)
        if known.get(name) != row:
            other.append(name)
            print(json.dumps({name: row}, indent=1), flush=True)
        if arguments.write:
            known[name] = row
            rows = {each: known[each] for each in ENGINES if each in known}
            write_aside(TABLE, json.dumps(rows, indent=1) + "\n")
    wrong = bool(other) and not arguments.write
    return f"{TABLE.name} says otherwise of {', '.join(other)}: see --write" if wrong else None


def _row(folder: Path, name: str) -> dict[str, Any]:
    families = tuple(FAMILIES) if name in OF_A_MODEL else ("llama",)
    measured: dict[str, dict[str, Measured]] = {family: {} for family in families}
    for version in TRIED if name == "transformers" else ("",):
        for family, one in _measured(folder, name, version, families).items():
            measured[family][one.version] = one
            what = f"{name} {one.version} {family}: to {one.worst:.2g}, far {one.far}"
            print(what, file=sys.stderr, flush=True)
    llama, *_ = measured.values()
    others = {
        family: {
            version: one.reading and dataclasses.asdict(one.reading)
            for version, one in its.items()
            if one.reading != llama[version].reading
        }
        for family, its in measured.items()
    }
    return {
        "flags": _FLAGS.get(name, {}),
        "versions": {
            v: one.reading and dataclasses.asdict(one.reading) for v, one in llama.items()
        },
        "families": {family: its for family, its in others.items() if its},
        "angles": next(iter(llama.values())).far,
    }


def _measured(
    folder: Path, name: str, version: str, families: tuple[str, ...]
) -> dict[str, Measured]:
    if name != "llama.cpp":
        return measure(folder, name, version, families)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        others = {name: write_family_model(Path(place, name), name) for name in families[1:]}
        models = {families[0]: BASE, **others}
        return {name: llama_cpp.measure(folder, model, BASE) for name, model in models.items()}


def matrix(arguments: argparse.Namespace) -> str | None:
    """Run every block in every engine; print a table, or write the page."""
    wanted = chosen(arguments.engine, RELEASES)
    path = arguments.folder / "cells.json"
    known, troubles, count = stored(path), [], 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        for title, models in _models(arguments, Path(place)):
            for engine in wanted:
                if not _is_for(engine, title):
                    continue
                for cell in cells(arguments.folder, engine, models):
                    store(path, known, title, cell)
                    count += 1
                    print(f"{title} {table_of_cells([cell], header=False)}", flush=True)
                    if cell.trouble:
                        what = f"{title}, {cell.block}, {engine.name} {engine.version}"
                        troubles.append(f"{what}: {cell.trouble}")
    if arguments.write:
        arguments.write.write_text(page(list(known.values())), encoding="utf-8")
    print("\n".join(troubles) or f"{count} cells are as good_for says")
    return f"{len(troubles)} of {count} cells are not as good_for says" if troubles else None


def _is_for(engine: Engine, title: str) -> bool:
    """Whether a model is run in an engine."""
    if title in OTHERS:
        return engine.name not in SOURCE_ONLY  # which have no model to load
    if engine.name != "transformers":
        return title != RANDOM
    if title == SMOLLM2:
        return False  # the judge itself, and an hour
    # releases before 4.45 take heads of hidden / heads, which the demo's model has not
    is_old = tuple(map(int, engine.version.split(".")[:2])) < (4, 45)
    return is_old == (title == RANDOM)


def _models(arguments: argparse.Namespace, work: Path) -> Iterator[tuple[str, list[Model]]]:
    small = {DEMO: (BASE, 512), **{title: (work / name, 512) for title, name in OTHERS.items()}}
    if "transformers" in arguments.engine:
        small[RANDOM] = work / "random", 128
    for title, (source, original) in small.items():
        if arguments.model not in (title, None):
            continue
        if title == RANDOM:
            save_model(source)
            save_tokenizer(source, "four")
        elif title in OTHERS:
            write_family_model(source, OTHERS[title])
        names = arguments.block or (_OF_OTHERS if title in OTHERS else scalings(original))
        chosen_blocks = [(name, scalings(original)[name]) for name in names]
        yield (
            title,
            [
                make(work / f"{title}-{number}", source, name, scaling, original)
                for number, (name, scaling) in enumerate(chosen_blocks)
            ],
        )
    if arguments.smollm2 and arguments.model in (SMOLLM2, None):
        from tools.get_smollm2 import hugging_face_folder

        source = hugging_face_folder(arguments.smollm2.resolve())
        long = scalings(8192, 16.0)
        yield (
            SMOLLM2,
            [
                make(work / name, source, name, long[name], 8192)
                for name in arguments.block or _LONG
            ],
        )


if __name__ == "__main__":
    main()
