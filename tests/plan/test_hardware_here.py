"""What the plan of a dry run is of: the kernel of this machine's GPU, or what was assumed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from megatron_ultralong import cli
from megatron_ultralong.model.flops import PEAK_TFLOPS
from megatron_ultralong.plan.hardware import HARDWARE, hardware_here
from megatron_ultralong.training import inputs as training_inputs
from tests.command_line import pretrain_words, write_inputs

PLANNING = Path(__file__).parents[2] / "docs" / "planning.md"


@pytest.mark.parametrize("kernel", ["fa4", "fa3", "fa2", "cudnn", "math", ""])
@pytest.mark.parametrize("device", PEAK_TFLOPS)
def test_rates_are_of_the_kernel_or_it_is_told(device: str, kernel: str) -> None:
    hardware, line = hardware_here(f"NVIDIA {device}", kernel)
    if f"assumed: {hardware.name}, for NVIDIA {device} is not in the table: `ultra" in line:
        assert device not in ("H100", "H200", "A100", "B200", "GB200")
        return
    assert hardware.peak_tflops == PEAK_TFLOPS[device]
    if hardware.attention_kernel == kernel:
        assert line == f"attention at the rates of {kernel}, which computes it on this GPU"
    else:
        assert f"assumed: attention at the rates of {hardware.attention_kernel}" in line
        assert "--hardware FILE" in line


def test_what_is_assumed_without_a_gpu_or_of_an_unknown_one() -> None:
    hardware, line = hardware_here(None)
    assert line.startswith(f"assumed, for there is no GPU here: {hardware.name}, attention at the")
    named = re.search(r"(\S+) for flash-attn-4", line)
    assert named is not None
    assert HARDWARE[named[1]].attention_kernel == "fa4"
    hardware, line = hardware_here("NVIDIA GeForce RTX 4090", "fa2")
    assert line.startswith(f"assumed: {hardware.name}, for NVIDIA GeForce RTX 4090 is not in the")


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        ("fa4", "plan for 2 x h200-141gb-fa4: "),
        ("cudnn", "plan for 2 x h200-141gb: "),
        ("", "plan for 2 x h100-80gb (no GPU here): "),
    ],
)
def test_a_dry_run_plans_with_the_kernel_that_would_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    told: str,
) -> None:
    write_inputs(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if kernel:
        names = {"attention kernel": kernel}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        monkeypatch.setattr(training_inputs, "check_attention", lambda config, model: ())
        monkeypatch.setattr(training_inputs, "chosen_kernels", lambda config, model: (names, ()))
    cli.main(pretrain_words(tmp_path, "--dry-run"))
    shown = capsys.readouterr().out
    assert told in shown
    first = f"attention at the rates of {kernel}" if kernel else "assumed, for there is no GPU"
    assert f"# {first}" in shown


def test_the_example_of_the_page_is_what_the_plan_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its command, the batch that it names, and the seconds."""
    text = " ".join(PLANNING.read_text(encoding="utf-8").split())
    example = re.search(r"here for `ultralong (plan [^`]+)`, (\d+) rows a step", text)
    assert example is not None
    with pytest.raises(SystemExit):
        cli.main(example[1].split())
    said = capsys.readouterr().err
    change = re.search(r"`--optimizer-cpu-offload` \(.*?([\d.]+) s a step\)", said)
    assert change is not None
    assert f"{change[1]} s a step" in text
    cli.main([*example[1].split(), "--optimizer-cpu-offload"])
    assert f", {example[2]} an iteration, " in capsys.readouterr().out
    assert f"a {float(change[1]):.0f} s step of {example[2]} rows for 70B at 128K" in text
