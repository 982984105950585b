from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import pytest
from rich.console import Console

from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.config import LossConfig, PasskeyConfig
from megatron_ultralong.evaluation.loss_result import CheckpointLoss, LossResult, PositionBin
from megatron_ultralong.evaluation.passkey_result import PasskeyCell, PasskeyResult
from megatron_ultralong.evaluation.report import Report, print_report, write_report
from megatron_ultralong.evaluation.verdicts import Bounds, Check, loss_checks, passkey_checks

DATE = "2026-01-31T12:00:00+00:00"
EDGES = (0, 256, 512, 1024, 2048)
BEFORE, AFTER = (3.2, 3.0, 4.5, 6.0), (3.24, 3.04, 3.1, 3.14)


def checkpoint(name: str, max_positions: int, losses: tuple[float, ...]) -> CheckpointLoss:
    bins = zip(EDGES[:-1], EDGES[1:], losses, strict=True)
    return CheckpointLoss(
        name, max_positions, tuple(PositionBin(a, b, b - a, x, 0.01, 0.4) for a, b, x in bins)
    )


def loss_result(before=BEFORE, after=AFTER) -> LossResult:
    both = (checkpoint("before", 512, before), checkpoint("after", 2048, after))
    return LossResult(LossConfig(data_path="rows"), 2048, 8, both, DATE, {})


def passkey_result(name: str, max_positions: int, retrieved: dict[int, int]) -> PasskeyResult:
    config = PasskeyConfig(lengths=tuple(retrieved), depths=(0.0, 50.0), num_samples=10)
    cells = tuple(
        PasskeyCell(length, depth, 10, count, 0.5)
        for length, count in retrieved.items()
        for depth in config.depths
    )
    return PasskeyResult(config, name, max_positions, cells, DATE, {})


def passkeys(inside=9, beyond=1, full=8) -> tuple[PasskeyResult, PasskeyResult]:
    return (
        passkey_result("before", 512, {512: inside, 1024: 0, 2048: beyond}),
        passkey_result("after", 2048, {512: 9, 1024: 9, 2048: full}),
    )


@pytest.fixture
def report() -> Report:
    before, after = passkeys()
    return Report(
        title="From 512 to 2,048 <tokens>",
        summary="A small Llama & its extension.",
        command="make demo",
        settings={"rope_scaling": "yarn", "train_iters": 60},
        loss=loss_result(),
        passkey_before=before,
        passkey_after=after,
        wall_times={"prepare": 10.0, "pretrain": 120.0},
        peak_memory_gib=2.5,
        machine="2 CPU cores",
        versions={"torch": "2.13.0"},
        date=DATE,
        extra_checks=(Check("weights of import and export", "21 of 21 equal", "equal", True),),
    )


# The base's mean inside its 512 positions is 3.1: 3.35 and 3.15 are the bounds beyond.
@pytest.mark.parametrize(
    ("before", "after", "verdicts"),
    [
        (BEFORE, AFTER, [True, True, True]),
        ((3.2, 3.0, 3.36, 6.0), AFTER, [True, True, True]),
        ((3.2, 3.0, 3.34, 6.0), AFTER, [False, True, True]),
        (BEFORE, (3.2, 3.0, 3.0, 3.16), [True, False, True]),
        (BEFORE, (3.2, 3.06, 3.0, 3.0), [True, True, False]),
        (BEFORE, (3.26, 3.0, 3.0, 3.0), [True, True, False]),
    ],
)
def test_losses_are_held_against_the_base_inside_its_context(before, after, verdicts):
    checks = loss_checks(loss_result(before, after), Bounds())
    assert [check.passed for check in checks] == verdicts
    assert "3.100 + 0.25" in checks[0].bound
    assert "3.100 + 0.05" in checks[1].bound


@pytest.mark.parametrize(
    ("counts", "verdicts"),
    [
        ((9, 1, 8), [True, True, True]),
        ((8, 1, 8), [False, True, True]),
        ((9, 2, 8), [True, False, True]),
        ((9, 1, 7), [True, True, False]),
    ],
)
def test_passkeys_are_held_against_their_bounds(counts, verdicts):
    checks = passkey_checks(*passkeys(*counts), Bounds())
    assert [check.passed for check in checks] == verdicts


def test_what_was_not_measured_does_not_pass():
    inside_only = passkey_result("before", 512, {256: 10})
    checks = passkey_checks(inside_only, passkeys()[1], Bounds())
    assert (checks[1].passed, checks[1].figure) == (False, "not measured")
    beyond_only = passkey_result("before", 512, {1024: 0})
    checks = passkey_checks(beyond_only, passkeys()[1], Bounds())
    assert (checks[0].passed, checks[0].figure) == (False, "not measured")
    whole = loss_result()
    trained_longer = tuple(
        dataclasses.replace(part, max_positions=4096) for part in whole.checkpoints
    )
    checks = loss_checks(dataclasses.replace(whole, checkpoints=trained_longer), Bounds())
    assert [check.figure for check in checks[:2]] == ["not measured", "not measured"]
    assert not any(check.passed for check in checks[:2])


class Page(HTMLParser):
    """Tags that are open, and every address that the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_else_and_holds_every_figure(report, tmp_path):
    path = write_report(report, tmp_path / "report")
    files = ["index.html", "loss.png", "passkey.png", "report.json"]
    assert sorted(file.name for file in path.parent.iterdir()) == files
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.addresses) == 2
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for part in ("@import", "url(", "<script", "http:", "https:"):
        assert part not in text
    shown = " ".join(page.words)
    for words in (
        "From 512 to 2,048 <tokens>",
        "A small Llama & its extension.",
        "make demo",
        "9 of 9 passed",
        "4.500 ± 0.010 (90.0)",
        "3.140 ± 0.010 (23.1)",
        "reference: mean inside 512",
        "80 % (80 %)",
        "21 of 21 equal",
        "rope_scaling",
        "130.0 s, 2.50 GiB at the peak",
        "2.13.0",
    ):
        assert words in shown
    values = json.loads((path.parent / "report.json").read_text())
    assert values["passed"] is True
    assert len(values["checks"]) == 9
    assert values["loss"]["checkpoints"][0]["bins"][2]["loss"] == 4.5


def test_a_failed_check_shows_everywhere(report, tmp_path):
    report = dataclasses.replace(report, peak_memory_gib=7.0, wall_times={"pretrain": 400.0})
    assert not report.passed
    text = write_report(report, tmp_path / "report").read_text(encoding="utf-8")
    assert "7 of 9 passed" in text
    assert text.count('<span class="verdict fail">') == 2
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(report, console)
    printed = console.export_text()
    assert printed.count("FAIL") == 2
    assert "at most 6 GiB" in printed


def test_a_report_is_not_written_over(report, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 1 entries, notes\.txt among them"):
        write_report(report, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_is_left_behind_by_a_report_that_fails(report, tmp_path):
    broken = dataclasses.replace(report, settings={"lr": object()}, versions={"torch": None})
    with pytest.raises(AttributeError):
        write_report(broken, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []
