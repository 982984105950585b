"""``ultralong.json`` of the checkpoints that Megatron-LM reads and writes."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import shlex
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.convert.small_files import copy_once
from megatron_ultralong.checkpoint.disk import metadata
from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, LATEST_FILE, RELEASE
from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, SOURCE_FOLDER, CheckpointMetadata
from megatron_ultralong.checkpoint.formats import hugging_face_config
from megatron_ultralong.data.rows.manifest import Manifest
from megatron_ultralong.dropin import described
from megatron_ultralong.dropin.arguments import ASKED, DropInConfig
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import titles
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.training import earlier_start, early_checks

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run's weights are at its start, and what it makes of them."""

    source: CheckpointMetadata
    result: CheckpointMetadata
    folder: Path | None
    """Where the source's ``ultralong.json`` and small files are; None: there were none, and the
    source is what the arguments describe."""
    config: DropInConfig
    """The run's, with what it takes from the weights."""
    manifest: Manifest | None
    """Of the rows."""
    notes: tuple[str, ...]
    """What was taken from the weights, and what may not have been meant, in lines."""

    def write(self, save: str | None) -> None:
        """Leave ``ultralong.json`` and the tokenizer in ``--save``, so that it can be exported.

        Every rank calls it, rank 0 writes.

        Raises:
            InputError: the folder's checkpoints are something else.
        """
        if not save:
            return
        root = Path(save)
        self._check_undescribed(root)
        if (root / FILE_NAME).is_file() and (root / LATEST_FILE).is_file():
            found = metadata.load_metadata(root, any_model=True)
            if found != self.result:
                raise InputError(
                    f"--save {root} holds checkpoints with other metadata than this run makes: "
                    f"{found} there, {self.result} here; continue with its original arguments, "
                    "or name a new folder"
                )
            if self.manifest is not None:
                earlier_start.check_same_rows(
                    root,
                    _record(self.manifest),
                    f"--save {root} holds a run over other rows",
                    "--ultralong-data-path",
                    "name a new folder for a new run",
                )
        dist.barrier()  # every rank has looked
        if dist.get_rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            metadata.unseal(root)
            if self.folder is not None:
                copy_once(self.folder / SOURCE_FOLDER, root / SOURCE_FOLDER)
            elif not self.result.not_exportable:
                values = hugging_face_config.export_config(
                    {"hidden_act": "silu"}, self.result, torch.float32
                )
                hugging_face_config.write_config(root / SOURCE_FOLDER, values)
            metadata.save_metadata(root, self.result)
            if self.manifest is not None:
                earlier_start.save_rows(root, _record(self.manifest))
            else:
                (root / earlier_start.DATA_FILE).unlink(missing_ok=True)
            if self.result.not_exportable:
                _log.warning(
                    "the checkpoints in %s cannot be exported, or read by other programs of this "
                    "project, which read models of %s: %s",
                    *(root, titles(), self.result.not_exportable),
                )
        dist.barrier()

    def _check_undescribed(self, root: Path) -> None:
        """Refuse a folder whose checkpoints have another rotary embedding, and no file to tell it.

        The file that this run writes is for the whole folder: an earlier iteration would be
        exported with the embedding of this run.
        """
        scaling = self.result.rope_scaling
        if scaling is None or (root / FILE_NAME).is_file() or not (root / LATEST_FILE).is_file():
            return
        is_its_own = self.folder is None and str(root) == self.source.source_model
        if not is_its_own or scaling != self.source.rope_scaling:
            raise InputError(
                f"--save {root} holds checkpoints without {FILE_NAME}, and this run would say of "
                f"all of them that their rotary embedding is {yarn.in_words(scaling)}: name a new "
                "folder"
            )


@dataclasses.dataclass(frozen=True)
class _Weights:
    """What Megatron-LM is to load, and what is known of it."""

    path: Path | None
    """Its folder; None: the weights are random."""
    has_file: bool
    """Whether an ``ultralong.json`` is there."""
    source: CheckpointMetadata
    """Of that file; without one it is what this run's arguments describe."""
    resumed: Path | None
    """The folder, of a run that is continued."""
    stored: argparse.Namespace | None
    """Arguments that it was saved with, where they are needed."""

    @classmethod
    def of(cls, args: Any) -> _Weights:
        """``--load`` is looked at first, as Megatron-LM does, then ``--pretrained-checkpoint``."""
        given = (args.load, getattr(args, "pretrained_checkpoint", None))
        folders = [Path(x) for x in given if x and "://" not in x]  # Megatron-LM reads stores
        names = (FILE_NAME, LATEST_FILE)
        path = next((p for p in folders if any((p / name).is_file() for name in names)), None)
        if path is None:
            for folder in folders:
                _check_no_weights(folder, args)
            return cls(None, False, _described(args), None, None)
        has_file = (path / FILE_NAME).is_file()
        source = metadata.load_metadata(path, any_model=True) if has_file else _described(args)
        is_resumed = path == Path(args.load or "") and _iteration(path) and not args.finetune
        stored = None
        if not has_file or source.not_exportable or is_resumed:
            stored = described.stored_arguments(path, getattr(args, "ckpt_step", None))
        return cls(path, has_file, source, path if is_resumed else None, stored)

    def check_model(self, args: Any, *, scales: bool) -> tuple[str, ...]:
        """Warnings of what the command line has otherwise, which is refused where it is silent."""
        if self.path is not None and self.has_file:
            described.check_shape(args, self.source, self.path)
        if self.path is None and args.load and "://" not in args.load and args.load != args.save:
            return (
                f"warning: --load {args.load} holds no checkpoint: the run begins with random "
                "weights",
            )
        if self.path is None or self.stored is None:
            return ()
        if not self.has_file:
            described.check_has_metadata(self.stored, self.path, FILE_NAME)
        elif not self.source.not_exportable:
            return ()
        return described.check_stored(args, self.stored, self.path, scales=scales)

    @property
    def context(self) -> int | None:
        """Positions before any scaling; None: nothing says it."""
        if not self.has_file:
            return described.stored_context(self.stored)
        model = self.source.model
        return yarn.raw_context(self.source.rope_scaling, model.max_position_embeddings)


def _check_no_weights(folder: Path, args: Any) -> None:
    """Raise InputError where weights are meant, and Megatron-LM would begin with random ones."""
    name = "--load" if folder == Path(args.load or "") else "--pretrained-checkpoint"
    if (folder / FORMAT_FILE).is_file():
        raise InputError(
            f"{name} {folder} is one checkpoint of {folder.resolve().parent}: give that folder; "
            "--ckpt-step chooses another than its latest"
        )
    if (folder / hugging_face_config.CONFIG_FILE).is_file():
        raise InputError(
            f"{name} {folder} is a model of Hugging Face's, which Megatron-LM does not read: make "
            f"a checkpoint of it by `ultralong convert import {shlex.quote(str(folder))} DST`"
        )
    if args.finetune or name != "--load":
        raise InputError(
            f"{name} {folder} holds no checkpoint (no {LATEST_FILE}), and the run is to begin with "
            "its weights: name the folder that has it, or leave "
            f"{'--finetune' if name == '--load' else name} out for random weights"
        )


def find_identity(config: DropInConfig, args: Any, manifest: Manifest | None) -> Identity:
    """What the run's weights are: by the ``ultralong.json`` they come with, or by arguments.

    Without that file it is by the arguments that the checkpoint was saved with, and by those of
    this run.

    Raises:
        InputError: the arguments describe another model than the checkpoint, do not fit its rotary
            embedding, or change that or the rows of a run that is resumed.
    """
    weights, keeps = _Weights.of(args), config.rope_scaling == "keep"
    notes = weights.check_model(args, scales=not keeps)
    config, taken = config.over(weights.context, weights.path, args)
    source, notes = weights.source, notes + taken
    if not weights.has_file and keeps:
        notes += _beyond(args, weights)
    elif not weights.has_file:
        context = weights.context or config.original_max_position_embeddings
        source = _before_scaling(source, context, weights.stored)
    if weights.resumed is not None:
        if weights.has_file:
            _check_resume(config, source, weights.resumed, manifest)
        if weights.stored is not None:
            described.check_same_run(args, weights.stored, weights.resumed)
            step = getattr(args, "ckpt_step", None)
            described.check_schedule(args, weights.resumed, step)
    config.check_scaling(source.rope_scaling)
    positions, has_rope = (
        source.model.max_position_embeddings,
        args.position_embedding_type == "rope",
    )
    if has_rope:
        config.check_extension(args.seq_length, positions, source.rope_scaling)
    separator_ids = tuple(manifest.separator_ids) if manifest else source.separator_ids
    result = early_checks.extended(config, source, args.seq_length)
    result = dataclasses.replace(result, separator_ids=separator_ids)
    if has_rope:
        notes += early_checks.extension_notes(config, source, result)
    folder = weights.path if weights.has_file else None
    return Identity(source, result, folder, config, manifest, notes)


def _before_scaling(
    source: CheckpointMetadata, context: int, stored: argparse.Namespace | None
) -> CheckpointMetadata:
    """What arguments describe, with the context that the weights had before this run.

    ``--max-position-embeddings`` of this run is that of its rows.
    """
    if not context:
        return source
    scaling = described.stored_scaling(stored) if stored else None
    factor = scaling.scaling_factor if scaling else 1
    model = dataclasses.replace(source.model, max_position_embeddings=math.floor(factor * context))
    return dataclasses.replace(source, model=model, rope_scaling=scaling)


def _beyond(args: Any, weights: _Weights) -> tuple[str, ...]:
    """A warning where rows are longer than what weights of Megatron-LM's own were made for."""
    positions = getattr(weights.stored, "max_position_embeddings", None) or args.seq_length
    if args.seq_length <= positions:
        return ()
    return (
        f"warning: --seq-length is {args.seq_length}, beyond the {positions} positions of the "
        f"checkpoint in {weights.path}, and its rotary embedding is kept: --ultralong-rope-scaling "
        f"yarn --ultralong-rope-scaling-factor {math.ceil(args.seq_length / positions)} extends it",
    )


def _described(args: Any) -> CheckpointMetadata:
    """What Megatron-LM's arguments say of weights that come without an ``ultralong.json``."""
    model, size = described.model_of(args), described.vocabulary(args)
    unknown = None
    if size is None:
        unknown = (
            f"{counted(model.vocab_size, 'row')} of a padded vocabulary "
            f"({ASKED.flag('padded_vocab_size')}), "
            "and a tokenizer that does not tell how many ids it has"
        )
    return CheckpointMetadata(
        model=dataclasses.replace(model, vocab_size=size or model.vocab_size),
        rope_scaling=None,
        source_model=str(args.load or "Megatron-LM"),
        not_exportable=described.not_of_a_family(args) or unknown,
    )


def _iteration(folder: Path) -> int:
    """The iteration that a folder's latest checkpoint was saved at; 0: weights without a run."""
    path = folder / LATEST_FILE
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else RELEASE
    return int(text) if text.isdigit() else 0


def _check_resume(
    config: DropInConfig, source: CheckpointMetadata, folder: Path, manifest: Manifest | None
) -> None:
    """Refuse to continue with another rotary embedding or other rows than a run was begun with."""
    scaling = config.scaling(source.rope_scaling)
    for name, here, there in (
        ("--ultralong-rope-scaling", scaling, source.rope_scaling),
        ("--ultralong-angle-precision", config.angle_precision, source.angle_precision),
    ):
        if here != there:
            raise InputError(
                f"{name} asks for {here}, and the run in {folder}, which this resumes at iteration "
                f"{_iteration(folder)}, has {there}: leave the --ultralong-rope-scaling arguments "
                "out to continue as it was begun, or pass --finetune to begin another run with its "
                "weights"
            )
    if manifest is not None:
        earlier_start.check_same_rows(
            folder,
            _record(manifest),
            f"the run in {folder}, which this resumes, is over other rows",
            "--ultralong-data-path",
            "pass --finetune to begin another run with its weights",
        )


def _record(manifest: Manifest) -> dict[str, str]:
    """What is kept of the rows beside a run's checkpoints."""
    return {name: str(value) for name, value in early_checks.rows_record(manifest).items()}
