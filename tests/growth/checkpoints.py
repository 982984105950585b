"""Tensors and layers of checkpoints."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import torch

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.checksums import Checksum, read_checksums, write_checksums
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder, SafetensorsWriter
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.tensor_file import PickleFile, TensorInfo
from megatron_ultralong.checkpoint.formats.weight_map import known_names, model_weights
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program.journal import Journal
from megatron_ultralong.program.output import output_folder
from tests.growth.table import Work, counted
from tools.benchmark_layers import write_model


def write_small(folder: Path, num_layers: int) -> Path:
    """A Llama of so many layers, all tensors in one file."""
    return write_model(folder, num_layers, hidden=8, ffn=12, vocabulary=16, heads=2)


@counted(3)
def layers_read_from_one_file(n: int, folder: Path) -> Work:
    write_small(folder / "hf", n)

    def read() -> None:
        source = HuggingFaceFolder(folder / "hf")
        for weight in model_weights(source.model):
            source.read(weight)

    return read


@counted(32)
def tensors_read_from_a_pickle(n: int, folder: Path) -> Work:
    torch.save({f"t{k}": torch.ones(2, 2) for k in range(n)}, folder / "a.bin")

    def read() -> None:
        file = PickleFile(folder / "a.bin")
        for name in file.tensors:
            file.read(name)

    return read


@counted(3)
def layers_imported(n: int, folder: Path) -> Work:
    config = ImportConfig(
        write_small(folder / "hf", n), folder / "megatron", tokenizer=False, verify=False
    )
    return lambda: import_checkpoint(config)


def imported(n: int, folder: Path) -> Path:
    """A Megatron checkpoint of so many layers."""
    source = write_small(folder / "hf", n)
    import_checkpoint(ImportConfig(source, folder / "megatron", tokenizer=False, verify=False))
    return folder / "megatron"


@counted(3)
def layers_read_from_a_checkpoint(n: int, folder: Path) -> Work:
    path = imported(n, folder)

    def read() -> None:
        source = MegatronCheckpoint(path)
        for weight in model_weights(source.model):
            source.read(weight)

    return read


@counted(3, heavy=True)
def layers_exported_and_verified(n: int, folder: Path) -> Work:
    path = imported(n, folder)
    return lambda: export_checkpoint(ExportConfig(path, folder / "exported"))


@counted(100)
def names_under_a_wrapper(n: int, folder: Path) -> Work:
    known = {f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(n)}
    return lambda: known_names([f"module.{name}" for name in known], known, folder)


@counted(100)
def tensors_entered(n: int, folder: Path) -> Work:
    def enter() -> None:
        with (
            contextlib.suppress(KeyboardInterrupt),
            output_folder(folder / "out", "convert", {}) as made,
        ):
            journal = Journal(made, "tensors")
            for number in range(n):
                journal.add(str(number), {"place": [number, 1]}, lambda: None, 1)
            journal.flush(lambda: None)
            raise KeyboardInterrupt
        with output_folder(folder / "out", "convert", {}) as made:
            assert Journal(made, "tensors").num_resumed == n
        shutil.rmtree(folder / "out")

    return enter


@counted(100)
def shards_planned(n: int, folder: Path) -> Work:
    tensors = [(str(number), TensorInfo(torch.float32, (2, 2))) for number in range(n)]
    return lambda: SafetensorsWriter(folder, tensors, 160)


@counted(40)
def checksums_of_files(n: int, folder: Path) -> Work:
    sums = {}
    for number in range(n):
        (folder / str(number)).write_bytes(b"")
        sums[str(number)] = Checksum(0, "")

    def both() -> None:
        write_checksums(folder, sums)
        read_checksums(folder)

    return both
