"""The tests on several Pythons and releases of Megatron-Core, and the table of what came out.

::

    python tools/run_matrix.py                        # every leg (make test-matrix)
    python tools/run_matrix.py 3.12-0.19.2            # this one
    python tools/run_matrix.py --python ~/python3.12  # an interpreter to try first
    python tools/run_matrix.py --write                # the last results, into the pages

Each Python has an environment of its own under ``.venv-matrix``, which a leg's release of
Megatron-Core is installed into before its tests run; what came out stands beside it. A torch that
is not on disk is PyTorch's build for GPUs, 3 GB. Runs with Python alone: no package is needed.
"""

from __future__ import annotations

import argparse
import sys

from version_matrix.environment import ROOT, NotInstalledError, install
from version_matrix.leg import LEGS, Leg
from version_matrix.results import load, run_tests
from version_matrix.table import long_table, short_table, write_between


def main() -> None:
    """Run the legs named, or all; exit status 1 where one has not passed."""
    names = [leg.name for leg in LEGS]
    parser = argparse.ArgumentParser(description="The tests on several versions.")
    parser.add_argument("legs", nargs="*", metavar="LEG", help=f"of {', '.join(names)}; all")
    parser.add_argument("--python", action="append", default=[], help="an interpreter to try first")
    parser.add_argument("--write", action="store_true", help="only write the tables into the pages")
    arguments = parser.parse_args()
    if unknown := set(arguments.legs) - set(names):
        parser.error(f"no leg {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if arguments.write:
        write()
        return
    legs = [leg for leg in LEGS if leg.name in (arguments.legs or names)]
    if failed := [leg.name for leg in legs if not passes(leg, arguments.python)]:
        sys.exit(f"not passed: {', '.join(failed)}")


def passes(leg: Leg, pythons: list[str]) -> bool:
    """Install a leg, run its tests, say what came out."""
    print(f"== Python {leg.python}, Megatron-Core {leg.megatron_core}", flush=True)
    try:
        python = install(leg, pythons)
    except NotInstalledError as error:
        print(f"not run: {error}", flush=True)
        return False
    result = run_tests(leg, python)
    print(long_table([(leg, result)]), flush=True)
    return result.has_passed


def write() -> None:
    """Put the last results into README and the page of versions."""
    results = [(leg, result) for leg in LEGS if (result := load(leg)) is not None]
    if missing := {leg.name for leg in LEGS} - {leg.name for leg, _ in results}:
        sys.exit(f"no result of {', '.join(sorted(missing))}: run make test-matrix")
    write_between(ROOT / "README.md", short_table(results))
    write_between(ROOT / "docs" / "versions.md", long_table(results))


if __name__ == "__main__":
    main()
