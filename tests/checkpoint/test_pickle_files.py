"""What is read of a file of ``torch.save`` is what torch reads, however it was saved."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ultralong.checkpoint.formats.tensor_file import PickleFile
from megatron_ultralong.program.errors import InputError

Tensors = dict[str, torch.Tensor]


def tensors() -> Tensors:
    torch.manual_seed(0)
    return {"a": torch.randn(6, 4), "b": torch.randn(4).bfloat16(), "c": torch.randn(3, 2).half()}


def written_elsewhere(path: Path) -> None:
    """As a machine of the other byte order writes it: so marked, every number turned around."""
    torch.save(tensors(), path)
    sizes = {record.numel() * record.itemsize: record.itemsize for record in tensors().values()}
    with zipfile.ZipFile(path) as file:
        records = [(info.filename, file.read(info)) for info in file.infolist()]
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in records:
        name = name.partition("/")[2]
        if name == "byteorder":
            data = b"big"
        elif name.startswith("data/"):
            size = sizes[len(data)]
            data = b"".join(data[n : n + size][::-1] for n in range(0, len(data), size))
        if name not in ("version", ".data/serialization_id"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def in_a_larger_one(path: Path) -> None:
    large = torch.randn(50, 9)
    torch.save({"a": large[7:13, 2:6], "b": large[:, 3], "c": large[3]}, path)


def shared(path: Path) -> None:
    one = torch.randn(5, 3)
    torch.save({"a": one, "b": one, "c": one.t(), "d": one[2:]}, path)


WAYS: dict[str, Callable[[Path], object]] = {
    "plain": lambda path: torch.save(tensors(), path),
    "in order": lambda path: torch.save(OrderedDict(tensors()), path),
    "parameters": lambda path: torch.save(
        {name: torch.nn.Parameter(tensor) for name, tensor in tensors().items()}, path
    ),
    "before 1.6": lambda path: torch.save(tensors(), path, _use_new_zipfile_serialization=False),
    "in a larger one": in_a_larger_one,
    "shared": shared,
    "repeated": lambda path: torch.save({"a": torch.randn(1, 3).expand(4, 3).clone()}, path),
    "empty": lambda path: torch.save({"a": torch.empty(0, 3), "b": torch.randn(2)}, path),
    "another byte order": written_elsewhere,
}
REFUSED: dict[str, Callable[[Path], object]] = {
    "of another sign": lambda path: torch.save({"a": torch._neg_view(torch.randn(3))}, path),
    "imaginary parts": lambda path: torch.save(
        {"a": torch.randn(3, dtype=torch.complex64).conj().imag}, path
    ),
    "conjugate": lambda path: torch.save({"a": torch.randn(3, dtype=torch.complex64).conj()}, path),
    "sparse": lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path),
    "of no bytes": lambda path: torch.save({"a": torch.empty(3, device="meta")}, path),
    "quantised": lambda path: torch.save(
        {"a": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)}, path
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_tensors_are_those_that_torch_reads(tmp_path: Path, way: str) -> None:
    WAYS[way](tmp_path / "a.bin")
    expected = torch.load(tmp_path / "a.bin", weights_only=True)
    found = PickleFile(tmp_path / "a.bin")
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        actual = found.read(name)
        assert actual.dtype == tensor.dtype
        assert torch.equal(actual, tensor), name
    if way == "another byte order":
        for name, tensor in tensors().items():
            assert torch.equal(found.read(name), tensor)


@pytest.mark.parametrize("way", REFUSED)
def test_a_tensor_that_is_not_its_bytes_is_refused(tmp_path: Path, way: str) -> None:
    REFUSED[way](tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"a\.bin (must hold a dict of tensors|does not open as)"):
        PickleFile(tmp_path / "a.bin")


OTHERS: dict[str, tuple[Any, str]] = {
    "of a trainer": ({"epoch": 3, "state_dict": {}}, "'epoch' is an int: .* save the model's"),
    "of Lightning": ({"state_dict": tensors()}, "'state_dict' is a dict: .* save the model's"),
    "a list": ([torch.ones(2)], "'all of it' is a list"),
    "one tensor": (torch.ones(2), "'all of it' is a Tensor"),
    "a number as name": ({3: torch.ones(2)}, "3 is a Tensor"),
    "arrays": ({"a": np.ones(3)}, r"only \(.*numpy"),
    "a class": ({"a": Fraction(1, 2)}, r"only \(.*fractions\.Fraction"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_that_is_no_model_is_told_as_what_it_is(tmp_path: Path, what: str) -> None:
    value, message = OTHERS[what]
    torch.save(value, tmp_path / "a.bin")
    with pytest.raises(InputError, match=message) as caught:
        PickleFile(tmp_path / "a.bin")
    assert "torch.load" not in str(caught.value)  # how to run the code of a file
    assert "Please use" not in str(caught.value)
