"""``ultralong doctor``: look at everything, say what to fix."""

import argparse
import dataclasses
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, NoReturn

from megatron_ultralong.config.parser_errors import unknown_flag
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.doctor.machine import machine_findings
from megatron_ultralong.doctor.software import DRIVER, python_finding, software_findings
from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.fields import Range, check_ranges, field_docstrings
from megatron_ultralong.program.ranks import check_variables, number_of, under_torchrun

SICK = 1
"""Exit status where a run cannot work here."""


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Check whether this machine, image and job can run the other verbs.

    The exit status is 0 if they can, and 1 otherwise. Under torchrun the ranks of the job are
    checked together; otherwise two ranks are started.
    """

    communication: bool = True
    """Start ranks, and measure an all-reduce and a step of ring attention."""
    gpus: bool = True
    """Test each GPU. ``--no-gpus`` only asks the driver and creates no CUDA context, for a health
    check next to a run; it needs ``--no-communication`` too."""
    megabytes: Annotated[int, Range(1, 4096)] = 64
    """Size of the all-reduce, in MiB."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        if rest := re.fullmatch(r"unrecognized arguments: (.*)", message):
            flag = rest[1].split()[0].split("=")[0]
            message = (
                unknown_flag(flag, known) if flag[:2] == "--" else f"{flag!r}: no flag takes it"
            )
            if flag == "--ranks":
                message = (
                    "--ranks is not known: doctor starts two ranks itself, and checks those of a "
                    "job under torchrun (`torchrun ... -m megatron_ultralong doctor`)"
                )
        elif wrong := re.fullmatch(r"argument (--\S+): invalid int value: (.*)", message):
            message = f"{wrong[1]} must be a whole number of MiB, plain, not {wrong[2]}"
        elif alone := re.fullmatch(r"argument (--\S+): expected one argument", message):
            message = f"{alone[1]} needs a value"
        raise InputError(f"{message}; see `{self.prog} --help`")


def parse(words: Sequence[str]) -> DoctorConfig:
    """The configuration of a command line, by the standard library: the others may be broken."""
    parser = _Parser("ultralong doctor", allow_abbrev=False, description=DoctorConfig.__doc__)
    helps = field_docstrings(DoctorConfig)
    for name in ("communication", "gpus"):
        default = getattr(DoctorConfig, name)
        kind = argparse.BooleanOptionalAction
        parser.add_argument(f"--{name}", action=kind, default=default, help=helps[name])
    size = DoctorConfig.megabytes
    text = f"{helps['megabytes']} (default: {size})"
    parser.add_argument("--megabytes", type=int, default=size, help=text)
    return DoctorConfig(**vars(parser.parse_args(words)))


def doctor(words: Sequence[str]) -> None:
    """Diagnose as a command line asks for.

    Raises:
        SystemExit: with :data:`SICK`, where a run cannot work here.
    """
    if status := diagnose(parse(words)):
        sys.exit(status)


def diagnose(config: DoctorConfig) -> int:
    """Print every finding as soon as it is there; returns the exit status.

    Raises:
        InputError: nothing to measure, ranks without GPUs, or a job's variables are no numbers.
    """
    check_ranges(config)
    check_variables()
    if config.communication and not config.gpus:
        raise InputError(
            "--no-gpus and --communication: ranks take the GPUs; give --no-communication too"
        )
    rank, local_rank = map(number_of, ("RANK", "LOCAL_RANK"))
    levels: Counter[str] = Counter()
    for finding in _findings(config):
        if isinstance(finding, str):
            tell(finding)
            continue
        levels[finding.level] += 1
        # Of the other ranks what is wrong: all problems, and warnings from one of each host.
        if rank == 0:
            _print(finding.line())
        elif finding.level == "problem" or (finding.level == "warning" and local_rank == 0):
            _print(f"rank {rank} on {socket.gethostname()}: {finding.line()}")
    if rank == 0:
        _print(", ".join(counted(levels[level], level) for level in ("problem", "warning", "note")))
    return SICK if levels["problem"] else 0


def _findings(config: DoctorConfig) -> Iterator[Finding | str]:
    """Findings, and lines about what comes next where it takes long."""
    has_problem = False
    # what is known at once comes first: torch and Megatron-Core take seconds to import
    yield python_finding()
    yield from machine_findings(has_gpu=DRIVER.exists())
    for finding in software_findings(use_gpus=config.gpus):
        has_problem |= finding.level == "problem"
        yield finding
    if not has_problem:
        from megatron_ultralong.doctor.software import serving_findings

        yield from serving_findings()
    if not config.communication:
        return
    try:
        from megatron_ultralong.doctor.communication import communication_findings
    except Exception as error:  # of a library that has a line above
        if not has_problem:
            raise
        text = f"not tried: {type(error).__name__}: {error}"
        yield Finding("note", "communication", text, "fix the problems above first")
        return
    yield f"{PROGRAM}: trying {'the ranks' if under_torchrun() else 'two ranks'} together ..."
    yield from communication_findings(config.megabytes)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
