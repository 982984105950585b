"""What can be told of a run before torch and Megatron-Core are imported, which takes seconds.

A mistake in a flag, a path or a file is said at once. Everything here is checked again where the
run is made; no import of this module may bring torch (``pyproject.toml`` sees to it).
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from megatron_ultralong.checkpoint.disk.folder import resolve_readable
from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.config import idle, plain_values
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig, SftConfig, TrainingConfig
from megatron_ultralong.data.rows import manifest as manifests
from megatron_ultralong.data.rows import packed, stored
from megatron_ultralong.data.rows.manifest import ChatManifest, Manifest
from megatron_ultralong.data.tokenize.trained_template import TrainedTemplate, trained_template
from megatron_ultralong.program import fields, quantity
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.sequence.document_mask import DocumentMask
from megatron_ultralong.training import earlier_start, row_source

Config = TypeVar("Config", bound=TrainingConfig)


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """A run that has been checked: what it reads, and what its checkpoints will say.

    What needs torch is not: :func:`~megatron_ultralong.training.verbs.check_run` adds it.
    """

    config: TrainingConfig
    """With every default resolved."""
    source: CheckpointMetadata
    """Of the checkpoint that the run starts from."""
    result: CheckpointMetadata
    """Of the checkpoints that it writes."""
    train_rows: row_source.RowSource
    valid_rows: row_source.RowSource | None
    """None: no validation."""
    agreed: Mapping[str, object]
    """What else all ranks must have the same of, by name."""
    remarks: tuple[str, ...] = ()
    """What a user must know of how the run will work on this machine, a line each."""
    template: TrainedTemplate | None = None
    """Of the conversations that it learns, which its checkpoints keep."""
    length_flag: str = "--train-iters"
    """What said how long it is."""

    @property
    def said(self) -> TrainingConfig:
        """:attr:`config` as files state it."""
        return self.config.as_said(self.length_flag)

    @property
    def each_iteration(self) -> tuple[str, float]:
        """:attr:`length_flag`, and what one iteration is of it."""
        num_rows = self.config.global_batch_size
        return self.length_flag, {
            "--train-iters": 1,
            "--train-tokens": num_rows * self.config.data.seq_length,
            "--num-epochs": num_rows / max(len(self.train_rows), 1),
        }[self.length_flag]

    def notes(self, done: int = 0) -> tuple[str, ...]:
        """The rotary embedding before and after, and what a user may not have meant, in lines.

        ``done`` are the iterations that the start resumes after.
        """
        taken, there = self.config.train_iters * self.config.global_batch_size, len(self.train_rows)
        length, positions = self.config.data.seq_length, self.source.model.max_position_embeddings
        doubts = (self.config.optimizer.high_lr, quantity.few_tokens(length, positions))
        return (
            *extension_notes(self.config.rope, self.source, self.result),
            *filter(None, doubts),
            *row_notes(taken, there),
            *idle.idle_notes(self.config, done),
        )


def planned_iterations(config: TrainingConfig) -> int:
    """Iterations of a run: of a flag, or of its tokens or epochs; 0 where the data is not there.

    What is wrong with the data the checks say.
    """
    data = Path(config.data.data_path)
    with contextlib.suppress(InputError):
        if config.train_tokens and config.data.seq_length:
            return config.with_budget(config.data.seq_length).train_iters
        if isinstance(config, SftConfig):
            if config.train_iters and not config.train_tokens:
                return config.train_iters
            rows = manifests.load_chat_manifest(data)
            num_rows = rows.splits["train"].num_rows if "train" in rows.splits else 0
            return config.with_budget(rows.seq_length).with_iterations(num_rows).train_iters
        if config.train_tokens:
            return config.with_budget(manifests.load_manifest(data).seq_length).train_iters
        return config.train_iters
    return 0


def check_packed_run(config: PretrainConfig, num_ranks: int) -> RunInputs:
    """Open what a run reads, and check every rule between its parts.

    Raises:
        InputError: a rule between configuration, checkpoint and data is broken.
    """
    data, length_flag = Path(config.data.data_path), config.length_flag
    if config.train_tokens:
        length = config.data.seq_length or manifests.load_manifest(data).seq_length
        config = config.with_budget(length)
    config.check_fields()
    source = _open_source(config)
    manifest = manifests.load_manifest(data)
    config.check_ranks(source.model, num_ranks)  # after the paths: often wrong at a first try
    vocab_size, document_mask = source.model.vocab_size, config.data.document_mask
    train_rows = packed_rows(data, "train", manifest, vocab_size, document_mask)
    config = _with_row_length(config, train_rows.seq_length)
    config.check_run(source.model, source.rope_scaling, num_ranks)
    check_packed_rows(data, config.load, source, manifest, document_mask)
    ids, valid_rows = tuple(manifest.separator_ids), None
    if config.eval_interval:
        rows = packed_rows(data, "valid", manifest, vocab_size, document_mask)
        valid_rows = row_source.PackedRowSource(rows, config.data.seed, ids)
    return _checked_with_save(
        RunInputs(
            config,
            source,
            dataclasses.replace(result_of(config, source), separator_ids=ids),
            row_source.PackedRowSource(train_rows, config.data.seed, ids),
            valid_rows,
            rows_record(manifest),
            length_flag=length_flag,
        )
    )


def check_packed_rows(
    folder: str | Path,
    load: str,
    source: CheckpointMetadata,
    manifest: Manifest,
    document_mask: DocumentMask,
) -> None:
    """Check what rows are to the model of a checkpoint, and whether they suit the mask.

    Raises:
        InputError: ids would mean other text, or documents cannot be told apart.
    """
    check_tokenizer(str(folder), load, source, manifest)
    if document_mask == "block" and not manifest.separator_ids:
        raise InputError(
            f"document_mask 'block' needs a separator, but {folder} was prepared without one: "
            "its documents cannot be told apart; prepare it again with --separator"
        )


def packed_rows(
    folder: str | Path, split: str, manifest: Manifest, vocab_size: int, document_mask: DocumentMask
) -> packed.PackedRows:
    """Rows of one split, whose documents can be told apart where the mask needs it."""
    searchable = manifest.separators_tell_all or (
        document_mask == "none" and manifest.packing != "whole"
    )
    return packed.rows_of(folder, split, manifest, vocab_size, searchable=searchable)


def check_chat_run(config: SftConfig, num_ranks: int) -> RunInputs:
    """The same for conversations.

    Raises:
        InputError: a rule between configuration, checkpoint and conversations is broken.
    """
    fields.check_fields(config)
    source = _open_source(config)
    data, length_flag = Path(config.data.data_path), config.length_flag
    manifest = manifests.load_chat_manifest(data)
    config = config.with_budget(config.data.seq_length or manifest.seq_length)
    config = config.with_iterations(len(stored.ChatRows(data / "train")))
    config.check_fields()
    config.check_ranks(source.model, num_ranks)
    vocab_size = source.model.vocab_size
    train_rows = stored.chat_rows_of(data, "train", manifest, vocab_size)
    config = _with_row_length(config, train_rows.seq_length)
    longest = max(split.longest for split in manifest.splits.values())
    config.check_run(source.model, source.rope_scaling, num_ranks, longest)
    check_tokenizer(config.data.data_path, config.load, source, manifest)
    valid_rows = None
    if config.eval_interval:
        if "valid" not in manifest.splits:
            raise InputError(
                f"eval_interval ({config.eval_interval}) needs held-out conversations, and {data} "
                "has none: prepare it with a --valid-fraction above 0, or leave the interval 0"
            )
        rows = stored.chat_rows_of(data, "valid", manifest, vocab_size)
        valid_rows = row_source.ChatRowSource(rows, config.data.seed)
    return _checked_with_save(
        RunInputs(
            config,
            source,
            result_of(config, source),
            row_source.ChatRowSource(train_rows, config.data.seed),
            valid_rows,
            rows_record(manifest),
            template=trained_template(data, manifest),
            length_flag=length_flag,
        )
    )


def result_of(config: TrainingConfig, source: CheckpointMetadata) -> CheckpointMetadata:
    """What the run's checkpoints will say of themselves; its separators are those of ``source``."""
    return extended(config.rope, source, config.data.seq_length)


def extended(rope: RopeConfig, source: CheckpointMetadata, seq_length: int) -> CheckpointMetadata:
    """What ``source`` is after a run, by whatever loop; its separators stay."""
    positions = rope.max_positions(source.model.max_position_embeddings, source.rope_scaling)
    result = dataclasses.replace(
        source,
        model=dataclasses.replace(source.model, max_position_embeddings=positions),
        rope_scaling=rope.scaling(source.rope_scaling),
        angle_precision=rope.angle_precision,
    )
    return result.after_training(source, seq_length)


def extension_notes(
    rope: RopeConfig, source: CheckpointMetadata, result: CheckpointMetadata
) -> tuple[str, ...]:
    """The rotary embedding before and after, and what a user may not have meant, in lines."""
    before, after = source.rotary, result.rotary
    untrained = result.untrained_positions
    return (
        f"rotary: {before} -> {after if after != before else 'the same'}",
        *rope.warnings(source.model.max_position_embeddings, source.rope_scaling),
        *((untrained,) if untrained else ()),
    )


def row_notes(taken: int, there: int) -> tuple[str, ...]:
    """How often a run of ``taken`` rows uses each of those ``there``; nothing if once."""
    if taken <= there:
        return ()
    whole, rest = divmod(taken, there)
    return (f"rows: {counted(taken, 'row')} from {there:,}: {_uses(whole, rest)}",)


def _uses(whole: int, rest: int) -> str:
    """How often rows are used: all ``whole`` times, and ``rest`` of them once more."""
    if not rest:
        return f"each is used {_times(whole)}"
    return f"{rest:,} of them are used {_times(whole + 1)}, the others {_times(whole)}"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def _checked_with_save(run: RunInputs) -> RunInputs:
    if run.config.save:
        data = {name: str(value) for name, value in run.agreed.items()}
        earlier_start.check_save(Path(run.config.save), run.config, run.result, data)
    return run


def rows_record(manifest: Manifest | ChatManifest) -> dict[str, object]:
    """What all ranks, and the starts of a run, must have the same of: its rows, by name."""
    return plain_values.flat_fields(manifest, "data manifest")


def _open_source(config: TrainingConfig) -> CheckpointMetadata:
    """What the run starts from."""
    source = earlier_start.load_source(config)
    resolve_readable(config.load)
    return source


def _with_row_length(config: Config, row_length: int) -> Config:
    """The configuration with the length of the rows.

    Raises:
        InputError: they are not of the length asked for.
    """
    data = config.data
    length = data.seq_length or row_length
    check_row_length(length, row_length, data.data_path)
    return dataclasses.replace(config, data=dataclasses.replace(data, seq_length=length))


def check_row_length(asked: int, row_length: int, data_path: str) -> None:
    """Raise InputError where the rows in ``data_path`` are not of the length asked for."""
    if asked != row_length:
        raise InputError(
            f"seq_length ({asked}) is not the length of the rows in {data_path} "
            f"({row_length}): use --seq-length {row_length}, or prepare rows of {asked}"
        )


def check_tokenizer(
    data_path: str, load: str, source: CheckpointMetadata, manifest: Manifest | ChatManifest
) -> None:
    """Check that ids of the rows' tokenizer mean to the model what they mean to the rows.

    Raises:
        InputError: they do not.
    """
    vocab_size, sha256 = manifest.vocab_size, manifest.tokenizer_sha256
    if vocab_size > source.model.vocab_size:
        raise InputError(
            f"the tokenizer of {data_path} has {vocab_size} ids, the model "
            f"in {load} has {source.model.vocab_size} embeddings: prepare the data with "
            f"the model's own tokenizer ({load}/huggingface)"
        )
    if source.tokenizer_sha256 and sha256 != source.tokenizer_sha256:
        raise InputError(
            f"the tokenizer of {data_path} (sha256 {sha256[:12]}) "
            f"is not that of {load} (sha256 {source.tokenizer_sha256[:12]}): the same "
            "ids would mean other text; prepare the data with the model's own tokenizer "
            f"({load}/huggingface)"
        )
