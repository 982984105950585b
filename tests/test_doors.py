"""What is read from outside is read in one place: no other module unpickles, parses or prints."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator

import pytest

from tests.sources import PACKAGE, modules

PICKLES = "checkpoint/formats/pickles.py"
LOADING = "checkpoint/formats/model_state.py"

UNPICKLES = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "dill.load",
    "dill.loads",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "numpy.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.jit.load",
    "torch.hub.load",
    "pandas.read_pickle",
}
LOADS_CHECKPOINTS = {
    f"megatron.core.dist_checkpointing.{name}"
    for name in (
        "load",
        "load_common_state_dict",
        "load_content_metadata",
        "load_plain_tensors",
        "load_sharded_metadata",
        "load_tensors_metadata",
    )
} | {
    "torch.distributed.checkpoint.load",
    "torch.distributed.checkpoint.load_state_dict",
    "safetensors.torch.load_file",
}
PARSES = {"json.load", "json.loads"}
READS_FOLDERS = "from_pretrained"

ALLOWED: dict[str, dict[str, str]] = {
    PICKLES: {"torch.load": "the door", "pickle.Unpickler": "with a list of what may be named"},
    LOADING: {
        "megatron.core.dist_checkpointing.load": "inside the guard",
        "megatron.core.dist_checkpointing.load_common_state_dict": "inside the guard",
    },
    "program/json_file.py": {"json.loads": "the reader"},
    "program/yaml_file.py": {"yaml.load": "with a subclass of SafeLoader"},
    "data/store/documents.py": {
        "numpy.load": "allow_pickle is false by default",
        "json.loads": "of its own work folder",
    },
    "data/read/record.py": {"json.loads": "records by the million, in bounded lines"},
    "data/tokenize/fast_path.py": {"json.loads": "text that the library of tokenizers has read"},
    "data/tokenize/folder_template.py": {"json.loads": "from a process that it started"},
    "data/tokenize/template_worker.py": {"json.loads": "from the process that started it"},
    "program/journal.py": {"json.loads": "of what was dumped in the same line"},
    "training/saving/store_gather.py": {"json.loads": "from the job's own store"},
    "training/saving/snapshot.py": {"json.loads": "of what another rank of the job has dumped"},
    "training/telling/heartbeat.py": {"json.loads": "from the job's own store"},
    "doctor/communication.py": {"json.loads": "from a process that it started"},
    "checkpoint/logits/transformers_model.py": {"from_pretrained": "of tensors, no folder"},
    "generation/folder_tokenizer.py": {"from_pretrained": "a tokenizer, without its code"},
}


def names(tree: ast.AST) -> Iterator[str]:
    """Full names of everything that a module uses, by its imports."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                imported[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in imported:
            yield ".".join([imported[inner.id], *reversed(parts)])
        if isinstance(node, ast.Attribute) and node.attr == READS_FOLDERS:
            yield READS_FOLDERS


def forbidden(used: Iterable[str]) -> set[str]:
    banned = UNPICKLES | LOADS_CHECKPOINTS | PARSES | {READS_FOLDERS}
    return set(used) & banned


@functools.cache
def used() -> dict[str, set[str]]:
    """The names that each module of the package uses."""
    return {path.relative_to(PACKAGE).as_posix(): set(names(tree)) for path, tree in modules()}


def test_the_doors_are_the_only_ones() -> None:
    found = {name: forbidden(its) for name, its in used().items()}
    wrong = {
        f"{name}: {what}"
        for name, uses in found.items()
        for what in uses - ALLOWED.get(name, {}).keys()
    }
    assert not wrong, (
        f"read pickles by {PICKLES}, checkpoints by {LOADING}, JSON by program/json_file.py: "
        f"{sorted(wrong)}"
    )


def test_every_allowance_is_used() -> None:
    for name, uses in ALLOWED.items():
        found = forbidden(used()[name])
        assert set(uses) <= found, (
            f"{name} uses no {sorted(set(uses) - found)}: take it off the list"
        )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\ntorch.load('a')", "torch.load"),
        ("import torch as t\nx = t.load", "torch.load"),
        ("from torch import load", "torch.load"),
        ("import pickle\npickle.loads(b'')", "pickle.loads"),
        ("import pickle\nclass A(pickle.Unpickler): ...", "pickle.Unpickler"),
        ("import numpy as np\nnp.load('a')", "numpy.load"),
        (
            "from megatron.core import dist_checkpointing\ndist_checkpointing.load()",
            "megatron.core.dist_checkpointing.load",
        ),
        (
            "import megatron.core.dist_checkpointing as d\nd.load_tensors_metadata()",
            "megatron.core.dist_checkpointing.load_tensors_metadata",
        ),
        ("def f():\n    import json\n    json.load(x)", "json.load"),
        ("from transformers import AutoModel\nAutoModel.from_pretrained('a')", "from_pretrained"),
    ],
)
def test_the_search_finds_them(source: str, name: str) -> None:
    assert name in forbidden(names(ast.parse(source)))


def test_consoles_are_ours() -> None:
    """rich's own would hand a terminal whatever a file calls itself."""
    for name, uses in used().items():
        if name != "program/terminal.py":
            assert "rich.console.Console" not in uses, (
                f"{name}: use megatron_ultralong.program.terminal"
            )
        assert "rich.print" not in uses, name


LISTS = {
    "data/prepare/documents.py": "its own work",
    "checkpoint/logits/check.py": "this package",
    "evaluation/harness/task_files.py": "patterns of tasks, as the library of data sets does",
    "program/launch.py": "/dev",
    "program/output.py": "its own work",
    "training/inputs.py": "this package",
}
"""Modules that may pass over a folder that cannot be listed, and what they list."""


def test_folders_are_listed_in_one_place() -> None:
    """`glob` takes a folder that this user may not list for an empty one."""
    found = set()
    for path, tree in modules():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(
            isinstance(f, ast.Attribute) and f.attr in ("glob", "rglob", "iglob") for f in calls
        ):
            found.add(path.relative_to(PACKAGE).as_posix())
    assert found == LISTS.keys(), "use megatron_ultralong.program.aside"
