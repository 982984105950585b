"""Which iteration of a checkpoint folder is meant."""

from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import (
    iteration_folder,
    iterations,
    resolve,
    write_latest,
)
from megatron_ultralong.program.errors import InputError


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
