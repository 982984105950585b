"""A conversion killed by SIGKILL goes on with ``--resume``, and gives the same bytes."""

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
from megatron_ultralong.program import conversion_journal
from megatron_ultralong.program.conversion_journal import MANIFEST_FILE, Manifest
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.new_folder import new_folder
from tests.checkpoint.llama import save_llama
from tests.patience import patience

NUM_WEIGHTS = 6 * 4 + 3
KILLED_AT = 14
KILL = f"""
import os, signal, sys
from megatron_ultralong import cli
from megatron_ultralong.program import conversion_journal
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint

conversion_journal.SYNC_BYTES = 10_000
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
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    source, verb = ("hf", "import") if case == "torch_dist" else ("megatron", "export")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILL, verb, str(folder / source), str(out), *CASES[case]]
    killed = subprocess.run(command, capture_output=True, timeout=patience(120), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    lines = (tmp_path / "out.partial" / MANIFEST_FILE).read_text().splitlines()
    finished = {name for name, size, _ in map(json.loads, lines[1:]) if size}
    # the reader was one weight ahead, and the last few had not been waited for
    assert KILLED_AT - 5 <= len(finished) < KILLED_AT
    with pytest.raises(InputError, match=r"out\.partial exists: .* continue it with --resume"):
        convert(folder, case, out)

    reads: list[str] = []
    for kind in (HuggingFaceFolder, MegatronCheckpoint):
        read = kind.read

        def counted(self: Any, weight: Weight, read: Any = read) -> tuple[torch.Tensor, ...]:
            reads.append(weight.label)
            result: tuple[torch.Tensor, ...] = read(self, weight)
            return result

        monkeypatch.setattr(kind, "read", counted)
    report = convert(folder, case, out, resume=True, verify=False)
    assert report.num_resumed_tensors == len(finished)
    assert len(reads) == NUM_WEIGHTS - len(finished)
    assert not finished & set(reads)
    convert(folder, case, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_a_finished_but_unverified_conversion_is_verified(folder: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    convert(folder, "torch_dist", out, resume=True)  # nothing is there: it begins
    expected = files(out)
    copy_of_manifest: list[bytes] = []
    remove = Manifest.remove

    def keep(self: Manifest) -> None:
        copy_of_manifest.append((self._path).read_bytes())
        remove(self)

    shutil.rmtree(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "remove", keep)
        convert(folder, "torch_dist", out)
    out.rename(partial)
    # a kill may cut the last line
    (partial / MANIFEST_FILE).write_bytes(copy_of_manifest[0] + b'["decoder.la')
    report = convert(folder, "torch_dist", out, resume=True)
    assert report.num_resumed_tensors == NUM_WEIGHTS
    assert report.verified
    assert files(out) == expected


def test_another_conversion_is_not_continued(folder: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with Manifest(partial, {"action": "import", "dtype": "keep"}) as running:
        running.add("embedding", 4, lambda: None)
        running.flush(lambda: None)
    with (
        pytest.raises(InputError, match=r"another conversion: dtype was 'keep', is now 'bf16'"),
        new_folder(tmp_path / "out", 1, {"action": "import", "dtype": "bf16"}, resume=True),
    ):
        pass
    assert (partial / MANIFEST_FILE).is_file()


def test_entries_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_journal, "SYNC_BYTES", 100)
    waits: list[str] = []
    with Manifest(tmp_path, {}) as written:
        for number in range(5):
            written.add(f"w{number}", 40, lambda: waits.append("disk"))
        assert list(written.finished) == ["w0", "w1", "w2"]
        assert waits == ["disk"]
    with Manifest(tmp_path, {}) as read:
        assert (list(read.finished), read.num_bytes) == (["w0", "w1", "w2"], 120)
