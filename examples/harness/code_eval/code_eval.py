"""The metric ``code_eval``, by which the harness's humaneval tests the programs of a model.

For `evaluate.load`, with the arguments and results of the metric of that name on the hub. It runs
programs as this user: processes of their own, which have limits of time, memory and files, but can
read and write whatever this user can. Use a container that can lose everything.
"""

import contextlib
import itertools
import math
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import datasets
import evaluate

MAX_BYTES = 4 << 30
CHILD = """\
import os, sys
mark, program = sys.stdin.buffer.read().split(b"\\n", 1)
exec(program.decode(), {})
os.write(int(sys.argv[1]), mark)
os._exit(0)
"""
"""As the hub's metric runs a program. It writes the mark only where that has come to its end: a
program can also leave with status 0 before its tests."""


@contextlib.contextmanager
def new_folder():
    """A folder for a program, and removed after it, whatever stands in it.

    Python's own ``TemporaryDirectory`` ends in an error where thousands of folders stand in each
    other.
    """
    folder = tempfile.mkdtemp()
    try:
        yield folder
    finally:
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, "--", folder], stderr=subprocess.DEVNULL, check=False)


def passes(program: str, timeout: float) -> bool:
    """Whether Python runs ``program`` to its end, not only with status 0."""
    mark = secrets.token_hex(16).encode()
    try:
        text = program.encode()
    except UnicodeEncodeError:  # half of a character, which no file of Python holds
        return False
    reader, writer = os.pipe()
    os.set_blocking(reader, False)  # what the program has started may hold the other end

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with new_folder() as folder, open(reader, "rb", buffering=0) as marks:
        with open(writer, "wb", buffering=0):
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", CHILD, str(writer)],
                pass_fds=(writer,),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1"},
                preexec_fn=limit,
                start_new_session=True,
            )
        try:
            process.communicate(mark + b"\n" + text, timeout=timeout)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()
        return marks.read(len(mark)) == mark


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Chance that one of ``k`` of the samples is right (arXiv 2107.03374, equation 1)."""
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


class CodeEval(evaluate.Metric):
    """Share of problems that one of ``k`` programs solves."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("string")),
            "references": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description="pass@k", citation="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references, k=(1, 10, 100), num_workers=4, timeout=3.0):
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise ValueError(
                "code_eval runs programs that a model wrote: allow it by HF_ALLOW_CODE_EVAL=1"
            )
        programs = [
            [f"{program}\n{test}" for program in of_problem]
            for of_problem, test in zip(predictions, references, strict=True)
        ]
        with ThreadPoolExecutor(num_workers) as workers:
            every = workers.map(
                lambda one: passes(one, timeout), itertools.chain.from_iterable(programs)
            )
            results = [list(itertools.islice(every, len(of_problem))) for of_problem in programs]
        scores = {
            f"pass@{number}": sum(pass_at_k(len(right), sum(right), number) for right in results)
            / len(results)
            for number in k
            if all(len(right) >= number for right in results)
        }
        return scores, results
