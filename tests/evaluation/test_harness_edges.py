"""What of `evaluate harness` needs no harness: metrics in --data, errors in lm_eval, conditions."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.evaluation.harness import command, offline, plugin
from megatron_ultralong.evaluation.report.measurement import Measurement, conflicts
from megatron_ultralong.program.errors import InputError
from tests.evaluation.results import task_result


def packages(**names: Any) -> Callable[..., types.SimpleNamespace]:
    """Instead of ``optional_package``: a module with these names."""
    return lambda *_: types.SimpleNamespace(**names)


def test_a_metric_of_data_is_python_and_has_to_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code_eval").mkdir()
    loader = types.SimpleNamespace(load=str, load_dataset=str)
    monkeypatch.setattr(offline, "optional_package", lambda *_: loader)
    with offline.offline(str(tmp_path), allows_code=False):
        assert loader.load("exact_match") == "exact_match"  # none of the folder
        assert loader.load_dataset("code_eval") == str(tmp_path / "code_eval")
        with pytest.raises(InputError, match=r"is Python.*--confirm-run-unsafe-code"):
            loader.load("code_eval")
    with offline.offline(str(tmp_path), allows_code=True):
        assert loader.load("code_eval") == str(tmp_path / "code_eval")


def test_files_of_a_task_that_are_not_there_are_no_data_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_dataset(path: str) -> None:
        raise FileNotFoundError("Unable to find '/here.jsonl'")

    loader = types.SimpleNamespace(load=str, load_dataset=load_dataset)
    monkeypatch.setattr(offline, "optional_package", lambda *_: loader)
    with offline.offline("", allows_code=False):
        with pytest.raises(InputError, match=r"^a task's data_files \(json\): Unable to find"):
            loader.load_dataset("json")
        with pytest.raises(InputError, match="data set cais/mmlu is not on this machine"):
            loader.load_dataset("cais/mmlu")


def test_lists_of_gen_kwargs_are_json() -> None:
    """The harness takes ``["a"]`` for one stop string of five letters, which nobody writes."""
    assert command._value("until", '["a", "b"]') == ["a", "b"]
    with pytest.raises(InputError, match=r"--gen-kwargs until is not JSON .*: quote it"):
        command._value("until", "[a]")


def test_the_network_is_opened_by_both_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline._Network, "is_closed", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0"):
        offline._Network._watch("socket.connect", (None, ("203.0.113.7", 80)))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_an_error_in_the_harness_reaches_the_journal(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    seen: list[str] = []

    @contextmanager
    def journal() -> Iterator[None]:
        try:
            yield
        except BaseException as one:
            seen.append(type(one).__name__)
            raise
        seen.append("published")

    def cli_evaluate() -> None:
        plugin.Plugin.opened.enter_context(journal())
        raise error("in a task")

    registry = types.SimpleNamespace(register=lambda *_, **__: None)
    found = packages(model_registry=registry, cli_evaluate=cli_evaluate)
    monkeypatch.setattr(plugin, "optional_package", found)
    with pytest.raises((RuntimeError, SystemExit)):
        plugin.main()
    assert seen == [error.__name__]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loda": "run"}, "argument of --model_args 'loda'"),
        ({"precision": "fp64"}, "precision must be one of 'bf16', 'fp32', not 'fp64'"),
        ({"cp_comm_type": "ring"}, "cp_comm_type must be one of .*, not 'ring'"),
        ({"hierarchical_context_parallel_sizes": 2}, "hierarchical_context_parallel_sizes must be"),
        ({"tensor_model_parallel_size": 1.5}, "tensor_model_parallel_size must be a whole number"),
        ({"tensor_model_parallel_size": 0}, "tensor_model_parallel_size must be"),
        ({"sequence_parallel": "maybe"}, "sequence_parallel must be true or false, not 'maybe'"),
        ({"max_length": -1}, "max_length must be 0, or at least 2"),
        ({"max_length": "many"}, "max_length must be a whole number, not 'many'"),
        ({"beyond_trained_positions": "no"}, "beyond_trained_positions must be true or false"),
    ],
)
def test_model_args_are_of_their_types_and_ranges(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plugin.Plugin.create_from_arg_obj(values, {"batch_size": 1})
    with pytest.raises(InputError, match="--batch_size must be a number of rows, not auto"):
        plugin.Plugin.create_from_arg_obj({"load": "run"}, {"batch_size": "auto"})


@pytest.mark.parametrize(
    "words",
    [
        ["--tasks", ""],
        ["--tasks", "gsm8k", "--output_path", ""],
        ["--output-path="],
        ["--include_path", ""],
        ["--model_args", ""],
    ],
    ids=" ".join,
)
def test_no_name_of_the_harness_is_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """An empty output wrote nothing, and no task was every YAML file of the folder."""
    monkeypatch.setattr(sys, "argv", ["ultralong-lm-eval", "run", *words])
    with pytest.raises(SystemExit) as end:
        plugin.main()
    assert end.value.code == 2
    assert "is empty, and must name something" in capsys.readouterr().err


def test_the_home_folder_stands_in_model_args() -> None:
    with pytest.raises(InputError, match=f"--load {Path.home()}/no-such-run: folder"):
        plugin.Plugin.create_from_arg_obj({"load": "~/no-such-run"}, {"batch_size": 1})


def test_places_of_files_make_no_second_table() -> None:
    one, other = (
        Measurement("a", task_result("harness", "a", 512, {("t", "acc"): 50.0}, **flags), Path("a"))
        for flags in (
            {"data": "hub", "include_path": "", "seed": 1},
            {"data": "/abs/hub", "include_path": "tasks", "seed": 1},
        )
    )
    assert conflicts(one, other) == {}
    seeded = dataclasses.replace(other.result, config={**other.result.config, "seed": 2})
    assert "seed" in conflicts(one, dataclasses.replace(other, result=seeded))
