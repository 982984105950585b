"""Nothing takes steps by the square of what it is given: counted at n and at 4 n.

A row of the table is a function that makes ready what is of size ``n`` and gives back what is
counted; ``@counted(n)`` above it enters it. Whatever loops over documents, tensors, layers, ranks,
rows or records has one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from megatron_ultralong.attention import cpu_kernel, cudnn_kernel
from megatron_ultralong.attention.boundaries import Boundaries
from megatron_ultralong.attention.cuda_domain import device_edges
from megatron_ultralong.attention.gather import _mask
from megatron_ultralong.attention.plan import boundaries, make_plan, row_plan
from megatron_ultralong.checkpoint import tensor_file
from megatron_ultralong.checkpoint.checksums import Checksum, read_checksums, write_checksums
from megatron_ultralong.checkpoint.convert import (
    ExportConfig,
    ImportConfig,
    export_checkpoint,
    import_checkpoint,
)
from megatron_ultralong.checkpoint.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.hugging_face_writer import SafetensorsWriter
from megatron_ultralong.checkpoint.manifest import Manifest
from megatron_ultralong.checkpoint.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.tensor_file import PickleFile, TensorInfo
from megatron_ultralong.checkpoint.weight_map import weight_map
from megatron_ultralong.config import DataConfig, ParallelConfig, PretrainConfig
from megatron_ultralong.context_parallel import Assignment, balanced, zigzag
from megatron_ultralong.data.chat_rows import ChatRows, target_mask, targets_prefix
from megatron_ultralong.data.chunks import StoredRow
from megatron_ultralong.data.indexed import IndexedWriter
from megatron_ultralong.data.packing import plan_rows, row_boundaries
from megatron_ultralong.data.rows import PackedRows, boundaries_prefix, row_order, rows_of_samples
from megatron_ultralong.data.sampling import mixed_order
from megatron_ultralong.documents import (
    document_boundaries,
    document_numbers,
    document_positions,
    loss_mask,
)
from megatron_ultralong.evaluation.journal import open_journal
from megatron_ultralong.generation.continuation import make_batches
from megatron_ultralong.plan.communication import ring_bytes
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.shapes import MODELS
from megatron_ultralong.training.rows import PackedRowSource, check_rows
from tests.growth.meter import Steps, count

FACTOR = 5.0
"""Of the steps at 4 n over those at n: 4 where they grow with the work, 16 by its square."""
FLOOR = Steps(lines=300, kilobytes=200, opened=20_000)
"""What every call takes: below it, nothing is compared."""

Work = Callable[[], object]
Entry = Callable[[int, Path], Work]
ENTRIES: dict[str, tuple[int, Entry]] = {}
HEAVY: set[str] = set()


def counted(n: int, *, heavy: bool = False) -> Callable[[Entry], Entry]:
    """Enter a function under its own name; it is given ``n`` and ``4 n``, and a new folder.

    ``heavy``: it takes seconds, and runs with the tests that do.
    """

    def enter(entry: Entry) -> Entry:
        ENTRIES[entry.__name__] = (n, entry)
        HEAVY.update({entry.__name__} if heavy else ())
        return entry

    return enter


def edges_of(n: int, longest: int = 30) -> list[int]:
    """Boundaries of ``n`` documents."""
    lengths = np.random.default_rng(0).integers(1, longest, size=n)
    lengths[-1] += -lengths.sum() % 64  # chunks of 8 ranks
    return [0, *np.cumsum(lengths).tolist()]


# Documents of a row


@counted(500)
def cudnn_runs(n: int, folder: Path) -> Work:
    edges = Boundaries(edges_of(n))
    return lambda: cudnn_kernel._runs(edges)


@counted(500)
def cudnn_runs_of_long_documents(n: int, folder: Path) -> Work:
    edges = Boundaries(range(0, 30_000 * n + 1, 30_000))
    return lambda: cudnn_kernel._runs(edges)


@counted(2000)
def cpu_groups(n: int, folder: Path) -> Work:
    edges = Boundaries(edges_of(n))
    return lambda: cpu_kernel._groups(edges)


@counted(2000)
def boundaries_of_documents(n: int, folder: Path) -> Work:
    edges = torch.tensor(edges_of(n))
    return lambda: boundaries(edges, int(edges[-1]), 1)


@counted(500)
def plan_of_documents(n: int, folder: Path) -> Work:
    edges = tuple(edges_of(n))
    return lambda: make_plan(zigzag(4), edges[-1], edges)


@counted(200)
def plan_of_a_row_in_many_layers(n: int, folder: Path) -> Work:
    """Layers grow with the documents: a look at all of them in each would be the square."""
    edges = torch.tensor(edges_of(n), dtype=torch.int32)
    return lambda: [row_plan(zigzag(2), int(edges[-1]), edges, 1) for _ in range(n)]


@counted(200)
def kernel_questions_in_many_layers(n: int, folder: Path) -> Work:
    edges = Boundaries(edges_of(n))
    device = torch.device("cpu")

    def ask() -> None:
        for _ in range(n):
            cudnn_kernel._runs(edges)
            device_edges(edges, device)
            cpu_kernel._groups(edges)

    return ask


@counted(400)
def gathered_mask(n: int, folder: Path) -> Work:
    edges = tuple(edges_of(n))
    plan = make_plan(zigzag(4), edges[-1], edges)
    return lambda: _mask(plan, 1)


@counted(2000)
def separators(n: int, folder: Path) -> Work:
    tokens = np.tile(np.asarray([1, 2, 3, 7, 8]), n)
    return lambda: document_boundaries(tokens, (7, 8))


@counted(2000)
def masks_and_positions(n: int, folder: Path) -> Work:
    edges = np.asarray(edges_of(n))

    def make() -> None:
        loss_mask(int(edges[-1]), edges, "block")
        document_numbers(edges)
        document_positions(np.arange(edges[-1]), edges)

    return make


# Ranks of a group


@counted(2000)
def balanced_documents(n: int, folder: Path) -> Work:
    edges = edges_of(n)
    return lambda: balanced(edges, 8)


@counted(16)
def balanced_ranks(n: int, folder: Path) -> Work:
    edges = [0, 64 * n * 60, 64 * n * 64]
    return lambda: balanced(edges, n)


@counted(64)
def chunks_of_all_ranks(n: int, folder: Path) -> Work:
    assignment = Assignment(tuple((rank, 2 * n - 1 - rank) for rank in range(n)))
    return lambda: [assignment.ranges(rank, 4 * n) for rank in range(n)]


@counted(64)
def ring_bytes_of_the_busiest_rank(n: int, folder: Path) -> Work:
    model = MODELS["llama3.1-8b"]
    length = 2 * n * 1024
    config = PretrainConfig(
        global_batch_size=1,
        parallel=ParallelConfig(context_parallel_size=n),
        data=DataConfig(seq_length=length),
    )
    job = Job(model, config, n, length * (length + 1) / 2)
    return lambda: ring_bytes(job)


# Rows on disk


def write_rows(folder: Path, n: int, documents: int, targets: bool = False) -> Path:
    """``n`` rows of ``documents`` documents each."""
    edges = edges_of(documents)
    with (
        IndexedWriter(folder / "train", np.dtype("<i4")) as rows,
        IndexedWriter(boundaries_prefix(folder / "train"), np.dtype("<i4")) as beside,
    ):
        for _ in range(n):
            rows.add(np.zeros(edges[-1], dtype=np.int64))
            beside.add(np.asarray([edges[-1], *edges]))
    if targets:
        pairs = [(a + 1, b) for a, b in itertools.pairwise(edges) if b > a + 1]
        with IndexedWriter(targets_prefix(folder / "train"), np.dtype("<i4")) as writer:
            for _ in range(n):
                writer.add(np.asarray([len(pairs), *np.ravel(pairs)]))
    return folder / "train"


@counted(2000)
def row_of_documents_read(n: int, folder: Path) -> Work:
    rows = PackedRows(write_rows(folder, 1, n), 10)
    row = StoredRow(rows, 0, ())

    def read() -> None:
        rows.check(0)
        row.loss_mask("block")
        row.read_chunks([(0, row.seq_length // 2), (row.seq_length // 2, row.seq_length)])

    return read


@counted(40)
def rows_read(n: int, folder: Path) -> Work:
    prefix = write_rows(folder, n, 4)

    def read() -> None:
        source = PackedRowSource(PackedRows(prefix, 10), 1, ())
        check_rows([(source, range(2 * n))])
        for sample in range(n):
            source.row(sample).loss_mask("none")

    return read


@counted(40)
def rows_written(n: int, folder: Path) -> Work:
    return lambda: write_rows(folder, n, 4)


@counted(100)
def conversations_of_a_row(n: int, folder: Path) -> Work:
    rows = ChatRows(write_rows(folder, 1, n, targets=True))
    return lambda: rows.examples(0)


@counted(2000)
def targets_of_a_row(n: int, folder: Path) -> Work:
    targets = np.stack([np.arange(n) * 4 + 1, np.arange(n) * 4 + 3], axis=1)
    return lambda: target_mask(4 * n, targets)


@counted(2000)
def order_of_rows(n: int, folder: Path) -> Work:
    row_order.cache_clear()
    return lambda: rows_of_samples(range(n // 2, n + n // 4), n, 1)


# Packing


def packing(n: int, mode: Any, seq_length: int) -> Work:
    lengths = np.random.default_rng(0).integers(1, 40, size=n)
    return lambda: plan_rows(np.arange(n), lengths, 0, seq_length, mode)


@counted(200)
def packed_in_a_stream(n: int, folder: Path) -> Work:
    return packing(n, "stream", 128)


@counted(200)
def packed_from_row_starts(n: int, folder: Path) -> Work:
    return packing(n, "row-start", 32)


@counted(200)
def packed_whole_to_many_rows(n: int, folder: Path) -> Work:
    return packing(n, "whole", 128)


@counted(200)
def packed_whole_to_one_row(n: int, folder: Path) -> Work:
    return packing(n, "whole", 64 * n)


@counted(2000)
def boundaries_of_a_planned_row(n: int, folder: Path) -> Work:
    lengths = np.random.default_rng(0).integers(1, 40, size=n)
    [row, *_] = plan_rows(np.arange(n), lengths, 0, int(lengths.sum()), "stream").rows
    return lambda: row_boundaries(row, lengths, 0)


@counted(200)
def order_of_documents(n: int, folder: Path) -> Work:
    copies = np.full(n, 3)
    ids = [str(number) for number in range(n)]
    return lambda: mixed_order(copies, ids, 1)


# Checkpoints


def write_model(folder: Path, num_layers: int) -> Path:
    """A Llama of so many layers, all tensors in one file."""
    hidden, ffn, vocab = 8, 12, 16
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    tensors = {
        "model.embed_tokens.weight": torch.zeros(vocab, hidden),
        "lm_head.weight": torch.ones(vocab, hidden),
        "model.norm.weight": torch.ones(hidden),
        **{
            f"model.layers.{layer}.{name}.weight": torch.ones(shape)
            for layer in range(num_layers)
            for name, shape in shapes.items()
        },
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def _safetensors_opens_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The safetensors library opens files where Python does not see it."""
    theirs = tensor_file.safe_open

    def seen(path: Path, **options: Any) -> Any:
        path.open("rb").close()
        return theirs(path, **options)

    monkeypatch.setattr(tensor_file, "safe_open", seen)


@counted(3)
def layers_read_from_one_file(n: int, folder: Path) -> Work:
    write_model(folder / "hf", n)

    def read() -> None:
        source = HuggingFaceFolder(folder / "hf")
        for weight in weight_map(source.model):
            source.read(weight)

    return read


@counted(32)
def tensors_read_from_a_pickle(n: int, folder: Path) -> Work:
    torch.save({f"t{k}": torch.ones(2, 2) for k in range(n)}, folder / "a.bin")

    def read() -> None:
        file = PickleFile(folder / "a.bin")
        for name in file.tensors:
            file.read(name)

    return read


@counted(3)
def layers_imported(n: int, folder: Path) -> Work:
    config = ImportConfig(
        write_model(folder / "hf", n), folder / "megatron", tokenizer=False, verify=False
    )
    return lambda: import_checkpoint(config)


def imported(n: int, folder: Path) -> Path:
    """A Megatron checkpoint of so many layers."""
    source = write_model(folder / "hf", n)
    import_checkpoint(ImportConfig(source, folder / "megatron", tokenizer=False, verify=False))
    return folder / "megatron"


@counted(3)
def layers_read_from_a_checkpoint(n: int, folder: Path) -> Work:
    path = imported(n, folder)

    def read() -> None:
        source = MegatronCheckpoint(path)
        for weight in weight_map(source.model):
            source.read(weight)

    return read


@counted(3, heavy=True)
def layers_exported_and_verified(n: int, folder: Path) -> Work:
    path = imported(n, folder)
    return lambda: export_checkpoint(ExportConfig(path, folder / "exported"))


@counted(100)
def tensors_entered(n: int, folder: Path) -> Work:
    def enter() -> None:
        with Manifest(folder, {"action": "import"}) as manifest:
            for number in range(n):
                manifest.add(str(number), 1, lambda: None, [number, 1])
            manifest.flush(lambda: None)
        with Manifest(folder, {"action": "import"}) as manifest:
            assert len(manifest.finished) == n

    return enter


@counted(100)
def shards_planned(n: int, folder: Path) -> Work:
    tensors = [(str(number), TensorInfo(torch.float32, (2, 2))) for number in range(n)]
    return lambda: SafetensorsWriter(folder, tensors, 160)


@counted(40)
def checksums_of_files(n: int, folder: Path) -> Work:
    sums = {}
    for number in range(n):
        (folder / str(number)).write_bytes(b"")
        sums[str(number)] = Checksum(0, "")

    def both() -> None:
        write_checksums(folder, sums)
        read_checksums(folder)

    return both


# Records of evaluations


@counted(50)
def samples_in_a_journal(n: int, folder: Path) -> Work:
    def note() -> None:
        opened = open_journal(folder / "out", "kind", {}, is_main=True)
        with contextlib.suppress(KeyboardInterrupt), opened as journal:
            for number in range(n):
                journal.add(str(number), {"score": number})
            raise KeyboardInterrupt
        with open_journal(folder / "out", "kind", {}, is_main=True) as journal:
            assert [journal.get(str(number)) for number in range(n)][-1] == {"score": n - 1}

    return note


@counted(1000)
def batches_of_prompts(n: int, folder: Path) -> Work:
    lengths = np.random.default_rng(0).integers(1, 1000, size=n).tolist()
    return lambda: make_batches(lengths, 8, 4000)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.faults] * (name in HEAVY)) for name in ENTRIES],
)
def test_steps_grow_with_the_work(name: str, tmp_path: Path) -> None:
    n, entry = ENTRIES[name]
    found = []
    for size in (n, 4 * n):
        folder = tmp_path / str(size)
        folder.mkdir()
        found.append(count(entry(size, folder)))
    few, many = found
    for part in Steps._fields:
        base = max(getattr(few, part), getattr(FLOOR, part))
        assert getattr(many, part) <= FACTOR * base, f"{part} at {n} and at {4 * n}: {few}, {many}"


def test_the_square_is_seen(tmp_path: Path) -> None:
    """In loops, in copies without a loop, and in files that are opened again."""
    path = tmp_path / "file"

    def loops(n: int) -> object:
        return [[None for _ in range(n)] for _ in range(n)]

    def copies(n: int) -> object:
        found: tuple[int, ...] = ()
        for number in range(10 * n):
            found = (*found, number)
        return found

    def opens(n: int) -> object:
        path.write_bytes(bytes(100 * n))
        return [path.open("rb").close() for _ in range(n)]

    for work, part in ((loops, "lines"), (copies, "kilobytes"), (opens, "opened")):
        few, many = (getattr(count(partial(work, n)), part) for n in (40, 160))
        assert many > 10 * few, work.__name__
