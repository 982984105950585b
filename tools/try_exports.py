"""Exports in the hands of transformers 4.43 to 5: what each release reads, what is promised.

::

    python -m tools.try_exports FOLDER                    # small exports of every kind
    python -m tools.try_exports FOLDER --export DIR       # your own export
    python -m tools.try_exports FOLDER --release 4.44.2

FOLDER keeps the environments, 100 MB each; torch is this environment's. Each release loads the
exports in a process of its own: logits, ids with and without special tokens, text, vocabulary, chat
templates, generation config, compared with what this project and the installed transformers make of
them. Exit status 1 where a release does not read what the report's ``good_for`` promises.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from megatron_ultralong.checkpoint.convert.report import TRIED
from megatron_ultralong.model.families import FAMILIES

from .export_matrix.cases import write_exports
from .export_matrix.comparison import Export, Outcome, export_good_for, outcomes
from .export_matrix.releases import install, probe

Exports = Mapping[str, Export]


def main() -> None:
    """Install, probe, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--export", type=Path, action="append", default=[])
    parser.add_argument("--release", action="append", choices=TRIED)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        exports = own(arguments.export) if arguments.export else small(Path(work))
        found = [
            outcome
            for release in arguments.release or TRIED
            for outcome in try_release(folder, release, exports, Path(work))
        ]
    print(table(found))
    wrong = [outcome for outcome in found if outcome.is_wrong]
    for outcome in wrong:
        print(f"{outcome.release}, {outcome.export}, {outcome.part}: {outcome.fault}")
    sys.exit(f"{len(wrong)} promises do not hold" if wrong else 0)


def small(folder: Path) -> Exports:
    """Exports of every kind, and what their reports promise."""
    return {
        name: Export(
            *(Path(report.output), source, report.good_for),
            has_tokenizer=name.split("-")[0] not in FAMILIES,
        )
        for name, (source, report) in write_exports(folder).items()
    }


def own(folders: list[Path]) -> Exports:
    """Exports of a user; what is promised is read off their files."""
    return {
        path.name: Export(path.resolve(), path.resolve(), export_good_for(path)) for path in folders
    }


def try_release(folder: Path, release: str, exports: Exports, work: Path) -> list[Outcome]:
    """What ``release`` reads in all exports."""
    python = install(folder, release)
    output = work / f"found-{release}"
    shutil.rmtree(output, ignore_errors=True)
    found = probe(python, [export.folder for export in exports.values()], output)
    return outcomes(release, found, output, exports)


def table(found: list[Outcome]) -> str:
    """A line for each release: parts that were read as promised, not as promised, the others."""
    lines = ["| transformers | as promised | not as promised | not promised: right, wrong |"]
    lines.append("| --- | --- | --- | --- |")
    releases: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in found:
        releases[outcome.release].append(outcome)
    for release, of_it in releases.items():
        counts = collections.Counter((o.promised, bool(o.fault)) for o in of_it)
        beyond = f"{counts[False, False]}, {counts[False, True]}"
        lines.append(f"| {release} | {counts[True, False]} | {counts[True, True]} | {beyond} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
