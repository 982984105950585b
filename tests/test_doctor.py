"""The doctor finds a machine well, and names what is wrong with one that is not."""

from __future__ import annotations

import importlib
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ultralong.cli import main
from megatron_ultralong.doctor import communication, machine, software
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.doctor.machine import machine_findings
from megatron_ultralong.doctor.software import release, software_findings
from megatron_ultralong.program.libraries import LIBRARIES

ROOT = Path(__file__).parent.parent


def problems(findings: list[Finding]) -> dict[str, Finding]:
    return {found.subject: found for found in findings if found.level == "problem"}


def test_this_machine_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[int] = []
    start = communication.multiprocessing.start_processes

    def count(*arguments: object, nprocs: int, **options: object) -> object:
        started.append(nprocs)
        return start(*arguments, nprocs=nprocs, **options)

    monkeypatch.setattr(communication.multiprocessing, "start_processes", count)
    main(["doctor", "--no-communication"])
    assert started == []
    capsys.readouterr()
    main(["doctor", "--megabytes", "1"])
    assert started == [2]
    printed = capsys.readouterr()
    assert printed.err == "ultralong: trying two ranks together ...\n"
    lines = printed.out.splitlines()
    levels = {line[9:25].strip(): line[:8].strip() for line in lines[:-1]}
    for subject in (
        *("python", "libraries", "torch", "attention", "megatron-core", "/dev/shm", "network"),
        *("all-reduce", "ring step"),
    ):
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
    assert "problem  communication    ranks cannot work together: RuntimeError" in out
    assert "Traceback" not in out
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
    importlib.import_module("megatron_ultralong.mcore.model")  # would meet the broken ones below
    for package, text in (
        ("apex", ""),
        ("transformer_engine", "raise OSError('undefined symbol')"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ULTRALONG_ATTENTION_KERNEL", "fastest")
    monkeypatch.setattr("torch.version.cuda", None)
    found = problems(list(software_findings()))
    assert set(found) == {"Apex", "TE", "attention"}
    assert "not NVIDIA's" in found["Apex"].text
    assert "pip uninstall apex" in found["Apex"].fix
    assert "undefined symbol" in found["TE"].text
    assert "none of that name" in found["attention"].text
    # In an image that is being built there is no driver, which some builds ask at import.
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("megatron_ultralong.doctor.software.DRIVER", tmp_path / "none")
    levels = {finding.subject: finding.level for finding in software_findings()}
    assert levels["TE"] == levels["Apex"] == "warning"


def test_a_small_disk_a_slow_name_server_and_a_closed_cache_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(machine, "LEAST_TEMPORARY", 2**60)
    monkeypatch.setattr(machine, "SLOW_NAMES", -1.0)
    found = {one.subject: one for one in machine_findings(has_gpu=True) if one.level == "warning"}
    assert "TRITON_CACHE_DIR to another folder" in found["kernel cache"].fix
    assert "set TMPDIR to a folder" in found["temporary files"].fix
    assert "RES_OPTIONS='timeout:1 attempts:1'" in found["name server"].fix
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    levels = {one.subject: one.level for one in machine_findings(has_gpu=True)}
    assert levels["kernel cache"] == "ok"


def test_nothing_to_exchange_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--megabytes", "0"])
    assert end.value.code == 2
    assert "megabytes must be at least 1, not 0" in capsys.readouterr().err


def broken(folder: Path, *modules: str) -> dict[str, str]:
    """An environment in which those modules do not import."""
    for name in modules:
        (folder / name).mkdir()
        text = f"raise ImportError('lib{name}.so: cannot open shared object file')"
        (folder / name / "__init__.py").write_text(text)
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}


def test_libraries_that_do_not_import_are_named_by_a_doctor_that_needs_none(
    tmp_path: Path,
) -> None:
    environment = broken(tmp_path, "torch", "tyro", "psutil")
    program = [sys.executable, "-m", "megatron_ultralong"]
    done = subprocess.run(
        [*program, "doctor"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    levels = dict(re.findall(r"^(\w+ +\S.{15})(.*)", done.stdout, flags=re.MULTILINE))
    found = {" ".join(key.split()): text for key, text in levels.items()}
    for name in ("torch", "tyro", "psutil"):
        assert f"ImportError: lib{name}.so: cannot open" in found[f"problem {name}"]
    assert "-> pip install 'tyro>=0.9'" in done.stdout
    assert "ok /dev/shm" in found
    assert "not tried" in found["note communication"]
    assert done.stdout.splitlines()[-1].startswith("3 problems")
    done = subprocess.run(
        [*program, "convert", "inspect", "x"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot open shared object file" in line
    assert "`ultralong doctor` says which" in line


HEAVY = {"torch", "megatron", "transformers", "tensorboard", "matplotlib", "torch._inductor"}


def heavy_imports(program: str) -> list[str]:
    """What a program prints, of the heavy modules that a new interpreter has imported by then."""
    head = f"import sys\nheavy = lambda: ' '.join(sorted({HEAVY!r} & set(sys.modules))) or 'none'\n"
    done = subprocess.run(
        [sys.executable, "-c", head + program], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_what_is_known_at_once_is_said_before_anything_is_imported() -> None:
    lines = heavy_imports(
        "from megatron_ultralong.doctor import diagnosis\n"
        "for finding in diagnosis._findings(diagnosis.DoctorConfig(communication=False)):\n"
        "    print(finding.subject, heavy(), sep=': ')\n"
        "    if finding.subject == 'libraries': break\n"
    )
    found = dict(line.split(": ") for line in lines)
    *first, last = found
    assert {"python", "/dev/shm", "open files", "network", "clock"} <= set(first)
    assert {found[subject] for subject in first} == {"none"}
    assert last == "libraries"
    assert found[last] == "matplotlib tensorboard"


def test_a_rank_imports_torch_and_neither_megatron_nor_a_compiler(tmp_path: Path) -> None:
    """Each of the two takes it again; the compiler alone is two seconds of processor time."""
    lines = heavy_imports(
        "import torch, torch.distributed as dist\n"
        "from megatron_ultralong.doctor import communication\n"
        f"store = dist.FileStore({str(tmp_path / 'store')!r}, 1)\n"
        "dist.init_process_group('gloo', store=store, rank=0, world_size=1)\n"
        "communication._all_reduce(2**20, torch.device('cpu'))\n"
        "communication._ring_attention(torch.device('cpu'))\n"
        "print(heavy())\n"
    )
    assert lines == ["torch"]


def test_what_ring_attention_is_checked_against_is_small() -> None:
    """The scores in float64 of all heads, on every rank."""
    length = communication.NUM_TOKENS
    assert 8 * communication.HEADS * length**2 <= 32 * 2**20
    assert length >= 4 * communication.NUM_RANKS * 32  # several blocks of each kernel a chunk


def test_the_libraries_are_those_of_the_package() -> None:
    text = (ROOT / "setup.py").read_text()
    required = text[text.index("install_requires") : text.index("extras_require")]
    found = set(re.findall(r'^ +"([\w.>=-]+)"', required, flags=re.MULTILINE))
    assert found - {"torch>=2.6"} == set(LIBRARIES.values())
    assert release("2.10.0a0+nv25.9") == (2, 10, 0) > release("2.9")


@pytest.fixture
def limits() -> Iterator[None]:
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK)
    before = [resource.getrlimit(kind) for kind in kinds]
    yield
    for kind, limit in zip(kinds, before, strict=True):
        resource.setrlimit(kind, limit)


def test_limits_that_are_too_small_are_named(
    limits: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for kind, soft in ((resource.RLIMIT_NOFILE, 1024), (resource.RLIMIT_MEMLOCK, 2**16)):
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
    (tmp_path / "mlx5_0").touch()
    monkeypatch.setattr(machine, "INFINIBAND", tmp_path)
    found = {finding.subject: finding for finding in machine_findings(has_gpu=True)}
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found["open files"].level == "warning"
    assert f"at most 1024 (ulimit -n) -> ulimit -n {hard}" in " ".join(
        found["open files"].line().split()[3:]
    )
    assert found["pinned memory"].level == "problem"
    assert "at most 0.0625 MiB (ulimit -l): InfiniBand" in found["pinned memory"].text


def test_shared_memory_that_is_missing_or_cannot_be_written_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, text in ((tmp_path / "none", "is not there"), (Path("/proc"), "cannot be written")):
        monkeypatch.setattr(machine, "SHARED_MEMORY", folder)
        found = problems(list(machine_findings(has_gpu=False)))
        assert text in found["/dev/shm"].text


def test_one_work_queue_is_named_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    levels = {found.subject: found.level for found in machine_findings(has_gpu=True)}
    assert levels["CUDA queues"] == "note"
    assert "CUDA queues" not in {found.subject for found in machine_findings(has_gpu=False)}


def test_a_health_check_makes_no_cuda_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The driver's own program is asked, and whatever is imported sees no GPU."""
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(software, "DRIVER", driver)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA H100, 80900 MiB, 81559 MiB\n")
    program.chmod(0o755)
    found = {finding.subject: finding for finding in software_findings(use_gpus=False)}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert found["GPU 0"].line() == "ok       GPU 0            NVIDIA H100, 80900 MiB, 81559 MiB"
    program.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    broken = problems(list(software_findings(use_gpus=False)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert broken["GPU"].text == "nvidia-smi ends with 6: no devices were found"


def test_ranks_need_the_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--no-gpus"])
    assert end.value.code == 2
    assert "give --no-communication too" in capsys.readouterr().err
