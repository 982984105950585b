"""A flag that changes nothing is told of, at the start of a run as in its plan."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ultralong.config.idle import idle_fields, idle_notes
from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.config.recipes import RECIPES
from megatron_ultralong.config.training import PretrainConfig, SftConfig, TrainingConfig
from megatron_ultralong.program.errors import InputError

FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {  # another value, and what gives it an effect
    "min_lr": (1e-6, {"lr_decay_style": "cosine"}),
    "optimizer_offload_fraction": (0.5, {"optimizer_cpu_offload": True}),
    "overlap_cpu_optimizer_d2h_h2d": (True, {"optimizer_cpu_offload": True}),
    "fp8_recipe": ("delayed", {"fp8_format": "hybrid"}),
    "eval_iters": (9, {"eval_interval": 5}),
    "max_host_memory_gib": (9.0, {"offload_activations": True}),
    "sequence_tile_size": (128, {"recompute_granularity": "full"}),
    "save_retain_interval": (50, {"save_retain_last": 2}),
    "profile_step_start": (3, {"profile": True}),
    "profile_step_end": (30, {"profile": True}),
    "profile_ranks": ((0, 8), {"profile": True}),
}
PROFILE = {"profile": True, "profile_step_start": 2}
NOTHING = {"recompute_granularity": "none", "save_retain_last": 0}


@pytest.mark.parametrize("kind", [PretrainConfig, SftConfig])
@pytest.mark.parametrize("field", FIELDS)
def test_a_value_without_effect_is_told_of(field: str, kind: type[TrainingConfig]) -> None:
    value, effect = FIELDS[field]
    run = with_fields(kind(), **NOTHING)
    assert not list(idle_notes(run))
    (line,) = idle_notes(with_fields(run, **{field: value}))
    shown = "0 8" if field == "profile_ranks" else value
    assert line == f"warning: {field} {shown} is without effect: {idle_fields(run)[field]}"
    told = list(idle_notes(with_fields(run, **{field: value, **effect})))
    assert not any(f" {field} " in each for each in told)


@pytest.mark.parametrize(
    ("values", "done", "field"),
    [
        ({"eval_interval": 11}, 0, "eval_interval 11"),
        ({"eval_interval": 10}, 0, ""),
        ({"eval_interval": 6}, 6, "eval_interval 6"),
        ({"eval_interval": 5}, 6, ""),
        ({"eval_interval": 5}, 10, ""),
        ({"profile": True, "profile_step_start": 10, "profile_step_end": 12}, 0, ""),
        ({"profile": True, "profile_step_start": 11}, 0, "profile_step_start 11"),
        ({**PROFILE, "profile_step_end": 4}, 3, "profile_step_end 4"),
        ({**PROFILE, "profile_step_end": 5}, 3, ""),
    ],
)
def test_iterations_that_a_start_does_not_come_to(
    values: dict[str, Any], done: int, field: str
) -> None:
    lines = list(idle_notes(with_fields(PretrainConfig(), train_iters=10, **values), done))
    why = f"this start does iterations {done + 1} to 10"
    assert lines == [f"warning: {field} is without effect: {why}"] * bool(field)


def test_a_rank_that_the_job_has_not_writes_no_trace() -> None:
    config = with_fields(PretrainConfig(), profile=True, profile_ranks=(0, 2))
    config.log.check_ranks(3)
    with pytest.raises(InputError, match=r"profile_ranks \(2\) must be below the number of ranks"):
        config.log.check_ranks(2)


def test_all_of_them_are_tried() -> None:
    assert set(idle_fields(with_fields(PretrainConfig(), **NOTHING))) == set(FIELDS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_set_nothing_in_vain(name: str) -> None:
    recipe = RECIPES[name]
    assert not list(idle_notes(recipe()))
