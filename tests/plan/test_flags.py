"""Every flag of `pretrain` and `sft` changes the plan as stated, or is listed without effect."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from megatron_ultralong import cli
from megatron_ultralong.config.training import PretrainConfig, SftConfig
from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.rows.packed import boundaries_prefix
from megatron_ultralong.plan.without_effect import WITHOUT_EFFECT
from tests.models import write_llama

GPUS = "plan llama3.1-8b-1m --gpus 64 --no-search"
ROWS = "{rows}"
"""A folder of 40 prepared rows of 4,096 tokens, of eight documents each."""
SFT = "plan llama3.1-8b-sft --gpus 8 --no-search"
PIPELINE = f"{GPUS} --pipeline-model-parallel-size 2 --context-parallel-size 4"
ON_HOST = f"{GPUS} --optimizer-cpu-offload"
AWARE = f"{GPUS} --use-precision-aware-optimizer"
TE = f"{GPUS} --transformer-impl transformer_engine"
FP8 = f"{TE} --fp8-format hybrid"
BLOCK = f"{GPUS} --document-mask block --mean-document-length 65536"
STEP, MEMORY, HOURS = "chosen.step_seconds", "chosen.peak_bytes", "run.hours"
HOST = "chosen.host_bytes_per_node"
Expected = dict[str, str]

EFFECTS: dict[str, tuple[str, str, Expected]] = {
    # field: words before, words that are added, figures and where they go
    "load": ("plan llama3.1-8b-1m --gpus 8 --tensor-model-parallel-size 2 --no-search --seq-length "
             "131072", "--load {model}", {STEP: "down", MEMORY: "down"}),
    "save": (GPUS, "--save run", {"chosen.host_bytes.must_save": "up"}),
    "save_interval": (GPUS, "--save-interval 5", {"run.num_checkpoints": "up", HOURS: "up"}),
    "train_iters": (GPUS, "--train-iters 300", {HOURS: "up", "chosen.hours": "up"}),
    "micro_batch_size": (GPUS + " --context-parallel-size 8", "--micro-batch-size 2",
                         {"chosen.num_microbatches": "down", MEMORY: "up"}),
    "global_batch_size": (GPUS, "--global-batch-size 16", {STEP: "up", HOURS: "up"}),
    "train_tokens": (GPUS, "--train-tokens 5B", {HOURS: "up", "chosen.hours": "up"}),
    "eval_interval": (GPUS, "--eval-interval 10", {"run.num_validations": "up", HOURS: "up"}),
    "eval_iters": (GPUS + " --eval-interval 10", "--eval-iters 8",
                   {"run.validation_seconds": "up", HOURS: "up"}),
    "precision": (GPUS, "--precision fp32", {MEMORY: "up"}),
    "deterministic_mode": (GPUS, "--deterministic-mode",
                           {"chosen.seconds.attention": "up", MEMORY: "up"}),
    "tensor_model_parallel_size": (GPUS, "--tensor-model-parallel-size 4", {MEMORY: "up"}),
    "pipeline_model_parallel_size": (GPUS, "--pipeline-model-parallel-size 2", {STEP: "up"}),
    "context_parallel_size": (GPUS, "--context-parallel-size 8", {MEMORY: "down"}),
    "sequence_parallel": (
        GPUS + " --context-parallel-size 8",
        "--no-sequence-parallel",
        {MEMORY: "up"},
    ),
    "cp_comm_type": (GPUS, "--cp-comm-type all_gather", {STEP: "up", MEMORY: "up"}),
    "hierarchical_context_parallel_sizes": (
        f"{GPUS} --seq-length 131072 --context-parallel-size 4 --tensor-model-parallel-size 2 "
        "--cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 2",
        "--hierarchical-context-parallel-sizes 4 1", {"chosen.seconds.attention": "up"}),
    "cp_assignment": (BLOCK, "--cp-assignment balanced", {"chosen.seconds.attention": "down"}),
    "num_layers_in_first_pipeline_stage": (
        PIPELINE, "--num-layers-in-first-pipeline-stage 15", {STEP: "up"}),
    "num_layers_in_last_pipeline_stage": (
        PIPELINE, "--num-layers-in-last-pipeline-stage 17", {STEP: "up"}),
    "num_virtual_stages_per_pipeline_rank": (
        PIPELINE, "--num-virtual-stages-per-pipeline-rank 2",
        {"chosen.seconds.pipeline bubble": "down"}),
    "microbatch_group_size_per_virtual_pipeline_stage": (
        PIPELINE + " --num-virtual-stages-per-pipeline-rank 2",
        "--microbatch-group-size-per-virtual-pipeline-stage 8", {MEMORY: "up"}),
    "data_path": (f"{SFT} --seq-length 4096", f"--data-path {ROWS}",
                  {"chosen.seconds.attention": "down", "run.num_iterations": "up"}),
    "seq_length": (GPUS, "--seq-length 524288", {STEP: "down", MEMORY: "down"}),
    "document_mask": (GPUS, "--document-mask block --mean-document-length 65536",
                      {"chosen.seconds.attention": "down", STEP: "down"}),
    "use_precision_aware_optimizer": (
        GPUS + " --transformer-impl local", "--use-precision-aware-optimizer --exp-avg-dtype bf16",
        {"chosen.optimizer": "down"}),
    "main_grads_dtype": (AWARE, "--main-grads-dtype bf16", {"chosen.gradients": "half"}),
    "main_params_dtype": (AWARE, "--main-params-dtype fp16", {"chosen.optimizer": "down"}),
    "exp_avg_dtype": (AWARE, "--exp-avg-dtype fp8", {"chosen.optimizer": "down"}),
    "exp_avg_sq_dtype": (AWARE, "--exp-avg-sq-dtype fp16", {"chosen.optimizer": "down"}),
    "optimizer_cpu_offload": (
        GPUS, "--optimizer-cpu-offload",
        {HOST: "up", "chosen.optimizer": "down", "chosen.seconds.optimizer on the host": "up"}),
    "optimizer_offload_fraction": (
        ON_HOST, "--optimizer-offload-fraction 0.5", {HOST: "half", "chosen.optimizer": "up"}),
    "overlap_cpu_optimizer_d2h_h2d": (
        ON_HOST, "--overlap-cpu-optimizer-d2h-h2d",
        {"chosen.seconds.optimizer on the host": "down", STEP: "down"}),
    "transformer_impl": (
        GPUS, "--transformer-impl transformer_engine", {"chosen.optimizer step": "down"}),
    "fp8_format": (TE, "--fp8-format hybrid", {STEP: "down", MEMORY: "up"}),
    "fp8_recipe": (FP8, "--fp8-recipe blockwise", {STEP: "up"}),
    "apply_rope_fusion": (TE + " --elementwise-kernel torch", "--apply-rope-fusion",
                          {"chosen.seconds.elementwise": "down"}),
    "elementwise_kernel": (GPUS, "--elementwise-kernel torch",
                           {"chosen.seconds.elementwise": "up", STEP: "up"}),
    "recompute_granularity": (GPUS, "--recompute-granularity full", {STEP: "up", MEMORY: "down"}),
    "sequence_tile_size": (GPUS, "--sequence-tile-size 0", {MEMORY: "up"}),
    "loss_tile_size": (GPUS, "--loss-tile-size 0", {MEMORY: "up"}),
    "offload_activations": (GPUS, "--offload-activations",
                            {HOST: "up", MEMORY: "down", "run.first_iteration_seconds": "up"}),
    "max_host_memory_gib": (GPUS + " --offload-activations", "--max-host-memory-gib 160",
                            {"chosen.host_bytes.activations_may_take": "down"}),
    "async_save": (GPUS, "--no-async-save", {"run.wait_seconds": "up", HOURS: "up"}),
    "save_retain_last": (GPUS, "--save-retain-last 4", {"run.disk_bytes": "up"}),
    "save_retain_interval": (GPUS, "--save-retain-interval 50", {"run.disk_bytes": "up"}),
    "peak_tflops": (GPUS, "--peak-tflops 500", {"chosen.mfu": "up"}),
    "num_epochs": (f"{SFT} --data-path {ROWS}", "--num-epochs 10", {"run.num_iterations": "up"}),
}  # fmt: skip
OTHER_VALUES: dict[str, str] = {
    "max_save_failures": "9",
    "log_interval": "7",
    "rope_scaling": "ntk",
    "rope_scaling_factor": "64",
    "original_max_position_embeddings": "4096",
    "beta_fast": "8",
    "beta_slow": "2",
    "ramp": "dimensions",
    "attention_factor": "1.1",
    "angle_precision": "float32",
    "distributed_timeout_minutes": "30",
    "seed": "1",
    "lr": "1e-4",
    "min_lr": "1e-6",
    "lr_decay_style": "cosine",
    "lr_warmup_iters": "3",
    "weight_decay": "0.2",
    "adam_beta1": "0.8",
    "adam_beta2": "0.99",
    "adam_eps": "1e-7",
    "clip_grad": "0",
    "attention": "te --transformer-impl transformer_engine --recompute-granularity full",
    "exit_duration_in_mins": "60",
    "on_nan": "skip",
    "max_skipped_iters": "3",
    "loss_spike_deviations": "3",
    "wandb_project": "any",
    "profile_step_start": "3 --profile",
    "profile_step_end": "30 --profile",
    "profile_ranks": "1",
}
BASES = {
    "reset_position_ids": BLOCK,
    "attention": TE + " --recompute-granularity full",
    "profile_step_start": GPUS + " --profile",
    "profile_step_end": GPUS + " --profile",
}
"""Words before, where they are not :data:`GPUS`."""


def fields(config: Any) -> Iterator[str]:
    """Names of all fields that are flags."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value)
        else:
            yield field.name


FIELDS = list(dict.fromkeys([*fields(PretrainConfig()), *fields(SftConfig())]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Rows, and a small model."""
    root = tmp_path_factory.mktemp("inputs")
    prefix, edges = root / "rows" / "train", np.arange(0, 4097, 512, dtype=np.int32)
    prefix.parent.mkdir()
    with (
        IndexedWriter(boundaries_prefix(prefix), np.dtype("<i4")) as boundaries,
        IndexedWriter(prefix, token_dtype(1000)) as rows,
    ):
        for _ in range(400):
            rows.add(np.zeros(4096, dtype=np.int32))
            boundaries.add(np.append(np.int32(4096), edges))
    write_llama(root / "model")
    return {"rows": str(prefix.parent), "model": str(root / "model")}


@pytest.fixture(scope="module")
def figures(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Figures of a command's plan by name; every command is planned once."""
    path = tmp_path_factory.mktemp("plans") / "plan.json"

    @functools.cache
    def of(words: str) -> dict[str, float]:
        cli.main([*words.format(**folders).split(), "--json", str(path)])
        values = json.loads(path.read_text())
        found = dict(_numbers(values["run"], "run")) | dict(_numbers(values["chosen"], "chosen"))
        for part in ("optimizer", "gradients"):
            stage = values["chosen"]["stages"][0]["moments"]
            found[f"chosen.{part}"] = stage["between steps"].get(part, 0)
        found["chosen.optimizer step"] = sum(stage["optimizer step"].values())
        return found

    return of


def _numbers(values: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(values, dict):
        for key, value in values.items():
            # What was typed comes back there; it is not an estimate.
            if (name, key) not in (("chosen", "parallel"), ("chosen", "memory")):
                yield from _numbers(value, f"{name}.{key}")
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from _numbers(value, f"{name}.{number}")
    elif isinstance(values, int | float):
        yield name, float(values)


@pytest.mark.parametrize("field", FIELDS)
def test_every_flag_is_decided(field: str) -> None:
    assert (field in EFFECTS) != (field in WITHOUT_EFFECT), (
        f"--{field.replace('_', '-')} is new: state in EFFECTS (tests/plan/test_flags.py) how it "
        "changes the plan, or in WITHOUT_EFFECT (plan/without_effect.py) why it does not"
    )


def test_nothing_is_decided_that_is_no_flag() -> None:
    assert set(EFFECTS) | set(WITHOUT_EFFECT) == set(FIELDS)
    assert all(len(reason) > 10 for reason in WITHOUT_EFFECT.values())


@pytest.mark.parametrize("field", EFFECTS)
def test_a_flag_changes_the_plan_as_stated(field: str, figures: Any) -> None:
    words, added, expected = EFFECTS[field]
    assert f"--{field.replace('_', '-')}" in added.replace("--no-", "--")
    kept = re.sub(rf" {added.split()[0]}( [^-]\S*)+", "", words)  # a flag of several stands once
    before, after = figures(words), figures(f"{kept} {added}")
    for name, direction in expected.items():
        was, now = before.get(name, 0.0), after.get(name, 0.0)
        if direction == "half":
            assert now == pytest.approx(was / 2, rel=0.02), name
        else:
            assert (now > was) if direction == "up" else (now < was), (name, was, now)


def without_effect(field: str) -> str:
    """Words that give a field without effect another value."""
    flag = f"--{field.replace('_', '-')}"
    if field in ("tensorboard", "verify_checksums"):  # on by default
        return flag.replace("--", "--no-")
    return f"{flag} {OTHER_VALUES[field]}" if field in OTHER_VALUES else flag


@pytest.mark.parametrize("base", [GPUS, *dict.fromkeys(BASES.values())])
def test_flags_without_effect_have_none_and_say_so(
    base: str, figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [field for field in WITHOUT_EFFECT if BASES.get(field, GPUS) == base]
    before = figures(base)
    capsys.readouterr()
    if figures(" ".join([base, *map(without_effect, names)])) != before:
        for name in names:  # which of them
            assert figures(f"{base} {without_effect(name)}") == before, name
    shown = capsys.readouterr().out
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        assert f"{flag} changes nothing here: {WITHOUT_EFFECT[name]}" in shown
