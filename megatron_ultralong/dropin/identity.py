"""``ultralong.json`` of the checkpoints that Megatron-LM reads and writes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.convert.small_files import copy_once
from megatron_ultralong.checkpoint.disk import metadata
from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE, RELEASE
from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, SOURCE_FOLDER, CheckpointMetadata
from megatron_ultralong.checkpoint.formats.hugging_face_config import export_config, write_config
from megatron_ultralong.data.rows.manifest import Manifest
from megatron_ultralong.dropin.arguments import ASKED, DropInConfig
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import family_with, titles
from megatron_ultralong.model.families.family import Family
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.quantity import counted

_ARGUMENT_OF = {"norm_epsilon": "layernorm_epsilon", "vocab_size": "padded_vocab_size"}
"""Arguments that have another name than the field."""
_OF_ALL = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (1,),
}
_ABSENT = (
    *("add_bias_linear", "qk_l2_norm", "attention_output_gate"),
    *("layernorm_zero_centered_gamma", "apply_layernorm_1p", "num_experts", "mtp_num_layers"),
    *("rotary_interleaved", "rotary_seq_len_interpolation_factor", "use_rope_scaling"),
    *("glu_linear_offset", "activation_func_clamp_value", "quick_geglu", "squared_relu"),
    *("openai_gelu", "apply_residual_connection_post_layernorm", "no_rope_freq", "use_mup"),
    *("heterogeneous_layers_config_path", "heterogeneous_layers_config_encoded_json"),
    *("multi_latent_attention", "experimental_attention_variant", "enable_mhc_connections"),
)
"""What no family has."""
_LAYER = ("add_qkv_bias", "qk_layernorm")
"""What some families have."""


def model_of(args: Any) -> ModelConfig:
    """The shape that Megatron-LM's validated arguments describe."""
    values = {
        field.name: getattr(args, _ARGUMENT_OF.get(field.name, field.name))
        for field in dataclasses.fields(ModelConfig)
        if field.name != "model_type"
    }
    family = _family(args)
    if family is not None:
        values["model_type"] = family.name
    if not args.group_query_attention:
        values["num_query_groups"] = args.num_attention_heads
    values["rotary_base"] = float(values["rotary_base"])
    return ModelConfig(**values)


def _family(args: Any) -> Family | None:
    return family_with(**{name: bool(getattr(args, name, False)) for name in _LAYER})


def vocabulary(args: Any) -> int | None:
    """Ids of the run's tokenizer; None: it does not tell.

    Megatron-LM gives the model rows up to the next multiple of ``--make-vocab-size-divisible-by``
    times the tensor parallel size. No id reads them, and no other program expects them.
    """
    from megatron.training import get_tokenizer

    size = getattr(get_tokenizer(), "vocab_size", None)
    is_size = isinstance(size, int) and 0 < size <= args.padded_vocab_size
    return size if is_size else None


def not_of_a_family(args: Any) -> str | None:
    """The first argument that makes it a model of no known family; None: it is of one."""
    wanted = {**_OF_ALL, **{name: (None, False, 0) for name in _ABSENT}}
    for name, accepted in wanted.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            return f"{ASKED.flag(name)} {value}"
    return None if _family(args) else " with ".join(map(ASKED.flag, _LAYER))


def check_shape(args: Any, source: CheckpointMetadata, folder: Path) -> None:
    """Check that the arguments describe the model that a checkpoint's ``ultralong.json`` does.

    The base of the rotary embedding is taken from there, unless the command line names another.

    Raises:
        InputError: they do not.
    """
    other = not_of_a_family(args)
    if other is not None and not source.not_exportable:
        raise InputError(
            f"{other} beside {folder}, a checkpoint of {source.model.family.title} without it: "
            "leave it out, or add --use-checkpoint-args"
        )
    asked, given = model_of(args), ASKED.given()
    for name in _LAYER:
        wanted, stated = (getattr(model.family, name) for model in (asked, source.model))
        if wanted != stated:
            raise InputError(
                f"{ASKED.flag(name)} is {wanted}, and the {source.model.family.title} in {folder} "
                f"has {stated}: {'leave it out' if wanted else 'pass it'}"
            )
    for field in dataclasses.fields(ModelConfig):
        if field.name in ("vocab_size", "max_position_embeddings", "model_type"):
            continue  # padded, extended, and looked at above
        name = _ARGUMENT_OF.get(field.name, field.name)
        if field.name == "rotary_base" and name not in given:
            continue
        wanted, stated = getattr(asked, field.name), getattr(source.model, field.name)
        if wanted != stated:
            raise InputError(
                f"{ASKED.flag(name)} is {wanted:g} and the model in {folder} has {stated:g}: pass "
                f"{stated:g}, or leave it to --use-checkpoint-args"
            )


_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run's weights are at its start, and what it makes of them."""

    source: CheckpointMetadata
    result: CheckpointMetadata
    folder: Path | None
    """Where the source's ``ultralong.json`` and small files are; None: there were none, and the
    source is what the arguments describe."""

    def write(self, save: str | None) -> None:
        """Leave ``ultralong.json`` and the tokenizer in ``--save``, so that it can be exported.

        Every rank calls it, rank 0 writes.

        Raises:
            InputError: the folder's checkpoints are something else.
        """
        if not save:
            return
        root = Path(save)
        if (root / FILE_NAME).is_file() and (root / LATEST_FILE).is_file():
            found = metadata.load_metadata(root, any_model=True)
            if found != self.result:
                raise InputError(
                    f"--save {root} holds checkpoints with other metadata than this run makes: "
                    f"{found} there, {self.result} here; continue with its original arguments "
                    "with, or name a new folder"
                )
        dist.barrier()  # every rank has looked
        if dist.get_rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            metadata.unseal(root)
            if self.folder is not None:
                copy_once(self.folder / SOURCE_FOLDER, root / SOURCE_FOLDER)
            elif not self.result.not_exportable:
                values = export_config({"hidden_act": "silu"}, self.result, torch.float32)
                write_config(root / SOURCE_FOLDER, values)
            metadata.save_metadata(root, self.result)
            if self.result.not_exportable:
                _log.warning(
                    "the checkpoints in %s cannot be exported, or read by other programs of this "
                    "project, which read models of %s: %s",
                    *(root, titles(), self.result.not_exportable),
                )
        dist.barrier()


def find_identity(config: DropInConfig, args: Any, manifest: Manifest | None) -> Identity:
    """What the run's weights are: by the ``ultralong.json`` they come with, or by the arguments.

    ``--load`` is looked at first, as Megatron-LM does, then ``--pretrained-checkpoint``.

    Raises:
        InputError: the arguments describe another model than that file, or change the rotary
            embedding of a run that is resumed.
    """
    folders = [
        Path(folder)
        for folder in (args.load, getattr(args, "pretrained_checkpoint", None))
        if folder and (Path(folder) / FILE_NAME).is_file()
    ]
    folder = folders[0] if folders else None
    if folder is None:
        source = _described(args)
    else:
        source = metadata.load_metadata(folder, any_model=True)
        check_shape(args, source, folder)
        if folder == Path(args.load or "") and _iteration(folder) and not args.finetune:
            _check_resume(config, source, folder)
    config.check_scaling(source.rope_scaling)
    scaling = config.scaling(source.rope_scaling)
    yarn.hf_rope_scaling(scaling)  # what could not be exported is not trained for hours
    positions = source.model.max_position_embeddings
    if scaling != source.rope_scaling:  # else the source is extended already
        positions = config.max_positions(positions, source.rope_scaling)
    result = dataclasses.replace(
        source,
        model=dataclasses.replace(source.model, max_position_embeddings=positions),
        rope_scaling=scaling,
        separator_ids=tuple(manifest.separator_ids) if manifest else source.separator_ids,
        angle_precision=config.angle_precision,
    )
    return Identity(source, result.after_training(source, args.seq_length), folder)


def _described(args: Any) -> CheckpointMetadata:
    """What Megatron-LM's arguments say of weights that come without an ``ultralong.json``."""
    model, size = model_of(args), vocabulary(args)
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
        not_exportable=not_of_a_family(args) or unknown,
    )


def _iteration(folder: Path) -> int:
    """The iteration that a folder's latest checkpoint was saved at; 0: weights without a run."""
    path = folder / LATEST_FILE
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else RELEASE
    return int(text) if text.isdigit() else 0


def _check_resume(config: DropInConfig, source: CheckpointMetadata, folder: Path) -> None:
    """Refuse to continue with another rotary embedding than a run was begun with."""
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
