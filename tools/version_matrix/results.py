"""What the tests of a leg came to: read off pytest's JUnit file, kept as JSON."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import os
import re
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

from .environment import FOLDER, ROOT
from .leg import Leg

SECONDS = 3600
"""That the tests of a leg may take."""
_VERSIONS = """
import importlib.metadata, json, platform
names = ("torch", "megatron-core", "transformers")
found = {name: importlib.metadata.version(name) for name in names}
print(json.dumps({"python": platform.python_version(), **found}))
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcomes of one leg, and what they were obtained with."""

    versions: dict[str, str]
    """Of Python and of the distributions that matter, as the environment says itself."""
    passed: int
    failed: list[str]
    left_out: dict[str, int]
    """Number of tests by the reason that they give."""
    seconds: float
    num_cores: int
    day: str

    @property
    def has_passed(self) -> bool:
        """Tests have run, and none has failed."""
        return self.passed > 0 and not self.failed


def run_tests(leg: Leg, python: Path) -> Result:
    """Run the leg's tests; what came out is on disk too."""
    report = FOLDER / f"{leg.name}.xml"
    report.unlink(missing_ok=True)
    asked = subprocess.run([python, "-c", _VERSIONS], check=True, capture_output=True, text=True)
    words = ["timeout", str(SECONDS), str(python), "-m", "pytest", "-q", f"--junitxml={report}"]
    words += ["--numprocesses", "3", "--dist", "loadfile", "--no-loadscope-reorder", *leg.tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"}
    start = time.monotonic()
    status = subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode
    passed, failed, left_out = read_report(report)
    if status and not failed:  # nothing was collected, a worker was lost, or time was over
        failed = [f"pytest ended with exit status {status}"]
    result = Result(
        versions=json.loads(asked.stdout),
        passed=passed,
        failed=failed,
        left_out=left_out,
        seconds=round(time.monotonic() - start, 1),
        num_cores=os.cpu_count() or 0,
        day=datetime.date.today().isoformat(),
    )
    _path(leg).write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def read_report(report: Path) -> tuple[int, list[str], dict[str, int]]:
    """Tests passed, names of those that failed, and the reasons of those left out."""
    passed, failed = 0, []
    left_out: collections.Counter[str] = collections.Counter()
    if not report.exists():
        return 0, [], {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            left_out[_reason(skipped)] += 1
        else:
            passed += 1
    return passed, failed, dict(left_out)


def _reason(skipped: ElementTree.Element) -> str:
    """Why a test was left out; of a whole file pytest says it in the text alone."""
    message = skipped.get("message", "")
    found = re.search(r"'Skipped: (.*)'\)", skipped.text or "")
    return found[1] if message == "collection skipped" and found else message


def load(leg: Leg) -> Result | None:
    """The last result of a leg; None without one."""
    path = _path(leg)
    return Result(**json.loads(path.read_text())) if path.exists() else None


def _path(leg: Leg) -> Path:
    return FOLDER / f"{leg.name}.json"
