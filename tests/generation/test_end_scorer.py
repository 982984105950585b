"""Ends of rows, read behind what they have in common, score as whole rows do, in every layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.models.language_models import open_language_models
from megatron_ultralong.evaluation.models.replicas import Replicas
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.generation.end_scorer import num_common
from megatron_ultralong.mcore.decoding import Decoder
from megatron_ultralong.program.errors import InputError
from tests.models import write_llama
from tests.ranks import run_on_ranks

LAYOUTS = (
    ParallelConfig(context_parallel_size=2),
    ParallelConfig(tensor_model_parallel_size=2),
    ParallelConfig(pipeline_model_parallel_size=2),
)
Rows = list[tuple[np.ndarray, int]]


def make_rows() -> Rows:
    """Rows that branch off each other at all kinds of places, and how many tokens are scored."""
    rng = np.random.default_rng(0)
    rows: Rows = [(rng.integers(0, 320, 203), 7)]
    for _ in range(14):
        before = rows[rng.integers(len(rows))][0]
        start = int(rng.integers(0, before.size))
        row = np.concatenate([before[:start], rng.integers(0, 320, rng.integers(9, 120))])
        rows.append((row, int(rng.integers(1, 9))))
    first, last = rows[3]
    rows += [(np.append(first[:-1], token), last) for token in (5, 6, 7)]  # one pass
    return rows


def score(folder: Path, chunk_size: int) -> list[tuple[float, int, int]]:
    """Run on every rank: by layout the largest difference, tokens read and tokens given."""
    found = []
    read: list[int] = []
    plain = Decoder.score

    def counted(self: Decoder, row: int, tokens: Any, labels: Any, size: int) -> Any:
        read.append(len(tokens))
        return plain(self, row, tokens, labels, chunk_size)

    Decoder.score = counted  # type: ignore[method-assign]
    for parallel in LAYOUTS:
        read.clear()
        with open_language_models(ModelsConfig((str(folder),), "fp32", parallel=parallel)) as m:
            model = next(m)
            rows = make_rows()
            apart = 0.0
            for (tokens, last), ends in zip(rows, model.score_ends(rows), strict=True):
                whole = model.score(tokens[None])
                apart = max(apart, float(np.abs(whole.loss[0, -last:] - ends.loss).max()))
                assert (whole.correct[0, -last:] == ends.correct).all()
            found.append((apart, sum(read), sum(tokens.size for tokens, _ in rows)))
            ends = model.score_ends(rows[:1])[0]
            model.generate([[1, 2]], max_new_tokens=1)  # by the same keys and values, in less room
            again = model.score_ends(rows[:1])[0]
            assert np.abs(ends.loss - again.loss).max() < 1e-4
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    write_llama(folder / "hf", max_position_embeddings=512)
    import_checkpoint(ImportConfig(folder / "hf", folder / "run"))
    return folder / "run"


def test_ends_score_as_whole_rows(folder: Path) -> None:
    for of_rank in run_on_ranks(2, score, folder, 32):
        for apart, num_read, num_given in of_rank:
            assert apart < 1e-4  # float32 in another order; 1e-5 was found
            assert num_read < 0.9 * num_given


def test_tokens_in_common() -> None:
    first, second = np.asarray([5, 6, 7]), np.asarray([5, 6, 9, 9])
    assert num_common(first, second) == num_common(second, first) == 2
    assert num_common(first, first[:2]) == 2
    assert num_common(first, second[:0]) == 0


class Doubling:
    """Work that says which rank did it."""

    def double(self, rows: Sequence[int], *, wrong: int) -> list[tuple[int, int]]:
        if wrong in rows:
            raise InputError(f"row {wrong} is wrong")
        return [(2 * row, torch.distributed.get_rank()) for row in rows]


def ask() -> Any:
    """Run on every rank: what the main one is answered, and how it ends."""
    from megatron_ultralong.mcore.parallel import parallel_groups

    found: list[Any] = []
    with parallel_groups(ParallelConfig(), seed=0) as groups:
        for wrong in (99, 3):
            replicas = Replicas(Doubling(), groups)
            try:
                with replicas.asked() as is_asking:
                    found.append(is_asking)
                    if is_asking:
                        found.append(replicas.ask("double", [1, 2, 3, 4, 5], wrong=wrong))
                        found.append(replicas.ask("double", [6], wrong=wrong))
            except InputError as error:
                found.append(str(error))
    return found


def test_replicas_share_the_rows_and_errors_reach_all() -> None:
    main, other = run_on_ranks(2, ask)
    answers = [(2, 0), (4, 0), (6, 0), (8, 1), (10, 1)]
    assert main == [True, answers, [(12, 0)], True, "row 3 is wrong"]
    assert other == [False, "row 3 is wrong"]
