"""Judges: Megatron-Core's own IndexedDataset and GPTDataset, built as Megatron-LM builds it."""

from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.rows.indexed import IndexedReader, IndexedWriter, token_dtype
from megatron_ultralong.data.rows.manifest import Manifest
from megatron_ultralong.data.rows.packed import PackedRows

SEQUENCES = [np.array([5]), np.arange(1000) * 3, np.array([0, 2999])]


def write(prefix: Path, sequences: list[np.ndarray], vocab_size: int) -> Path:
    with IndexedWriter(prefix, token_dtype(vocab_size)) as writer:
        for sequence in sequences:
            writer.add(sequence)
    return prefix


@pytest.mark.parametrize("vocab_size", [1, 65_499, 65_500, 65_536, 128_256])
def test_dtype_is_by_megatrons_rule(vocab_size: int) -> None:
    assert token_dtype(vocab_size) == np.dtype(DType.optimal_dtype(vocab_size))


@pytest.mark.parametrize("vocab_size", [3000, 128_256])
def test_files_equal_megatrons_byte_by_byte(tmp_path: Path, vocab_size: int) -> None:
    write(tmp_path / "ours", SEQUENCES, vocab_size)
    builder = IndexedDatasetBuilder(
        str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size)
    )
    for sequence in SEQUENCES:
        builder.add_document(sequence, [len(sequence)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        actual, expected = (tmp_path / f"{name}.{suffix}" for name in ("ours", "theirs"))
        assert actual.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("vocab_size", [3000, 128_256])
def test_read_back_by_megatron_and_by_us(tmp_path: Path, vocab_size: int) -> None:
    prefix = write(tmp_path / "a", SEQUENCES, vocab_size)
    expected, actual = IndexedDataset(str(prefix)), IndexedReader(prefix)
    assert len(expected) == len(actual) == 3
    for index, sequence in enumerate(SEQUENCES):
        np.testing.assert_array_equal(expected[index], sequence)
        np.testing.assert_array_equal(actual[index], sequence)
    np.testing.assert_array_equal(actual.read(1, 10, 13), [30, 33, 36])


def test_gpt_dataset_gives_every_row_of_prepare_over_two_epochs(
    config: PrepareConfig, manifest: Manifest, tmp_path: Path
) -> None:
    prefix, num_rows = config.output / "train", manifest.splits["train"].num_rows
    rows = PackedRows(prefix)
    expected = IndexedDataset(str(prefix))
    assert len(expected) == len(rows) == num_rows > 100
    for row in range(num_rows):
        np.testing.assert_array_equal(expected[row], rows[row])
    stock = GPTDatasetConfig(
        random_seed=1,
        sequence_length=config.seq_length,
        blend=([str(prefix)], None),
        split="1",
        path_to_cache=str(tmp_path / "cache"),
        tokenizer=NullTokenizer(manifest.vocab_size),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        add_extra_token_to_sequence=False,
    )
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [2 * num_rows, 0, 0], lambda: True, stock)
    dataset = builder.build()[0]
    assert len(dataset) == 2 * num_rows
    row_of = {row.tobytes(): number for number, row in enumerate(rows)}
    assert len(row_of) == num_rows
    read = []
    for sample in (dataset[number] for number in range(2 * num_rows)):
        read.append(row_of[sample["tokens"].numpy().tobytes()])
        np.testing.assert_array_equal(sample["labels"][:-1], sample["tokens"][1:])
    # it mixes the two epochs
    assert np.bincount(read).tolist() == [2] * num_rows


def test_nothing_under_the_final_name_after_an_error(tmp_path: Path) -> None:
    def crash_halfway() -> None:
        with IndexedWriter(tmp_path / "a", token_dtype(9)) as writer:
            writer.add(np.arange(9))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash_halfway()
    assert list(tmp_path.iterdir()) == []


def test_ids_that_do_not_fit_are_the_programmers_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), IndexedWriter(tmp_path / "a", token_dtype(100)) as writer:
        writer.add(np.array([70_000]))
    with pytest.raises(AssertionError), IndexedWriter(tmp_path / "a", token_dtype(100)) as writer:
        writer.add(np.array([], dtype=np.int32))
