"""An output folder is new, has room, and stands under its name only when it is complete."""

import shutil
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program import new_folder
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
    with pytest.raises(InputError, match=r"out exists and is not empty: choose another"):
        import_checkpoint(ImportConfig(originals / "single", out))
    with pytest.raises(InputError, match=r"out exists and is not empty"):
        export_checkpoint(ExportConfig(originals / "megatron", out))
    assert (out / "mine").read_text() == "precious"


def test_an_empty_output_folder_is_used(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    import_checkpoint(ImportConfig(originals / "single", tmp_path / "out"))
    assert (tmp_path / "out" / "ultralong.json").is_file()


def test_a_conversion_that_was_killed_is_not_overwritten(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").touch()
    with pytest.raises(InputError, match=r"out\.partial exists: .* was killed; .* --resume"):
        import_checkpoint(ImportConfig(originals / "single", tmp_path / "out"))


def test_too_little_room_is_said_first(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(new_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"has 0\.00 GiB free, 0\.02 GiB are needed"):
        import_checkpoint(ImportConfig(originals / "single", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder.new_folder(tmp_path / "out", 10, {}) as (partial, _):
            (partial / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_said() -> None:
    # Nobody may make folders there, not even root.
    with (
        pytest.raises(InputError, match=r"output /proc/self/out cannot be written: .*name another"),
        new_folder.new_folder(Path("/proc/self/out"), -(2**40), {}),
    ):
        pass


def test_a_disk_that_becomes_full_is_said(tmp_path: Path) -> None:
    def fill() -> None:
        with (
            new_folder.new_folder(tmp_path / "out", 2**29, {}) as (partial, _),
            Path("/dev/full").open("wb") as file,
        ):
            (partial / "half").write_text("half")
            file.write(b"1")

    with pytest.raises(InputError, match=r"became full: .* make room for 0\.50 GiB"):
        fill()
    assert not list(tmp_path.iterdir())
