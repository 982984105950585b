"""A cluster for the tests of a process, and a tiny run to submit to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Job, why_not
from tests.training.conftest import tiny  # noqa: F401 - a fixture
from tests.training.job import num_lines
from tests.warm.programs import ROOT

SCRIPTS = ROOT / "examples" / "slurm"
ENDLESS = 100_000


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster; skipped, by name, where it cannot run."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    yield cluster
    cluster.close()


class Run:
    """A folder of a run, and what is exported before ``sbatch``."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        tiny: Path,  # noqa: F811
        programs: Mapping[str, str],
    ) -> None:
        self.cluster = cluster
        self.root = folder / "run"
        self.jobs: list[Job] = []
        self.environment = {
            **programs,
            "CONTAINER": "none",
            "RECIPE": "demo-cpu",
            "LOAD": str(tiny / "base"),
            "DATA": str(tiny / "rows"),
            "SAVE": str(self.root),
            "LOGS": str(folder / "logs"),
            "GPUS_PER_NODE": "1",
            "WAIT_SECONDS": "5",
        }
        self.output = folder / "%x-%j.out"

    def submit(
        self, *words: str, script: str = "ultralong.sbatch", folder: Path | None = None
    ) -> Job:
        """``sbatch``: options before ``--``, words for the script behind it."""
        at = words.index("--") if "--" in words else len(words)
        number = self.cluster.run(
            *("sbatch", "--parsable", f"--output={self.output}", *words[:at]),
            *(script if "/" in script else str(SCRIPTS / script), *words[at + 1 :]),
            folder=folder,
            **self.environment,
        )
        return self.job(int(number))

    def chain(self, count: int, *words: str) -> list[Job]:
        """``submit_chain.sh``, by a user whose USER is not set."""
        chain = ["env", "--unset=USER", "bash", str(SCRIPTS / "submit_chain.sh"), str(count)]
        chain += [f"--output={self.output}", "--nodes=2", str(SCRIPTS / "ultralong.sbatch")]
        said = self.cluster.run(*chain, *words, **self.environment)
        return [self.job(int(line.split()[-1])) for line in said.splitlines()]

    def job(self, number: int) -> Job:
        self.jobs.append(Job(self.cluster, number))
        return self.jobs[-1]

    def until_more(self, job: Job, lines: int = 3) -> None:
        """Wait until the run's log has so many lines more."""
        before = num_lines(self.root)

        def has_more() -> bool:
            if num_lines(self.root) >= before + lines:
                return True
            assert not job.has_ended(), job.text
            return False

        self.cluster.wait(has_more)


@pytest.fixture
def run(
    slurm: Cluster,
    tmp_path: Path,
    tiny: Path,  # noqa: F811
    request: pytest.FixtureRequest,
) -> Iterator[Run]:
    """Nothing of its jobs is left after. Programs start warm where a test has ranks."""
    has_ranks = request.node.get_closest_marker("slurm") is not None
    programs = slurm.warm_environment if has_ranks else slurm.environment
    found = Run(slurm, tmp_path, tiny, programs)
    yield found
    for job in found.jobs:
        if not job.has_ended():
            job.cancel()


def flags(train_iters: int = ENDLESS) -> list[str]:
    """Of a run of two ranks over the tiny model; ``--`` before them is sbatch's end."""
    text = (
        f"-- --train-iters {train_iters} --global-batch-size 2 --save-interval 0 "
        "--log-interval 500 --seq-length 128 --rope-scaling-factor 2 "
        "--original-max-position-embeddings 64 --lr 1e-3 --lr-warmup-iters 2 "
        "--lr-decay-style constant --no-tensorboard --distributed-timeout-minutes 0.5"
    )
    return text.split()


Pauses = Callable[..., Path]


@pytest.fixture
def pauses(tmp_path: Path, run: Run) -> Pauses:
    """``pauses("scontrol", "show")``: shells of jobs wait before such a command.

    The folder that it returns says that one waits, and is removed to release it. ``once``: later
    ones do not wait.
    """

    def pause(command: str, word: str, *, once: bool = False) -> Path:
        reached, passed = tmp_path / f"before-{command}", tmp_path / f"passed-{command}"
        functions = tmp_path / "functions.sh"
        with functions.open("a") as file:
            file.write(
                f'{command}() {{ if [ "$1" = {word} ] && [ ! -e {passed} ] && mkdir {reached}; '
                f"then {f'touch {passed};' if once else ''} "
                f"while [ -e {reached} ]; do sleep 0.1; done; fi; "
                f'command {command} "$@"; }}\n'
            )
        run.environment["BASH_ENV"] = str(functions)
        return reached

    return pause
