"""What ``pretrain`` takes of a checkpoint and of rows, or refuses, the drop-in does too.

Every field of checkpoint, model, rotary embedding and rows is changed in a real file, which both
are shown (:mod:`tests.dropin.cases`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, unseal
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.cpu import replaced
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training import verbs
from tests.dropin.cases import CASES, YARN, sets
from tests.dropin.megatron_lm import EXAMPLE, flags, needs_megatron_lm, run
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

needs_megatron_lm()


def said_by_pretrain(config: PretrainConfig) -> tuple[list[str], Any]:
    """Its message or its notes, and what its checkpoints would say of themselves."""
    try:
        run = verbs.check_run(config, 1)
    except InputError as error:
        return [str(error)], None
    return list(run.notes()), run.result


def said_by_the_drop_in(
    config: PretrainConfig, folder: Path, changes: list[dict[str, Any]]
) -> list[tuple[list[str], Any]]:
    """Run on a rank: the same, of arguments of Megatron-LM with changes; nothing is trained."""
    from megatron.training import get_args

    from megatron_ultralong.dropin import entry
    from megatron_ultralong.dropin.extension import Extension

    found: list[tuple[list[str], Any]] = []

    def look() -> Any:
        for change in changes:
            args = argparse.Namespace(**{**vars(get_args()), **change})
            try:
                identity = Extension.of(args).identity
                found.append((list(identity.notes), identity.result))
            except InputError as error:
                found.append(([str(error)], None))
        raise SystemExit

    with replaced((entry, "_extension", look)):
        run(EXAMPLE, flags(config), folder / "said")
    return found


def changed(folder: Path, to: Path, name: str, change: Callable[[dict[str, Any]], None]) -> str:
    """A copy of a folder with another value in one of its files."""
    shutil.copytree(folder, to)
    values = json.loads((to / name).read_text())
    change(values)
    unseal(to)
    (to / name).write_text(json.dumps(values))
    return str(to)


def test_both_say_the_same_of_every_field(
    make_config: MakeConfig, tiny: Path, tmp_path: Path
) -> None:
    usual = make_config(None, (1, 1), train_iters=4)
    configs, changes = [], []
    for number, case in enumerate(CASES):
        load, rows = usual.load, usual.data.data_path
        if case.checkpoint is not None:
            load = changed(Path(load), tmp_path / f"base-{number}", FILE_NAME, case.checkpoint)
        if case.rows is not None:
            rows = changed(Path(rows), tmp_path / f"rows-{number}", "manifest.json", case.rows)
        is_whole = "rope_scaling" in case.rope
        rope = dataclasses.replace(RopeConfig() if is_whole else usual.rope, **case.rope)
        data = dataclasses.replace(usual.data, data_path=rows, document_mask=case.mask)
        configs.append(dataclasses.replace(usual, load=load, rope=rope, data=data))
        of_rope = {f"ultralong_{name}": value for name, value in vars(rope).items()}
        if is_whole:
            of_rope["ultralong_original_max_position_embeddings"] = 0
        its = {"load": load, "ultralong_data_path": rows, "ultralong_document_mask": case.mask}
        changes.append({**its, **of_rope})
    [found] = run_on_ranks(1, said_by_the_drop_in, usual, tmp_path, changes)
    wrong = []
    for case, config, (lines, result) in zip(CASES, configs, found, strict=True):
        lines = [line.replace("--ultralong-", "--") for line in lines]
        if case.says:
            if case.says not in lines[0] or result is not None:
                wrong.append(f"{case.field}: {lines}")
            continue
        expected, its_result = said_by_pretrain(config)
        if (lines, result) != (expected, its_result):
            wrong.append(
                f"{case.field} {case.rope}:\n  {expected}\n  {lines}\n  {its_result}\n  {result}"
            )
    assert not wrong, "\n".join(wrong)


def test_the_original_context_is_that_of_the_checkpoint(
    make_config: MakeConfig, tiny: Path, tmp_path: Path
) -> None:
    """Where the flag is not given, whatever the checkpoint was scaled by."""
    usual = make_config(None, (1, 1), train_iters=4)
    scaled = changed(Path(usual.load), tmp_path / "scaled", FILE_NAME, sets("rope_scaling", YARN))
    name = "ultralong_original_max_position_embeddings"
    changes = [{name: 0}, {name: 0, "load": scaled, "ultralong_rope_scaling_factor": 8.0}]
    [found] = run_on_ranks(1, said_by_the_drop_in, usual, tmp_path, changes)
    for (lines, result), context, length in zip(found, (64, 32), (128, 256), strict=True):
        assert lines[0].startswith(f"original context: {context}, that of the checkpoint in ")
        assert result.rope_scaling.original_max_position_embeddings == context
        assert result.model.max_position_embeddings == length
        assert not any("context before any scaling" in line for line in lines)
