"""An evaluation that stands in ``--output``: whether another command asks the same of its model.

Then there is nothing to do. It is told by what an interrupted one is told by: what decides all of
its samples (``evaluation.json``), and the hash of all that decides each of them (the keys in
``samples.jsonl``). Its figures are counted again from these samples, and no model is loaded.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.results import result
from megatron_ultralong.evaluation.results.file import LOSS_FILE, read_results
from megatron_ultralong.evaluation.results.result import Result, ScoreCell, plain_values
from megatron_ultralong.program import journal
from megatron_ultralong.program.difference import value_difference
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.program.output import EVALUATION_FILE, SAMPLES_FILE

FREE = frozenset({"output", "micro_batch_size", "beyond_trained_positions"})
"""Flags that decide no figure."""


class FinishedEvaluation:
    """A folder of :func:`~megatron_ultralong.program.journal.open_journal`, to compare with.

    Its methods raise InputError where another command wrote it, and say what differs.
    """

    def __init__(self, folder: str | Path, name: str, config: Any) -> None:
        """Open it; ``config`` are the flags of the benchmark ``name`` that is asked for now."""
        self.folder = Path(folder)
        self._config = plain_values(config)
        file = self.folder / f"{name}.json"
        self._result = read_results(file, name)[0] if file.is_file() else None
        self._journal = journal.Journal.of_finished(self.folder)

    def journal(self, kind: str, identity: Mapping[str, Any]) -> journal.Journal:
        """Its samples, if ``identity`` is that of its own; see ``open_journal``.

        What it does not state, being of an earlier version, is not compared.
        """
        file = self.folder / EVALUATION_FILE
        if not file.is_file():
            raise _another(self.folder, "kind", "loss", kind)
        check_same(self.folder, read_json(file), {"kind": kind, **identity})
        return self._journal

    def check_samples(
        self, keys: Sequence[str], config: Any = None, material: Mapping[str, str] | None = None
    ) -> None:
        """Check that it has all of these samples, made with ``config`` of this ``material``."""
        lacking = {*keys} - {*self._journal.entries}
        if lacking:
            self._check_flags(config, material or {})
            raise _another(
                self.folder,
                "samples",
                f"those in {SAMPLES_FILE}",
                f"others, {len(lacking)} of {len({*keys})}, by files or packages that have changed",
            )

    def check_result(self, measured: Result | None) -> None:
        """Check that the figures are those that its samples have now."""
        before = self._result
        if before is None and measured is None:
            return
        if before is None or measured is None:
            figures = ("none" if one is None else "some" for one in (before, measured))
            raise _another(self.folder, "figures", *figures)
        old, new = _figures(before), _figures(measured)
        is_same = old.keys() == new.keys() and all(
            old[place][0] == new[place][0] and result.is_close(old[place][1], new[place][1])
            for place in old
        )
        if not is_same:
            self._check_flags(measured.config, measured.material)
        for place in dict.fromkeys((*old, *new)):
            pair = [_told(figures.get(place)) for figures in (old, new)]
            if not is_same and pair[0] != pair[1]:
                raise _another(self.folder, ", ".join(place), *pair)
        check_same(self.folder, {"material": before.material}, {"material": measured.material})
        check_same(self.folder, {"metrics": before.metrics}, {"metrics": measured.metrics})

    def _check_flags(self, config: Any, material: Mapping[str, str]) -> None:
        """Name the flag or the file that differs, if one does."""
        if self._result is not None:
            now = self._config if config is None else plain_values(config)
            check_flags(self.folder, self._result.config, now)
            check_same(self.folder, {"material": self._result.material}, {"material": material})


def check_loss(
    folder: Path, config: Any, models: Sequence[Mapping[str, str]], material: Mapping[str, str]
) -> None:
    """Check that the losses in a folder are those of these models on these rows.

    ``models`` are what tells each from others, see ``ModelFacts.identity``.

    Raises:
        InputError: another command wrote it, and what differs.
    """
    if not (folder / LOSS_FILE).is_file():
        kind = read_json(folder / EVALUATION_FILE).string("kind")
        raise _another(folder, "kind", kind, "loss")
    before = read_results(folder / LOSS_FILE, "position_loss")
    names = [one.checkpoint for one in before]
    check_same(folder, {"checkpoints": names}, {"checkpoints": [m["checkpoint"] for m in models]})
    for one, model in zip(before, models, strict=True):
        stated = plain_values(one.model) if one.model else {}
        stated = {f"{one.checkpoint}, {name}": text for name, text in stated.items() if text}
        check_same(folder, stated, {f"{one.checkpoint}, {name}": model[name] for name in model})
    check_same(folder, before[0].material, material)
    its = {name: value for name, value in plain_values(config).items() if name != "data_path"}
    check_flags(folder, before[0].config, its)


def check_flags(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare flags that decide figures; those that an earlier version did not have are none."""
    check_same(folder, before, {key: value for key, value in now.items() if key not in FREE})


def check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare JSON values by their names, as far as both have them.

    Raises:
        InputError: one differs; it is named, with both values.
    """
    now = json.loads(json.dumps(plain_values(now)))
    for key in now:
        if key not in before:
            continue
        old, new = before[key], now[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            check_same(folder, {f"{key}, {k}": v for k, v in old.items()},
                       {f"{key}, {k}": v for k, v in new.items()})  # fmt: skip
        elif json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            raise _another(folder, *value_difference(key, old, new))


def _another(folder: Path, name: str, before: str, now: str) -> InputError:
    return InputError(
        f"--output {folder} holds the result of another evaluation: its {name} was {before}, now "
        f"it is {now}; existing files are not overwritten: name another --output, or remove that "
        "folder"
    )


def _figures(one: Result) -> dict[tuple[str, str], tuple[int, float | None]]:
    return {(cell.row, cell.column): _figure(cell) for cell in one.cells}


def _figure(cell: ScoreCell) -> tuple[int, float | None]:
    return cell.num_samples, cell.score


def _told(figure: tuple[int, float | None] | None) -> str:
    return "not there" if figure is None else f"{figure[1]} of {figure[0]} samples"
