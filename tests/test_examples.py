"""Every command of examples/llama3.1-8b, on the demo's small model."""

from __future__ import annotations

import http.server
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megatron_ultralong.model.shape import model_by_name
from tests.patience import patience
from tests.warm.programs import ROOT

SCRIPTS = ROOT / "examples" / "llama3.1-8b"


@pytest.fixture(scope="module")
def environment(
    warm_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return {**warm_environment, "WORK": str(tmp_path_factory.mktemp("work"))}


def run(environment: dict[str, str], script: str, *words: str) -> str:
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), *words],
        env=environment,
        cwd=environment["WORK"],
        capture_output=True,
        text=True,
        timeout=patience(280),
        check=False,
    )
    assert done.returncode == 0, f"{script} {words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_whole_way_runs(environment: dict[str, str]) -> None:
    out = run(environment, "run_all.sh", "--mock", "1m")
    names = [path.name for path in sorted(SCRIPTS.glob("0*.sh"))]
    assert [line.split()[1] for line in out.splitlines() if line.startswith("== 0")] == names
    work = Path(environment["WORK"])
    source = json.loads((ROOT / "examples/demo/base/config.json").read_text())
    exported = json.loads((work / "Llama-3.1-8B-UltraLong-1m" / "config.json").read_text())
    assert source["max_position_embeddings"] == 512
    assert exported["max_position_embeddings"] == 1024
    results = work / "results-1m"
    losses = json.loads((results / "loss" / "loss.json").read_text())
    assert [found["checkpoint"] for found in losses["results"]] == ["base", "extended"]
    for name in ("passkey", "needle", "ruler"):
        assert (results / name / f"{name}.json").is_file()
    page = (work / "report-1m" / "index.html").read_text()
    for name in ("extended", "tuned", "niah_single_1"):
        assert name in page
    answer = next(line for line in out.splitlines() if line.startswith('{"model"'))
    assert json.loads(answer)["choices"][0]["text"]
    assert "after 640 tokens: 16 of 16 tokens are transformers', log-probabilities differ by" in out
    for script, folder in (("02_prepare.sh", "rows-1m"), ("03_import.sh", "base")):
        assert f"{work / folder} is there: kept" in run(environment, script, "--mock", "1m")


def on_a_bare_machine(folder: Path, script: str, **environment: str) -> list[str]:
    """What a script says that needs something, each lack in a line of its own."""
    python = Path(sys.executable).resolve()
    for name in ("bash", "env", "dirname", "basename", "nproc"):
        (folder / name).symlink_to(shutil.which(name) or name)
    (folder / "python3").write_text(f'#!/bin/sh\nexec {python} -I -S "$@"\n')
    (folder / "python3").chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), "1m"],
        env={"PATH": str(folder), "WORK": str(folder / "work"), **environment},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    return done.stderr.splitlines()


PROGRAMS = {"4": ("torchrun",), "5": ("torchrun",), "6": ("torchrun",), "8": ("vllm", "curl")}
PACKAGES = {"6": ("wonderwords",), "8": ("transformers",)}
FOLDERS = {
    "2": ("hf, of", "corpus/web", "corpus/books"),
    "3": ("hf, of",),
    "4": ("base, of", "rows-1m, of"),
    "5": ("run-1m, of", "hf, of", "chats/"),
    "6": ("base, of", "rows-1m, of", "run-1m, of", "tuned-1m, of"),
    "7": ("tuned-1m, of",),
    "8": ("Llama-3.1-8B-UltraLong-1m, of",),
}


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("0*.sh")))
def test_a_step_looks_first_for_what_its_last_command_needs(script: str, tmp_path: Path) -> None:
    """The tuning waited for the conversations to be prepared, and had nothing to tune."""
    lines = on_a_bare_machine(tmp_path, script)
    step = script[1]
    programs = ("ultralong", *PROGRAMS.get(step, ()), *(("hf",) if step == "1" else ()))
    lacks = [f"the program {name}, " for name in programs]
    lacks += [f"the package {name}, " for name in PACKAGES.get(step, ())]
    lacks += [f"{tmp_path}/work/{name}" for name in FOLDERS.get(step, ())]
    for lack in lacks:
        assert sum(lack in line for line in lines) == 1, lines
    assert len(lines) == len(lacks), lines


def test_what_a_late_step_needs_is_missed_before_the_first(tmp_path: Path) -> None:
    """Each lack has a line, and no step begins."""
    lines = on_a_bare_machine(tmp_path, "run_all.sh")
    programs = ("ultralong", "torchrun", "hf", "vllm", "curl")
    lacks = [f"the program {name}, " for name in programs]
    lacks += [f"the package {name}, " for name in ("transformers", "wonderwords")]
    lacks += [str(tmp_path / "work" / name) for name in ("corpus/web", "corpus/books", "chats")]
    for lack in lacks:
        assert sum(lack in line for line in lines) == 1, lines
    assert len(lines) == len(lacks)


def test_weights_of_another_model_are_refused(environment: dict[str, str], tmp_path: Path) -> None:
    """They were kept, and with them all that follows. What the user put there is the user's."""

    def get(**settings: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(SCRIPTS / "01_get_weights.sh"), "--mock"],
            env={**environment, "WORK": str(tmp_path / "my work"), **settings},
            capture_output=True, text=True, timeout=patience(120), check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    assert get()[0] == 0
    assert get()[0] == 0
    status, said = get(MODEL_ID="other/Model")
    assert status == 1, said
    assert "was: hf download meta-llama/Llama-3.1-8B-Instruct" in said
    assert "now: hf download other/Model" in said
    (tmp_path / "my work" / "hf.made").unlink()
    assert get(MODEL_ID="other/Model")[0] == 0


def serve(environment: dict[str, str], work: Path, **settings: str) -> tuple[int, str]:
    """Exit status and messages of the last step, of an export of no weights."""
    exported = work / "Llama-3.1-8B-UltraLong-1m"
    exported.mkdir()
    shutil.copy(ROOT / "examples" / "demo" / "base" / "config.json", exported)
    done = subprocess.run(
        ["bash", str(SCRIPTS / "08_serve.sh"), "--mock", "1m"],
        env={**environment, "WORK": str(work), **settings},
        capture_output=True, text=True, timeout=patience(60), check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_port_that_another_server_has_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The other one was asked, as soon as it said that it is healthy."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, said = serve(environment, tmp_path, PORT=str(port), VLLM=str(tmp_path / "none"))
    assert status == 2, said
    assert f"another program listens on port {port}" in said


def test_a_server_that_ends_before_it_answers_is_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    status, said = serve(environment, tmp_path, VLLM=str(tmp_path / "none"))
    assert status == 1, said
    assert said.endswith("the server has ended before it could be asked: see above\n")


def test_documents_are_found_in_a_work_with_spaces(tmp_path: Path) -> None:
    """They were looked for in two folders, which are none."""
    folder = tmp_path / "my disk"
    folder.mkdir()
    lines = on_a_bare_machine(folder, "02_prepare.sh")
    for name in ("web/*.jsonl.zst", "books/*.parquet"):
        assert sum(f"no file is {folder}/work/corpus/{name}, of" in line for line in lines) == 1
    assert len(lines) == 4, lines


@pytest.mark.parametrize(("trained", "noted"), [("129", True), ("400", False), ("", False)])
@pytest.mark.parametrize("script", ["05_sft.sh", "06_evaluate.sh", "07_export.sh"])
def test_a_run_that_has_not_finished_is_noted_before_it_is_used(
    tmp_path: Path, script: str, trained: str, noted: bool
) -> None:
    """A job that had ended at its time limit was tuned as it was, and nothing said so."""
    name, step = ("run-1m", 4) if script == "05_sft.sh" else ("tuned-1m", 5)
    folder = tmp_path / "work" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1234\ntrain_iters: 400\n")
    if trained:
        (folder / "latest_checkpointed_iteration.txt").write_text(trained)
    lines = on_a_bare_machine(tmp_path, script)
    text = f"note: {folder} is at iteration 129 of 400: step {step} has not finished it"
    assert sum(line.endswith(text) for line in lines) == noted, lines


@pytest.mark.parametrize("name", ["RANKS", "WORKERS", "PROMPTS", "LOSS_ROWS", "PORT"])
@pytest.mark.parametrize("value", ["x", "0", "1.5"])
def test_a_count_that_is_none_is_refused_first(tmp_path: Path, name: str, value: str) -> None:
    """Step 6 refused it, after the training; torchrun ended in a trace."""
    (line,) = on_a_bare_machine(tmp_path, "01_get_weights.sh", **{name: value})
    example = {"PORT": 8000, "RANKS": 8}.get(name, 2)
    assert f"{name} must be a whole number, such as {example}, not '{value}'" in line


@pytest.mark.slow
def test_llama_cpp_serves_too(environment: dict[str, str]) -> None:
    """The export of the end-to-end run, by llama.cpp itself."""
    if importlib.util.find_spec("xllamacpp") is None and not shutil.which("llama-server"):
        pytest.skip("neither llama-server nor xllamacpp is installed: pip install xllamacpp")
    out = run({**environment, "ENGINE": "llama.cpp"}, "08_serve.sh", "--mock", "1m")
    assert "after 640 tokens: 16 of 16 tokens are transformers'" in out


@pytest.mark.slow
@pytest.mark.parametrize(("target", "positions"), [("2m", 2048), ("4m", 4096)])
def test_the_longer_targets_train(environment: dict[str, str], target: str, positions: int) -> None:
    """From the weights and the checkpoint of the end-to-end run to the first."""
    run(environment, "02_prepare.sh", "--mock", target)
    run(environment, "04_pretrain.sh", "--mock", target)
    saved = Path(environment["WORK"]) / f"run-{target}" / "ultralong.json"
    assert json.loads(saved.read_text())["model"]["max_position_embeddings"] == positions


def script(name: str) -> ModuleType:
    """A Python file of the example."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_keys_and_values_take() -> None:
    """As the planner has it, and the page: 128 GiB at 1M tokens, a head for each of 8 GPUs."""
    model = model_by_name("llama3.1-8b")
    config = {
        "num_key_value_heads": model.num_query_groups,
        "num_hidden_layers": model.num_layers,
        "head_dim": model.kv_channels,
    }
    page = (ROOT / "docs" / "llama31_8b.md").read_text()
    for tokens in (1_048_576, 2_097_152, 4_194_304):
        whole, share, less = (
            script("cache_bytes").cache_bytes(config, tokens, gpus, "bfloat16")
            for gpus in (1, 8, 64)
        )
        assert whole == 2 * 2 * 32 * 8 * 128 * tokens == 8 * share
        assert less == share
        assert (
            f"| {tokens:,} | {whole:,} ({whole >> 30} GiB) | {share:,} ({share >> 30} GiB) |"
            in page
        )


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that takes the tokens 7 and 8, each with the log-probability -1."""

    form = "vllm"
    odd: tuple[int, str] | None = None
    """Instead of it, a status and a text."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert len(asked["prompt"]) == 32
        if self.odd:
            self.send_response(self.odd[0])
            self.end_headers()
            self.wfile.write(self.odd[1].encode())
            return
        rows: dict[str, Any] = {"tokens": ["token_id:7", "token_id:8"], "token_logprobs": [-1, -1]}
        if self.form == "llama.cpp":
            rows = {"content": [{"id": 7, "logprob": -1}, {"id": 8, "logprob": -1}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"logprobs": rows}]}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("form", ["vllm", "llama.cpp"])
def test_a_server_that_computes_another_model_is_noticed(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Answers, "form", form)
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    words = [
        "x",
        str(ROOT / "examples/demo/base"),
        url,
        "--prompt-tokens",
        "32",
        "--dtype",
        "float32",
    ]
    try:
        for tolerance, ends in (("0.5", True), ("100", False)):
            monkeypatch.setattr("sys.argv", [*words, "--tolerance", tolerance])
            monkeypatch.setattr("sys.stdin", io.StringIO("def f(x):\n    return x + 1\n" * 20))
            with pytest.raises(SystemExit, match="another model") if ends else nullcontext():
                script("check_answer").main()
            assert "after 32 tokens: 0 of 2 tokens are transformers'" in capsys.readouterr().out
    finally:
        server.shutdown()
        server.server_close()


ODD = {
    "busy": (503, "the queue is full", "answers HTTP Error 503.*the queue is full"),
    "no such model": (404, '{"error": "model"}', "answers HTTP Error 404.*model"),
    "cut": (200, '{"choices": [{"logp', "does not say ids of tokens"),
    "no probabilities": (200, '{"choices": [{"text": "a"}]}', "does not say ids .*KeyError"),
    "null": (200, '{"choices": [{"logprobs": null}]}', "does not say ids of tokens"),
    "texts": (
        *(200, '{"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1]}}]}'),
        "does not say ids of tokens",
    ),
    "null in it": (
        *(200, '{"choices": [{"logprobs": {"content": [{"id": 7, "logprob": null}]}}]}'),
        "does not say ids of tokens",
    ),
    "nothing": (200, '{"choices": [{"logprobs": {"content": []}}]}', "the server took no token"),
    "nan": (
        200,
        '{"choices": [{"logprobs": {"content": [{"id": 7, "logprob": -1}, {"id": 8, "logprob": NaN}'
        "]}}]}",
        "computes another model",
    ),
}


@pytest.mark.parametrize("name", [*ODD, "gone"])
def test_a_server_without_an_answer_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN passed any tolerance; the proxy of a cluster was asked for a server of this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    status, text, said = ODD.get(name, (200, "", "does not answer"))
    monkeypatch.setattr(Answers, "odd", (status, text))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    words = [str(ROOT / "examples/demo/base"), url, "--prompt-tokens", "32", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["x", *words, "--tolerance", "1000"])
    monkeypatch.setattr("sys.stdin", io.StringIO("def f(x):\n    return x + 1\n" * 20))
    if name == "gone":
        server.shutdown()
        server.server_close()
    try:
        with pytest.raises(SystemExit) as end:
            script("check_answer").main()
        assert re.search(said, str(end.value.code)), end.value.code
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("length", [1024, 131_072, 262_144, 524_288, 1_048_577])
def test_lengths_of_evaluations_are_different_ones_within_the_row(length: int) -> None:
    """`evaluate` takes each once, and refuses what is beyond the positions after the training."""
    done = subprocess.run(
        ["bash", "-euc", 'source "$0" && echo "$LENGTHS" && echo "$RULER_LENGTHS"',
         str(SCRIPTS / "settings.sh")],
        env={"PATH": os.environ["PATH"], "SEQ_LENGTH": f"{length}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lengths, ruler = ([*map(int, line.split())] for line in done.stdout.splitlines())
    assert len({*lengths}) == len(lengths)
    assert max(lengths) == length
    assert ruler == [min(length, 131_072)]


def test_other_words_are_refused(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS / "03_import.sh"), "8m"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'8m' is not known; known: --mock, 1m, 2m, 4m" in done.stderr
