"""Releases of transformers read of an export what its report promises; each in its environment."""

from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.report import TRIED
from tests.patience import patience
from tools.try_exports import Exports, small, try_release

ENVIRONMENTS = Path(__file__).parent.parent.parent / ".venv-exports"
"""Kept: the first run installs them."""
NEVER_READ = {
    "rope-yarn": "4.50.3",
    "rope-yarn-temperature": "4.50.3",
    "rope-yarn-not-rounded": "4.52.4",
    "rope-yarn-longer": "4.55.4",
    "rope-yarn-own-temperature": "4.55.4",
    "wide-heads": "4.44.2",
    "tokenizer-five": "4.44.2",
    "tokenizer-spaced": "4.44.2",
    "tokenizer-two-templates": "4.50.3",
}
"""The last release tried that misreads an export: the bounds of reports are no wider than true."""


@pytest.fixture(scope="session")  # tests of other files run between these
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return small(tmp_path_factory.mktemp("exports"))


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))  # pip, the first time
@pytest.mark.parametrize("release", TRIED)
def test_a_release_reads_what_is_promised(exports: Exports, tmp_path: Path, release: str) -> None:
    found = try_release(ENVIRONMENTS, release, exports, tmp_path)
    wrong = [f"{o.export}, {o.part}: {o.fault}" for o in found if o.is_wrong]
    assert not wrong
    assert sum(o.promised for o in found) > len(found) / 2
    misread = {o.export for o in found if o.fault}
    assert {name for name, last in NEVER_READ.items() if last == release} <= misread
    # every export has a release from which on all of it is promised
    if release in TRIED[-3:]:
        assert all(o.promised for o in found)
