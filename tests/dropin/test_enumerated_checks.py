"""Every check of ``pretrain`` before its start is one of the drop-in, or it is said why not.

Two enumerations: of the calls of these checks, and of the fields that they look at.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.model.shape import ModelConfig
from tests.dropin.cases import CASES

PACKAGE = Path(__file__).parents[2] / "megatron_ultralong"
CHECKS = {
    "training/verbs.py": ("check_run", "_checked"),
    "training/early_checks.py": (
        *("check_packed_run", "_open_source", "_checked_with_save", "result_of", "notes"),
    ),
    "training/inputs.py": ("check_machine",),
    "training/earlier_start.py": ("check_save", "check_same_run"),
    "config/training.py": ("check_run", "check_positions"),
}
"""Functions that see a run of ``pretrain`` before it starts."""
LOOKED_AT = re.compile(r"\bmanifest\.(\w+)")
"""Fields of a manifest that a start looks at."""
INSIDE = {name for names in CHECKS.values() for name in names}
_MEGATRONS = "Megatron-LM's own arguments, which it checks"
OTHERWISE = {
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
    "resolve_readable": "dropin/checkpoints.py looks through all files",
    "MegatronCheckpoint": "dropin/checkpoints.py looks through all files",
    "check_nobodys": "Megatron-LM saves into any folder",
    "iteration_folders": "of check_nobodys",
    "load_source": "Megatron-LM resumes from what --load names",
    "load_config": "dropin/described.py: Megatron-LM's checkpoints hold the arguments",
    "attrgetter": "of load_config",
    "flat_fields": "Identity.write compares all",
    "_short": "of a message",
    "few_tokens": "a note of --seq-length 128 for 128K",
    "filter": "of notes",
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
