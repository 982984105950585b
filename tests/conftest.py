"""Settings of all tests."""

from __future__ import annotations

import functools
import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.order import sort
from tests.patience import patience, slowness
from tests.ranks import FORKED
from tests.warm.programs import warm_programs

# No deadline: the machines are shared. In CI the examples are the same every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# The same sums on every machine, and no fight over cores with the ranks that tests start.
torch.set_num_threads(1)


NOT_QUICK = (
    "attention/test_cached.py",
    "attention/test_peers.py",
    "checkpoint/test_absurd_small_files.py",
    "checkpoint/test_absurd_values.py",
    "checkpoint/test_bad_input.py",
    "checkpoint/test_flipped_bytes.py",
    "checkpoint/test_idle_keys.py",
    "checkpoint/test_inner_folders.py",
    "checkpoint/test_logits.py",
    "checkpoint/test_logits_bounds.py",
    "checkpoint/test_lying_files.py",
    "checkpoint/test_payloads.py",
    "checkpoint/test_random_folders.py",
    "checkpoint/test_resume.py",
    "checkpoint/test_rope_readers.py",
    "checkpoint/test_shape_families.py",
    "checkpoint/test_torch_dist.py",
    "data/test_added_tokens.py",
    "data/test_bombs.py",
    "data/test_chat_fuzzer.py",
    "data/test_chat_marks.py",
    "data/test_chat_template.py",
    "data/test_corpora.py",
    "data/test_damage.py",
    "data/test_engines.py",
    "data/test_named_templates.py",
    "data/test_near_json.py",
    "data/test_resume.py",
    "data/test_sealed_tokenizer.py",
    "data/test_unicode_versions.py",
    "docs/test_blocks.py",
    "docs/test_sizes.py",
    "docs/test_troubleshooting.py",
    "docs/test_words.py",
    "dropin",
    "evaluation/ruler/test_distributions.py",
    "evaluation/ruler/test_lengths.py",
    "evaluation/test_benchmark.py",
    "evaluation/test_chat.py",
    "evaluation/test_damaged_results.py",
    "evaluation/test_finished.py",
    "evaluation/test_finished_ranks.py",
    "evaluation/test_format_1.py",
    "evaluation/test_generate.py",
    "evaluation/test_harness.py",
    "evaluation/test_local_benchmarks.py",
    "evaluation/test_megatron_scorer.py",
    "evaluation/test_passkey.py",
    "evaluation/test_pictures.py",
    "families",
    "generation",
    "growth",
    "mcore/test_float32.py",
    "mcore/test_fused_layer.py",
    "mcore/test_meeting.py",
    "mcore/test_recomputed_layer.py",
    "plan/test_lengths.py",
    "plan/test_live_bytes.py",
    "plan/test_sizes.py",
    "plan/test_start.py",
    "plan/test_steps.py",
    "slurm",
    "test_current_folder.py",
    "test_docker.py",
    "test_doctor.py",
    "test_dry_run.py",
    "test_examples.py",
    "test_forked.py",
    "test_job_variables.py",
    "test_matrix.py",
    "test_missing_libraries.py",
    "test_names.py",
    "test_one_folder.py",
    "test_parser_messages.py",
    "test_quantity.py",
    "test_sealed_machine.py",
    "test_smollm2.py",
    "test_smollm2_steps.py",
    "test_standing_ranks.py",
    "test_streams.py",
    "test_unreadable.py",
    "training",
)
"""Files and folders that `make quick` leaves out."""
QUICK_TRAINING = "training/test_phases.py"
"""A training on two ranks, which it has all the same."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--quick``: what a minute or two can show."""
    text = "leave out the files that take long (NOT_QUICK of tests/conftest.py)"
    parser.addoption("--quick", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Measure the machine once, before the processes that run the tests are started."""
    slowness()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What ``--quick`` leaves out is not imported either."""
    if not config.getoption("quick"):
        return None
    left_out, kept = _quick_paths()
    is_long = collection_path in left_out or not left_out.isdisjoint(collection_path.parents)
    return True if is_long and collection_path not in kept else None


def pytest_report_header() -> str:
    """Say what the waits are stretched by."""
    return f"waits: {slowness():.2f} times those of a quiet machine"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Limits against hanging that suit the machine, and slow files first.

    The last file to begin is then a short one, and no core waits for it.
    """
    limit = patience(float(config.getoption("timeout") or config.getini("timeout")))
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit))
    sort(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Fork the processes that run the tests from one that has imported everything."""
    if torch.cuda.is_available():  # CUDA does not survive a fork
        return
    folder = config._tmp_path_factory.getbasetemp() / "programs"  # type: ignore[attr-defined]
    os.environ[FORKED] = f"{warm_programs(folder, os.getpid())['PATH'].split(':')[0]}/forked"
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = os.environ[FORKED]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """``--dist loadfile``, but of some files test by test."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.spread import Spread  # pytest-xdist is there

    return Spread(config, log)


def pytest_collection_finish() -> None:
    """Keep all that the imports have made out of the sight of tests that collect garbage."""
    gc.collect()
    gc.freeze()


@functools.cache
def _quick_paths() -> tuple[set[Path], set[Path]]:
    tests = Path(__file__).parent
    left_out = {tests / name for name in NOT_QUICK}
    assert all(path.exists() for path in left_out), "a file that is not quick has another name"
    training = tests / QUICK_TRAINING
    return left_out, {training, *training.parents}


@pytest.fixture(scope="session")
def warm_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of shell scripts under test; see :mod:`tests.warm`."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one server for all processes
        return warm_programs(folder.parent / "programs", os.getppid())
    return warm_programs(folder / "programs", os.getpid())
