"""Which iteration of a checkpoint folder is meant."""

from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import (
    iteration_folder,
    iterations,
    resolve,
    resolve_readable,
    write_latest,
)
from megatron_ultralong.program.errors import InputError
from tests.rights import closed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with iterations 20 and 100, and one that was never finished."""
    for iteration in (20, 100):
        folder = iteration_folder(tmp_path, iteration)
        folder.mkdir()
        (folder / "metadata.json").write_text("{}")
    iteration_folder(tmp_path, 120).mkdir()
    (tmp_path / "iter_0000120.partial").mkdir()
    (tmp_path / "iter_0000120.partial" / "metadata.json").write_text("{}")
    write_latest(tmp_path, 100)
    return tmp_path


def test_the_latest_a_chosen_one_and_one_by_path(run: Path) -> None:
    assert iterations(run) == [20, 100]
    assert resolve(run) == (run / "iter_0000100", 100)
    assert resolve(run, 20) == (run / "iter_0000020", 20)
    assert resolve(run / "iter_0000020") == (run / "iter_0000020", 20)


def test_release_is_iteration_0(run: Path) -> None:
    (run / "release").mkdir()
    (run / "release" / "metadata.json").write_text("{}")
    assert resolve(run, 0) == (run / "release", 0)
    write_latest(run, "release")
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert resolve(run) == (run / "release", 0)


def test_the_way_out_is_one_that_every_verb_has(run: Path) -> None:
    """Only `convert` has --iteration; the file that names the latest is read by all."""
    write_latest(run, 77)
    latest = run / "latest_checkpointed_iteration.txt"
    with pytest.raises(InputError, match=r"it holds 20, 100 \(.* names 77\): ") as refused:
        resolve(run)
    assert str(refused.value).endswith(f"write one of these into {latest}")
    write_latest(run, 20)
    assert resolve(run) == (run / "iter_0000020", 20)
    for iteration in (20, 100):
        (iteration_folder(run, iteration) / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"it holds none .*: copy the checkpoint again"):
        resolve(run)


def test_a_closed_iteration_is_not_taken_for_a_missing_one(run: Path) -> None:
    with closed(iteration_folder(run, 100)), pytest.raises(PermissionError):
        resolve(run)
    with closed(iteration_folder(run, 20)):  # another one is no matter
        assert resolve(run) == (run / "iter_0000100", 100)


def test_a_closed_file_is_found_before_the_work(run: Path) -> None:
    """As early checks look at a checkpoint: what ranks would read later is opened at once."""
    data = iteration_folder(run, 100) / "__0_0.distcp"
    data.write_bytes(b"")
    assert resolve_readable(run) == resolve(run)
    with closed(data), pytest.raises(PermissionError):
        resolve_readable(run)


def test_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no complete iteration 120; it holds 20, 100"):
        resolve(run, 120)
    with pytest.raises(InputError, match="does not exist"):
        resolve(run / "absent")
    with pytest.raises(InputError, match="has no latest_checkpointed_iteration"):
        resolve(run / "iter_0000120")
    with pytest.raises(InputError, match=r"is itself one .*iteration 20.* not iteration 100"):
        resolve(run / "iter_0000020", 100)
    (run / "latest_checkpointed_iteration.txt").write_text("newest")
    with pytest.raises(InputError, match="must hold an iteration or 'release', not 'newest'"):
        resolve(run)
