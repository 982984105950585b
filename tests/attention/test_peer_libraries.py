"""What ``tools/benchmark_attention.py peers`` does about libraries of others."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.attention_benchmark.logged_reasons import REASONS, LoggedReasons
from tools.attention_benchmark.torch_libraries import cudnn_folders, parts

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
    subprocess.run([*command, f"-Wl,-soname,{name}"], check=True, timeout=60)


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
        capture_output=True, text=True, timeout=120, check=False, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == (["1", "1"] if how == "kept" else ["2"])
