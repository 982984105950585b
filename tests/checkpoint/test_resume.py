"""A conversion killed by SIGKILL continues, and gives the same bytes."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.weight_map import Weight
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program import journal
from megatron_ultralong.program.aside import partial_path
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import Journal
from megatron_ultralong.program.output import RECORDS_FILE, OutputFolder, output_folder
from tests.checkpoint.llama import save_llama
from tests.patience import patience

NUM_WEIGHTS = 6 * 4 + 3
KILLED_AT = 14
KILL = f"""
import os, signal, sys
from megatron_ultralong import cli
from megatron_ultralong.program import journal
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint

journal.SYNC_BYTES = 10_000
reads = 0

def killing(read):
    def killing_read(self, weight):
        global reads
        reads += 1
        if reads == {KILLED_AT}:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, weight)
    return killing_read

for kind in (HuggingFaceFolder, MegatronCheckpoint):
    kind.read = killing(kind.read)
cli.main(["convert", *sys.argv[1:]])
"""
CASES: dict[str, tuple[str, ...]] = {
    "torch_dist": (),
    "safetensors": ("--max-shard-size-gb", "0.0001"),
    "meta": ("--format", "meta", "--num-shards", "2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    save_llama(folder / "hf", hidden_size=96)
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    return folder


def convert(folder: Path, case: str, out: Path, **flags: Any) -> Any:
    if case == "torch_dist":
        return import_checkpoint(ImportConfig(folder / "hf", out, **flags))
    if case == "meta":
        return export_checkpoint(
            ExportConfig(folder / "megatron", out, format="meta", num_shards=2, **flags)
        )
    return export_checkpoint(
        ExportConfig(folder / "megatron", out, max_shard_size_gb=0.0001, **flags)
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("case", CASES)
def test_a_killed_conversion_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    source, verb = ("hf", "import") if case == "torch_dist" else ("megatron", "export")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILL, verb, str(folder / source), str(out), *CASES[case]]
    killed = subprocess.run(command, capture_output=True, timeout=patience(120), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    lines = (tmp_path / ".out.partial" / RECORDS_FILE).read_text().splitlines()
    finished = {json.loads(line)["key"] for line in lines}
    # the reader was one weight ahead, and the last few had not been waited for
    assert KILLED_AT - 5 <= len(finished) < KILLED_AT

    reads: list[str] = []
    for kind in (HuggingFaceFolder, MegatronCheckpoint):
        read = kind.read

        def counted(self: Any, weight: Weight, read: Any = read) -> tuple[torch.Tensor, ...]:
            reads.append(weight.label)
            result: tuple[torch.Tensor, ...] = read(self, weight)
            return result

        monkeypatch.setattr(kind, "read", counted)
    report = convert(folder, case, out, verify=False)
    said = f"continuing from {len(finished)} finished tensors in {tmp_path}/.out.partial"
    assert said in capsys.readouterr().err
    assert report.num_resumed_tensors == len(finished)
    assert len(reads) == NUM_WEIGHTS - len(finished)
    assert not finished & set(reads)
    convert(folder, case, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def interrupted_at_the_end(folder: Path, out: Path) -> Path:
    """A conversion that has written all; returns its journal."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(OutputFolder, "finish", lambda *_: signal.raise_signal(signal.SIGINT))
        convert(folder, "torch_dist", out)
    return partial_path(out) / RECORDS_FILE


def test_a_finished_but_unverified_conversion_is_verified(folder: Path, tmp_path: Path) -> None:
    out, records = tmp_path / "out", interrupted_at_the_end(folder, tmp_path / "out")
    convert(folder, "torch_dist", tmp_path / "whole")
    with records.open("a") as lines:
        lines.write('{"key": "decoder.la')  # a kill may cut the last line
    report = convert(folder, "torch_dist", out)
    assert report.num_resumed_tensors == NUM_WEIGHTS
    assert report.verified
    assert files(out) == files(tmp_path / "whole")


def test_an_output_in_the_source_is_continued(folder: Path, tmp_path: Path) -> None:
    """Its own folder is not a file of the model."""
    shutil.copytree(folder / "hf", tmp_path / "hf")
    out = tmp_path / "hf" / "megatron"
    interrupted_at_the_end(tmp_path, out)
    assert convert(tmp_path, "torch_dist", out).num_resumed_tensors == NUM_WEIGHTS


def test_a_damaged_line_of_the_journal_is_converted_again(folder: Path, tmp_path: Path) -> None:
    out, records = tmp_path / "out", interrupted_at_the_end(folder, tmp_path / "out")
    convert(folder, "torch_dist", tmp_path / "whole")
    lines = records.read_text().splitlines()
    records.write_text("\n".join([*lines[:5], "}", *lines[6:], ""]))
    assert convert(folder, "torch_dist", out).num_resumed_tensors == NUM_WEIGHTS - 1
    assert files(out) == files(tmp_path / "whole")


def test_another_conversion_is_not_continued(folder: Path, tmp_path: Path) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        output_folder(tmp_path / "out", "convert", {"action": "import", "dtype": "keep"}) as made,
    ):
        Journal(made).add("embedding", {})
        raise KeyboardInterrupt
    with (
        pytest.raises(InputError, match=r"by another command: its dtype was 'keep', now .* 'bf16'"),
        output_folder(tmp_path / "out", "convert", {"action": "import", "dtype": "bf16"}),
    ):
        pass
    assert (tmp_path / ".out.partial" / RECORDS_FILE).read_text()


def test_entries_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SYNC_BYTES", 100)
    waits: list[str] = []
    killed = contextlib.suppress(KeyboardInterrupt)
    with killed, output_folder(tmp_path / "out", "convert", {}) as made:
        written = Journal(made)
        for number in range(5):
            written.add(f"w{number}", {}, lambda: waits.append("disk"), 40)
        assert list(written.entries) == ["w0", "w1", "w2"]
        assert waits == ["disk"]
        raise KeyboardInterrupt
    with output_folder(tmp_path / "out", "convert", {}) as made:
        read = Journal(made)
        assert (list(read.entries), read.num_bytes) == (["w0", "w1", "w2"], 120)
