"""The matrix in Markdown, and the page around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megatron_ultralong.checkpoint.formats.rope_readers import Reading, engines
from megatron_ultralong.model.families import FAMILIES

from .matrix import RIGHT, Cell
from .models import GREEDY

_COLUMNS = ("block", "engine", "`good_for`", "difference", "greedy", "with the flags")
_HEAD = f"""# Serving engines

Which engines read an export right, and which need flags? The report of `convert export` and
`convert inspect` say so for your model (`good_for`). `convert export --for llama.cpp,vllm` refuses
an export that one of them would read wrongly, and prints the flags that an engine needs. For a
model that `convert import` refuses, `good_for` only says why. `ultralong doctor` names
the engines that are installed.

The tables were made by
`python -m tools.engine_conformance matrix FOLDER --heavy --smollm2 CACHE --write PAGE`. It runs
exports in these engines, each in an environment of its own, and compares them with transformers
5.23 in float32: log-probabilities of {GREEDY} greedy tokens after a prompt that is 256 tokens
longer than the original context (without a block: of the same length).

* "right": the difference is less than {RIGHT:g}, and the {GREEDY} tokens are the same.
* SGLang and ExLlamaV3 need a GPU, so only their rope code was run. The difference is that of cos
  and sin from float64, over all positions.
* transformers 4.44 cannot load heads of another size than hidden / heads, which the demo has
  (`good_for` says >= 4.45 for the whole export). Random weights are used there instead.
* `make engines` runs all engines but vLLM; `make engines HEAVY=1` vLLM too (3.5 GB).

## What each engine reads of a block

`python -m tools.engine_conformance table FOLDER` runs the code of each engine with blocks that
differ in one key, and finds the one reading that explains every result. For transformers, mlx-lm
and llama.cpp it uses a model of each family; for SGLang and ExLlamaV3 the function that all
families call.

* A family has a line of its own if its blocks are read differently from those of Llama.
* "positions" are the `max_position_embeddings` of the model.
* A temperature other than 0.1 ln s + 1 is written twice, as `attention_factor` and as `mscale` with
  `mscale_all_dim` of 0: transformers and vLLM read the first, mlx-lm and SGLang the others.
* transformers 5 saves block and base in `rope_parameters`. An export has them in `rope_scaling` and
  `rope_theta`, which every engine reads. If a folder has only the first, `convert inspect` says
  which engines do not read it.

"""
_TAIL = """
## Flags

llama.cpp ignores the keys that its own converter writes for the betas and the temperature of a yarn
block. `good_for` prints the flags that set them again. For Llama and Mistral, `convert export
--format gguf` writes a file that needs no flags. For Qwen2.5 and Qwen3 the converter leaves out a
`llama3` block, and no flag can set it: such an export is wrong there, and `good_for` says so.
xllamacpp has no `--override-kv`, so for these tables the key was written into the file.

## Angles

Every engine computes angles in float32. Position times frequency then has a relative error of up to
2^-24: cos and sin are off by up to 0.07 at position 1,048,575, and by 0.3 to 0.4 at 4,194,303. No
block can repair this. `good_for` has the figure for your block (`angles`). A model that is trained
with `--angle-precision float32` has seen the same angles.

Not run: TensorRT-LLM, and vLLM or SGLang on a GPU.
"""


def table_of_cells(cells: Iterable[Cell], *, header: bool = True) -> str:
    """A line for each cell."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))] if header else []
    for cell in cells:
        verdict = cell.verdict
        lines.append(
            _line(
                (
                    cell.block,
                    f"{verdict.engine} {verdict.version}",
                    verdict.outcome,
                    _difference(cell),
                    "" if cell.greedy is None or cell.error else f"{cell.greedy} of {GREEDY}",
                    _with_flags(cell),
                )
            )
        )
    return "\n".join(lines)


def _difference(cell: Cell) -> str:
    return "refused" if cell.error else f"{cell.difference:.1e}"


def _with_flags(cell: Cell) -> str:
    if cell.with_flags is None:
        return ""
    difference, greedy = cell.with_flags
    return f"{difference:.1e}, {greedy} of {GREEDY}: `{cell.verdict.flags}`"


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def page(cells: Sequence[tuple[str, Cell]]) -> str:
    """All of it: what is read, and a table for each model."""
    parts = [_HEAD + readings_table() + "\n"]
    for title in dict.fromkeys(title for title, _ in cells):
        of_it = [cell for name, cell in cells if name == title]
        parts.append(f"\n## {title}\n\n{table_of_cells(of_it)}\n")
    loaded = [cell for _, cell in cells if not cell.error]
    identical = [cell.identical for cell in loaded if cell.identical is not None]
    parts.append(
        f"\ntransformers: the logits of {sum(identical)} of {len(identical)} cells are "
        "bit-identical to those\nof the same folder without the keys that are written twice.\n"
    )
    return "".join(parts) + _TAIL


def readings_table() -> str:
    """Which keys decide, a line for all versions of an engine that read the same."""
    spans: dict[tuple[str, str, Reading | None], list[str]] = {}
    for engine in engines():
        spans.setdefault((engine.name, "", engine.reading), []).append(engine.version)
        for family, reading in engine.families.items():
            title = f", {FAMILIES[family].title}"
            spans.setdefault((engine.name, title, reading), []).append(engine.version)
    columns = ("engine", "ignored", "factor", "original length", "betas", "temperature")
    lines = [_line((*columns, "`truncate`")), _line(["---"] * (len(columns) + 1))]
    for (name, title, reading), versions in spans.items():
        span = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
        lines.append(_line((f"{name} {span}{title}", *_reading(reading))))
    return "\n".join(lines)


def _reading(reading: Reading | None) -> tuple[str, ...]:
    if reading is None:
        return ("not loaded", *[""] * 5)
    ignored = [*reading.ignored, *([] if reading.parameters else ["`rope_parameters`"])]
    if "yarn" in reading.ignored:
        return (", ".join(ignored), *[""] * 5)
    values = (reading.factor, reading.original, reading.betas, reading.temperature)
    values = tuple(value.replace("max_position_embeddings", "positions") for value in values)
    return (", ".join(ignored), *values, reading.truncate)
