"""Records of evaluations, and conversations."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_ultralong.data.read.arrow_values import python_rows
from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenize.chat_encoder import with_marks
from megatron_ultralong.data.tokenize.chat_template import DATE, TEMPLATES
from megatron_ultralong.evaluation.asking.samples import Prompt, Row, Sample, ask
from megatron_ultralong.evaluation.harness.question import in_order, scored
from megatron_ultralong.evaluation.models.interface import Scores
from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.sections import sections
from megatron_ultralong.evaluation.results.file import read_result, write_results
from megatron_ultralong.evaluation.results.result import KINDS, Result, ScoreCell
from megatron_ultralong.evaluation.results.tables import score_table
from megatron_ultralong.generation.continuation import make_batches
from megatron_ultralong.program.journal import Journal, open_journal
from tests.growth.table import Work, counted


@counted(50)
def samples_in_a_journal(n: int, folder: Path) -> Work:
    def note() -> None:
        opened = open_journal(folder / "out", "kind", {}, is_main=True)
        with contextlib.suppress(KeyboardInterrupt), opened as journal:
            for number in range(n):
                journal.add(str(number), {"score": number})
            raise KeyboardInterrupt
        with open_journal(folder / "out", "kind", {}, is_main=True) as journal:
            assert [journal.entries.get(str(number)) for number in range(n)][-1] == {"score": n - 1}

    return note


@counted(1000)
def batches_of_prompts(n: int, folder: Path) -> Work:
    lengths = np.random.default_rng(0).integers(1, 1000, size=n).tolist()
    return lambda: make_batches(lengths, 8, 4000)


@counted(25)
def turns_of_a_conversation(n: int, folder: Path) -> Work:
    turns = [{"role": role, "content": "abc"} for role in ("user", "assistant")] * n
    tool = {"name": "f", "parameters": {"properties": {"x": {"default": None, "type": "string"}}}}
    batch = pa.RecordBatch.from_pylist([{"messages": turns, "tools": [tool] * n}])

    def prepare() -> None:
        (record,) = python_rows(batch)
        conversation = parse_conversation(record, "auto")
        pieces = TEMPLATES["plain"].render(
            parse_conversation({"messages": record["messages"]}, "auto"), DATE
        )
        assert len(conversation.tools or ()) == n
        assert len(with_marks(pieces, [(5 * i, 5 * i + 3) for i in range(n)], "</s>")) > 6 * n

    return prepare


@counted(200)
def requests_of_the_harness(n: int, folder: Path) -> Work:
    """Half of them have most of their tokens in common with another."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 9, 300)
    rows = [
        np.concatenate([before[: 300 * (k % 2)], rng.integers(0, 9, 9)]).astype(np.int32)
        for k in range(n)
    ]

    def order() -> None:
        found = in_order([scored([(row, 2)]) for row in rows], str)
        assert len(found) == n
        assert sum(one.rows[0].batch == "ends" for one in found) == n // 2

    return order


class _Model:
    name, max_positions, vocab_size, is_main = "model", 8, 8, False


@counted(50)
def samples_that_are_asked(n: int, folder: Path) -> Work:
    """Two rows each, all of one length: every sample is whole when half of the rows are left."""
    tokens = np.zeros(4, dtype=np.int64)
    row = Row(4, lambda: Prompt(tokens), lambda prompt, reply: 1, "a row")
    samples = [Sample(str(k), (row, row), lambda judged: {"sum": sum(judged)}) for k in range(n)]

    def put(prompts: Sequence[Prompt]) -> list[Scores]:
        return [Scores(np.zeros(3, np.float32), np.ones(3, bool)) for _ in prompts]

    def work() -> None:
        journal = Journal()
        found = ask(samples, put, _Model(), journal, micro_batch_size=3, description="")
        assert found == [{"sum": 2}] * n

    return work


@counted(40)
def cells_of_a_result(n: int, folder: Path) -> Work:
    """As many tasks as there are: read, and shown in a table."""
    names = [f"task {k}" for k in range(n)]
    cells = tuple(ScoreCell(name, "4096", 1, 50.0) for name in names)
    metrics = dict.fromkeys(names, "exact match")
    result = Result(KINDS["ruler"], {}, "model", 4096, cells, metrics)
    path = folder / "ruler.json"
    write_results(path, [result])
    return lambda: score_table(read_result(path))


@counted(40)
def columns_of_a_report(n: int, folder: Path) -> Work:
    """As many lengths as there are, with their intervals and the effective length."""
    cells = tuple(ScoreCell("vt", f"{k + 1}", 9, 50.0) for k in range(n))
    result = Result(KINDS["ruler"], {}, "model", 4096, cells, {"vt": "exact match"})
    path = folder / "ruler.json"
    write_results(path, [result])
    return lambda: sections([Measurement("model", read_result(path), path)])
