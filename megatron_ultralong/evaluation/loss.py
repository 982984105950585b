"""Loss by position on held-out rows: where in its context a model predicts how well."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.rows.manifest import FILE_NAME, load_manifest
from megatron_ultralong.data.rows.packed import PackedRows, rows_of
from megatron_ultralong.evaluation.asking.samples import Prompt, Row, Sample, ask, scoring
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.options import LossConfig, check_num_samples
from megatron_ultralong.evaluation.results import file, result, tables
from megatron_ultralong.evaluation.results.model_record import ModelRecord
from megatron_ultralong.program import journal, output, rank_values, terminal
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.position_bins import bin_edges, bin_sums

FloatArray = npt.NDArray[np.float64]


def evaluate_loss(
    config: LossConfig,
    scorers: Sequence[interface.Scorer],
    separator_ids: Sequence[int] = (),
    records: Sequence[ModelRecord] = (),
    asked: Sequence[Mapping[str, Any]] = (),
    is_finished: Callable[[], bool] = lambda: False,
) -> list[result.Result]:
    """Measure the loss of ``scorers``, the base first, by position.

    Every rank calls this; the main one prints a table, and writes JSON and a picture, which state
    the ``records`` of the scorers and what was ``asked`` of each. ``document_mask: block`` needs
    ``separator_ids``. ``is_finished``: called where the output folder cannot be written, whether
    another process has written the same meanwhile.

    Raises:
        InputError: the output folder holds something, or as :func:`measure_position_loss`.
    """
    if config.output:
        check = functools.partial(output.check_output, config.output)
        rank_values.from_main_rank(check, is_main=scorers[0].is_main)
    results = measure_position_loss(config, scorers, separator_ids)
    if records:
        pairs = zip(results, records, strict=True)
        results = [dataclasses.replace(one, model=record) for one, record in pairs]
    if asked:
        both = zip(results, asked, strict=True)
        results = [dataclasses.replace(one, asked=question) for one, question in both]
    if scorers[0].is_main:
        terminal.Console().print(tables.loss_table(results))
        if config.output:
            from megatron_ultralong.evaluation.results.pictures import draw

            try:
                with output.output_folder(config.output, "evaluate loss") as folder:
                    file.write_results(folder.path / file.LOSS_FILE, results)
            except InputError:
                if is_finished():
                    return results
                raise
            draw(results, Path(config.output) / "loss.png")
    return results


def measure_position_loss(
    config: LossConfig, scorers: Sequence[interface.Scorer], separator_ids: Sequence[int] = ()
) -> list[result.Result]:
    """Loss by position of ``scorers`` on the first rows of a split.

    Raises:
        InputError: too few rows, rows too short or beyond a checkpoint's positions, or token ids
            that a model does not know.
    """
    config.check()
    if config.document_mask == "block" and not separator_ids:
        raise InputError(
            "document_mask 'block' needs the ids that separate documents, and the rows have none: "
            "use --document-mask none, or rows from `ultralong prepare`"
        )
    manifest, rows = Path(config.data_path) / FILE_NAME, _rows(config)
    where = f"{config.data_path} ({config.split})"
    check_num_samples(config.num_samples, len(rows), f"rows of {where}", ", or prepare more text")
    seq_length, num_rows = config.seq_length or rows.seq_length, config.num_samples or len(rows)
    if not 2 <= seq_length <= rows.seq_length:
        raise InputError(
            f"seq_length ({seq_length}) must be between 2 and the {rows.seq_length} tokens of a "
            f"row of {where}: use 0 for whole rows, or prepare longer ones"
        )
    for scorer in scorers:
        interface.check_length(scorer, seq_length, config.beyond_trained_positions)
    edges = bin_edges(seq_length, config.smallest_bin, [one.max_positions for one in scorers])
    # Equal manifests are of equal rows; rows from elsewhere have none.
    material = {FILE_NAME: file.file_sha256(manifest)} if manifest.is_file() else {}
    results = []
    for scorer in scorers:
        sums = _row_sums(config, scorer, rows, num_rows, edges, separator_ids)
        cells = (_cell(edges[k], edges[k + 1], *sums[:, :, k]) for k in range(len(edges) - 1))
        results.append(
            result.Result(
                kind=result.KINDS["position_loss"],
                config=result.plain_values(config),
                checkpoint=scorer.name,
                max_positions=scorer.max_positions,
                cells=tuple(cells),
                material=material,
                num_packed_rows=num_rows,
            )
        )
    return results


def _rows(config: LossConfig) -> PackedRows:
    """Rows of `prepare`, as their manifest has them, or of another program, which have none."""
    folder = Path(config.data_path)
    if (folder / FILE_NAME).is_file():
        return rows_of(folder, config.split, load_manifest(folder), searchable=True)
    return PackedRows(folder / config.split)


def _row_sums(
    config: LossConfig,
    scorer: interface.Scorer,
    rows: PackedRows,
    num_rows: int,
    edges: Sequence[int],
    separator_ids: Sequence[int],
) -> FloatArray:
    """Number, loss and hits of the predictions that count, shape [3, num_rows, num_bins]."""
    seq_length = edges[-1]

    def sample(number: int) -> Sample[interface.Scores]:
        def make() -> Prompt:
            row = rows.row(number, separator_ids, seq_length)
            return Prompt(row.tokens, row.loss_mask(config.document_mask)[:-1])

        def judge(prompt: Prompt, scores: interface.Scores) -> dict[str, Any]:
            weight: npt.NDArray[np.floating] = prompt.references
            parts = (weight, weight * scores.loss, weight * scores.correct)
            return {"sums": [bin_sums(part, edges).tolist() for part in parts]}

        source = f"{rows.path_prefix}.bin: row {number}"
        return Sample(str(number), (Row(seq_length, make, judge, source),))

    entries = ask(
        [sample(number) for number in range(num_rows)],
        scoring(scorer),
        scorer,
        journal.Journal(),
        micro_batch_size=config.micro_batch_size,
        description=f"Loss of {scorer.name}",
    )
    return np.asarray([entry["sums"] for entry in entries]).swapaxes(0, 1)


def _cell(
    start: int, stop: int, count_r: FloatArray, loss_r: FloatArray, correct_r: FloatArray
) -> result.ScoreCell:
    """The loss of a bin from every row's sums, shape [num_rows] each.

    The standard error is that of a ratio of sums over rows (Cochran, Sampling Techniques, 2.11),
    ``sqrt(n / (n - 1) * sum_r (loss_r - mean * count_r)^2) / sum_r count_r``: tokens of one row
    depend on each other, and taking them as independent would understate it.
    """
    count, num_rows, row = float(count_r.sum()), count_r.size, result.position_row(start, stop)
    if count == 0:
        return result.ScoreCell(row, result.LOSS, 0, None)
    mean = float(loss_r.sum()) / count
    error = None
    if num_rows > 1:
        residual = float(((loss_r - mean * count_r) ** 2).sum())
        error = (num_rows / (num_rows - 1) * residual) ** 0.5 / count
    figures = {"accuracy": float(correct_r.sum()) / count, "perplexity": result.perplexity(mean)}
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    return result.ScoreCell(row, result.LOSS, int(count), mean, error, figures)
