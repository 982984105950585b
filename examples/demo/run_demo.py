"""The whole recipe on one CPU machine: prepare, convert, extend 8 times, tune, export, evaluate.

::

    make demo                                            # installs first
    python examples/demo/run_demo.py --output demo-output

Every step is a command of ``ultralong``, printed before it runs; two gloo ranks with CP = 2 train
and evaluate. At the end stand a table and ``OUTPUT/report/index.html``. The same command continues
a demo that was interrupted: finished steps stand in ``OUTPUT/steps.json``, and each verb resumes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from conversations import write_conversations
from verdicts import Bounds, chat_checks, loss_checks, memory_check, passkey_checks

from megatron_ultralong import __version__
from megatron_ultralong.config.recipes import demo_cpu, demo_sft_cpu
from megatron_ultralong.evaluation.report.page import print_report, write_report
from megatron_ultralong.evaluation.report.report import Check, Report, gather_report
from megatron_ultralong.evaluation.results.file import read_result, read_results
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.program.output import check_output

BASE = shlex.quote(str(Path(__file__).parent / "base"))
CONTEXT = 512  # of the base
SEQ_LENGTH = demo_cpu().data.seq_length
LENGTHS = ("256", "512", "1024", "2048", str(SEQ_LENGTH))
NUM_LOSS_ROWS = 32
NUM_PROMPTS = 2
"""Prompts at every length and depth of the passkey maps: 20 at each length."""
RESULTS = ("loss", "passkey-before", "passkey-after", "passkey-tuned", "chat-after", "chat-tuned")
"""Folders whose results stand in the report."""
PACKAGES = ("numpy", "rich", "huggingface_hub")
"""Installed packages whose source files are the second source of the corpus."""


STEPS_FILE = "steps.json"


class Steps:
    """Runs commands, keeps their wall times and the greatest memory of all their processes.

    What an earlier process of the same demo has finished in ``output`` is not run again.

    Raises:
        InputError: the folder holds something else, or a whole demo.
    """

    def __init__(self, output: Path) -> None:
        self.wall_times: dict[str, float] = {}
        self.peak_memory = 0
        self._file = output / STEPS_FILE
        self._done: dict[str, list[str]] = {}
        """Names of finished steps, and their words."""
        way_out = f"`rm -r {shlex.quote(str(output))}` begins again"
        if not self._file.is_file() or (output / "report").exists():
            try:
                check_output(output)
            except InputError as error:
                raise InputError(f"{error}; {way_out}") from error
            output.mkdir(parents=True, exist_ok=True)
            self._note()
            return
        found = read_json(self._file, hint=way_out)
        if found.get("version") != __version__:
            raise InputError(f"{self._file} is of another version of this project: {way_out}")
        self.wall_times, self._done = found["wall_times"], found["done"]
        self.peak_memory = found["peak_memory"]
        if self._done:
            print(f"{output} has {len(self._done)} finished steps: the demo continues behind them")

    def _is_done(self, name: str, words: list[str]) -> bool:
        """Whether the step is finished.

        Raises:
            InputError: it is, by another command.
        """
        if name in self._done and self._done[name] != words:
            raise InputError(
                f"{self._file}: the step {name!r} was run by another command: "
                f"`rm -r {shlex.quote(str(self._file.parent))}` begins again"
            )
        return name in self._done

    def _note(self, name: str = "", words: Sequence[str] = (), seconds: float = 0.0) -> None:
        if name:
            self.wall_times[name], self._done[name] = seconds, list(words)
        state = {"wall_times": self.wall_times, "done": self._done}
        state |= {"peak_memory": self.peak_memory, "version": __version__}
        write_aside(self._file, json.dumps(state, indent=1) + "\n")

    def write(self, name: str, function: Callable[..., int], *arguments: Path) -> None:
        """Run ``function(*arguments)``, which writes the last argument and returns a count."""
        words = list(map(str, arguments))
        if self._is_done(name, words):
            return
        print(f"\n[{name}]", flush=True)
        start = time.monotonic()
        count = function(*arguments)
        self._note(name, words, time.monotonic() - start)
        print(f"{count:,} written: {arguments[-1]}")

    def run(
        self, name: str, arguments: str, *, extra: Sequence[str] = (), num_ranks: int = 1
    ) -> None:
        """Run ``ultralong ARGUMENTS``; a step that fails ends the demo with its exit status."""
        words = [*shlex.split(arguments), *extra]
        if self._is_done(name, words):
            return
        command, shown = [sys.executable, "-m"], ["ultralong", *words]
        if num_ranks > 1:
            torchrun = ["--standalone", "--nproc-per-node", str(num_ranks), "-m"]
            command += ["torch.distributed.run", *torchrun]
            shown = ["torchrun", *torchrun, "megatron_ultralong", *words]
        command += ["megatron_ultralong", *words]
        print(f"\n[{name}] $ {shlex.join(shown)}", flush=True)
        start = time.monotonic()
        threads = max(1, (os.cpu_count() or 1) // num_ranks)
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            self.peak_memory = max(self.peak_memory, _memory(watched))
            time.sleep(0.2)
        if process.returncode:
            sys.exit(process.returncode)
        self._note(name, words, time.monotonic() - start)


def _memory(process: psutil.Process) -> int:
    """Resident bytes of this program, a process and its children; shared pages count each time."""
    total = 0
    for one in (psutil.Process(), process):
        try:
            family = [one] if one.pid == os.getpid() else [one, *one.children(recursive=True)]
            total += sum(member.memory_info().rss for member in family)
        except psutil.NoSuchProcess:
            continue  # it has just ended
    return total


def corpus() -> list[str]:
    """``--source`` arguments: the source files of Python's library and of installed packages."""
    library = sysconfig.get_paths()["stdlib"]
    words = ["--source", f"library={library}/*.py", "--source", f"library={library}/*/*.py"]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, package
        assert spec.submodule_search_locations, package
        words += ["--source", f"packages={spec.submodule_search_locations[0]}/**/*.py"]
    return words


def run_steps(output: Path) -> Steps:
    """All steps, from documents to figures.

    Raises:
        InputError: see :class:`Steps`.
    """
    rows, before, after, exported, chats, tuned = (
        shlex.quote(str(output / name))
        for name in ("rows", "before", "after", "exported", "chats", "tuned")
    )
    # The paper's thresholds of 4K and 8K, at the scale of a base of 512 tokens instead of 8,192.
    sampling = f"--length-sampling ultralong --short-length {CONTEXT // 2} --long-length {CONTEXT}"
    lengths = " ".join(LENGTHS)
    passkey = f"--lengths {lengths} --num-samples {NUM_PROMPTS} --precision fp32"
    loss = f"--data-path {rows} --num-samples {NUM_LOSS_ROWS}"
    beyond = "--beyond-trained-positions --context-parallel-size 2"
    output_path = shlex.quote(str(output))
    steps = Steps(output)
    steps.run(
        "prepare",
        f"prepare --tokenizer {BASE} --output {rows} --seq-length {SEQ_LENGTH} --skip-bad "
        f"{sampling}",
        extra=corpus(),
    )
    steps.run("import", f"convert import {BASE} {before}")
    steps.run(
        "passkey before",
        f"evaluate passkey --load before={before} {passkey} {beyond} "
        f"--output {output_path}/passkey-before",
        num_ranks=2,
    )
    steps.run(
        "pretrain",
        f"pretrain demo-cpu --load {before} --data-path {rows} --save {after}",
        num_ranks=2,
    )
    steps.run("export", f"convert export {after} {exported}")
    steps.run(
        "passkey after",
        f"evaluate passkey --load after={after} {passkey} --context-parallel-size 2 "
        f"--output {output_path}/passkey-after",
        num_ranks=2,
    )
    steps.run(
        "loss before and after",
        f"evaluate loss --load before={before} after={after} {loss} {beyond} --precision fp32 "
        f"--output {output_path}/loss",
        num_ranks=2,
    )
    steps.run(
        "transformers",
        f"evaluate loss --load transformers={exported} {loss} "
        f"--output {output_path}/loss-transformers",
    )
    conversations = output / "conversations.jsonl"
    library = Path(sysconfig.get_paths()["stdlib"])
    steps.write("conversations", write_conversations, library, conversations)
    steps.run(
        "prepare chat",
        f"prepare chat --source functions={shlex.quote(str(conversations))} --tokenizer {BASE} "
        f"--output {chats} --seq-length {SEQ_LENGTH} --max-length {CONTEXT} --chat-template plain",
    )
    steps.run(
        "sft",
        f"sft demo-sft-cpu --load {after} --data-path {chats} --save {tuned}",
        num_ranks=2,
    )
    for name, folder in (("after", after), ("tuned", tuned)):
        steps.run(
            f"chat {name}",
            f"evaluate chat --load {name}={folder} --data-path {chats} --precision fp32 "
            f"--micro-batch-size 8 --output {output_path}/chat-{name}",
        )
    steps.run(
        "passkey tuned",
        f"evaluate passkey --load tuned={tuned} --lengths {CONTEXT} {SEQ_LENGTH} --num-samples "
        f"{NUM_PROMPTS} --precision fp32 --context-parallel-size 2 "
        f"--output {output_path}/passkey-tuned",
        num_ranks=2,
    )
    return steps


def export_check(output: Path) -> Check:
    """The export in transformers against the checkpoint in Megatron-Core, on the same rows."""
    actual = read_results(output / "loss" / "loss.json")[1]
    expected = read_result(output / "loss-transformers" / "loss.json")
    pairs = [(actual.loss(place), expected.loss(place)) for place in expected.bins]
    differences = [abs(a.score - b.score) for a, b in pairs if a and b]
    assert len(differences) == len(pairs), "both evaluations have the same bins"
    return Check(
        name="loss of the export in transformers: that of the checkpoint in Megatron-Core",
        figure=f"{max(differences):.1e} nats in the worst bin",
        bound="at most 1e-4 nats apart in every bin",
        passed=max(differences) <= 1e-4,
    )


def checks(output: Path, steps: Steps) -> tuple[Check, ...]:
    """Every figure against its bound."""
    bounds = Bounds()
    before, after, tuned = (
        read_result(output / f"passkey-{when}" / "passkey.json")
        for when in ("before", "after", "tuned")
    )
    chats = [read_result(output / f"chat-{when}" / "chat.json") for when in ("after", "tuned")]
    return (
        *loss_checks(read_results(output / "loss" / "loss.json"), bounds),
        *passkey_checks(before, after, bounds),
        export_check(output),
        *chat_checks(*chats, tuned, bounds),
        memory_check(steps.peak_memory / 2**30, bounds),
    )


def build_report(output: Path, steps: Steps) -> Report:
    """Figures and verdicts."""
    recipe, second = demo_cpu(), demo_sft_cpu()
    memory = psutil.virtual_memory().total / 2**30
    return gather_report(
        [output / folder for folder in RESULTS],
        title=f"A small Llama from {CONTEXT} to {SEQ_LENGTH:,} tokens on two CPU ranks",
        summary=(
            "The committed base model was extended in one step by the UltraLong recipe, on Python "
            "source code that holds no retrieval examples, then tuned on conversations of at most "
            f"{CONTEXT} tokens about functions, and evaluated on held-out documents, on passkey "
            "retrieval and on held-out conversations."
        ),
        command="make demo",
        settings={
            "base": f"examples/demo/base, context {CONTEXT}",
            "rotary scaling": f"YaRN, factor {recipe.rope.rope_scaling_factor:g}, "
            f"ramp over {recipe.rope.ramp}, attention factor {recipe.rope.attention_factor}",
            "rows": f"{SEQ_LENGTH} tokens, documents joined by <s>, "
            f"document mask {recipe.data.document_mask}",
            "training": f"{recipe.train_iters} iterations of {recipe.global_batch_size} rows, "
            f"lr {recipe.optimizer.lr:g} ({recipe.optimizer.lr_decay_style}), {recipe.precision}",
            "conversations": f"packed whole to rows of {SEQ_LENGTH} tokens, document mask "
            f"{second.data.document_mask}, positions restart in each",
            "tuning": f"{second.train_iters} iterations of {second.global_batch_size} rows, "
            f"lr {second.optimizer.lr:g} ({second.optimizer.lr_decay_style}), {second.precision}",
            "layout": "TP 1, CP 2, DP 1, PP 1 over gloo",
        },
        checks=checks(output, steps),
        wall_times=steps.wall_times,
        peak_memory_gib=steps.peak_memory / 2**30,
        machine=f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB",
    )


def main() -> None:
    """Run the demo; exit status 1 if a check fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="new folder")
    output = parser.parse_args().output
    try:
        steps = run_steps(output)
    except InputError as error:
        sys.exit(f"run_demo: {error}")
    report = build_report(output, steps)
    page = write_report(report, output / "report")
    print_report(report)
    print(f"\nreport: {page}")
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
