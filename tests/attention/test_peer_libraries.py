"""What ``tools/benchmark_attention.py peers`` does about libraries of others."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.patience import patience
from tools.attention_benchmark.contest import UnableError
from tools.attention_benchmark.logged_reasons import REASONS, LoggedReasons
from tools.attention_benchmark.torch_libraries import cudnn_folders, parts
from tools.attention_benchmark.transformer_engine_attention import (
    SWITCHES,
    transformer_engine_contestants,
)

ENGINE = "transformer_engine.pytorch"
C = """
int {name}(void) {{ return {number}; }}
"""


def test_reasons_are_the_last_lines_that_refuse_once_each():
    logger = logging.Logger("some")
    reasons = LoggedReasons("Disabling ", but=" due to NVTE_")
    logger.addHandler(reasons)
    logger.debug("Running with config=%s", {"a": 1})
    logger.debug("Disabling A due to NVTE_A=0")
    for number in (*range(REASONS + 2), 3):
        logger.debug("Disabling B: a | b\nline %d", number)
    said = reasons.taken()
    assert said.split("; ") == [f"Disabling B: a / b line {n}" for n in range(2, REASONS + 2)]
    assert not reasons.taken()


def test_folders_are_those_of_loaded_libraries(tmp_path: Path):
    maps = tmp_path / "maps"
    line = "7f00-7f01 r-xp 00000000 00:1f 12 {}\n"
    names = ["/a b/lib/libcudnn.so.9", "/a b/lib/libcudnn_graph.so.9", "/lib/libcudnn_cnn.so.9.8",
             "/lib/libcuda.so.1", "[heap]"]  # fmt: skip
    maps.write_text("".join(line.format(name) for name in names) + "7f02-7f03 rw-p 0 00:00 0\n")
    assert cudnn_folders(maps) == [Path("/a b/lib"), Path("/lib")]
    assert cudnn_folders(tmp_path / "none") == []


def test_parts_come_in_the_order_of_their_needs(tmp_path: Path):
    names = ["adv", "cnn", "ops", "new", "graph"]
    for name in ("libcudnn.so.9", *(f"libcudnn_{name}.so.9" for name in names)):
        (tmp_path / name).touch()
    found = [path.name for path in parts(tmp_path)]
    expected = ["graph", "ops", "cnn", "adv", "new"]
    assert found == ["libcudnn.so.9", *(f"libcudnn_{name}.so.9" for name in expected)]


def _library(folder: Path, name: str, code: str, *words: str) -> None:
    folder.mkdir(exist_ok=True)
    source = folder / f"{name}.c"
    source.write_text(code)
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / name), str(source), *words]
    subprocess.run([*command, f"-Wl,-soname,{name}"], check=True, timeout=patience(60))


PROGRAM = """
import ctypes, os, sys
from pathlib import Path
ctypes.CDLL(sys.argv[1] + "/libcudnn.so.9")  # as PyTorch does: for itself alone
if sys.argv[3] == "kept":
    from tools.attention_benchmark.torch_libraries import cudnn_folders, keep_one_cudnn
    keep_one_cudnn()
    assert os.environ["CUDNN_HOME"] == sys.argv[1], os.environ["CUDNN_HOME"]
engine = ctypes.CDLL(sys.argv[2] + "/libengine.so", mode=ctypes.RTLD_GLOBAL)
print(engine.answer(), ctypes.CDLL(None).whole() if sys.argv[3] == "kept" else "")
"""


@pytest.mark.skipif(not Path("/usr/bin/gcc").exists(), reason="no C compiler")
@pytest.mark.parametrize("how", ["kept", "as it comes"])
def test_an_extension_gets_the_parts_that_are_loaded_already(tmp_path: Path, how: str):
    """Two cuDNN in miniature, whose parts answer 1 and 2, and an extension that asks a part."""
    own, system = tmp_path / "own", tmp_path / "system"
    for number, folder in ((1, own), (2, system)):
        _library(folder, "libcudnn_graph.so.9", C.format(name="graph", number=number))
        _library(folder, "libcudnn.so.9", C.format(name="whole", number=number))
    code = "int graph(void); int answer(void) { return graph(); }"
    _library(system, "libengine.so", code, f"-L{system}", "-l:libcudnn_graph.so.9")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(system)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(own), str(system), how],
        capture_output=True, text=True, timeout=patience(120), check=False, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == (["1", "1"] if how == "kept" else ["2"])


def _choose(names: dict[str, types.ModuleType], reasons: list[str]) -> None:
    """As Transformer Engine 2.20 does it: the level of its logger is set at every choice."""
    utils = names[f"{ENGINE}.attention.dot_product_attention.utils"]
    logger = logging.getLogger("DotProductAttention")
    logger.setLevel(utils.AttentionLogging._log_level)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    for reason in reasons:
        logger.debug("Disabling %s", reason)
    switches = [os.environ[name] for name in SWITCHES]
    logger.debug("switches %s", switches)
    if reasons:
        raise ValueError("No dot product attention backend is available for the provided inputs.")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """The modules of it that the contestant asks, since the real ones need a GPU to be imported."""
    place = f"{ENGINE}.attention.dot_product_attention"
    names = ("transformer_engine", ENGINE, f"{ENGINE}.attention", place, f"{place}.utils",
             f"{ENGINE}.utils")  # fmt: skip
    found = {name: types.ModuleType(name) for name in names}
    found[place]._attention_backends = {}
    found[f"{place}.utils"].AttentionLogging = type("AttentionLogging", (), {"_log_level": 30})
    found[f"{ENGINE}.utils"].get_cudnn_version = lambda: (9, 19, 0)
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.mark.parametrize("kernel", ["same", "best"])
def test_a_refusal_of_transformer_engine_has_its_reasons(
    engine: dict[str, types.ModuleType], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVTE_FLASH_ATTN", "7")
    monkeypatch.delenv("NVTE_FUSED_ATTN", raising=False)
    task = SimpleNamespace(length=64, edges=None)
    first = transformer_engine_contestants(kernel)[0]
    for contestant in first.alternatives(task):
        said = ["FlashAttention 4 due to NVTE_FLASH_ATTN=0", "FusedAttention: no | plan"]
        with pytest.raises(UnableError) as failure, contestant.running(task):
            _choose(engine, said)
        assert str(failure.value).startswith(f"no kernel for {contestant._implementation} (cuDNN ")
        assert str(failure.value).endswith(": Disabling FusedAttention: no / plan")
        with contestant.running(task):
            _choose(engine, [])
        with pytest.raises(ValueError, match="other"), contestant.running(task):
            raise ValueError("other")
        logging_of_it = engine[f"{ENGINE}.attention.dot_product_attention.utils"].AttentionLogging
        assert logging_of_it._log_level == logging.WARNING
        assert os.environ["NVTE_FLASH_ATTN"] == "7"
        assert "NVTE_FUSED_ATTN" not in os.environ
    assert not logging.getLogger("DotProductAttention").handlers
