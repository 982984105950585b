"""``ultralong plan``: what it prints, writes and refuses."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ultralong import cli
from megatron_ultralong.cli.start_of_run import begin
from megatron_ultralong.config.command_line import parse
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.config.recipes import FOR_PRETRAIN, PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import HARDWARE
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.work import links
from tests.command_line import refusal
from tests.models import write_llama
from tests.patience import patience

FOUR_MILLION = ("plan", "llama3.1-8b-4m", "--gpus", "8")


def planned(tmp_path: Path, *words: str) -> dict[str, Any]:
    """What the command writes."""
    path = tmp_path / "plan.json"
    cli.main([*words, "--json", str(path)])
    values: dict[str, Any] = json.loads(path.read_text())
    return values


@pytest.mark.parametrize(
    ("recipe", "gpus", "hours"),
    [
        ("llama3.1-8b-1m", 256, 5),
        ("llama3.1-8b-2m", 256, 6),
        ("llama3.1-8b-4m", 256, 13),
        ("llama3.1-8b-4m", 8, 13),
    ],
)
def test_every_recipe_has_a_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, gpus: int, hours: float
) -> None:
    plan = planned(tmp_path, "plan", recipe, "--gpus", str(gpus), "--gpu", "h100-80gb")
    chosen = plan["chosen"]
    parallel = ParallelConfig(**chosen["parallel"])
    parallel.check_model(MODELS["llama3.1-8b"])
    assert gpus % parallel.model_parallel_size == 0
    assert chosen["needed_bytes"] <= plan["hardware"]["memory_gib"] * 2**30
    assert chosen["host_bytes_per_node"] <= 0.8 * plan["hardware"]["host_memory_gib"] * 2**30
    # What is planned is what is trained: the tokens of the recipe at the speed of the step.
    rate = chosen["tokens_per_second_per_gpu"] * gpus
    assert chosen["hours"] == pytest.approx(plan["train_tokens"] / rate / 3600)
    assert plan["train_tokens"] == 150 * 2**23
    shown = capsys.readouterr().out
    assert f"{chosen['hours']:,.1f}" in shown
    assert f"about {hours}" in shown
    assert "host memory of a node" in shown or gpus == 256
    if gpus == 8:  # 2 TiB of host memory do not hold attention's output too
        assert chosen["memory"]["offload_activations"]
        assert chosen["memory"]["recompute_granularity"] == "full"


def _is_safe(plan: dict[str, Any], each: dict[str, Any]) -> bool:
    """Without host memory, and with as much of a GPU left as the estimate may be off."""
    most = plan["hardware"]["memory_gib"] * 2**30
    return not each["host_bytes_per_node"] and 1.04 * each["needed_bytes"] <= most


@pytest.mark.parametrize("length", ["128K", "256K", "512K", "1M"])
@pytest.mark.parametrize(
    "gpus", ["8", *(pytest.param(n, marks=pytest.mark.faults) for n in ("4", "16", "24"))]
)
def test_the_choice_leaves_a_margin_where_it_costs_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gpus: str, length: str
) -> None:
    """And says so where it does not: a plan that is off by what it may be would not fit."""
    words = ("--gpus", gpus, "--model", "llama3.1-8b", "--seq-length", length)
    plan = planned(tmp_path, "plan", "extend", *words)
    shown = " ".join(capsys.readouterr().out.split())
    steps, chosen = plan["feasible"][0]["step_seconds"], plan["chosen"]
    near = [each for each in plan["feasible"] if each["step_seconds"] <= 1.03 * steps]
    most = plan["hardware"]["memory_gib"] * 2**30
    if any(_is_safe(plan, each) for each in near):
        assert _is_safe(plan, chosen)
    is_tight = 1.04 * chosen["needed_bytes"] > most
    assert is_tight <= all(1.04 * each["needed_bytes"] > most for each in near)
    assert is_tight == ("memory is planned within 4% of its" in shown)


def test_the_layouts_go_from_fast_to_slow_and_the_one_to_take_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, "plan", "llama3.1-8b-1m", "--gpus", "64")
    shown = " ".join(capsys.readouterr().out.split())
    steps = [each["step_seconds"] for each in plan["feasible"]]
    assert len(steps) > 10
    assert steps == sorted(steps)
    # The one to take is safe, and of those no slower than the fastest of them needs least.
    safe = [each for each in plan["feasible"] if _is_safe(plan, each)]
    equal = [each for each in safe if each["step_seconds"] <= 1.01 * safe[0]["step_seconds"]]
    chosen = plan["chosen"]
    assert chosen["step_seconds"] <= 1.03 * steps[0]
    assert chosen["needed_bytes"] == min(each["needed_bytes"] for each in equal)
    for part in ("fastest first", "-> is the one to take", "within 3% of the fastest"):
        assert part in shown
    assert all("GiB" in each["why"] for each in plan["refused"])


def test_a_tiny_model_is_planned_in_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama(tmp_path / "hf", num_hidden_layers=2)
    words = ["plan", "demo-cpu", "--model", str(tmp_path / "hf"), "--gpus", "2"]
    cli.main([*words, "--seq-length", "256", "--num-alternatives", "3"])
    shown = capsys.readouterr().out
    memory, rest = shown.split("Time of a step")
    assert memory.count("│ ") // 2 <= 5
    assert "saved activations" not in memory
    assert "milliseconds" in rest
    assert "Communication of a rank" not in rest
    assert " 3 are shown (--num-alternatives), fastest first" in " ".join(rest.split())


def test_flags_that_are_typed_stay(tmp_path: Path) -> None:
    words = ("plan", "llama3.1-8b-1m", "--gpus", "64", "--context-parallel-size", "4")
    plan = planned(tmp_path, *words, "--recompute-granularity=full")
    assert len(plan["feasible"]) > 1
    for each in plan["feasible"]:
        assert each["parallel"]["context_parallel_size"] == 4
        assert each["memory"]["recompute_granularity"] == "full"
    one = planned(tmp_path, *words, "--no-search")
    assert one["chosen"]["parallel"]["tensor_model_parallel_size"] == 8
    assert "feasible" not in one


def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, *FOUR_MILLION, "--no-search", "--context-parallel-size", "1")
    for part in ("TP 8, CP 1, DP 1", "more than the 79.1 GiB of h100-80gb", "saved activations"):
        assert part in message
    assert "--offload-activations" in message
    message = refusal(
        capsys, *FOUR_MILLION, "--no-search", "--context-parallel-size", "1",
        "--offload-activations",
    )  # fmt: skip
    for part in (
        "offloads 2,064 GiB",
        "426 more than the 1,638 GiB",
        "change: `--recompute-granularity full`",
    ):
        assert part in message
    message = refusal(capsys, "plan", "llama3.1-8b-4m", "--gpus", "2")
    for part in ("none of", "layouts of 2 GPUs fits; the nearest: TP 2", "`--gpus 8`"):
        assert part in message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("llama3.1-8b-1m",), ("--gpus is needed: the size of the job",)),
        (("llama3.1-8b-1m", "--gpus", "8", "--gpu", "v100"), ("'v100'", "h100-80gb, ")),
        (("llama3.1-8b-9m", "--gpus", "8"), ("'llama3.1-8b-9m'", "llama3.1-8b-1m")),
        (("llama3.1-8b-1m", "--gpus", "8", "--model", "gpt"), ("'gpt'", "llama3.1-70b")),
        (("llama3.1-8b-1m", "--gpus", "8", "--load", "gpt"), ("--load 'gpt'", "llama3.1-70b")),
        (
            ("llama3.1-8b-1m", "--gpus", "8", "--load", "/gone/base"),
            ("--load /gone/base does not exist", "such as --model llama3.1-8b;"),
        ),
        (
            ("llama3.1-8b-1m", "--gpus", "8", "--document-mask", "block"),
            ("--data-path", "--mean-document-length"),
        ),
        (
            ("llama3.1-8b-1m", "--gpus", "8", "--mean-document-length", "4000"),
            ("(4000)", "--document-mask block"),
        ),
        (
            ("llama3.1-8b-1m", "--gpus", "8", "--network-gb-per-second", "-1"),
            ("network_gb_per_second", "-1"),
        ),
        (
            ("llama3.1-8b-1m", "--gpus", "7", "--tensor-model-parallel-size", "4"),
            ("no layout of 7 GPUs is possible", "(tensor_model_parallel_size 4)", "`--gpus "),
        ),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    message = refusal(capsys, "plan", *words)
    for part in parts:
        assert part in message


def test_one_s_own_hardware_and_model(tmp_path: Path) -> None:
    file = tmp_path / "gpu.yaml"
    file.write_text("like: h100-80gb\nname: h100-94gb\nmemory_gib: 93.1\nhost_memory_gib: 4096\n")
    write_llama(tmp_path / "hf")
    words = ("plan", "llama3.1-8b-1m", "--gpus", "4", "--hardware", str(file))
    plan = planned(
        tmp_path, *words, "--model", str(tmp_path / "hf"), "--seq-length", "65536",
        "--matmul-tflops", "100", "--png", str(tmp_path / "plan.png"),
    )  # fmt: skip
    assert plan["hardware"]["name"] == "h100-94gb"
    assert plan["hardware"]["matmul_tflops"] == 100
    assert plan["hardware"]["peak_tflops"] == 989.4
    assert plan["chosen"]["parallel"]["tensor_model_parallel_size"] in (1, 2)  # it has 2 key heads
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_paper_stands_beside_its_own_runs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ("plan", "llama3.1-8b-1m", "--gpus", "256", "--no-search")
    assert planned(tmp_path, *recipe)["paper"] == {"num_gpus": 256, "hours": 5}
    # Another layout is the same run.
    other = (*recipe, "--context-parallel-size", "8", "--recompute-granularity", "full")
    assert planned(tmp_path, *other)["paper"]
    assert capsys.readouterr().out.count("the paper, on 256 H100") == 2
    for words in (
        ("--model", "llama3.2-3b"),
        ("--seq-length", "524288"),
        ("--train-tokens", "2e9"),
        ("--train-iters", "100"),
        ("--global-batch-size", "16"),
        ("--transformer-impl", "transformer_engine", "--fp8-format", "hybrid"),
        ("--document-mask", "block", "--mean-document-length", "4096"),
        ("--optimizer-cpu-offload",),
        ("--deterministic-mode",),
    ):
        assert planned(tmp_path, *recipe, *words)["paper"] is None, words
    assert "the paper" not in capsys.readouterr().out


def test_flags_stand_on_one_line_and_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "llama3.1-8b-1m", "--model", "llama3.1-405b", "--seq-length", "131072")
    plan = planned(tmp_path, *words, "--gpus", "1024")
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if "--tensor-model-parallel" in line
    )
    assert line.endswith(f" {plan['flags']}")
    assert "--num-layers-in-first-pipeline-stage 15" in line
    flags = shlex.split(str(plan["flags"]))
    again = planned(tmp_path, *words, "--gpus", "1024", "--no-search", *flags)
    assert again["chosen"] == plan["chosen"]


def test_instruction_tuning_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, "plan", "llama3.1-8b-sft", "--gpus", "8")
    shown = " ".join(capsys.readouterr().out.split())
    assert plan["chosen"]["num_gpus"] == 8
    assert plan["train_tokens"] == 128 * 8192
    assert "hours for 1.05M tokens, one iteration" in shown
    assert "its length is not known: --train-iters" in shown
    assert "as if every row were one conversation" in shown
    words = ("plan", "llama3.1-8b-sft", "--gpus", "8", "--mean-document-length", "1000")
    shorter = planned(tmp_path, *words, "--train-iters", "96")
    assert shorter["train_tokens"] == 96 * 128 * 8192
    assert shorter["chosen"]["seconds"]["attention"] < plan["chosen"]["seconds"]["attention"]


def test_the_configuration_of_a_run_is_planned(tmp_path: Path) -> None:
    for recipe, config in (
        ("llama3.1-8b-2m", PRETRAIN_RECIPES["llama3.1-8b-2m"]()),
        ("llama3.1-8b-sft", SFT_RECIPES["llama3.1-8b-sft"]()),
    ):
        file = tmp_path / f"{recipe}.yaml"
        file.write_text(yaml.safe_dump(dataclasses.asdict(config)))
        words = ("--model", "llama3.1-8b", "--gpus", "128", "--no-search")
        actual = planned(tmp_path, "plan", "--config", str(file), *words)
        assert actual["chosen"] == planned(tmp_path, "plan", recipe, *words)["chosen"]


def test_the_command_of_a_configuration_names_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_fields(PRETRAIN_RECIPES["llama3.1-8b-1m"](), save="runs/1m", data_path="")
    file = tmp_path / "a run.yaml"
    file.write_text(yaml.safe_dump(dataclasses.asdict(run)))
    words = ["--config", str(file), "--model", "llama3.1-8b", "--gpus", "8", "--train-iters", "20"]
    cli.main(["plan", *words])
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "ultralong pretrain" in line]
    _, *printed = shlex.split(line)
    assert printed[:3] == ["pretrain", "--config", str(file)]
    assert printed[3:9] == ["--load", "base", "--data-path", "rows", "--train-iters", "20"]
    assert "--save" not in printed  # the file has it
    assert printed[-2:] == ["--ranks", "8"]
    default, flags = begin("pretrain", printed[1:-2], FOR_PRETRAIN, PretrainConfig)
    parsed = parse(PretrainConfig, "ultralong pretrain", flags, default)
    assert (parsed.save, parsed.load, parsed.train_iters) == ("runs/1m", "base", 20)


def test_what_pretrain_refuses_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "llama3.1-8b-1m", "--gpus", "64")
    for more, part in (
        (("--optimizer-cpu-offload", "--use-precision-aware-optimizer"), "exclude each other"),
        (("--exp-avg-dtype", "bf16"), "needs use_precision_aware_optimizer"),
        (("--fp8-format", "hybrid"), "add --transformer-impl transformer_engine"),
        (
            ("--fp8-format", "hybrid", "--transformer-impl", "transformer_engine",
             "--fp8-recipe", "mxfp8"),
            "'mxfp8' is not supported by h100-80gb; it supports: ",
        ),
        (("--reset-position-ids",), "reset_position_ids needs document_mask 'block'"),
        (("--micro-batch-size", "3"), "micro_batch_size"),
    ):  # fmt: skip
        assert part in refusal(capsys, *words, *more), more
    words = ("--gpu", "a100-80gb", "--fp8-format", "hybrid")
    message = refusal(
        capsys, "plan", "llama3.1-8b-1m", "--gpus", "64", *words,
        "--transformer-impl", "transformer_engine",
    )  # fmt: skip
    assert "it supports: none: use --fp8-format none" in message


@pytest.mark.parametrize("length", [("--train-iters", "5"), ("--train-tokens", "50M")])
def test_the_warm_up_of_a_recipe_gives_way_as_in_pretrain(
    capsys: pytest.CaptureFixture[str], length: tuple[str, str]
) -> None:
    words = ["plan", "llama3.1-8b-1m", "--gpus", "64", *length]
    cli.main(words)
    assert "rows of 1,048,576 tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*words, "--lr-warmup-iters", "9"])
    assert "lr_warmup_iters (9) must be below train_iters" in capsys.readouterr().err


def test_flags_that_wait_for_another_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "llama3.1-8b-1m", "--gpus", "64", "--no-search")
    for flag, value, way in (
        ("--optimizer-offload-fraction", "0.5", "--optimizer-cpu-offload"),
        ("--overlap-cpu-optimizer-d2h-h2d", "", "--optimizer-cpu-offload"),
        ("--fp8-recipe", "blockwise", "--fp8-format"),
        ("--eval-iters", "9", "--eval-interval"),
        ("--max-host-memory-gib", "9", "offloads no activations"),
    ):
        planned(tmp_path, *words, flag, *value.split())
        shown = capsys.readouterr().out
        assert f"{flag} changes nothing here: " in shown
        assert way in shown


def test_groups_that_straddle_nodes_use_the_network() -> None:
    hardware, config = HARDWARE["h100-80gb"], PRETRAIN_RECIPES["llama3.1-8b-1m"]()
    for gpus, tp, cp, expected in (
        (24, 2, 3, "network"),
        (24, 2, 4, "NVLink"),
        (6, 2, 3, "NVLink"),
        (24, 2, 12, "network"),
    ):
        parallel = dataclasses.replace(
            config.parallel, tensor_model_parallel_size=tp, context_parallel_size=cp
        )
        run = dataclasses.replace(config, parallel=parallel)
        assert links(Job(MODELS["llama3.1-8b"], run, gpus, 1.0), hardware)["context"] == expected


def test_nodes_that_are_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All have as many ranks, as torchrun starts them: sized, timed and printed so."""
    for gpus in (12, 20):
        plan = planned(tmp_path, "plan", "llama3.1-8b-1m", "--gpus", str(gpus))
        shown = capsys.readouterr().out
        nodes, used = plan["num_nodes"], plan["hardware"]["gpus_per_node"]
        assert nodes * used == gpus
        assert f"({nodes} nodes, {used} of the 8 GPUs of each)" in shown
        assert f"torchrun --nnodes {nodes} --nproc-per-node {used} " in shown
    whole = Estimate(
        Job(MODELS["llama3.1-8b"], PRETRAIN_RECIPES["llama3.1-8b-1m"](), 16, 1.0),
        HARDWARE["h100-80gb"],
    )
    assert whole.hardware is whole.machine


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from megatron_ultralong.cli import main; "
        f"main({list(FOUR_MILLION)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=patience(60), capture_output=True
    )
