"""Figures of the pages that come out of `plan` are what it says today."""

from __future__ import annotations

from tools import parallel_sizes, slurm_sizes


def test_the_sizes_for_slurm_are_those_of_the_plan() -> None:
    text = slurm_sizes.PAGE.read_text(encoding="utf-8")
    assert slurm_sizes.page(text) == text, "python -m tools.slurm_sizes"


def test_the_rule_for_parallel_sizes_is_judged_by_the_plan() -> None:
    text = parallel_sizes.PAGE.read_text(encoding="utf-8")
    assert parallel_sizes.page(text) == text, "python -m tools.parallel_sizes"
    ratios = [float(row[-1]) for row in parallel_sizes.rows()]
    assert max(ratios) <= 1.04, "the page says within 4 %"
    hardware = parallel_sizes.HARDWARE
    for link in (hardware.network_gb_per_second, hardware.nvlink_gb_per_second):
        assert f"{parallel_sizes.hidden_from(hardware, link):,}" in text


def test_the_ring_is_hidden_from_where_the_page_says() -> None:
    """The page's formula beside the plan's own ring."""
    hardware, length = parallel_sizes.HARDWARE, slurm_sizes.ROW_LENGTHS["1m"]
    least = parallel_sizes.hidden_from(hardware, hardware.network_gb_per_second)
    for cp, is_hidden in ((128, True), (256, False)):
        found = parallel_sizes.estimate("1m", 8 * cp, cp, "keep_attention", offload=False)
        (ring,) = (each for each in found.time.traffic if each.name.startswith("context"))
        assert (ring.exposed_seconds == 0) == is_hidden == (length / cp > least)
