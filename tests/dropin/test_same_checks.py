"""What ``pretrain`` takes of a checkpoint and of rows, or refuses, the drop-in does too.

Two enumerations: of the calls of ``pretrain``'s checks, each the drop-in's too or listed here with
a reason; and of the fields of checkpoint, model, rotary embedding and rows, each changed in a real
file and shown to both.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, CheckpointMetadata, unseal
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.cpu import replaced
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training import verbs
from tests.dropin.megatron_lm import EXAMPLE, flags, needs_megatron_lm, run
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

needs_megatron_lm()

PACKAGE = Path(__file__).parents[2] / "megatron_ultralong"
CHECKS = {
    "training/verbs.py": ("check_run", "_inputs"),
    "training/early_checks.py": ("check_packed_run", "_open_source", "_check_save", "result_of"),
    "training/inputs.py": ("check_machine", "check_result", "notes"),
    "training/earlier_start.py": ("check_save", "check_same_run"),
    "config/training.py": ("check_run", "check_positions"),
}
"""Functions that see a run of ``pretrain`` before it starts."""
LOOKED_AT = re.compile(r"\bmanifest\.(\w+)")
"""Fields of a manifest that a start looks at."""
INSIDE = {name for names in CHECKS.values() for name in names}
_MEGATRONS = "Megatron-LM's own arguments, which it checks"
OTHERWISE = {
    "EarlyRun": "only holds what was found",
    "RunInputs": "only holds what was found",
    "with_budget": _MEGATRONS,
    "check_fields": _MEGATRONS,
    "check_ranks": _MEGATRONS,
    "check_layout": _MEGATRONS,
    "check_layers": _MEGATRONS,
    "check_optimizer": _MEGATRONS,
    "check_offloading": _MEGATRONS,
    "check_sinks": _MEGATRONS,
    "check_attention": "of the machine's kernels; dropin/rules.py has the attention's own",
    "check_conversations": "of sft",
    "_with_row_length": "check_row_length, with --seq-length, which Megatron-LM requires",
    "source_of": "dropin/rows.py makes the sources",
    "resolve_readable": "dropin/checkpoints.py looks through all files",
    "MegatronCheckpoint": "dropin/checkpoints.py looks through all files",
    "check_nobodys": "Megatron-LM saves into any folder",
    "iteration_folders": "of check_nobodys",
    "load_config": "dropin/stored_arguments.py: Megatron-LM's checkpoints hold the arguments",
    "attrgetter": "of load_config",
    "flat_fields": "Identity.write compares all",
    "_short": "of a message",
    **dict.fromkeys(("open", "close", "exists", "is_dir"), "of the folder of a run"),
}
"""Calls that the drop-in has not, and why it needs them not."""


def calls(node: ast.AST) -> set[str]:
    """Last names of what is called."""
    functions = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
    return {
        function.attr if isinstance(function, ast.Attribute) else function.id
        for function in functions
        if isinstance(function, ast.Attribute | ast.Name)
    }


def test_every_check_of_pretrain_is_one_of_the_drop_in() -> None:
    files = (PACKAGE / "dropin").glob("*.py")
    here = set[str]().union(*(calls(ast.parse(path.read_text())) for path in files))
    there: set[str] = set()
    found: set[str] = set()
    for name, wanted in CHECKS.items():
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in wanted:
                found.add(node.name)
                there |= calls(node)
    assert found == INSIDE
    new = there - here - INSIDE - set(OTHERWISE)
    assert not new, f"call {sorted(new)} in dropin/ too, or say in OTHERWISE why not"
    assert not set(OTHERWISE) - there, "OTHERWISE names what pretrain does not call any more"


@dataclasses.dataclass(frozen=True)
class Case:
    """A change of what stands in the files of a run, or of its flags."""

    field: str
    """Of the dataclass that it is about: ``model.rotary_base``."""
    checkpoint: Callable[[dict[str, Any]], None] | None = None
    """Of ``ultralong.json``."""
    rows: Callable[[dict[str, Any]], None] | None = None
    """Of ``manifest.json``."""
    rope: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the flags of the rotary embedding."""
    mask: str = "none"
    says: str = ""
    """Of what the drop-in says alone: ``pretrain`` has no such argument, and takes the value."""


def sets(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        *path, last = name.split(".")
        for key in path:
            values = values[key]
        values[last] = value

    return change


def of_model(name: str, value: Any, says: str = "") -> Case:
    return Case(f"model.{name}", sets(f"model.{name}", value), says=says)


_YARN = {"method": "yarn", "scaling_factor": 4.0, "original_max_position_embeddings": 32,
         "beta_fast": 4.0, "beta_slow": 1.0, "ramp": "rotations", "attention_factor": 1.0,
         "truncate": True}  # fmt: skip
CASES = (
    *(
        of_model(name, value, f"--{name.replace('_', '-')} is")
        for name, value in {
            "num_layers": 3,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 8,
            "num_query_groups": 2,
            "kv_channels": 32,
            "norm_epsilon": 3e-5,
        }.items()
    ),
    of_model("untie_embeddings_and_output_weights", False, "--untie-embeddings"),
    of_model("model_type", "qwen3", "--qk-layernorm is False"),
    of_model("rotary_base", 20000.0),
    of_model("max_position_embeddings", 96),
    of_model("vocab_size", 100),
    Case("rope_scaling", sets("rope_scaling", _YARN)),
    Case("rope_scaling", sets("rope_scaling", _YARN), rope={"rope_scaling": "keep"}),
    Case(
        "rope_scaling",
        sets("rope_scaling", _YARN),
        rope={"rope_scaling": "linear", "rope_scaling_factor": 4.0},
    ),
    Case("tokenizer_sha256", sets("tokenizer_sha256", "0" * 64)),
    Case("separator_ids", sets("separator_ids", [7])),
    Case("angle_precision", sets("angle_precision", "float32")),
    Case("trained_seq_length", sets("trained_seq_length", 16)),
    Case("source_model", sets("source_model", "another")),
    Case("rope.rope_scaling", rope={"rope_scaling": "keep"}),
    Case("rope.rope_scaling", rope={"rope_scaling": "none"}),
    Case("rope.rope_scaling", rope={"rope_scaling": "ntk", "rope_scaling_factor": 2.0}),
    Case("rope.rope_scaling_factor", rope={"rope_scaling_factor": 8.0}),
    Case("rope.rope_scaling_factor", rope={"rope_scaling_factor": 1.5}),
    Case("rope.original_max_position_embeddings", rope={"original_max_position_embeddings": 512}),
    Case("rope.original_max_position_embeddings", rope={"original_max_position_embeddings": 40}),
    Case("rope.beta_fast", rope={"beta_fast": 8.0}),
    Case("rope.beta_slow", rope={"beta_slow": 2.0}),
    Case("rope.beta_slow", rope={"beta_slow": 5.0}),
    Case("rope.ramp", rope={"ramp": "dimensions"}),
    Case("rope.attention_factor", rope={"attention_factor": 1.5}),
    Case("rope.attention_factor", rope={"attention_factor": "yarn", "ramp": "dimensions"}),
    Case("rope.angle_precision", rope={"angle_precision": "float32"}),
    Case("rows.seq_length", rows=sets("seq_length", 64)),
    Case("rows.separator_ids", rows=sets("separator_ids", []), mask="block"),
    Case("rows.separator_ids", rows=sets("separator_ids", [9])),
    Case("rows.tokenizer_sha256", rows=sets("tokenizer_sha256", "0" * 64)),
    Case("rows.vocab_size", rows=sets("vocab_size", 10**6)),
    Case("rows.splits", rows=sets("splits.train.num_rows", 3)),
    Case("rows.packing", rows=sets("packing", "whole")),
    Case("rows.format_version", rows=sets("format_version", 99)),
)


def test_every_field_has_a_case() -> None:
    """What a checkpoint, a rotary embedding or rows get new needs one."""
    tested = {case.field for case in CASES}
    groups = {"": CheckpointMetadata, "model.": ModelConfig, "rope.": RopeConfig}
    fields = {p + f.name for p, kind in groups.items() for f in dataclasses.fields(kind)}
    # pretrain refuses a model of no family; inside Megatron-LM it can be trained
    assert fields - tested == {"model", "not_exportable"}
    read = set(LOOKED_AT.findall((PACKAGE / "training" / "early_checks.py").read_text()))
    read |= set(LOOKED_AT.findall((PACKAGE / "data" / "rows" / "packed.py").read_text()))
    assert {f"rows.{name}" for name in read} - {"rows.separators_tell_all"} <= tested


def said_by_pretrain(config: PretrainConfig) -> tuple[list[str], Any]:
    """Its message or its notes, and what its checkpoints would say of themselves."""
    try:
        run = verbs.check_run(config, 1)
    except InputError as error:
        return [str(error)], None
    return list(run.notes), run.result


def said_by_the_drop_in(
    config: PretrainConfig, folder: Path, changes: list[dict[str, Any]]
) -> list[tuple[list[str], Any]]:
    """Run on a rank: the same, of arguments of Megatron-LM with changes; nothing is trained."""
    from megatron.training import get_args

    from megatron_ultralong.dropin import entry
    from megatron_ultralong.dropin.extension import Extension

    found: list[tuple[list[str], Any]] = []

    def look() -> Any:
        for change in changes:
            args = argparse.Namespace(**{**vars(get_args()), **change})
            try:
                identity = Extension.of(args).identity
                found.append((list(identity.notes), identity.result))
            except InputError as error:
                found.append(([str(error)], None))
        raise SystemExit

    with replaced((entry, "_extension", look)):
        run(EXAMPLE, flags(config), folder / "said")
    return found


def changed(folder: Path, to: Path, name: str, change: Callable[[dict[str, Any]], None]) -> str:
    """A copy of a folder with another value in one of its files."""
    shutil.copytree(folder, to)
    values = json.loads((to / name).read_text())
    change(values)
    unseal(to)
    (to / name).write_text(json.dumps(values))
    return str(to)


def test_both_say_the_same_of_every_field(
    make_config: MakeConfig, tiny: Path, tmp_path: Path
) -> None:
    usual = make_config(None, (1, 1), train_iters=4)
    configs, changes = [], []
    for number, case in enumerate(CASES):
        load, rows = usual.load, usual.data.data_path
        if case.checkpoint is not None:
            load = changed(Path(load), tmp_path / f"base-{number}", FILE_NAME, case.checkpoint)
        if case.rows is not None:
            rows = changed(Path(rows), tmp_path / f"rows-{number}", "manifest.json", case.rows)
        is_whole = "rope_scaling" in case.rope
        rope = dataclasses.replace(RopeConfig() if is_whole else usual.rope, **case.rope)
        data = dataclasses.replace(usual.data, data_path=rows, document_mask=case.mask)
        configs.append(dataclasses.replace(usual, load=load, rope=rope, data=data))
        of_rope = {f"ultralong_{name}": value for name, value in vars(rope).items()}
        if is_whole:
            of_rope["ultralong_original_max_position_embeddings"] = 0
        its = {"load": load, "ultralong_data_path": rows, "ultralong_document_mask": case.mask}
        changes.append({**its, **of_rope})
    [found] = run_on_ranks(1, said_by_the_drop_in, usual, tmp_path, changes)
    wrong = []
    for case, config, (lines, result) in zip(CASES, configs, found, strict=True):
        lines = [line.replace("--ultralong-", "--") for line in lines]
        if case.says:
            if case.says not in lines[0] or result is not None:
                wrong.append(f"{case.field}: {lines}")
            continue
        expected, its_result = said_by_pretrain(config)
        if (lines, result) != (expected, its_result):
            wrong.append(
                f"{case.field} {case.rope}:\n  {expected}\n  {lines}\n  {its_result}\n  {result}"
            )
    assert not wrong, "\n".join(wrong)


def test_the_original_context_is_that_of_the_checkpoint(
    make_config: MakeConfig, tiny: Path, tmp_path: Path
) -> None:
    """Where the flag is not given, whatever the checkpoint was scaled by."""
    usual = make_config(None, (1, 1), train_iters=4)
    scaled = changed(Path(usual.load), tmp_path / "scaled", FILE_NAME, sets("rope_scaling", _YARN))
    name = "ultralong_original_max_position_embeddings"
    changes = [{name: 0}, {name: 0, "load": scaled, "ultralong_rope_scaling_factor": 8.0}]
    [found] = run_on_ranks(1, said_by_the_drop_in, usual, tmp_path, changes)
    for (lines, result), context, length in zip(found, (64, 32), (128, 256), strict=True):
        assert lines[0].startswith(f"original context: {context}, that of the checkpoint in ")
        assert result.rope_scaling.original_max_position_embeddings == context
        assert result.model.max_position_embeddings == length
        assert not any("context before any scaling" in line for line in lines)
