"""Checkpoints that other releases of Megatron-Core wrote, with classes that this one lacks."""

from __future__ import annotations

import enum
import importlib
import shutil
import sys
import types
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnBackend
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.disk.checksums import checksum, write_checksums
from megatron_ultralong.checkpoint.formats import pickles
from megatron_ultralong.checkpoint.formats.model_state import load_common
from megatron_ultralong.checkpoint.formats.pickles import StandIn, UnsafeError, read_saved
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.test_payloads import DATA, append_record
from tests.checkpoint.verbs import OPENS, refusal, write_inputs

LISTED = [name for name in pickles.RECORD_CLASSES if name.startswith("megatron.")]
NEW = ["megatron.core.transformer.enums.ScopeOfTomorrow", "megatron.core.a.module_of.Tomorrow"]


def written(path: Path, name: str, members: dict[str, int], *, as_object: bool = False) -> None:
    """Save an enum's last member under a name, in a process where it is there.

    ``as_object``: in the list of one that Megatron-Core makes of an object.
    """
    module_name, class_name = name.rsplit(".", 1)
    with pytest.MonkeyPatch.context() as patch:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            module = types.ModuleType(module_name)
            patch.setitem(sys.modules, module_name, module)
        kind: Any = enum.Enum(class_name, members, module=module_name)
        patch.setattr(module, class_name, kind, raising=False)
        state = {"args": Namespace(a=list(kind)[-1], b=3)}
        torch.save([state] if as_object else state, path)


@pytest.mark.parametrize("name", [*LISTED, *NEW])
def test_a_class_that_is_not_here_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    written(tmp_path / "file", name, {"a": 1, "b": 2})
    module_name, class_name = name.rsplit(".", 1)
    if name in LISTED:
        module = importlib.import_module(module_name)
        monkeypatch.delattr(module, class_name, raising=False)
    args = read_saved(tmp_path / "file")["args"]
    assert args.b == 3
    assert isinstance(args.a, StandIn)
    assert repr(args.a) == f"{class_name}(2,)"
    assert repr(object.__new__(type(args.a))) == f"{class_name}()"  # as a dataclass is made


def test_a_member_that_is_not_here_does_nothing(tmp_path: Path) -> None:
    name = "megatron.core.transformer.enums.AttnBackend"
    written(tmp_path / "file", name, {"a": 99})
    assert repr(read_saved(tmp_path / "file")["args"].a) == "AttnBackend(99,)"
    torch.save({"a": list(AttnBackend)}, tmp_path / "file")
    assert read_saved(tmp_path / "file")["a"] == list(AttnBackend)


@pytest.mark.parametrize(
    "name",
    [
        "megatron.core.utils.get_model_config",  # a function
        "megatron.core.transformer.enums.enum.Enum.__call__",
        "megatron.training.arguments.Arguments",
        "megatron.Core",
        "os.Tomorrow",
    ],
)
def test_everything_else_is_refused(tmp_path: Path, name: str) -> None:
    module, last = name.rsplit(".", 1)
    data = f"\x80\x02c{module}\n{last}\n)R.".encode("latin-1")
    torch.save({"a": b"x" * 40}, tmp_path / "good")
    with (
        zipfile.ZipFile(tmp_path / "good") as good,
        zipfile.ZipFile(tmp_path / "file", "w") as bad,
    ):
        for record in good.infolist():
            is_pickle = record.filename.endswith("data.pkl")
            bad.writestr(record.filename, data if is_pickle else good.read(record))
    with pytest.raises(UnsafeError, match="has no place in a checkpoint"):
        read_saved(tmp_path / "file")


@pytest.mark.parametrize("name", ["megatron.core.transformer.enums.InferenceCudaGraphScope", *NEW])
def test_a_checkpoint_without_a_common_file_is_read(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Megatron-Core 0.19 keeps its arguments as an object, with enums of its own."""
    shutil.copytree(inputs / "base", tmp_path / "base")
    folder = tmp_path / "base" / "release"
    written(tmp_path / "args", name, {"none": 1, "layer": 2}, as_object=True)
    give_common_object(folder, (tmp_path / "args").read_bytes())
    assert load_common(folder)["args"].b == 3
    for verb in ("convert verify", "evaluate loss", "pretrain"):
        cli.main(OPENS[verb](inputs, str(tmp_path / "base")))


def give_common_object(folder: Path, common: object) -> None:
    """Put an object in the place of ``common.pt``, with checksums that agree."""
    (folder / "common.pt").unlink()
    append_record(folder, common, MetadataIndex("common_state/shard_0_1"), is_object=True)
    names = (DATA, ".metadata", "metadata.json")
    write_checksums(folder, {each: checksum(folder / each) for each in names})


@pytest.mark.parametrize("common", [{"iteration": 1}, [], [{}, {}], [3], 3], ids=str)
def test_another_form_of_the_common_object_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], common: object
) -> None:
    """Megatron-Core 0.19 takes the first of a list, whatever it is."""
    shutil.copytree(inputs / "base", tmp_path / "base")
    folder = tmp_path / "base" / "release"
    give_common_object(folder, common)
    with pytest.raises(
        InputError, match=r"must be a list of one dict, not an? (dict|list|int)"
    ) as found:
        load_common(folder)
    assert str(folder / DATA) in str(found.value)
    for verb in ("convert verify", "pretrain"):
        error = refusal(capsys, OPENS[verb](inputs, str(tmp_path / "base")))
        assert "must be a list of one dict" in error
        assert str(folder / DATA) in error


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    write_inputs(folder)
    return folder
