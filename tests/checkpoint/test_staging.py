"""An output folder is new, has room, and stands under its name only when it is complete."""

import shutil
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program import output
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import save_llama


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    save_llama(folder / "single", num_hidden_layers=1)
    import_checkpoint(ImportConfig(folder / "single", folder / "megatron"))
    return folder


def test_an_output_in_use_is_refused(originals: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(InputError, match=r"out holds 1 entries, mine among them: .* name a new"):
        import_checkpoint(ImportConfig(originals / "single", out))
    with pytest.raises(InputError, match=r"out holds 1 entries"):
        export_checkpoint(ExportConfig(originals / "megatron", out))
    assert (out / "mine").read_text() == "precious"


def test_an_empty_output_folder_is_used(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    import_checkpoint(ImportConfig(originals / "single", tmp_path / "out"))
    assert (tmp_path / "out" / "ultralong.json").is_file()


def test_a_folder_of_something_else_is_not_written_to(originals: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").touch()
    with pytest.raises(InputError, match=r"partial holds half and no work\.json: .* remove it"):
        import_checkpoint(ImportConfig(originals / "single", tmp_path / "out"))
    assert [path.name for path in (tmp_path / ".out.partial").iterdir()] == ["half"]


def test_too_little_room_is_said_first(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        InputError, match=r"^output \S+/out: the disk has 3\.15 MB free, \S+ MB are"
    ):
        import_checkpoint(ImportConfig(originals / "single", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with output.output_folder(tmp_path / "out", "convert", {}) as made:
            (made.path / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_said() -> None:
    # Nobody may make folders there, not even root.
    with (
        pytest.raises(InputError, match=r"output /proc/self/out cannot be written: .*name another"),
        output.output_folder(Path("/proc/self/out"), "convert", {}, flag="output"),
    ):
        pass


def test_a_disk_that_becomes_full_is_said(tmp_path: Path) -> None:
    def fill() -> None:
        with (
            output.output_folder(tmp_path / "out", "convert", {}, num_bytes=2**29) as made,
            Path("/dev/full").open("wb") as file,
        ):
            (made.path / "half").write_text("half")
            file.write(b"1")

    with pytest.raises(InputError, match=r"No space left.*; make room on the disk for \S+ MB"):
        fill()
    assert not list(tmp_path.iterdir())
