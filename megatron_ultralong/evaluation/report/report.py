"""What stands in a report: results under folders and files, found, read and told apart."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation import commands, options
from megatron_ultralong.evaluation.report.measurement import Measurement, with_labels
from megatron_ultralong.evaluation.report.sections import sections
from megatron_ultralong.evaluation.report.table import ReportTable, Section, effective_table
from megatron_ultralong.evaluation.results.file import FIX, claimed_kind, read_results
from megatron_ultralong.evaluation.results.result import KINDS, Result, now, versions
from megatron_ultralong.program import aside, fields, json_file, output
from megatron_ultralong.program.errors import InputError, counted

_FILE_NAMES = {"loss.json", *(f"{kind}.json" for kind in KINDS)}


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What was found."""

    measurements: tuple[Measurement, ...]
    """Those of each benchmark by trained positions, then in the order they were found."""
    notices: tuple[str, ...]
    """What a reader has to know of them, and what was left out."""


def gather(runs: Sequence[str | Path]) -> Gathered:
    """Results of ``runs``: files, and folders that are searched to their bottom.

    Folders that end in ``.partial`` are left out, and named in the notices.

    Raises:
        InputError: a run is absent or unfinished, a file is damaged or no result, or there are no
            results at all.
    """
    if not runs:
        raise InputError(
            "RUN is needed: folders that `ultralong evaluate ... --output` wrote, or files in them"
        )
    found: list[Measurement] = []
    notices, empty = list[str](), list[str]()
    seen: set[Path] = set()
    for run in map(Path, runs):
        num_notices = len(notices)
        files = list(_result_files(run, notices))
        for path in files:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                results = load_results(path)
                found += [Measurement(result.checkpoint, result, path) for result in results]
        if not files and len(notices) == num_notices:
            empty.append(f"{run} holds no results of an evaluation")
    if not found:
        left_out = f"; {'; '.join(notices)}" if notices else ""
        raise InputError(
            f"no results in {', '.join(map(str, runs))}: name folders that `ultralong evaluate "
            f"... --output` wrote, or files in them{left_out}"
        )
    notices += empty
    found = _without_copies(found, notices)
    kinds = list(dict.fromkeys((*KINDS, *(one.result.kind.name for one in found))))
    found.sort(key=lambda one: (kinds.index(one.result.kind.name), one.result.max_positions))
    labelled, label_notices = with_labels(found)
    return Gathered(tuple(labelled), tuple(dict.fromkeys((*label_notices, *notices))))


def load_results(path: str | Path) -> tuple[Result, ...]:
    """The results in a file, of whatever benchmark.

    Raises:
        InputError: the file is absent or damaged, or holds no result.
    """
    found = claimed_kind(Path(path))
    if found is None or not found[1]:
        raise InputError(
            f"{path} holds {repr(found[0]) if found else 'other JSON'}, not a result of an "
            f"evaluation: name a file that holds one of {', '.join(KINDS)}"
        )
    results = read_results(path)
    for k, one in enumerate(results):
        _check_flags(one, f"{path}: results.{k}")
    return results


def _check_flags(result: Result, where: str) -> None:
    """Raise InputError where flags are out of their ranges, or the cells not what they ask for.

    Of the benchmarks that are known here; of others nothing but the form is.
    """
    name = {"position_loss": "loss"}.get(result.kind.name, result.kind.name)
    config, flags = result.config, commands.FLAGS.get(name)
    for number in fields.numbers_of(flags) if flags else ():
        if number.name in config:
            fields.check_number(flags, number, config[number.name], where=f"{where}.config")
    known = KINDS.get(result.kind.name, result.kind)
    for name in ("rows", "columns"):
        value, expected = getattr(result.kind, name), getattr(known, name)
        if value != expected:
            raise InputError(
                f"{where}.kind.{name} is '{value}', of '{known.name}' it is '{expected}': {FIX}"
            )
    for k, cell in enumerate(result.cells if flags and known.rows == "depths" else ()):
        most = min(cell.num_samples, config.get("num_samples", cell.num_samples))
        for name, value, asked in (
            ("row", float(cell.row), config.get("depths", ())),
            ("column", int(cell.column), config.get("lengths", ())),
            ("num_samples", cell.num_samples, [most]),  # files of several runs have fewer
        ):
            asked = asked if isinstance(asked, Sequence) else [asked]  # in a damaged file
            if not any(math.isclose(value, one) for one in asked):
                shown = ", ".join(f"{one:g}" for one in asked)
                raise InputError(
                    f"{where}.cells.{k}: {name} is {value:g}, its flag has {shown}: {FIX}"
                )


def _result_files(run: Path, notices: list[str]) -> Iterator[Path]:
    if any(part.endswith(aside.SUFFIX) for part in (run.name, run.parent.name)):
        raise InputError(
            f"{run} belongs to an unfinished evaluation: the command that started it continues "
            "there; name its folder when it is done"
        )
    if run.is_file():
        yield run
        return
    if not run.is_dir():
        raise InputError(f"RUN {run} does not exist: name a folder or a file with results")

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot search {error.filename} ({error.strerror}): name other folders")

    for folder, folders, files in os.walk(run, onerror=refuse):
        folders.sort()
        for name in [name for name in folders if name.endswith(aside.SUFFIX)]:
            folders.remove(name)
            notices.append(_unfinished(Path(folder) / name))
        for name in sorted(files):
            path = Path(folder) / name
            if name.endswith(".json") and _is_result(path, notices):
                yield path


def _is_result(path: Path, notices: list[str]) -> bool:
    """Whether a file in a folder is to be read; what could be one and is not is named."""
    try:
        found = claimed_kind(path)
    except InputError:
        if path.name in _FILE_NAMES:
            raise
        notices.append(f"{path} cannot be read as JSON: left out")
        return False
    if found and not found[1] and found[0] != "report":
        notices.append(f"{path} holds '{found[0]}', which this version does not know: left out")
    return found is not None and found[1]


def _unfinished(folder: Path) -> str:
    """What is said of a folder that an evaluation has not finished, or a conversion."""
    try:
        identity: dict[str, Any] = json_file.read_json(folder / output.WORK_FILE)
        with (folder / output.RECORDS_FILE).open("rb") as lines:
            num_samples = sum(1 for _ in lines)
        what = f"{identity['kind']} of '{identity['checkpoint']}', "
        what += f"{counted(num_samples, 'sample')} noted"
    except (OSError, InputError, KeyError, TypeError):
        return f"{folder} is not finished: left out"
    return (
        f"{folder} is not finished ({what}): left out; the command that started it continues there"
    )


def _without_copies(found: list[Measurement], notices: list[str]) -> list[Measurement]:
    kept: list[Measurement] = []
    for one in found:
        first = next((k for k in kept if k.result == one.result), None)
        if first is None:
            kept.append(one)
        else:
            of = first.source if first.source != one.source else f"'{one.result.checkpoint}' twice"
            notices.append(f"{one.source} holds the result of {of}: shown once")
    return kept


@dataclasses.dataclass(frozen=True)
class Check:
    """One figure against its bound."""

    name: str
    figure: str
    """What was measured, in words."""
    bound: str
    """What was asked for, in words."""
    passed: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that stands in a report. Results alone are needed."""

    title: str
    command: str
    """What a reader types to get the same."""
    gathered: Gathered
    summary: str = ""
    """One or two sentences on what was done."""
    checks: tuple[Check, ...] = ()
    """Figures against what was asked of them."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The recipe: name of a setting and its value."""
    wall_times: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds of every step, in the order they ran."""
    peak_memory_gib: float | None = None
    """Of all processes together."""
    machine: str = ""
    """Processors and memory the run had."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)
    """Of what made the page; those of the results stand with them."""
    date: str = dataclasses.field(default_factory=now)
    threshold: float = options.RULER_THRESHOLD
    """Of effective lengths."""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @functools.cached_property
    def sections(self) -> tuple[Section, ...]:
        """Pictures and tables, made once."""
        return sections(self.gathered.measurements, self.threshold)

    @property
    def effective(self) -> ReportTable | None:
        """Effective lengths of all checkpoints side by side; None: no benchmark has lengths."""
        return effective_table(self.sections, self.threshold)


def gather_report(runs: Sequence[str | Path], *, title: str = "", **others: Any) -> Report:
    """A report of the results of ``runs``; ``others`` are further fields of :class:`Report`.

    Raises:
        InputError: as :func:`~megatron_ultralong.evaluation.report.report.gather`.
    """
    gathered = gather(runs)
    names = list(dict.fromkeys(one.result.checkpoint for one in gathered.measurements))
    shown = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    if len(names) > 4:
        shown = f"{counted(len(names), 'checkpoint')}"
    return Report(title=title or f"Evaluation of {shown}", gathered=gathered, **others)
