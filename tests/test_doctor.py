"""The doctor finds a machine well, and names what is wrong with one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong.cli import main
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.doctor.machine import machine_findings
from megatron_ultralong.doctor.software import software_findings


def problems(findings: list[Finding]) -> dict[str, Finding]:
    return {found.subject: found for found in findings if found.level == "problem"}


def test_this_machine_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--megabytes", "1"])
    lines = capsys.readouterr().out.splitlines()
    levels = {line[9:25].strip(): line[:8].strip() for line in lines[:-1]}
    for subject in ("python", "torch", "attention", "megatron-core", "all-reduce", "ring step"):
        assert levels[subject] == "ok", lines
    assert levels["ring attention"] == "ok", lines
    assert lines[-1].startswith("0 problems")


def test_an_interface_that_is_not_there_is_named_and_stops_the_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--megabytes", "1"])
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert "problem  GLOO_SOCKET_IFNAME names 'nosuch0', and the interfaces here are" in out
    assert "problem  communication    ranks cannot work together" in out
    assert out.splitlines()[-1].startswith("2 problems")


def test_interfaces_may_be_named_by_their_beginning_for_nccl_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "l")
    assert not problems(list(machine_findings(has_gpu=False)))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=l")
    assert list(problems(list(machine_findings(has_gpu=False)))) == ["NCCL_SOCKET_IFNAME"]


def test_another_apex_and_a_broken_transformer_engine_are_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package, text in (
        ("apex", ""),
        ("transformer_engine", "raise OSError('undefined symbol')"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ULTRALONG_ATTENTION_KERNEL", "fastest")
    found = problems(list(software_findings()))
    assert set(found) == {"Apex", "TE", "attention"}
    assert "not NVIDIA's" in found["Apex"].text
    assert "pip uninstall apex" in found["Apex"].mend
    assert "undefined symbol" in found["TE"].text
    assert "none of that name" in found["attention"].text


def test_nothing_to_exchange_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--megabytes", "0"])
    assert end.value.code == 2
    assert "megabytes must be at least 1, not 0" in capsys.readouterr().err
