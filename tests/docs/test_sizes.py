"""Figures of the pages that come out of `plan`, or of files, are what these say today."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.program.errors import InputError
from tests.docs.blocks import blocks
from tests.warm.programs import ROOT
from tools import parallel_sizes, recipe_sizes, slurm_sizes, smollm2_tables, whole_way


def test_the_sizes_for_slurm_are_those_of_the_plan() -> None:
    text = slurm_sizes.PAGE.read_text(encoding="utf-8")
    assert slurm_sizes.page(text) == text, "python -m tools.slurm_sizes"


def test_the_readme_says_the_same_hours() -> None:
    hours = {
        target: [slurm_sizes.size(target, num_gpus).hours for num_gpus in (8, 64, 256)]
        for target in ("1m", "4m")
    }
    short, long = (
        [f"{each:.1f}" if each < 9.95 else f"{each:.0f}" for each in hours[target]]
        for target in ("1m", "4m")
    )
    text = (slurm_sizes.PAGE.parent.parent / "README.md").read_text(encoding="utf-8")
    assert (
        f"at 1M {short[0]} hours on 8 GPUs, {short[1]} on 64, {short[2]} on 256; "
        f"at 4M {long[0]}, {long[1]} and {long[2]}"
    ) in text


def test_the_block_for_one_node_has_that_row_s_flags_and_signal() -> None:
    its = slurm_sizes.size("1m", 8)
    (block,) = (
        block
        for block in blocks(slurm_sizes.PAGE)
        if re.search(r"sbatch --nodes 1 .*ultralong\.sbatch", block.text)
    )
    words = block.text.replace("\\\n", " ").split()
    assert its.flags in " ".join(words)
    assert f"--signal {its.cells[-1].strip('`')} " in " ".join(words)


def test_the_rule_for_parallel_sizes_is_judged_by_the_plan() -> None:
    text = parallel_sizes.PAGE.read_text(encoding="utf-8")
    assert parallel_sizes.page(text) == text, "python -m tools.parallel_sizes"
    ratios = [float(row[-1]) for row in parallel_sizes.rows()]
    assert max(ratios) <= 1.07, "the page says within 7 %"
    hardware = parallel_sizes.HARDWARE
    for link in (hardware.network_gb_per_second, hardware.nvlink_gb_per_second):
        assert f"{parallel_sizes.hidden_from(hardware, link):,}" in text


def test_what_machines_can_train_is_what_the_plan_says() -> None:
    text = recipe_sizes.PAGE.read_text(encoding="utf-8")
    assert recipe_sizes.page(text) == text, "python -m tools.recipe_sizes"
    for its in recipe_sizes.estimates():
        assert its.refusal is None
    block = text.split("## On GPUs")[1]
    assert "--offload-activations" in recipe_sizes.flags_of(8, 2**19)
    assert "--tensor-model-parallel-size 1 " in recipe_sizes.flags_of(8, 2**19)
    assert "extend --load base --data-path rows --save run --ranks 8 --offload-activations" in block


def test_the_ring_is_hidden_from_where_the_page_says() -> None:
    """The page's formula beside the plan's own ring."""
    hardware, length = parallel_sizes.HARDWARE, slurm_sizes.ROW_LENGTHS["1m"]
    least = parallel_sizes.hidden_from(hardware, hardware.network_gb_per_second)
    for cp, is_hidden in ((128, True), (256, False)):
        found = parallel_sizes.estimate("1m", 8 * cp, cp, "keep_attention", offload=False)
        (ring,) = (each for each in found.time.traffic if each.name.startswith("context"))
        assert (ring.exposed_seconds == 0) == is_hidden == (length / cp > least)


def test_the_whole_way_takes_what_its_scripts_say() -> None:
    text = whole_way.PAGE.read_text(encoding="utf-8")
    assert whole_way.page(text) == text, "python -m tools.whole_way"
    for script in whole_way.SCRIPTS.glob("0*.sh"):
        its = whole_way.facts(script)
        assert set(its) == set(whole_way.FACTS), script.name
        for name in ("time", "memory"):
            marks = ("measured:", "computed", "not run", "download", "little", "less than")
            assert any(mark in its[name] for mark in marks), its
    for number, name, figure in whole_way.computed():
        (script,) = whole_way.SCRIPTS.glob(f"{number}_*.sh")
        assert figure in whole_way.facts(script)[name], f"{script.name}: {figure}"


def test_the_whole_way_is_computed_with_its_own_settings() -> None:
    settings = (whole_way.SCRIPTS / "settings.sh").read_text(encoding="utf-8")
    for target, prompts in whole_way.PROMPTS.items():
        line = next(line for line in settings.splitlines() if line.startswith(f"    {target})"))
        assert f"SEQ_LENGTH:-{slurm_sizes.ROW_LENGTHS[target]}}}" in line
        assert f"PROMPTS:-{prompts}}}" in line
        assert f"LOSS_ROWS:-{whole_way.LOSS_ROWS[target]}}}" in line
    depths = settings.split("DEPTHS:-")[1].split("}")[0].split()
    assert len(depths) == whole_way.NUM_DEPTHS
    assert f"LENGTHS:-$(lengths {whole_way.SHORTEST} " in settings


def test_the_tables_of_results_are_those_of_their_files() -> None:
    text = smollm2_tables.PAGE.read_text(encoding="utf-8")
    assert smollm2_tables.page(text) == text, "python -m tools.smollm2_tables"


def test_the_tables_of_results_do_not_depend_on_the_order_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took the first for the model before its training, whatever its name was."""
    expected = smollm2_tables.tables()
    results = tmp_path / "smollm2"
    shutil.copytree(smollm2_tables.RESULTS, results)
    for file in results.rglob("*.json"):
        values = json.loads(file.read_text())
        if file.name != "choices.json" and "results" in values:  # that table has the file's order
            values["results"].reverse()
            file.write_text(json.dumps(values))
    for name in ("FIRST", "FOURTH", "FIFTH", "LATER", "RESULTS"):
        folder = getattr(smollm2_tables, name).relative_to(smollm2_tables.RESULTS)
        monkeypatch.setattr(smollm2_tables, name, results / folder)
    assert smollm2_tables.tables() == expected
    with pytest.raises(
        InputError, match="has results of before, after, and its table is of before"
    ):
        smollm2_tables.read(ROOT / "docs/smollm2/first/needle.json", "needle", "before")


@pytest.mark.parametrize(("right", "asked"), [(0, 10), (24, 40), (40, 40), (1, 20)])
def test_an_interval_ends_where_its_shares_are_just_likely(right: int, asked: int) -> None:
    """Wilson's definition: the share is 1.96 of the end's own standard deviations away from it."""
    share = right / asked
    for end in smollm2_tables.interval(right, asked):
        true = end / 100
        deviations = abs(share - true) - 1.96 * math.sqrt(true * (1 - true) / asked)
        assert math.isclose(deviations, 0, abs_tol=1e-9)
