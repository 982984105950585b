"""The model that Megatron-LM's arguments describe, given or stored, beside an ``ultralong.json``'s.

Megatron-LM keeps the arguments of a run beside its weights, and looks at them only under
``--use-checkpoint-args``, and not at all of them. What no weight tells (the base of the rotary
embedding, the epsilon of norms) is then as the command line has it, and nothing fails.
"""

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE, iterations, resolve
from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats.model_state import load_common
from megatron_ultralong.dropin.arguments import ASKED, PREFIX
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import family_with
from megatron_ultralong.model.families.family import Family
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.config_file import CONFIG_FILE

ARGUMENT_OF = {"norm_epsilon": "layernorm_epsilon", "vocab_size": "padded_vocab_size"}
"""Arguments that have another name than the field."""
OF_ALL = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (1,),
}
ABSENT = (
    *("add_bias_linear", "qk_l2_norm", "attention_output_gate"),
    *("layernorm_zero_centered_gamma", "apply_layernorm_1p", "num_experts", "mtp_num_layers"),
    *("rotary_interleaved", "rotary_seq_len_interpolation_factor", "use_rope_scaling"),
    *("glu_linear_offset", "activation_func_clamp_value", "quick_geglu", "squared_relu"),
    *("openai_gelu", "apply_residual_connection_post_layernorm", "no_rope_freq", "use_mup"),
    *("heterogeneous_layers_config_path", "heterogeneous_layers_config_encoded_json"),
    *("multi_latent_attention", "experimental_attention_variant", "enable_mhc_connections"),
)
"""What no family has."""
OF_SOME = ("add_qkv_bias", "qk_layernorm")
"""What some families have."""


def model_of(args: Any) -> ModelConfig:
    """The shape that Megatron-LM's validated arguments describe."""
    values = {
        field.name: getattr(args, ARGUMENT_OF.get(field.name, field.name))
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
    return family_with(**{name: bool(getattr(args, name, False)) for name in OF_SOME})


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
    wanted = {**OF_ALL, **{name: (None, False, 0) for name in ABSENT}}
    for name, accepted in wanted.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            return f"{ASKED.flag(name)} {value}"
    return None if _family(args) else " with ".join(map(ASKED.flag, OF_SOME))


def check_shape(args: Any, source: CheckpointMetadata, folder: Path) -> None:
    """Check that the arguments describe the model that a checkpoint's ``ultralong.json`` does.

    The base of the rotary embedding is taken from there, unless the command line names another; of
    a model of no family, whose embedding may be Megatron-LM's own, it has to be said.

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
    for name in OF_SOME:
        wanted, stated = (getattr(model.family, name) for model in (asked, source.model))
        if wanted != stated:
            raise InputError(
                f"{ASKED.flag(name)} is {wanted}, and the {source.model.family.title} in {folder} "
                f"has {stated}: {'leave it out' if wanted else 'pass it'}"
            )
    for field in dataclasses.fields(ModelConfig):
        if field.name in ("vocab_size", "max_position_embeddings", "model_type"):
            continue  # padded, extended, and looked at above
        name = ARGUMENT_OF.get(field.name, field.name)
        if field.name == "rotary_base" and name not in given and not source.not_exportable:
            continue
        wanted, stated = getattr(asked, field.name), getattr(source.model, field.name)
        if wanted != stated:
            is_taken = field.name != "norm_epsilon"  # not by Megatron-LM
            raise InputError(
                f"{ASKED.flag(name)} is {wanted:g} and the model in {folder} has {stated:g}: pass "
                f"{stated:g}{', or leave it to --use-checkpoint-args' * is_taken}"
            )


_OFTEN_CHANGED = {"num_experts", "mtp_num_layers"}
"""Dense weights become experts (``--moe-use-upcycling``), layers for further tokens are added."""
OF_ROPE = ("use_rope_scaling", "rope_scaling_factor")
"""A scaling of Megatron-LM's own, which one of this project replaces."""
FACTS = (
    *(name for name in (*OF_ALL, *ABSENT, *OF_SOME) if name not in _OFTEN_CHANGED),
    *("rotary_base", ARGUMENT_OF["norm_epsilon"], "untie_embeddings_and_output_weights"),
    "rope_scaling_factor",
)
"""What makes the model what it is, and is not in the sizes of its weights."""
_FIXED = ("seed", "seq_length", f"{PREFIX}document_mask")
"""Of a run over rows of this project, what it keeps when it is resumed."""
_CONTEXT_OF_MEGATRON = 8192
"""Over which Megatron-LM counts rotations for ``--use-rope-scaling``, without an argument."""


def stored_arguments(folder: Path, step: int | None) -> argparse.Namespace | None:
    """Arguments of the run that saved a checkpoint in ``torch_dist`` form.

    Returns:
        None: there is no checkpoint, it is of another form, or it has none.

    Raises:
        InputError: it is damaged, or would run code.
    """
    if not (folder / LATEST_FILE).is_file() or not iterations(folder):
        return None
    path, _ = resolve(folder, step)
    found: argparse.Namespace | None = load_common(path).get("args")
    return found


def check_stored(
    args: Any, stored: argparse.Namespace, folder: Path, *, scales: bool
) -> tuple[str, ...]:
    """Compare the arguments of a run with those that its weights were saved with.

    ``scales``: this project's scaling replaces Megatron-LM's own.

    Returns:
        Warnings: what the command line names and the checkpoint has otherwise.

    Raises:
        InputError: an argument that the command line does not name differs.
    """
    given, warnings = ASKED.given(), []
    for name, here, there in _different(args, stored):
        if scales and name in OF_ROPE:
            continue
        said = f"{ASKED.flag(name)} is {here}, and the checkpoint in {folder} was saved with"
        if name not in given:
            takes_most = ", or add --use-checkpoint-args" * (not args.use_checkpoint_args)
            raise InputError(
                f"{said} {there}: its weights mean something else then; pass what was passed for "
                f"it{takes_most}, or name {here} on the command line if you mean it"
            )
        warnings.append(f"warning: {said} {there}: its weights were trained with the second")
    return tuple(warnings)


def _different(args: Any, stored: argparse.Namespace) -> Iterator[tuple[str, Any, Any]]:
    for name in FACTS:
        if not hasattr(args, name) or not hasattr(stored, name):
            continue  # a release that does not know it
        here, there = getattr(args, name), getattr(stored, name)
        if name == "rope_scaling_factor" and not (args.use_rope_scaling and hasattr(stored, name)):
            continue
        if here != there and (here or there):  # None and False both ask for nothing
            yield name, here, there


def stored_scaling(stored: argparse.Namespace) -> yarn.RopeScaling:
    """What Megatron-LM's own ``--use-rope-scaling`` was to a checkpoint."""
    if not getattr(stored, "use_rope_scaling", False):
        return None
    return yarn.YarnConfig(float(stored.rope_scaling_factor), _CONTEXT_OF_MEGATRON)


def stored_context(stored: argparse.Namespace | None) -> int | None:
    """Positions that a checkpoint was made for before any scaling; None: it does not say."""
    positions = getattr(stored, "max_position_embeddings", None)
    if stored is None or positions is None:
        return None
    return yarn.raw_context(stored_scaling(stored), int(positions))


def check_has_metadata(stored: argparse.Namespace, folder: Path | None, file_name: str) -> None:
    """Raise InputError where a run of this project's saved it, and its own file is not there."""
    scaling = getattr(stored, f"{PREFIX}rope_scaling", None)
    if scaling not in (None, "keep", "none"):
        raise InputError(
            f"the checkpoint in {folder} was trained with --ultralong-rope-scaling {scaling}, and "
            f"{file_name}, which says more of it, is not there: copy it from the --save of its run"
        )


def check_same_run(args: Any, stored: argparse.Namespace, folder: Path) -> None:
    """Check that a resumed run has the same of its rows as before.

    Raises:
        InputError: it has not.
    """
    rows = f"{PREFIX}data_path"
    before, now = getattr(stored, rows, ""), getattr(args, rows)
    way_out = "pass --finetune to begin another run with its weights"
    if not hasattr(stored, rows) and (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"the run in {folder} is of `ultralong pretrain` or `sft`, and is resumed by it; here "
            f"{way_out}"
        )
    if bool(before) != bool(now):
        raise InputError(
            f"the run in {folder}, which this resumes, is over {_data(before)}, and this one over "
            f"{_data(now)}: name the data that it began with, or {way_out}"
        )
    for name in _FIXED if now else ():
        here, there = getattr(args, name), getattr(stored, name, None)
        if there is not None and here != there:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} is {here}, and the run in {folder}, which this resumes, has {there}: use "
                f"{flag} {there}, or {way_out}"
            )


def _data(path: str) -> str:
    return f"--ultralong-data-path {path}" if path else "data of Megatron-LM's own (--data-path)"


_WAY_OUT = (
    "add --override-opt-param-scheduler for the schedule of this command line, or "
    "--use-checkpoint-opt-param-scheduler for that of the checkpoint"
)
_ASSERTED = re.compile(r"OptimizerParamScheduler: .* value (\S+) .* ?value (\S+) for (.*) do")


@contextlib.contextmanager
def assertion_is_told(folder: str | None) -> Iterator[None]:
    """The assertion as a message: of checkpoints that :func:`check_schedule` does not look into.

    Raises:
        InputError: the run in ``folder``, which is resumed, has another schedule.
    """
    try:
        yield
    except AssertionError as error:
        if (found := _ASSERTED.search(str(error))) is None:
            raise
        here, there, what = found.groups()
        raise InputError(
            f"the schedule is not that of the run in {folder}, which this resumes: {what}, in "
            f"samples if it is a number of them, is {here}, there {there}: {_WAY_OUT}"
        ) from error


def check_schedule(args: Any, folder: Path, step: int | None) -> None:
    """Check that a resumed run has the schedule of its checkpoint, unless it says which counts.

    Megatron-LM's scheduler compares what it was built with and what the checkpoint holds, once the
    model is built and its weights are read, and ends with an assertion that names no argument.

    Raises:
        InputError: it has another one; or as :func:`stored_arguments`.
    """
    saved: dict[str, Any] = load_common(resolve(folder, step)[0]).get("opt_param_scheduler") or {}
    says_which = args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler
    if says_which or args.no_load_optim or args.skip_train:
        return
    found = [
        f"--{name} is {here}, there {saved[key]}"
        for key, (name, here) in _schedule(args).items()
        if key in saved and saved[key] != here
    ]
    if found:
        differences = "; ".join(dict.fromkeys(found))
        raise InputError(
            f"the schedule is not that of the run in {folder}, which this resumes: {differences}: "
            f"{_WAY_OUT}"
        )


def _schedule(args: Any) -> dict[str, tuple[str, Any]]:
    """What the scheduler is built with, by its names: the arguments behind it, and the value.

    As ``get_optimizer_param_scheduler`` of ``megatron.training``: its steps are samples.
    """
    kind = "iters" if args.train_iters else "samples"
    num_steps, decay = getattr(args, f"train_{kind}"), getattr(args, f"lr_decay_{kind}")
    if not num_steps:
        return {}  # Megatron-LM asks for one of them
    unit = args.global_batch_size if args.train_iters else 1
    times = f" times --global-batch-size ({unit})" if args.train_iters else ""
    decay_name = f"train-{kind}" if decay is None else f"lr-decay-{kind}"
    decay_steps = (num_steps if decay is None else decay) * unit
    warmup_name, warmup = f"lr-warmup-{kind}{times}", getattr(args, f"lr_warmup_{kind}") * unit
    if args.lr_warmup_fraction is not None:
        warmup_name = f"lr-warmup-fraction times --{decay_name}{times}"
        warmup = args.lr_warmup_fraction * decay_steps
    begins = "" if args.weight_decay_incr_style == "constant" else "start-"
    ends = begins and "end-"
    return {
        "max_lr": ("lr", args.lr),
        "min_lr": ("min-lr", args.min_lr),
        "lr_warmup_steps": (warmup_name, warmup),
        "lr_decay_steps": (f"{decay_name}{times}", decay_steps),
        "lr_decay_style": ("lr-decay-style", args.lr_decay_style),
        "start_wd": (f"{begins}weight-decay", args.start_weight_decay),
        "end_wd": (f"{ends}weight-decay", args.end_weight_decay),
        "wd_incr_steps": (f"train-{kind}{times}", num_steps * unit),
        "wd_incr_style": ("weight-decay-incr-style", args.weight_decay_incr_style),
    }
